//! The abstract unix socket over which two agents in one network namespace talk.

use std::io::{self, ErrorKind};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener as StdListener, UnixStream as StdStream};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use super::memory::Memory;

/// The socket's name. Another format needs another name, so that agents with different formats do not meet.
const NAME: &str = "sluice-recall-1";

/// The longest answer; with the most flows and clients, an answer takes a third of that.
const LONGEST: u64 = 64 << 20;

/// Pause after a failed accept(2).
const PAUSE: Duration = Duration::from_millis(100);

/// The socket's name, for people.
pub(super) fn name() -> &'static str {
    NAME
}

fn address() -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(NAME)
}

/// Connects to the agent that answers on the socket.
///
/// # Errors
/// `ConnectionRefused`: there is none. `PermissionDenied`: the answering process belongs to another user.
pub(super) fn connect() -> io::Result<UnixStream> {
    let stream = StdStream::connect_addr(&address()?)?;
    stream.set_nonblocking(true)?;
    let stream = UnixStream::from_std(stream)?;
    match is_allowed(&stream) {
        true => Ok(stream),
        false => Err(io::Error::new(ErrorKind::PermissionDenied, "another user's process has its socket")),
    }
}

/// Whether the peer is root or our own user: abstract sockets have no mode, and any process of the network
/// namespace may take the name.
fn is_allowed(stream: &UnixStream) -> bool {
    stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == rustix::process::geteuid().as_raw())
}

/// The listening end of the socket.
#[derive(Debug)]
pub(super) struct Listener(UnixListener);

impl Listener {
    /// Binds the socket.
    ///
    /// # Errors
    /// Another process has it.
    pub(super) fn bind() -> io::Result<Self> {
        let listener = StdListener::bind_addr(&address()?)?;
        listener.set_nonblocking(true)?;
        UnixListener::from_std(listener).map(Self)
    }

    /// Accepts the next agent that asks.
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

/// The answers of another agent, one per line.
#[derive(Debug)]
pub(super) struct Incoming(BufReader<UnixStream>);

impl Incoming {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self(BufReader::new(stream))
    }

    /// Reads the next answer.
    ///
    /// # Errors
    /// The other agent has ended, or its version has another format.
    pub(super) async fn memory(&mut self) -> io::Result<Memory> {
        let mut line = Vec::new();
        (&mut self.0).take(LONGEST).read_until(b'\n', &mut line).await?;
        if !line.ends_with(b"\n") {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        Ok(serde_json::from_slice(&line)?)
    }
}
