//! Receives with `recvmmsg` into buffers that are allocated once.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;

use super::BATCH;
use super::Payload;
use super::address::Name;
use super::ancillary::Received;

/// Room for the ancillary data of one datagram: a header (16 bytes) and a `sockaddr_in6` (28), another header
/// and an int, each padded to 8, with some to spare for an option that someone else may have set on the
/// socket.
const CONTROL: usize = 96;

/// Size of the buffer for one payload: no UDP payload is larger, so none is truncated. (Jumbograms, RFC 2675,
/// would be; no Linux device carries them.)
const PAYLOAD: usize = 65_536;

/// Up to [`BATCH`] received datagrams. A worker has one and uses it for all of its sockets: 2 MiB, of which
/// only the pages are touched to which a datagram was written.
#[derive(Debug)]
pub struct RecvBatch {
    /// One piece of `payload_size` bytes for each slot.
    payloads: Box<[u8]>,
    payload_size: usize,
    slots: Box<[Slot]>,
    /// How many slots the last call filled.
    filled: usize,
}

/// The kernel's information about one datagram.
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
    /// Its payload, which may be empty. Several datagrams only if [`receive_trains`](super::receive_trains)
    /// was called for the socket.
    pub payload: Payload<'a>,
    /// The sender's address.
    pub source: SocketAddr,
    /// The address that it was sent to, if
    /// [`receive_original_destination`](super::receive_original_destination) was called for the socket.
    pub original_destination: Option<SocketAddr>,
    /// The end of the payload is missing, because it was larger than the buffer.
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

    /// Room for [`BATCH`] datagrams of up to `payload_size` bytes. Larger ones are truncated, as
    /// [`Datagram::truncated`] says.
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
            // Zeroed pages from the allocator, which take memory only once they are written to.
            payloads: vec![0; payload_size.saturating_mul(BATCH)].into(),
            payload_size,
            slots: vec![slot; BATCH].into(),
            filled: 0,
        }
    }

    /// Receives what is there, without waiting. Returns the number of datagrams, at least one. They replace
    /// those of the previous call.
    ///
    /// A batch is also short if an error (an ICMP message about an earlier datagram) arrives while it is
    /// being received; the next call returns the error. An error that had arrived before is returned instead
    /// of any datagrams.
    ///
    /// # Errors
    /// `WouldBlock`: nothing is there. `ConnectionRefused` and other network errors: an earlier datagram sent
    /// on this connected socket did not arrive; the socket remains usable. After any error the batch is
    /// empty.
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
            // SAFETY: `headers` has BATCH elements. Each points to its own element of `vectors` and through
            // it to its own piece of `payloads`, and to the name and the control bytes of its own slot, with
            // their true sizes. All of this is memory of this function or borrowed mutably by it, and not
            // accessed otherwise until the call has returned. It was initialised, and stays so whatever part
            // the kernel writes. No timeout is passed.
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

    /// The datagrams of the last call to [`recv`](Self::recv), in order of arrival.
    ///
    /// Every datagram from an IPv4 or IPv6 socket has a source. A datagram from another kind of socket has
    /// none that this type can hold, and is left out.
    pub fn iter(&self) -> impl Iterator<Item = Datagram<'_>> {
        (0..self.filled).filter_map(|index| self.get(index))
    }

    /// The datagram at `index`, if there is one with a source.
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

    /// Number of datagrams that the last call has received.
    pub fn len(&self) -> usize {
        self.filled
    }

    /// Whether the last call has received none.
    pub fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// Whether the last call has received as many as fit, so that there may be more. Otherwise an
    /// edge-triggered caller (epoll(7)) need not call again: whatever arrives later, including an error,
    /// causes an event of its own.
    pub fn is_full(&self) -> bool {
        self.filled == BATCH
    }
}

/// Repeats the call if a signal interrupts it, and turns -1 into the error.
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
