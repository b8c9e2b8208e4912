//! What an agent tells its successor: which UDP flows, and which clients with session affinity, have which
//! endpoint, so that they keep it.
//!
//! The old agent answers on an abstract unix socket, which belongs to the network namespace, as the rules do:
//! the two agents may be in containers that share nothing else. It sends its memory twice: when the new agent
//! asks, before that one opens any socket, and again when the new agent has taken its place. The second answer
//! has the flows that clients opened in between.

mod memory;
mod socket;

use std::time::Duration;

use tokio::net::UnixStream;
use tokio::task::{AbortHandle, JoinSet};
use tracing::{debug, info, warn};

pub(crate) use self::memory::Memory;
use self::socket::{Incoming, Listener};
use crate::proxy::Observer;

/// How often an agent checks whether another one has taken its place. A datagram may come at any time.
const LOOK: Duration = Duration::from_millis(20);

/// How often to try to bind the socket, which another agent may have.
const RETRY: Duration = Duration::from_secs(1);

/// After this many attempts without success, a serving agent assumes that it will never get the socket.
const SUSPICIOUS: u32 = 30;

/// How long an agent may take to answer, or to read an answer. A new agent waits this long at its start.
const PATIENCE: Duration = Duration::from_secs(2);

/// How many agents are answered at a time.
const MOST_ASKING: usize = 4;

/// The agent that is to be replaced, which has answered once.
#[derive(Debug)]
pub(crate) struct Predecessor {
    incoming: Incoming,
}

impl Predecessor {
    /// Asks the agent that serves this node for its memory. `None` if there is no such agent, or it does not
    /// answer.
    pub(crate) async fn ask() -> Option<(Self, Memory)> {
        let asked = async {
            let mut incoming = Incoming::new(socket::connect()?);
            incoming.memory().await.map(|memory| (Self { incoming }, memory))
        };
        match tokio::time::timeout(PATIENCE, asked).await {
            Ok(Ok(predecessor)) => Some(predecessor),
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => None,
            Ok(Err(error)) => {
                info!("UDP flows and sticky clients are not taken over from an earlier agent: {error}");
                None
            }
            Err(_) => {
                info!(
                    "UDP flows and sticky clients are not taken over from an earlier agent: it does not answer"
                );
                None
            }
        }
    }
}

/// Receives the predecessor's second answer, and answers the successor. Ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Recall {
    tasks: [AbortHandle; 2],
}

impl Recall {
    /// To be called by an agent that captures packets, before it has any sockets for them.
    pub(crate) fn start(observer: &Observer, predecessor: Option<Predecessor>) -> Self {
        let hear = tokio::spawn(hear(observer.clone(), predecessor));
        let answer = tokio::spawn(answer_all(observer.clone()));
        Self { tasks: [hear.abort_handle(), answer.abort_handle()] }
    }
}

impl Drop for Recall {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

async fn hear(observer: Observer, predecessor: Option<Predecessor>) {
    let Some(Predecessor { mut incoming }) = predecessor else { return };
    match incoming.memory().await {
        Ok(memory) => {
            observer.recall(memory.flows());
            memory.recall_clients(observer.table());
        }
        // It ended before this agent took its place.
        Err(error) => debug!("no second answer of the earlier agent: {error}"),
    }
}

async fn answer_all(observer: Observer) {
    let mut asking = JoinSet::new();
    let mut failures = 0;
    loop {
        if observer.is_replaced() {
            tokio::time::sleep(RETRY).await;
            continue;
        }
        let listener = match Listener::bind() {
            Ok(listener) => listener,
            // An earlier agent has it until it is replaced, which happens once this agent has something to
            // serve.
            Err(error) => {
                failures += u32::from(observer.frontends() > 0);
                if failures == SUSPICIOUS {
                    warn!(
                        "the next agent will not learn who has which endpoint, so that UDP flows and sticky clients may get others: \
                         {error}: end the process that has the abstract unix socket @{} (`ss -xlp`)",
                        socket::name()
                    );
                }
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
        failures = 0;
        loop {
            tokio::select! {
                stream = listener.accept(), if asking.len() < MOST_ASKING => {
                    asking.spawn(answer(observer.clone(), stream));
                }
                Some(_) = asking.join_next() => {}
                () = replaced(&observer) => break,
            }
        }
    }
}

/// Returns once another agent has taken this one's place.
async fn replaced(observer: &Observer) {
    while !observer.is_replaced() {
        tokio::time::sleep(LOOK).await;
    }
}

async fn answer(observer: Observer, mut stream: UnixStream) {
    let memory = Memory::collect(&observer).await;
    // The new agent's sockets will join this one's groups: the kernel then leads clients to other workers here
    // too.
    observer.recall(memory.flows());
    if !matches!(tokio::time::timeout(PATIENCE, memory.write(&mut stream)).await, Ok(Ok(()))) {
        return;
    }
    let has_gone = async {
        // The other side never sends anything; this waits for it to close.
        let _ = stream.readable().await;
    };
    tokio::select! {
        () = has_gone => return,
        () = replaced(&observer) => {}
    }
    let memory = Memory::collect(&observer).await;
    if !matches!(tokio::time::timeout(PATIENCE, memory.write(&mut stream)).await, Ok(Ok(()))) {
        debug!("the agent that takes over has not taken what is known of flows");
    }
}
