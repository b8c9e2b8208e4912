//! One direction of a session: bytes from one socket to the other, in order, each exactly once.
//!
//! Small exchanges go through the worker's buffer, two system calls a piece. When reads keep filling
//! the buffer the direction moves to splice(2): bytes go from socket to pipe to socket and never see
//! user memory. A direction holds a pipe only while there are bytes in it.
//!
//! A pipe is filled only when it is empty. That settles what splice leaves open: EAGAIN on a fill
//! means that the socket is empty (never that the pipe's slots are used up). 0 means EOF, or that an
//! urgent byte is next, which splice never passes: a read tells.
//!
//! An urgent byte (RFC 6093) is passed on as one, at its place in the stream. Sockets have `SO_OOBINLINE`,
//! so that none is left out of what is read; a read stops before one.

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

/// Full reads in a row that make a direction bulk.
const FULL_READS_TO_BULK: u8 = 2;

/// A fill of less than this does not pay for the pipe's two extra system calls...
const SMALL_FILL: usize = 16 << 10;

/// ...and this many of them in a row end bulk mode.
const SMALL_FILLS_TO_COPY: u8 = 4;

/// What a worker lends to every direction while it pumps.
#[derive(Debug)]
pub(crate) struct Tools {
    pub(crate) buffer: Box<[u8]>,
    pub(crate) pipes: PipePool,
}

/// One pump of a direction: what it may use, and what is known of the session.
#[derive(Debug)]
pub(crate) struct Pump<'a> {
    pub(crate) tools: &'a mut Tools,
    pub(crate) stats: &'a WorkerStats,
    /// Bytes to move before it is others' turn.
    pub(crate) budget: usize,
    /// The other direction is finished: with this one the session is over.
    pub(crate) is_last: bool,
}

/// Where a direction stands after a pump.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pumped {
    /// Nothing more to do before an event.
    Waiting,
    /// There is more to do, but it is others' turn.
    Yielded,
    /// The source ended; everything, and the FIN, was passed on.
    Finished,
    /// The source was reset; everything before that was passed on.
    SourceReset,
    /// The target takes nothing any more.
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
    /// Reads in a row that speak for changing over.
    streak: u8,
}

/// Why bytes could not be moved on.
enum Blocked {
    Source(io::Error),
    Target,
}

impl Direction {
    /// Whether everything, and the FIN, was passed on.
    pub(crate) fn is_finished(&self) -> bool {
        self.finished
    }

    /// Whether so much comes this way that it goes by a pipe.
    pub(crate) fn is_bulk(&self) -> bool {
        self.bulk
    }

    /// Moves bytes until there is nothing to move, or `pump.budget` of them were moved. Returns how many
    /// were delivered to the target's socket.
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
                // The kernel reports a reset once, to the first call that asks; after that a read returns 0 as for a FIN.
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

    /// Passes the FIN on, once. Where the other direction is finished the session is over, and closing the socket
    /// does it.
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

    /// Drops what was read and not written, as the target takes nothing any more. Returns whether there was anything.
    pub(crate) fn give_up(&mut self) -> bool {
        // A pipe with bytes in it is closed.
        !matches!(std::mem::take(&mut self.pending), Pending::Nothing)
    }

    /// Writes what is pending. `false`: the target is full.
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

    /// Reads once, by way of a pipe or of the buffer.
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

    /// Reads the urgent byte, which is the next one.
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

    /// Notes whether there was much at once, and changes over to bulk and back when that has been so, or not, a few times in
    /// a row. In bulk without a pipe to be had bytes are copied, which ends it in the same way.
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

    /// Reads into the buffer and writes at once; keeps what the target does not take.
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
            // A short read has emptied the socket (epoll(7)), unless there is an end or an urgent byte behind it.
            from.readable = from.is_ending() || from.urgent;
            if from.has_said_all() && !from.urgent {
                // A FIN is all that there can be; passed on, it goes in the same segment.
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
            // Whether the socket is full or a signal came in between: the next drain finds out.
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

    /// A connection over loopback: the side that is not ours, and ours.
    fn pair() -> (TcpStream, Peer) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let theirs = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (ours, _) = listener.accept().unwrap();
        [&theirs, &ours].into_iter().for_each(|stream| stream.set_nonblocking(true).unwrap());
        (theirs, Peer::accepted(mio::net::TcpStream::from_std(ours)))
    }

    /// What is in our socket of one way, with or without pipes, whose reader reads so much and then stops; once nothing moves
    /// any more and, if that ever comes, it is no more than `bound`.
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
            // Its kernel acknowledges the last of it when it likes.
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
            // And what the kernel takes at once.
            let bound = MOST_UNSENT as usize + BUFFER_SIZE;
            let unsent = unsent_after(16 << 20, pipes, bound);
            assert!(unsent <= bound, "of {pipes} descriptors for pipes: {unsent} bytes");
        }
    }
}
