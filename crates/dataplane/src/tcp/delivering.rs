//! The end of a session with much data not yet acknowledged. If its sockets were closed, they would be
//! orphans that nobody counts, each with 2 MiB of the node's TCP memory
//! ([`MOST_UNSENT`](super::peer::MOST_UNSENT)), as many as a client likes. So the session continues, within
//! its client's share, until most of the data has arrived, or all of it if there are many orphans
//! ([`Orphans`](super::orphans::Orphans)).

use std::net::Shutdown;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use socket2::SockRef;

use super::socket;

/// How many bytes may normally be left to the kernel; most connections never send more.
pub(super) const LEFT_TO_KERNEL: usize = 64 << 10;

/// How often to check how much has arrived. An event reports that all of it has, or that the peer is gone.
pub(super) const POLL: Duration = Duration::from_secs(1);

/// How long delivery may make no progress. The kernel gives up an orphan whose reader has stopped after about
/// the same time (`tcp_orphan_retries`, by default 8 probes at growing intervals).
pub(super) const PATIENCE: Duration = Duration::from_secs(120);

/// The state of the delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Delivery {
    /// The rest may be left to the kernel.
    Done,
    Waiting,
    /// There was no progress for too long.
    Overdue,
}

/// A session that has forwarded all bytes and both FINs, with the number of bytes that have not arrived.
#[derive(Debug)]
pub(super) struct Delivering(NonZeroU32);

impl Delivering {
    /// Begins for two sockets and the bytes written to each; `None` if the rest, up to `most` bytes, may be
    /// left to the kernel.
    pub(super) fn begin(sides: [(&TcpStream, u64); 2], most: usize) -> Option<Self> {
        if sides.iter().all(|(_, written)| *written <= most as u64) {
            return None;
        }
        let streams = sides.map(|(stream, _)| stream);
        let left = left(streams, most)?;
        for stream in streams {
            // The kernel has all the data and delivers it without this process. A failure means that the
            // connection is gone already.
            let _ = SockRef::from(stream).set_linger(None);
            let _ = stream.shutdown(Shutdown::Write);
        }
        Some(Self(left))
    }

    /// Checks whether more has arrived since `last_moved`, and whether the kernel may have the rest. If there
    /// was no progress for `patience`, the sockets are set to reset their peers when they are closed.
    pub(super) fn look(
        &mut self,
        streams: [&TcpStream; 2],
        last_moved: &mut Instant,
        now: Instant,
        patience: Duration,
        most: usize,
    ) -> Delivery {
        let Some(left) = left(streams, most) else { return Delivery::Done };
        if left < self.0 {
            (self.0, *last_moved) = (left, now);
        }
        if now.saturating_duration_since(*last_moved) < patience {
            return Delivery::Waiting;
        }
        for stream in streams {
            let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
        }
        Delivery::Overdue
    }
}

/// How many bytes these peers' kernels have not acknowledged, if that is more than may be left to the kernel.
/// A socket that was closed or reset counts as zero.
fn left(streams: [&TcpStream; 2], most: usize) -> Option<NonZeroU32> {
    let connected = streams.into_iter().filter(|stream| socket::is_connected(stream));
    let left: usize = connected.map(socket::undelivered).sum();
    NonZeroU32::new(u32::try_from(left).unwrap_or(u32::MAX)).filter(|_| left > most)
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read, Write};
    use std::net::TcpListener;

    use super::*;

    /// The two ends of a connection.
    fn pair() -> (std::net::TcpStream, std::net::TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let reader = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (listener.accept().unwrap().0, reader)
    }

    /// A socket whose buffer is full, the number of bytes written, and the reader.
    fn full() -> (TcpStream, u64, std::net::TcpStream) {
        let (writer, reader) = pair();
        SockRef::from(&writer).set_linger(Some(Duration::ZERO)).unwrap();
        writer.set_nonblocking(true).unwrap();
        let mut writer = TcpStream::from_std(writer);
        let mut written = 0;
        while let Ok(bytes) = writer.write(&[0; 65536]) {
            written += bytes as u64;
        }
        (writer, written, reader)
    }

    #[test]
    fn a_reader_that_takes_nothing_for_long_is_reset_and_one_that_takes_a_little_is_not() {
        const LITTLE: usize = 128 << 10;
        let (writer, written, mut reader) = full();
        let (other, _peer) = pair();
        let other = TcpStream::from_std(other);
        let streams = [&writer, &other];
        let (now, mut last_moved) = (Instant::now(), Instant::now());
        assert!(Delivering::begin([(&writer, LEFT_TO_KERNEL as u64), (&other, 0)], LEFT_TO_KERNEL).is_none());
        let mut delivering = Delivering::begin([(&writer, written), (&other, 0)], LEFT_TO_KERNEL).unwrap();
        assert!(delivering.0.get() as usize > LEFT_TO_KERNEL + LITTLE, "{delivering:?}");
        let half = PATIENCE / 2;
        let mut look =
            |after| delivering.look(streams, &mut last_moved, now + after, PATIENCE, LEFT_TO_KERNEL);
        assert_eq!(look(half), Delivery::Waiting);
        let before = left(streams, LEFT_TO_KERNEL);
        reader.read_exact(&mut [0; LITTLE]).unwrap();
        // The reader's kernel acknowledges with a delay.
        let deadline = Instant::now() + Duration::from_secs(20);
        while left(streams, LEFT_TO_KERNEL) == before {
            assert!(Instant::now() < deadline, "nothing arrives");
            std::thread::yield_now();
        }
        assert_eq!(look(half * 2), Delivery::Waiting);
        assert_eq!(look(half * 10), Delivery::Overdue);
        drop(writer);
        assert_eq!(reader.read_to_end(&mut Vec::new()).unwrap_err().kind(), ErrorKind::ConnectionReset);
    }

    #[test]
    fn where_nothing_may_be_left_to_the_kernel_a_byte_that_has_not_arrived_is_waited_for() {
        let ((mut writer, mut reader), (other, _peer)) = (pair(), pair());
        // The reader's kernel accepts as little as possible, so some of the data waits here.
        SockRef::from(&reader).set_recv_buffer_size(1).unwrap();
        const SMALL: usize = 60_000;
        SockRef::from(&writer).set_send_buffer_size(4 * SMALL).unwrap();
        writer.write_all(&[0; SMALL]).unwrap();
        writer.set_nonblocking(true).unwrap();
        let (writer, other) = (TcpStream::from_std(writer), TcpStream::from_std(other));
        let sides = [(&writer, SMALL as u64), (&other, 0)];
        assert!(Delivering::begin(sides, LEFT_TO_KERNEL).is_none());
        let mut delivering = Delivering::begin(sides, 0).unwrap();
        let now = Instant::now();
        let mut look = || delivering.look([&writer, &other], &mut now.clone(), now, PATIENCE, 0);
        assert_eq!(look(), Delivery::Waiting);
        reader.read_to_end(&mut Vec::new()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while look() == Delivery::Waiting {
            assert!(Instant::now() < deadline, "it has arrived");
            std::thread::yield_now();
        }
    }

    #[test]
    fn of_what_was_reset_nothing_is_left() {
        let (writer, written, reader) = full();
        let (other, _peer) = pair();
        let other = TcpStream::from_std(other);
        let now = Instant::now();
        let mut delivering = Delivering::begin([(&writer, written), (&other, 0)], LEFT_TO_KERNEL).unwrap();
        drop(reader);
        let deadline = Instant::now() + Duration::from_secs(20);
        while delivering.look([&writer, &other], &mut now.clone(), now, PATIENCE, LEFT_TO_KERNEL)
            == Delivery::Waiting
        {
            assert!(Instant::now() < deadline, "{delivering:?}");
            std::thread::yield_now();
        }
    }
}
