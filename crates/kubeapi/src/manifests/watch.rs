//! The thread that polls.

use std::io;
use std::ops::ControlFlow;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::{Batch, ManifestSource};

/// How often files are looked at. A change counts after two looks that agree, and has to within a second.
pub const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// A running watch; dropping it ends its thread, which may first finish reading a file.
#[derive(Debug)]
pub struct Watch {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl ManifestSource {
    /// Polls on a thread of its own and hands over what is new, until `on_batch` breaks or the [`Watch`]
    /// is dropped. [`ManifestSource::load`] comes before.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn watch(
        mut self,
        interval: Duration,
        mut on_batch: impl FnMut(Batch) -> ControlFlow<()> + Send + 'static,
    ) -> io::Result<Watch> {
        let (stop, stopped) = mpsc::channel();
        let thread = thread::Builder::new().name("manifests".to_owned()).spawn(move || {
            while stopped.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
                if self.poll().is_some_and(|batch| on_batch(batch).is_break()) {
                    return;
                }
            }
        })?;
        Ok(Watch { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        drop(self.stop.take());
        // A thread that panicked has said so itself.
        drop(self.thread.take().map(JoinHandle::join));
    }
}
