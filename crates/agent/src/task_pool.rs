//! Runs long work in tasks and on threads that nobody waits for: a bounded number of pieces at a time, the
//! others in the order in which they came.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::JoinError;

/// A pool for work of one kind. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct TaskPool(Arc<Semaphore>);

impl TaskPool {
    /// A pool for this many pieces at a time.
    pub(crate) fn new(at_a_time: usize) -> Self {
        Self(Arc::new(Semaphore::new(at_a_time)))
    }

    /// Runs a piece when its turn comes. If the caller goes away before, it is not run; if later, it goes on
    /// and keeps its turn until it is done, because what it has asked of others would go on anyway.
    ///
    /// # Errors
    /// The piece has panicked.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        piece: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, JoinError> {
        // Nobody closes the semaphore.
        let turn = Arc::clone(&self.0).acquire_owned().await.ok();
        let done = tokio::spawn(async move {
            let _turn = turn;
            piece.await
        });
        done.await
    }

    /// The same for work that needs a thread.
    ///
    /// # Errors
    /// The piece has panicked.
    pub(crate) async fn run_blocking<T: Send + 'static>(
        &self,
        piece: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, JoinError> {
        self.run(async { tokio::task::spawn_blocking(piece).await }).await.flatten()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn a_piece_that_nobody_waits_for_any_more_keeps_its_turn() {
        let pool = TaskPool::new(1);
        let (began, begun) = mpsc::channel();
        let (open, gate) = mpsc::channel::<()>();
        let first = tokio::spawn({
            let (pool, began) = (pool.clone(), began.clone());
            async move {
                let piece = move || {
                    began.send("the first").unwrap();
                    gate.recv().unwrap();
                    began.send("the end of the first").unwrap();
                };
                pool.run_blocking(piece).await
            }
        });
        // Nothing below waits for a thread of the runtime.
        let begun = tokio::task::spawn_blocking(move || (begun.recv().unwrap(), begun)).await.unwrap();
        let (said, begun) = begun;
        assert_eq!(said, "the first");
        first.abort();
        assert!(first.await.unwrap_err().is_cancelled());
        assert_eq!(pool.0.available_permits(), 0, "it is still being done");
        open.send(()).unwrap();
        pool.run_blocking(move || began.send("the second").unwrap()).await.unwrap();
        assert_eq!(begun.try_iter().collect::<Vec<_>>(), ["the end of the first", "the second"]);
    }

    #[tokio::test]
    async fn nor_is_the_turn_over_while_somebody_else_has_yet_to_answer() {
        let pool = TaskPool::new(1);
        let (question, mut asked) = tokio::sync::mpsc::unbounded_channel();
        let ask = || {
            let (pool, question) = (pool.clone(), question.clone());
            tokio::spawn(async move {
                let piece = async move {
                    let (answer, answered) = tokio::sync::oneshot::channel();
                    question.send(answer).unwrap();
                    answered.await
                };
                pool.run(piece).await
            })
        };
        let first = ask();
        let answer = asked.recv().await.unwrap();
        first.abort();
        assert!(first.await.unwrap_err().is_cancelled());
        let second = ask();
        assert_eq!(pool.0.available_permits(), 0);
        answer.send("to the first").unwrap();
        asked.recv().await.unwrap().send("to the second").unwrap();
        assert_eq!(second.await.unwrap().unwrap().unwrap(), "to the second");
    }
}
