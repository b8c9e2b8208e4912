//! The controller: the thread that owns the proxy and applies changes to it in batches.

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

/// How often the proxy does its periodic work, for example noticing that somebody has removed our rules.
const TICK: Duration = Duration::from_millis(250);

/// The interval while a capture step is under way: the end of the step is noticed at most this late.
const BUSY_TICK: Duration = Duration::from_millis(1);

/// The interval while socket mode passes from one agent to another: for at most this long, neither looks after
/// it.
const HAND_OVER_TICK: Duration = Duration::from_millis(10);

/// A running controller.
#[derive(Debug)]
pub struct Controller {
    feed: Feed,
    thread: JoinHandle<u64>,
}

/// The sending end, to which changes are handed.
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
    /// Apply these changes. Then, if somebody waits, answer once endpoints have changed.
    Changes(Vec<Change>, Option<Waiting>),
    /// Serve nodePorts at these addresses, and answer whether that is possible.
    NodePorts(NodePortAddresses, tokio::sync::oneshot::Sender<Result<(), String>>),
    /// The apiserver is reached at these addresses, which no Service may take. Answer once no leftovers of an
    /// earlier agent are in the way.
    Apiservers(Vec<SocketAddr>, Waiting),
    /// Answer once all earlier messages have taken effect, in the kernel too.
    Settle(Waiting),
    /// Answer what happens to connections to an address that no frontend matches.
    Explain(IpAddr, tokio::sync::oneshot::Sender<Option<Verdict>>),
    /// Answer with up to this many of the current conflicts between objects, and their total count.
    Notices(usize, tokio::sync::oneshot::Sender<Standing>),
    /// Shut down within this time.
    Stop(Duration),
}

impl Controller {
    /// Starts the thread, with nothing to serve yet.
    ///
    /// # Errors
    /// The system refuses the thread.
    pub fn start(proxy: Proxy) -> io::Result<Self> {
        let (messages, receiver) = mpsc::channel();
        let programming = Arc::clone(proxy.programming());
        let feed = Feed { messages, programming: Arc::clone(&programming) };
        let builder = std::thread::Builder::new().name("controller".to_owned());
        let thread = builder.spawn(move || control(proxy, &receiver, &programming))?;
        Ok(Self { feed, thread })
    }

    /// The sending end, to which changes are handed.
    pub fn feed(&self) -> &Feed {
        &self.feed
    }

    /// Which changes have taken effect.
    pub(crate) fn programming(&self) -> &Arc<Programming> {
        &self.feed.programming
    }

    /// Stops accepting and lets connections finish for up to `grace`. Returns how many were cut off.
    pub fn stop(self, grace: Duration) -> u64 {
        // A controller that has ended has nothing left to stop.
        let _ = self.feed.messages.send(Message::Stop(grace));
        self.thread.join().unwrap_or(0)
    }

    /// Whether the controller runs. It ends by itself only if the data plane is broken.
    pub fn is_alive(&self) -> bool {
        !self.thread.is_finished()
    }
}

impl Feed {
    /// Hands over changes; returns when they have taken effect, in the kernel too.
    ///
    /// # Errors
    /// The controller has ended.
    pub async fn apply(&self, changes: Vec<Change>) -> Result<(), ControllerEnded> {
        self.take(changes).await?;
        self.settled().await
    }

    /// Returns when everything handed over so far has taken effect, in the kernel too. Does not wait for later
    /// changes.
    ///
    /// # Errors
    /// The controller has ended.
    pub async fn settled(&self) -> Result<(), ControllerEnded> {
        let (done, is_done) = tokio::sync::oneshot::channel();
        self.messages.send(Message::Settle(done)).map_err(|_| ControllerEnded)?;
        is_done.await.map_err(|_| ControllerEnded)
    }

    /// Hands over changes; returns when endpoints have changed. Does not wait for the kernel's part of
    /// frontends.
    ///
    /// # Errors
    /// The controller has ended.
    pub async fn take(&self, changes: Vec<Change>) -> Result<(), ControllerEnded> {
        let (done, is_done) = tokio::sync::oneshot::channel();
        self.send(changes, Some(done))?;
        is_done.await.map_err(|_| ControllerEnded)
    }

    /// Serves nodePorts at other addresses from now on.
    ///
    /// # Errors
    /// The reason why the addresses stay as they are.
    pub(crate) async fn set_node_ports(&self, node_ports: NodePortAddresses) -> Result<(), String> {
        let (answer, answered) = tokio::sync::oneshot::channel();
        let ended = || "the controller has ended".to_owned();
        self.messages.send(Message::NodePorts(node_ports, answer)).map_err(|_| ended())?;
        answered.await.unwrap_or_else(|_| Err(ended()))
    }

    /// Tells the proxy where the agent reaches the apiserver, so that no Service takes these addresses. Returns
    /// when no leftovers of an earlier agent are in the way any more.
    ///
    /// # Errors
    /// The controller has ended.
    pub(crate) async fn set_apiservers(&self, addresses: Vec<SocketAddr>) -> Result<(), ControllerEnded> {
        let (done, is_done) = tokio::sync::oneshot::channel();
        self.messages.send(Message::Apiservers(addresses, done)).map_err(|_| ControllerEnded)?;
        is_done.await.map_err(|_| ControllerEnded)
    }

    /// What happens to connections to an address that no frontend matches; `None` if the address is not one of
    /// the cluster's.
    ///
    /// # Errors
    /// The controller has ended.
    pub async fn verdict_without_frontend(&self, ip: IpAddr) -> Result<Option<Verdict>, ControllerEnded> {
        let (answer, answered) = tokio::sync::oneshot::channel();
        self.messages.send(Message::Explain(ip, answer)).map_err(|_| ControllerEnded)?;
        answered.await.map_err(|_| ControllerEnded)
    }

    /// Up to `limit` of the current conflicts between objects, for people, and their total count.
    ///
    /// # Errors
    /// The controller has ended.
    pub(crate) async fn notices(&self, limit: usize) -> Result<Standing, ControllerEnded> {
        let (answer, answered) = tokio::sync::oneshot::channel();
        self.messages.send(Message::Notices(limit, answer)).map_err(|_| ControllerEnded)?;
        answered.await.map_err(|_| ControllerEnded)
    }

    /// Loads manifests, serves them, and follows them for as long as the watch is held.
    ///
    /// # Errors
    /// The system refuses the thread.
    pub async fn follow(&self, mut source: ManifestSource) -> io::Result<Watch> {
        let first = source.load();
        log(&first);
        // If the controller has ended, its owner notices.
        let _ = self.take(first.changes).await;
        let feed = self.clone();
        // Changes that come while the kernel works do not wait for it.
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
    // Each with the step after which all earlier messages have taken effect.
    let mut settling: Vec<(u64, Waiting)> = Vec::new();
    let mut tick = TICK;
    loop {
        match messages.recv_timeout(tick) {
            Ok(first) => {
                // All messages that have come in meanwhile are applied in the same step.
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
                        // It waits for a batch of this round only if one came before it.
                        Message::Settle(done) if batches == 0 => settling.push((proxy.last_step(), done)),
                        Message::Settle(done) => to_settle.push(done),
                        Message::Explain(ip, answer) => {
                            // It is no error if nobody waits any more.
                            let _ = answer.send(proxy.verdict_without_frontend(ip));
                        }
                        Message::Notices(limit, answer) => {
                            let _ = answer.send(proxy.notices(limit));
                        }
                        Message::Stop(grace) => return proxy.shut_down(grace),
                    }
                }
                // The first batch counts even if it is empty.
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
        // It is no error if nobody waits any more.
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
