//! One of a session's two sockets: its state according to events, and single reads and writes.

use std::io::{self, ErrorKind};

use mio::event::Event;
use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use rustix::net::sockopt::set_tcp_nodelay;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use socket2::SockRef;

/// One of a session's two sockets.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) stream: TcpStream,
    /// There may be bytes, an EOF or an error to read.
    pub(crate) readable: bool,
    /// It may accept bytes.
    pub(crate) writable: bool,
    /// There may be an urgent byte among the bytes to read.
    pub(crate) urgent: bool,
    /// Its FIN arrived, and it had not failed before, so the bytes up to the FIN are complete.
    fin: bool,
    /// The connection was reset, or the peer has vanished.
    failed: bool,
    pace: Pace,
    watched: Watched,
    /// The kernel holds at most [`MOST_UNSENT`] unsent bytes.
    is_bounded: bool,
}

/// The maximum number of bytes of bulk data that the kernel accepts but cannot send yet because the peer does
/// not read. Otherwise the limit is the size of a socket's buffer, up to 4 MiB (`net.ipv4.tcp_wmem`), and all
/// TCP sockets of a node share one total (`tcp_mem`): some hundred stalled readers would take it from all
/// others. Bytes in flight do not count, so this does not limit the rate; the socket is reported writable
/// below half of it. With a quarter of it, one stream lost a tenth of its throughput.
pub(crate) const MOST_UNSENT: u32 = 2 << 20;

/// How the kernel sends what is written. With Nagle's algorithm, a small segment waits until earlier data is
/// acknowledged, but the first one need not wait. So most connections to endpoints, which are written to
/// once, never need `TCP_NODELAY`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pace {
    /// With Nagle's algorithm; nothing was written yet.
    Fresh,
    /// With Nagle's algorithm; something was written.
    Written,
    /// With `TCP_NODELAY`.
    Prompt,
}

/// The events that a socket is registered for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Watched {
    Nothing,
    /// Readable only: a socket that accepts all that is written needs no event that says so each time.
    Reading,
    All,
}

impl Peer {
    /// An accepted connection, with `TCP_NODELAY` from its listener. The client's first bytes have probably
    /// arrived.
    pub(crate) fn accepted(stream: TcpStream) -> Self {
        Self::new(stream, true, true, Pace::Prompt)
    }

    /// An established connection to an endpoint, which has probably sent nothing yet.
    pub(crate) fn connected(stream: TcpStream) -> Self {
        Self::new(stream, false, true, Pace::Fresh)
    }

    /// A connection that is being established: an event reports when it is.
    pub(crate) fn connecting(stream: TcpStream) -> Self {
        Self::new(stream, false, false, Pace::Fresh)
    }

    fn new(stream: TcpStream, readable: bool, writable: bool, pace: Pace) -> Self {
        Self {
            stream,
            readable,
            writable,
            urgent: false,
            fin: false,
            failed: false,
            pace,
            watched: Watched::Nothing,
            is_bounded: false,
        }
    }

    /// Limits the unsent bytes that the kernel holds from now on. Only for bulk, because it is a system call.
    pub(crate) fn bound_unsent(&mut self) {
        if !std::mem::replace(&mut self.is_bounded, true) {
            // It fails only if the connection is gone.
            let _ = SockRef::from(&self.stream).set_tcp_notsent_lowat(MOST_UNSENT);
        }
    }

    /// Registers for events that the socket is readable or has ended and, if it accepts nothing at the
    /// moment, that it is writable again.
    pub(crate) fn watch(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        self.watch_for(if self.writable { Watched::Reading } else { Watched::All }, registry, token)
    }

    /// Registers for all events.
    pub(crate) fn watch_all(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        self.watch_for(Watched::All, registry, token)
    }

    /// The kernel reports conditions that hold already at once.
    fn watch_for(&mut self, wanted: Watched, registry: &Registry, token: Token) -> io::Result<()> {
        if wanted <= self.watched {
            return Ok(());
        }
        let reading = Interest::READABLE | Interest::PRIORITY;
        let interest = if wanted == Watched::All { reading | Interest::WRITABLE } else { reading };
        if self.watched == Watched::Nothing {
            registry.register(&mut self.stream, token, interest)?;
        } else {
            registry.reregister(&mut self.stream, token, interest)?;
        }
        self.watched = wanted;
        Ok(())
    }

    /// Deregisters the socket.
    pub(crate) fn unwatch(&mut self, registry: &Registry) {
        if std::mem::replace(&mut self.watched, Watched::Nothing) != Watched::Nothing {
            // It fails only if the socket is not registered.
            let _ = registry.deregister(&mut self.stream);
        }
    }

    /// Records an event. Edge-triggered: it is not reported again.
    pub(crate) fn note(&mut self, event: &Event) {
        // A reset ends both directions at once, so its event reports the end of reading too, which is no FIN.
        self.fin |= event.is_read_closed() && !event.is_error() && !self.failed;
        self.failed |= event.is_error();
        self.urgent |= event.is_priority();
        self.readable |= event.is_readable() || event.is_priority() || self.is_ending();
        self.writable |= event.is_writable() || event.is_error();
    }

    /// Records an error of a system call that makes the connection unusable.
    pub(crate) fn fail(&mut self, error: &io::Error) {
        self.fin |= !self.failed && is_after_fin(error);
        self.failed = true;
    }

    /// Finds out whether a failed peer's FIN had arrived before the failure, if one event reported both. To
    /// be called before a failed peer is read: the kernel reports an error once, to the first call.
    pub(crate) fn settle_failure(&mut self) {
        if self.failed && !self.fin {
            self.fin = matches!(self.stream.take_error(), Ok(Some(error)) if is_after_fin(&error));
        }
    }

    /// Whether there is an end of the data behind the bytes.
    pub(crate) fn is_ending(&self) -> bool {
        self.fin || self.failed
    }

    /// Whether that end is a FIN, so that all data before it has arrived, whatever happened to the peer
    /// later.
    pub(crate) fn has_said_all(&self) -> bool {
        self.fin
    }

    /// Whether that end is not a FIN, so that data is missing.
    pub(crate) fn is_cut_off(&self) -> bool {
        self.failed && !self.fin
    }

    /// Whether the connection was reset, or the peer has vanished.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed
    }

    /// Whether there are unread bytes.
    pub(crate) fn has_unread(&self) -> bool {
        matches!(recv(&self.stream, &mut [0_u8], RecvFlags::PEEK), Ok((1.., _)))
    }

    /// Reads once.
    pub(crate) fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (read, _) = recv(&self.stream, buffer, RecvFlags::empty())?;
        // After a reset was reported, a read returns 0 too.
        self.fin |= read == 0 && !self.failed;
        Ok(read)
    }

    /// Writes once.
    pub(crate) fn send(&mut self, bytes: &[u8], flags: SendFlags) -> io::Result<usize> {
        self.pace = match self.pace {
            Pace::Fresh => Pace::Written,
            Pace::Written => {
                // It fails only if the connection is gone.
                let _ = set_tcp_nodelay(&self.stream, true);
                Pace::Prompt
            }
            Pace::Prompt => Pace::Prompt,
        };
        Ok(send(&self.stream, bytes, flags | SendFlags::NOSIGNAL)?)
    }
}

/// Whether the kernel reports a reset after a FIN in this way (`CLOSE_WAIT`, tcp_reset()).
fn is_after_fin(error: &io::Error) -> bool {
    error.kind() == ErrorKind::BrokenPipe
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use rustix::net::sockopt::tcp_nodelay;

    use super::*;

    #[test]
    fn only_the_second_piece_needs_an_option_and_has_it() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut peer = Peer::connecting(TcpStream::from_std(stream));
        for is_prompt in [false, true, true] {
            peer.send(b"a", SendFlags::empty()).unwrap();
            assert_eq!(tcp_nodelay(&peer.stream).unwrap(), is_prompt);
        }
    }
    /// How a peer's FIN and reset are reported.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Events {
        /// By one event.
        Together,
        /// By one event each.
        Apart,
        /// By no event before something is written.
        Late,
    }

    /// Returns our side of a connection whose other side has sent a FIN, a reset or both, and the other side
    /// if it still exists.
    fn ended(fin: bool, reset: bool, events: Events) -> (Peer, Option<std::net::TcpStream>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let theirs = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (ours, _) = listener.accept().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut peer = Peer::accepted(TcpStream::from_std(ours));
        let mut poll = mio::Poll::new().unwrap();
        peer.watch_all(poll.registry(), Token(0)).unwrap();
        let mut hear = |peer: &mut Peer| {
            let mut heard = mio::Events::with_capacity(8);
            poll.poll(&mut heard, Some(std::time::Duration::from_millis(100))).unwrap();
            heard.iter().for_each(|event| peer.note(event));
        };
        if fin {
            theirs.shutdown(std::net::Shutdown::Write).unwrap();
        }
        if events == Events::Apart {
            hear(&mut peer);
        }
        let theirs = if reset {
            SockRef::from(&theirs).set_linger(Some(std::time::Duration::ZERO)).unwrap();
            drop(theirs);
            None
        } else {
            Some(theirs)
        };
        if events != Events::Late {
            hear(&mut peer);
        }
        (peer, theirs)
    }

    #[test]
    fn a_reset_after_a_fin_is_told_from_one_without() {
        for events in [Events::Together, Events::Apart, Events::Late] {
            for (fin, reset) in [(false, false), (true, false), (false, true), (true, true)] {
                let (mut peer, _theirs) = ended(fin, reset, events);
                peer.settle_failure();
                if events == Events::Late
                    && let Err(error) = peer.send(b"a", SendFlags::empty())
                {
                    peer.fail(&error);
                }
                let seen = [peer.has_failed(), peer.is_cut_off()];
                assert_eq!(seen, [reset, reset && !fin], "FIN: {fin}, {events:?}");
                // A read finds a FIN that no event has reported.
                assert_eq!(peer.receive(&mut [0]).is_ok(), fin || (reset && peer.has_failed()));
                assert_eq!(peer.has_said_all(), fin);
            }
        }
    }
}
