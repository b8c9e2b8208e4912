//! The controller: the thread that owns the proxy and takes changes to it, one batch after the other.

use std::io;
use std::ops::ControlFlow;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use sluice_kubeapi::manifests::{Batch, ManifestSource, POLL_INTERVAL, Severity, Watch};
use sluice_model::Change;
use tracing::{error, info, warn};

use crate::proxy::Proxy;

/// How often the proxy does what is due from time to time.
const TICK: Duration = Duration::from_secs(1);

/// A running controller.
#[derive(Debug)]
pub struct Controller {
    messages: Sender<Message>,
    thread: JoinHandle<u64>,
    _watch: Watch,
}

#[derive(Debug)]
enum Message {
    Changes(Vec<Change>),
    /// Shut down within this time.
    Stop(Duration),
}

impl Controller {
    /// Loads the manifests, serves what they say, and follows them from then on.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(mut proxy: Proxy, mut source: ManifestSource) -> io::Result<Self> {
        let first = source.load();
        log(&first);
        proxy.apply(first.changes);
        let (messages, receiver) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("controller".to_owned())
            .spawn(move || control(proxy, &receiver))?;
        let sender = messages.clone();
        let watch = source.watch(POLL_INTERVAL, move |batch| {
            log(&batch);
            match sender.send(Message::Changes(batch.changes)) {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }
        })?;
        Ok(Self { messages, thread, _watch: watch })
    }

    /// Stops accepting and lets connections finish for up to `grace`. Returns how many were cut off.
    pub fn stop(self, grace: Duration) -> u64 {
        // A controller that has ended has nothing left to stop.
        let _ = self.messages.send(Message::Stop(grace));
        self.thread.join().unwrap_or(0)
    }

    /// Whether the controller runs. It ends by itself only when the data plane is broken.
    pub fn is_alive(&self) -> bool {
        !self.thread.is_finished()
    }
}

fn control(mut proxy: Proxy, messages: &Receiver<Message>) -> u64 {
    loop {
        match messages.recv_timeout(TICK) {
            Ok(Message::Changes(mut changes)) => {
                // Whatever has come in since is applied in the same step.
                let mut stop = None;
                for message in messages.try_iter() {
                    match message {
                        Message::Changes(more) => changes.extend(more),
                        Message::Stop(grace) => stop = Some(grace),
                    }
                }
                if let Some(grace) = stop {
                    return proxy.shut_down(grace);
                }
                proxy.apply(changes);
            }
            Ok(Message::Stop(grace)) => return proxy.shut_down(grace),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return proxy.shut_down(Duration::ZERO),
        }
        proxy.tick();
        if !proxy.is_alive() {
            error!("a worker of the data plane has ended; so does the agent, to be started again whole");
            return proxy.shut_down(Duration::ZERO);
        }
    }
}

fn log(batch: &Batch) {
    for report in &batch.reports {
        match report.severity {
            Severity::Error => error!("{report}"),
            Severity::Warning => warn!("{report}"),
            Severity::Info => info!("{report}"),
        }
    }
}
