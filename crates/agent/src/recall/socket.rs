//! The abstract unix socket that two agents in one network namespace talk over.

use std::io::{self, ErrorKind};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener as StdListener, UnixStream as StdStream};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use super::memory::Memory;

/// Its name. Another format gets another name, so that agents that do not understand each other do not meet.
const NAME: &str = "sluice-recall-1";

/// How long an answer may be; as much as there may be flows and clients takes a third of that.
const LONGEST: u64 = 64 << 20;

/// Pause after an accept(2) that failed.
const PAUSE: Duration = Duration::from_millis(100);

/// Its name, for people.
pub(super) fn name() -> &'static str {
    NAME
}

fn address() -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(NAME)
}

/// Connects to the agent that answers.
///
/// # Errors
/// `ConnectionRefused`: there is none. `PermissionDenied`: whoever answers may be anybody.
pub(super) fn connect() -> io::Result<UnixStream> {
    let stream = StdStream::connect_addr(&address()?)?;
    stream.set_nonblocking(true)?;
    let stream = UnixStream::from_std(stream)?;
    match is_allowed(&stream) {
        true => Ok(stream),
        false => Err(io::Error::new(ErrorKind::PermissionDenied, "another user's process has its socket")),
    }
}

/// Root or the own user: abstract sockets have no mode, and any process of the network namespace may take the name.
fn is_allowed(stream: &UnixStream) -> bool {
    stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == rustix::process::geteuid().as_raw())
}

/// Where an agent is asked.
#[derive(Debug)]
pub(super) struct Listener(UnixListener);

impl Listener {
    /// Takes the name.
    ///
    /// # Errors
    /// Another process has it.
    pub(super) fn bind() -> io::Result<Self> {
        let listener = StdListener::bind_addr(&address()?)?;
        listener.set_nonblocking(true)?;
        UnixListener::from_std(listener).map(Self)
    }

    /// The next agent that asks.
    pub(super) async fn accept(&self) -> UnixStream {
        loop {
            match self.0.accept().await {
                Ok((stream, _)) if is_allowed(&stream) => return stream,
                Ok(_) => {}
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }
}

/// What an agent answers: a line each.
#[derive(Debug)]
pub(super) struct Incoming(BufReader<UnixStream>);

impl Incoming {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self(BufReader::new(stream))
    }

    /// The next answer.
    ///
    /// # Errors
    /// The other agent has ended, or is of a version that says it in another way.
    pub(super) async fn memory(&mut self) -> io::Result<Memory> {
        let mut line = Vec::new();
        (&mut self.0).take(LONGEST).read_until(b'\n', &mut line).await?;
        if !line.ends_with(b"\n") {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        Ok(serde_json::from_slice(&line)?)
    }
}
