//! Work that takes a while, on threads that nobody waits for: a bounded number of pieces at a time, the others in the order
//! in which they came.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::JoinError;

/// Where pieces of one kind are done. Cloning it shares it.
#[derive(Debug, Clone)]
pub(crate) struct Apart(Arc<Semaphore>);

impl Apart {
    /// For this many at a time.
    pub(crate) fn new(at_a_time: usize) -> Self {
        Self(Arc::new(Semaphore::new(at_a_time)))
    }

    /// Does a piece when its turn comes. If whoever asks for it goes before, it is not done; if later, it goes on, as nothing
    /// ends a thread, and keeps its turn until it is done.
    ///
    /// # Errors
    /// It has panicked.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        piece: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, JoinError> {
        // Nobody closes the semaphore.
        let turn = Arc::clone(&self.0).acquire_owned().await.ok();
        let done = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            piece()
        });
        done.await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn a_piece_that_nobody_waits_for_any_more_keeps_its_turn() {
        let apart = Apart::new(1);
        let (began, begun) = mpsc::channel();
        let (open, gate) = mpsc::channel::<()>();
        let first = tokio::spawn({
            let (apart, began) = (apart.clone(), began.clone());
            async move {
                let piece = move || {
                    began.send("the first").unwrap();
                    gate.recv().unwrap();
                    began.send("the end of the first").unwrap();
                };
                apart.run(piece).await
            }
        });
        // Nothing that follows waits for a thread of the runtime.
        let begun = tokio::task::spawn_blocking(move || (begun.recv().unwrap(), begun)).await.unwrap();
        let (said, begun) = begun;
        assert_eq!(said, "the first");
        first.abort();
        assert!(first.await.unwrap_err().is_cancelled());
        assert_eq!(apart.0.available_permits(), 0, "it is still being done");
        open.send(()).unwrap();
        apart.run(move || began.send("the second").unwrap()).await.unwrap();
        assert_eq!(begun.try_iter().collect::<Vec<_>>(), ["the end of the first", "the second"]);
    }
}
