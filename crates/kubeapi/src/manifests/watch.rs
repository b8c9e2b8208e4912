//! The polling thread.

use std::io;
use std::ops::ControlFlow;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::{Batch, ManifestSource};

/// How often files are checked. A change counts after two equal checks, and must take effect within a second.
pub const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// A running watch; dropping it ends its thread, which may finish reading a file first.
#[derive(Debug)]
pub struct Watch {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl ManifestSource {
    /// Polls on a thread of its own and passes changes to `on_batch`, until that breaks or the [`Watch`] is
    /// dropped. Call [`ManifestSource::load`] before.
    ///
    /// # Errors
    /// The system cannot start a thread.
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
        // A panic of the thread has already been logged.
        drop(self.thread.take().map(JoinHandle::join));
    }
}
