//! One direction of a session: bytes from one socket to the other, in order, each exactly once.
//!
//! Small exchanges go through the worker's buffer, with two system calls per piece. If reads keep filling the
//! buffer, the direction switches to splice(2): bytes go from socket to pipe to socket and never enter user
//! memory. A direction holds a pipe only while there are bytes in it.
//!
//! A pipe is filled only when it is empty. That resolves the ambiguities of splice: EAGAIN on a fill means
//! that the socket is empty (never that the pipe's slots are used up). 0 means EOF, or that the next byte is
//! urgent, which splice never passes: a read tells which.
//!
//! An urgent byte (RFC 6093) is passed on as urgent, at its place in the stream. Sockets have `SO_OOBINLINE`,
//! so reads do not skip it; a read stops before it.

use std::io::{self, ErrorKind};
use std::net::Shutdown;
use std::os::fd::AsFd;

use rustix::net::SendFlags;
use rustix::pipe::{SpliceFlags, splice};
use sluice_sys::tcp::is_at_urgent_mark;

use super::peer::Peer;
use super::pipe::{Pipe, PipePool};
use crate::stats::WorkerStats;

/// The worker's copy buffer. As large as a TCP segment gets on loopback.
pub(crate) const BUFFER_SIZE: usize = 64 << 10;

/// The number of consecutive full reads that make a direction bulk.
const FULL_READS_TO_BULK: u8 = 2;

/// A fill of less than this is not worth the pipe's two extra system calls...
const SMALL_FILL: usize = 16 << 10;

/// ...and this many of them in a row end bulk mode.
const SMALL_FILLS_TO_COPY: u8 = 4;

/// What a worker lends to each direction for a pump.
#[derive(Debug)]
pub(crate) struct Tools {
    pub(crate) buffer: Box<[u8]>,
    pub(crate) pipes: PipePool,
}

/// The parameters of one pump of a direction.
#[derive(Debug)]
pub(crate) struct Pump<'a> {
    pub(crate) tools: &'a mut Tools,
    pub(crate) stats: &'a WorkerStats,
    /// The number of bytes to move in this turn.
    pub(crate) budget: usize,
    /// The other direction is finished, so the session ends with this one.
    pub(crate) is_last: bool,
}

/// The state of a direction after a pump.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pumped {
    /// Nothing to do before an event.
    Waiting,
    /// There is more to do, but the turn is over.
    Yielded,
    /// The source ended; everything, and the FIN, was passed on.
    Finished,
    /// The source was reset; everything before that was passed on.
    SourceReset,
    /// The target accepts no more bytes.
    TargetReset,
}

/// How the source ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Eof,
    Reset,
}

/// Bytes that were read and not written yet.
#[derive(Debug, Default)]
enum Pending {
    #[default]
    Nothing,
    Bytes {
        bytes: Box<[u8]>,
        start: usize,
    },
    Urgent(u8),
    Piped {
        pipe: Pipe,
        bytes: usize,
    },
}

/// One way of a session.
#[derive(Debug, Default)]
pub(crate) struct Direction {
    pending: Pending,
    end: Option<End>,
    finished: bool,
    bulk: bool,
    /// The number of consecutive reads that suggest switching.
    streak: u8,
}

/// Why bytes could not be moved.
enum Blocked {
    Source(io::Error),
    Target,
}

impl Direction {
    /// Whether everything, and the FIN, was passed on.
    pub(crate) fn is_finished(&self) -> bool {
        self.finished
    }

    /// Whether the direction moves bulk data through a pipe.
    pub(crate) fn is_bulk(&self) -> bool {
        self.bulk
    }

    /// Moves bytes until there are none, or `pump.budget` were moved. Returns how many were delivered to the
    /// target's socket.
    pub(crate) fn pump(&mut self, from: &mut Peer, to: &mut Peer, pump: &mut Pump<'_>) -> (Pumped, usize) {
        let mut delivered = 0;
        let mut moved = 0;
        let pumped = loop {
            match self.drain(to, pump, &mut delivered) {
                Ok(true) => {}
                Ok(false) => break Pumped::Waiting,
                Err(error) => {
                    to.fail(&error);
                    break Pumped::TargetReset;
                }
            }
            match self.end {
                Some(End::Reset) => break Pumped::SourceReset,
                Some(End::Eof) => break self.finish(to, pump.is_last),
                None if !from.readable => break Pumped::Waiting,
                None if moved >= pump.budget => break Pumped::Yielded,
                None => {}
            }
            match self.fill(from, to, pump, &mut delivered) {
                // The kernel reports a reset once, to the first call; after that, a read returns 0 as after a
                // FIN.
                Ok(0) => self.end = Some(if from.is_cut_off() { End::Reset } else { End::Eof }),
                Ok(bytes) => moved += bytes,
                Err(Blocked::Target) => break Pumped::TargetReset,
                Err(Blocked::Source(error)) => match error.kind() {
                    ErrorKind::Interrupted => {}
                    ErrorKind::WouldBlock => (from.readable, from.urgent) = (false, false),
                    _ => {
                        from.fail(&error);
                        self.end = Some(End::Reset);
                    }
                },
            }
        };
        (pumped, delivered)
    }

    /// Passes the FIN on, once. If the other direction is finished, the session is over and closing the
    /// socket does it.
    fn finish(&mut self, to: &mut Peer, is_last: bool) -> Pumped {
        if !self.finished {
            self.finished = true;
            if !is_last && let Err(error) = to.stream.shutdown(Shutdown::Write) {
                let reason = to.stream.take_error().ok().flatten();
                to.fail(&reason.unwrap_or(error));
                return Pumped::TargetReset;
            }
        }
        Pumped::Finished
    }

    /// Drops what was read and not written, because the target accepts no more bytes. Returns whether there
    /// was anything.
    pub(crate) fn give_up(&mut self) -> bool {
        // Dropping a pipe with bytes in it closes it.
        !matches!(std::mem::take(&mut self.pending), Pending::Nothing)
    }

    /// Writes what is pending. Returns `false` if the target is full.
    fn drain(&mut self, to: &mut Peer, pump: &mut Pump<'_>, delivered: &mut usize) -> io::Result<bool> {
        loop {
            let result = match &mut self.pending {
                Pending::Nothing => return Ok(true),
                _ if !to.writable => return Ok(false),
                Pending::Bytes { bytes, start } => {
                    let rest = bytes.get(*start..).unwrap_or_default();
                    to.send(rest, SendFlags::empty()).inspect(|written| {
                        *start += written;
                        pump.stats.bytes_copied.add(*written as u64);
                    })
                }
                Pending::Urgent(byte) => {
                    let sent = to.send(std::slice::from_ref(byte), SendFlags::OOB);
                    sent.inspect(|written| pump.stats.bytes_copied.add(*written as u64))
                }
                Pending::Piped { pipe, bytes } => {
                    let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
                    let written = splice(&pipe.read, None, &to.stream, None, *bytes, flags);
                    written.map_err(Into::into).inspect(|written| {
                        *bytes = bytes.saturating_sub(*written);
                        pump.stats.bytes_spliced.add(*written as u64);
                    })
                }
            };
            match result {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => *delivered += written,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    to.writable = false;
                    continue;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            let is_empty = match &self.pending {
                Pending::Nothing | Pending::Urgent(_) => true,
                Pending::Bytes { bytes, start } => *start == bytes.len(),
                Pending::Piped { bytes, .. } => *bytes == 0,
            };
            if is_empty && let Pending::Piped { pipe, .. } = std::mem::take(&mut self.pending) {
                pump.tools.pipes.put(pipe);
            }
        }
    }

    /// Reads once, into a pipe or the buffer.
    fn fill(
        &mut self,
        from: &mut Peer,
        to: &mut Peer,
        pump: &mut Pump<'_>,
        delivered: &mut usize,
    ) -> Result<usize, Blocked> {
        if self.bulk && !from.urgent {
            match pump.tools.pipes.take() {
                Some(pipe) => match self.fill_pipe(from, pipe, &mut pump.tools.pipes)? {
                    0 => from.urgent = true,
                    bytes => return Ok(bytes),
                },
                None => pump.stats.pipe_fallbacks.add(1),
            }
        }
        if from.urgent && is_at_urgent_mark(from.stream.as_fd()).map_err(Blocked::Source)? {
            return self.take_urgent(from);
        }
        self.copy(from, to, pump, delivered)
    }

    /// Reads the urgent byte, which comes next.
    fn take_urgent(&mut self, from: &mut Peer) -> Result<usize, Blocked> {
        let mut byte = 0;
        let read = from.receive(std::slice::from_mut(&mut byte)).map_err(Blocked::Source)?;
        if read > 0 {
            from.urgent = false;
            self.pending = Pending::Urgent(byte);
        }
        Ok(read)
    }

    fn fill_pipe(&mut self, from: &Peer, pipe: Pipe, pipes: &mut PipePool) -> Result<usize, Blocked> {
        let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        match splice(&from.stream, None, &pipe.write, None, pipe.capacity, flags) {
            Ok(0) => {
                pipes.put(pipe);
                Ok(0)
            }
            Ok(bytes) => {
                self.note(bytes >= SMALL_FILL);
                self.pending = Pending::Piped { pipe, bytes };
                Ok(bytes)
            }
            Err(error) => {
                pipes.put(pipe);
                Err(Blocked::Source(error.into()))
            }
        }
    }

    /// Records whether a read was large, and switches to bulk and back after a few large or small reads in a
    /// row. In bulk mode without an available pipe, bytes are copied, with the same effect.
    fn note(&mut self, is_much: bool) {
        if is_much == self.bulk {
            self.streak = 0;
            return;
        }
        self.streak += 1;
        if self.streak >= if self.bulk { SMALL_FILLS_TO_COPY } else { FULL_READS_TO_BULK } {
            (self.bulk, self.streak) = (is_much, 0);
        }
    }

    /// Reads into the buffer and writes at once; keeps what the target does not accept.
    fn copy(
        &mut self,
        from: &mut Peer,
        to: &mut Peer,
        pump: &mut Pump<'_>,
        delivered: &mut usize,
    ) -> Result<usize, Blocked> {
        let buffer = &mut pump.tools.buffer;
        let read = from.receive(buffer).map_err(Blocked::Source)?;
        let mut flags = SendFlags::empty();
        let is_full = read == buffer.len();
        self.note(is_full);
        if self.bulk {
            to.bound_unsent();
        }
        if !is_full {
            // A short read has emptied the socket (epoll(7)), unless an end or an urgent byte follows.
            from.readable = from.is_ending() || from.urgent;
            if from.has_said_all() && !from.urgent {
                // Only the FIN can follow; passed on now, it goes in the same segment.
                flags |= SendFlags::MORE;
                self.end = Some(End::Eof);
            }
        }
        let bytes = buffer.get(..read).unwrap_or_default();
        let written = if bytes.is_empty() || !to.writable {
            0
        } else {
            match to.send(bytes, flags) {
                Ok(written) => written,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => 0,
                Err(error) => {
                    to.fail(&error);
                    return Err(Blocked::Target);
                }
            }
        };
        pump.stats.bytes_copied.add(written as u64);
        *delivered += written;
        if written < read {
            // Either the socket is full or a signal interrupted the write; the next drain finds out.
            let rest = bytes.get(written..).unwrap_or_default();
            self.pending = Pending::Bytes { bytes: rest.into(), start: 0 };
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use sluice_sys::tcp::unacknowledged_bytes;

    use super::*;
    use crate::descriptors::Descriptors;
    use crate::tcp::peer::MOST_UNSENT;

    /// A connection over loopback: the other side, and ours.
    fn pair() -> (TcpStream, Peer) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let theirs = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (ours, _) = listener.accept().unwrap();
        [&theirs, &ours].into_iter().for_each(|stream| stream.set_nonblocking(true).unwrap());
        (theirs, Peer::accepted(mio::net::TcpStream::from_std(ours)))
    }

    /// The unsent bytes in our socket of one direction, with or without pipes, whose reader reads `read`
    /// bytes and then stops; taken when no byte moves any more and they are at most `bound`.
    fn unsent_after(read: usize, pipes: usize, bound: usize) -> usize {
        let (mut source, mut from) = pair();
        let (mut reader, mut to) = pair();
        let pipes = PipePool::new(&Descriptors::new(pipes));
        let mut tools = Tools { buffer: vec![0; BUFFER_SIZE].into(), pipes };
        let stats = Arc::<WorkerStats>::default();
        let (mut direction, mut left) = (Direction::default(), read);
        let (bytes, mut buffer) = (vec![0; 1 << 20], vec![0; 1 << 20]);
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let written = source.write(&bytes).unwrap_or(0);
            (from.readable, to.writable) = (true, true);
            let mut pump = Pump { tools: &mut tools, stats: &stats, budget: usize::MAX, is_last: false };
            let (pumped, moved) = direction.pump(&mut from, &mut to, &mut pump);
            assert_eq!(pumped, Pumped::Waiting);
            let most = left.min(buffer.len());
            let taken = reader.read(&mut buffer[..most]).unwrap_or(0);
            left -= taken;
            // The kernel acknowledges the last bytes with a delay.
            let unsent = unacknowledged_bytes(to.stream.as_fd()).unwrap();
            let is_still = left == 0 && written + moved + taken == 0;
            if (is_still && unsent <= bound) || Instant::now() >= deadline {
                assert_eq!(left, 0, "it has read all that it wanted");
                return unsent;
            }
        }
    }

    #[test]
    fn a_reader_of_bulk_that_stops_leaves_little_in_our_socket() {
        for pipes in [0, 10] {
            // Plus what the kernel accepts at once.
            let bound = MOST_UNSENT as usize + BUFFER_SIZE;
            let unsent = unsent_after(16 << 20, pipes, bound);
            assert!(unsent <= bound, "of {pipes} descriptors for pipes: {unsent} bytes");
        }
    }
}
