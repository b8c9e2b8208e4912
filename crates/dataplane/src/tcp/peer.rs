//! One of a session's two sockets: what the last events said of it, and reading and writing once.

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
    /// It may have bytes, an EOF or an error for us.
    pub(crate) readable: bool,
    /// It may take bytes.
    pub(crate) writable: bool,
    /// There may be an urgent byte among what can be read.
    pub(crate) urgent: bool,
    /// Its FIN arrived, and it had not failed before: the bytes up to there are all that it had to say.
    fin: bool,
    /// The connection was reset, or the peer has vanished.
    failed: bool,
    pace: Pace,
    watched: Watched,
    /// The kernel takes no more than [`MOST_UNSENT`].
    is_bounded: bool,
}

/// How many bytes the kernel takes of bulk that it cannot send yet, as the peer does not read them. Without it that is what a
/// socket's buffer has grown to, up to 4 MiB (`net.ipv4.tcp_wmem`), and all TCP of a node shares what there is (`tcp_mem`):
/// some hundred readers that stop would take it from everybody. What is on its way is not counted, so it bounds no
/// rate: below half of it a socket is reported writable. With a quarter of it one stream lost a tenth.
pub(crate) const MOST_UNSENT: u32 = 2 << 20;

/// How the kernel sends what is written. By Nagle's algorithm a small piece waits until what was sent before is
/// acknowledged; the first piece has nothing to wait for. So most connections to endpoints, which are written to once,
/// never need `TCP_NODELAY`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pace {
    /// By Nagle's algorithm, and nothing has been written.
    Fresh,
    /// By Nagle's algorithm, and something has been written.
    Written,
    /// At once.
    Prompt,
}

/// Which events of a socket are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Watched {
    Nothing,
    /// A socket that takes all that is written needs no event that says so each time.
    Reading,
    All,
}

impl Peer {
    /// An accepted connection, with `TCP_NODELAY` from its listener. The client's first bytes are probably there already.
    pub(crate) fn accepted(stream: TcpStream) -> Self {
        Self::new(stream, true, true, Pace::Prompt)
    }

    /// A connection to an endpoint, which probably has nothing to say yet.
    pub(crate) fn connected(stream: TcpStream) -> Self {
        Self::new(stream, false, true, Pace::Fresh)
    }

    /// A connection under way: an event says when it is established.
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

    /// Has the kernel take only so much of what it cannot send, from now on: for bulk, as it is a system call.
    pub(crate) fn bound_unsent(&mut self) {
        if !std::mem::replace(&mut self.is_bounded, true) {
            // Failing means that the connection is gone already.
            let _ = SockRef::from(&self.stream).set_tcp_notsent_lowat(MOST_UNSENT);
        }
    }

    /// Has events reported that something can be read or that it has ended, and, while it takes nothing more, that it
    /// does again.
    pub(crate) fn watch(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        self.watch_for(if self.writable { Watched::Reading } else { Watched::All }, registry, token)
    }

    /// Has all events reported.
    pub(crate) fn watch_all(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        self.watch_for(Watched::All, registry, token)
    }

    /// What is so already is reported at once.
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

    /// Has no more events reported.
    pub(crate) fn unwatch(&mut self, registry: &Registry) {
        if std::mem::replace(&mut self.watched, Watched::Nothing) != Watched::Nothing {
            // What is not registered any more has none either.
            let _ = registry.deregister(&mut self.stream);
        }
    }

    /// Takes in an event. Edge-triggered: what is said here is not said again.
    pub(crate) fn note(&mut self, event: &Event) {
        // A reset ends both ways at once, so its event reports an end of what can be read too, and that is no FIN.
        self.fin |= event.is_read_closed() && !event.is_error() && !self.failed;
        self.failed |= event.is_error();
        self.urgent |= event.is_priority();
        self.readable |= event.is_readable() || event.is_priority() || self.is_ending();
        self.writable |= event.is_writable() || event.is_error();
    }

    /// Takes in the error of a system call after which the connection is of no use.
    pub(crate) fn fail(&mut self, error: &io::Error) {
        self.fin |= !self.failed && is_after_fin(error);
        self.failed = true;
    }

    /// Finds out whether its FIN had arrived before it failed, if one event reported both. To be called before anything is
    /// read from a peer that has failed: the kernel reports an error once, to the first call that asks.
    pub(crate) fn settle_failure(&mut self) {
        if self.failed && !self.fin {
            self.fin = matches!(self.stream.take_error(), Ok(Some(error)) if is_after_fin(&error));
        }
    }

    /// Whether an end is to be read behind the bytes.
    pub(crate) fn is_ending(&self) -> bool {
        self.fin || self.failed
    }

    /// Whether that end is a FIN, and so everything before it has arrived, whatever has become of the peer.
    pub(crate) fn has_said_all(&self) -> bool {
        self.fin
    }

    /// Whether that end is no FIN: something is missing behind the bytes.
    pub(crate) fn is_cut_off(&self) -> bool {
        self.failed && !self.fin
    }

    /// Whether the connection was reset, or the peer has vanished.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed
    }

    /// Whether there are bytes that were not read.
    pub(crate) fn has_unread(&self) -> bool {
        matches!(recv(&self.stream, &mut [0_u8], RecvFlags::PEEK), Ok((1.., _)))
    }

    /// Reads once.
    pub(crate) fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (read, _) = recv(&self.stream, buffer, RecvFlags::empty())?;
        // After a reset that has been reported a read returns 0, too.
        self.fin |= read == 0 && !self.failed;
        Ok(read)
    }

    /// Writes once.
    pub(crate) fn send(&mut self, bytes: &[u8], flags: SendFlags) -> io::Result<usize> {
        self.pace = match self.pace {
            Pace::Fresh => Pace::Written,
            Pace::Written => {
                // Failing means that the connection is gone already.
                let _ = set_tcp_nodelay(&self.stream, true);
                Pace::Prompt
            }
            Pace::Prompt => Pace::Prompt,
        };
        Ok(send(&self.stream, bytes, flags | SendFlags::NOSIGNAL)?)
    }
}

/// Whether this is how the kernel reports a reset that came after a FIN (`CLOSE_WAIT`, tcp_reset()).
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
    /// What is heard of a peer's FIN and reset.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Events {
        /// Of both together.
        Together,
        /// Of one after the other.
        Apart,
        /// None before something is written.
        Late,
    }

    /// Ours of a connection, when the other end has done this, and the other end if it is still there.
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
                // And what a read finds, of a FIN that no event has told of.
                assert_eq!(peer.receive(&mut [0]).is_ok(), fin || (reset && peer.has_failed()));
                assert_eq!(peer.has_said_all(), fin);
            }
        }
    }
}
