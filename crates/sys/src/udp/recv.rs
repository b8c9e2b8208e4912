//! Receiving: `recvmmsg` into memory that is allocated once.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;

use super::BATCH;
use super::Payload;
use super::address::Name;
use super::ancillary::Received;

/// Room for the ancillary data of one datagram: a header (16 bytes) and a `sockaddr_in6` (28), another
/// header and an int, each padded to 8, with some to spare for an option that somebody else has set on
/// the socket.
const CONTROL: usize = 96;

/// Bytes of a datagram kept: no UDP payload is larger, so that none is cut. (Jumbograms, RFC 2675,
/// would be; no Linux device carries them.)
const PAYLOAD: usize = 65_536;

/// Up to [`BATCH`] received datagrams. A worker owns one and uses it for all of its sockets: 2 MiB,
/// of which only those pages are ever touched that a datagram was written to.
#[derive(Debug)]
pub struct RecvBatch {
    /// As many pieces of `payload_size` bytes as there are slots.
    payloads: Box<[u8]>,
    payload_size: usize,
    slots: Box<[Slot]>,
    /// How many slots the last call filled.
    filled: usize,
}

/// What the kernel said about one datagram.
#[derive(Debug, Clone)]
struct Slot {
    source: Name,
    control: [u8; CONTROL],
    control_len: usize,
    payload_len: usize,
    truncated: bool,
}

/// A received datagram, or a train of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Datagram<'a> {
    /// What it carries; nothing is a valid payload. Several datagrams only if the socket was told so
    /// by [`receive_trains`](super::receive_trains).
    pub payload: Payload<'a>,
    /// Who sent it.
    pub source: SocketAddr,
    /// Where it was sent to, if the socket was told to say so by
    /// [`receive_original_destination`](super::receive_original_destination).
    pub original_destination: Option<SocketAddr>,
    /// The end of the payload is missing: it was larger than the buffer.
    pub truncated: bool,
}

impl Default for RecvBatch {
    fn default() -> Self {
        Self::with_payload_size(PAYLOAD)
    }
}

impl RecvBatch {
    /// Room for [`BATCH`] datagrams of any size.
    pub fn new() -> Self {
        Self::default()
    }

    /// Room for [`BATCH`] datagrams of up to `payload_size` bytes; the rest of larger ones is lost
    /// and [`Datagram::truncated`] says so.
    pub fn with_payload_size(payload_size: usize) -> Self {
        let slot = Slot {
            source: Name::NONE,
            control: [0; CONTROL],
            control_len: 0,
            payload_len: 0,
            truncated: false,
        };
        let payload_size = payload_size.max(1);
        Self {
            // From the allocator's zeroed pages, which exist once they are written to.
            payloads: vec![0; payload_size.saturating_mul(BATCH)].into(),
            payload_size,
            slots: vec![slot; BATCH].into(),
            filled: 0,
        }
    }

    /// Receives what is there, without waiting; returns how many datagrams, at least one. They
    /// replace those of the call before.
    ///
    /// A short batch also comes of an error (an ICMP message about something sent earlier) that arrived while it was
    /// being received; the next call reports it. One that had arrived before is reported instead of any batch.
    ///
    /// # Errors
    /// `WouldBlock`: nothing is there. `ConnectionRefused` and other errors of the network: an earlier
    /// datagram sent on this connected socket did not arrive; the socket goes on working. After any
    /// error the batch is empty.
    #[expect(clippy::cast_possible_truncation, reason = "sizes of a few bytes, and BATCH")]
    pub fn recv(&mut self, socket: impl AsFd) -> io::Result<usize> {
        self.filled = 0;
        let socket = socket.as_fd().as_raw_fd();
        let mut vectors = [libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 }; BATCH];
        // SAFETY: `mmsghdr` is plain data of integers and pointers, for which zero is a value.
        let mut headers: [libc::mmsghdr; BATCH] = unsafe { std::mem::zeroed() };

        let buffers = self.slots.iter_mut().zip(self.payloads.chunks_exact_mut(self.payload_size));
        for ((header, vector), (slot, payload)) in headers.iter_mut().zip(&mut vectors).zip(buffers) {
            vector.iov_base = payload.as_mut_ptr().cast();
            vector.iov_len = payload.len();
            let message = &mut header.msg_hdr;
            let name = slot.source.bytes_mut();
            message.msg_name = name.as_mut_ptr().cast();
            message.msg_namelen = name.len() as _;
            message.msg_iov = vector;
            message.msg_iovlen = 1;
            message.msg_control = slot.control.as_mut_ptr().cast();
            message.msg_controllen = CONTROL as _;
        }

        let received = retry(|| {
            // SAFETY: `headers` has BATCH elements. Each points to one element of `vectors` and
            // through it to one piece of `payloads`, and to the name and the control bytes of one
            // slot, with their true sizes: memory of this function or borrowed mutably by it, no two
            // alike, not touched otherwise until the call has returned. All of it was initialised,
            // so whatever part the kernel writes, it stays so. No timeout is passed.
            unsafe {
                libc::recvmmsg(
                    socket,
                    headers.as_mut_ptr(),
                    BATCH as libc::c_uint,
                    libc::MSG_DONTWAIT as _,
                    ptr::null_mut(),
                )
            }
        })?;

        for (header, slot) in headers.iter().zip(&mut self.slots).take(received) {
            slot.source.set_len(header.msg_hdr.msg_namelen);
            slot.control_len = header.msg_hdr.msg_controllen as _;
            slot.payload_len = header.msg_len as usize;
            slot.truncated = header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
        }
        self.filled = received.min(BATCH);
        Ok(self.filled)
    }

    /// The datagrams of the last call to [`recv`](Self::recv), in the order of their arrival.
    ///
    /// Every datagram from an IPv4 or IPv6 socket has a source; what comes from a socket of another
    /// kind has none that could be named here, and is left out.
    pub fn iter(&self) -> impl Iterator<Item = Datagram<'_>> {
        (0..self.filled).filter_map(|index| self.get(index))
    }

    /// One of them, if there are so many and it has a source.
    pub fn get(&self, index: usize) -> Option<Datagram<'_>> {
        let slot = self.slots.get(..self.filled)?.get(index)?;
        let payload = self.payloads.get(index * self.payload_size..)?;
        let payload = payload.get(..slot.payload_len.min(self.payload_size))?;
        let ancillary = Received::parse(slot.control.get(..slot.control_len).unwrap_or_default());
        Some(Datagram {
            payload: ancillary.segment_size.map_or(payload.into(), |size| Payload::train(payload, size)),
            source: slot.source.decode()?,
            original_destination: ancillary.original_destination,
            truncated: slot.truncated,
        })
    }

    /// How many datagrams the last call has received.
    pub fn len(&self) -> usize {
        self.filled
    }

    /// Whether it has received none.
    pub fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// Whether it has received as many as it can, so that there may be more. After fewer, somebody who waits for
    /// edges (epoll(7)) need not ask again: whatever comes from then on, an error too, is an event of its own.
    pub fn is_full(&self) -> bool {
        self.filled == BATCH
    }
}

/// Makes the call until no signal interrupts it, and turns -1 into the error.
pub(super) fn retry<T>(mut call: impl FnMut() -> T) -> io::Result<usize>
where
    usize: TryFrom<T>,
{
    loop {
        match usize::try_from(call()) {
            Ok(count) => return Ok(count),
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
}
