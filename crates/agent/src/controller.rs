//! The controller: the thread that owns the proxy and takes changes to it, one batch after the other.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sluice_kubeapi::manifests::{Batch, ManifestSource, POLL_INTERVAL, Severity, Watch};
use sluice_model::Change;
use sluice_table::{NodePortAddresses, Verdict};
use tracing::{error, info, warn};

use crate::programming::Programming;
use crate::proxy::{Proxy, Standing};

/// How often the proxy does what is due from time to time: noticing that somebody has taken our rules away,
/// for one.
const TICK: Duration = Duration::from_millis(250);

/// The same while the capture works: how late it may be noticed that it is done.
const BUSY_TICK: Duration = Duration::from_millis(1);

/// The same while what decides at sockets passes from one agent to another: for how long nobody may look after it.
const HAND_OVER_TICK: Duration = Duration::from_millis(10);

/// A running controller.
#[derive(Debug)]
pub struct Controller {
    feed: Feed,
    thread: JoinHandle<u64>,
}

/// Where changes go in.
#[derive(Debug, Clone)]
pub struct Feed {
    messages: Sender<Message>,
    programming: Arc<Programming>,
}

/// The controller has ended and takes no changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ControllerEnded;

type Waiting = tokio::sync::oneshot::Sender<()>;

#[derive(Debug)]
enum Message {
    /// Apply these; then answer, if anybody waits for it: when endpoints have changed.
    Changes(Vec<Change>, Option<Waiting>),
    /// Serve nodePorts there, and answer whether that can be.
    NodePorts(NodePortAddresses, tokio::sync::oneshot::Sender<Result<(), String>>),
    /// The apiserver is reached there: no Service is to be in the way. Answer when what an earlier agent has left is not.
    Apiservers(Vec<SocketAddr>, Waiting),
    /// Answer when all that came before has taken effect, in the kernel too.
    Settle(Waiting),
    /// Answer what happens to connections to an address where no frontend matches.
    Explain(IpAddr, tokio::sync::oneshot::Sender<Option<Verdict>>),
    /// Answer what there is to tell about objects that do not fit together: so many, and how many there are.
    Notices(usize, tokio::sync::oneshot::Sender<Standing>),
    /// Shut down within this time.
    Stop(Duration),
}

impl Controller {
    /// Starts the thread, with nothing to serve yet.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(proxy: Proxy) -> io::Result<Self> {
        let (messages, receiver) = mpsc::channel();
        let programming = Arc::clone(proxy.programming());
        let feed = Feed { messages, programming: Arc::clone(&programming) };
        let builder = std::thread::Builder::new().name("controller".to_owned());
        let thread = builder.spawn(move || control(proxy, &receiver, &programming))?;
        Ok(Self { feed, thread })
    }

    /// Where changes go in.
    pub fn feed(&self) -> &Feed {
        &self.feed
    }

    /// Whether changes have taken effect.
    pub(crate) fn programming(&self) -> &Arc<Programming> {
        &self.feed.programming
    }

    /// Stops accepting and lets connections finish for up to `grace`. Returns how many were cut off.
    pub fn stop(self, grace: Duration) -> u64 {
        // A controller that has ended has nothing left to stop.
        let _ = self.feed.messages.send(Message::Stop(grace));
        self.thread.join().unwrap_or(0)
    }

    /// Whether the controller runs. It ends by itself only when the data plane is broken.
    pub fn is_alive(&self) -> bool {
        !self.thread.is_finished()
    }
}

impl Feed {
    /// Hands changes over; returns when they have taken effect, in the kernel too.
    ///
    /// # Errors
    /// The controller has ended.
    pub async fn apply(&self, changes: Vec<Change>) -> Result<(), ControllerEnded> {
        self.take(changes).await?;
        self.settled().await
    }

    /// Returns when all that was handed over so far has taken effect, in the kernel too, whatever is handed over meanwhile.
    ///
    /// # Errors
    /// The controller has ended.
    pub async fn settled(&self) -> Result<(), ControllerEnded> {
        let (done, is_done) = tokio::sync::oneshot::channel();
        self.messages.send(Message::Settle(done)).map_err(|_| ControllerEnded)?;
        is_done.await.map_err(|_| ControllerEnded)
    }

    /// Hands changes over; returns when endpoints have changed. Frontends may need the kernel, and nobody waits for that.
    ///
    /// # Errors
    /// The controller has ended.
    pub async fn take(&self, changes: Vec<Change>) -> Result<(), ControllerEnded> {
        let (done, is_done) = tokio::sync::oneshot::channel();
        self.send(changes, Some(done))?;
        is_done.await.map_err(|_| ControllerEnded)
    }

    /// Has nodePorts served elsewhere from now on.
    ///
    /// # Errors
    /// Why they stay where they are.
    pub(crate) async fn set_node_ports(&self, node_ports: NodePortAddresses) -> Result<(), String> {
        let (answer, answered) = tokio::sync::oneshot::channel();
        let ended = || "the controller has ended".to_owned();
        self.messages.send(Message::NodePorts(node_ports, answer)).map_err(|_| ended())?;
        answered.await.unwrap_or_else(|_| Err(ended()))
    }

    /// Says where the agent reaches the apiserver, so that Services are kept out of the way there; returns when what an earlier
    /// agent has left is not in the way any more.
    ///
    /// # Errors
    /// The controller has ended.
    pub(crate) async fn set_apiservers(&self, addresses: Vec<SocketAddr>) -> Result<(), ControllerEnded> {
        let (done, is_done) = tokio::sync::oneshot::channel();
        self.messages.send(Message::Apiservers(addresses, done)).map_err(|_| ControllerEnded)?;
        is_done.await.map_err(|_| ControllerEnded)
    }

    /// What happens to connections to an address where no frontend matches; `None` where the address is not the
    /// cluster's.
    ///
    /// # Errors
    /// The controller has ended.
    pub async fn verdict_without_frontend(&self, ip: IpAddr) -> Result<Option<Verdict>, ControllerEnded> {
        let (answer, answered) = tokio::sync::oneshot::channel();
        self.messages.send(Message::Explain(ip, answer)).map_err(|_| ControllerEnded)?;
        answered.await.map_err(|_| ControllerEnded)
    }

    /// What there is to tell a person about objects that do not fit together: so many of them, and how many there are.
    ///
    /// # Errors
    /// The controller has ended.
    pub(crate) async fn notices(&self, limit: usize) -> Result<Standing, ControllerEnded> {
        let (answer, answered) = tokio::sync::oneshot::channel();
        self.messages.send(Message::Notices(limit, answer)).map_err(|_| ControllerEnded)?;
        answered.await.map_err(|_| ControllerEnded)
    }

    /// Loads manifests, serves what they say, and follows them for as long as the watch is held.
    ///
    /// # Errors
    /// The system gives no thread.
    pub async fn follow(&self, mut source: ManifestSource) -> io::Result<Watch> {
        let first = source.load();
        log(&first);
        // A controller that has ended is noticed by whoever holds it.
        let _ = self.take(first.changes).await;
        let feed = self.clone();
        // What changes while the kernel works does not wait for that.
        let watch = source.watch(POLL_INTERVAL, move |batch| {
            log(&batch);
            match feed.send(batch.changes, None) {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }
        })?;
        let _ = self.settled().await;
        Ok(watch)
    }

    fn send(&self, changes: Vec<Change>, done: Option<Waiting>) -> Result<(), ControllerEnded> {
        self.programming.queued(Instant::now(), &changes);
        self.messages.send(Message::Changes(changes, done)).map_err(|_| ControllerEnded)
    }
}

fn control(mut proxy: Proxy, messages: &Receiver<Message>, programming: &Programming) -> u64 {
    // With the step after which all that came before has taken effect.
    let mut settling: Vec<(u64, Waiting)> = Vec::new();
    let mut tick = TICK;
    loop {
        match messages.recv_timeout(tick) {
            Ok(first) => {
                // Whatever has come in since is applied in the same step.
                let mut changes = Vec::new();
                let (mut waiting, mut to_settle) = (Vec::new(), Vec::new());
                let mut batches = 0;
                for message in std::iter::once(first).chain(messages.try_iter()) {
                    match message {
                        Message::Changes(more, done) => {
                            changes.extend(more);
                            waiting.extend(done);
                            batches += 1;
                        }
                        Message::NodePorts(node_ports, answer) => {
                            let set = proxy.set_node_ports(node_ports);
                            let _ = answer.send(set.map_err(|reason| format!("{reason:#}")));
                        }
                        Message::Apiservers(addresses, done) => {
                            proxy.set_apiservers(addresses);
                            answer([done]);
                        }
                        // What comes after it is waited for only where it is taken in along with what came before.
                        Message::Settle(done) if batches == 0 => settling.push((proxy.last_step(), done)),
                        Message::Settle(done) => to_settle.push(done),
                        Message::Explain(ip, answer) => {
                            // Nobody waiting any more is fine.
                            let _ = answer.send(proxy.verdict_without_frontend(ip));
                        }
                        Message::Notices(limit, answer) => {
                            let _ = answer.send(proxy.notices(limit));
                        }
                        Message::Stop(grace) => return proxy.shut_down(grace),
                    }
                }
                // The first changes count even if there are none.
                if batches > 0 {
                    programming.taken(Instant::now(), batches, &changes);
                    proxy.take(changes);
                }
                answer(waiting);
                settling.extend(to_settle.into_iter().map(|done| (proxy.last_step(), done)));
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return proxy.shut_down(Duration::ZERO),
        }
        let is_in_step = !proxy.poll();
        let is_settled = |(step, _): &mut (u64, Waiting)| !is_in_step || proxy.steps() >= *step;
        answer(settling.extract_if(.., is_settled).map(|(_, done)| done));
        tick = match is_in_step {
            true => BUSY_TICK,
            false if proxy.is_handing_over() => HAND_OVER_TICK,
            false => TICK,
        };
        if !proxy.is_alive() {
            error!("a worker of the data plane has ended; so does the agent, to be started again whole");
            return proxy.shut_down(Duration::ZERO);
        }
    }
}

fn answer(waiting: impl IntoIterator<Item = Waiting>) {
    for done in waiting {
        // Nobody waiting any more is fine.
        let _ = done.send(());
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
