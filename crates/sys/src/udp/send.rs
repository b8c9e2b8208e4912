//! Sending: `sendmmsg`, one bad datagram not in the way of the others.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;

use super::BATCH;
use super::address::Name;
use super::recv::retry;

/// Up to [`BATCH`] datagrams to be sent over one socket. Payloads are borrowed, usually from a
/// [`RecvBatch`](super::RecvBatch): build one on the stack, fill it, send it.
#[derive(Debug)]
pub struct SendBatch<'a> {
    payloads: [&'a [u8]; BATCH],
    destinations: [Name; BATCH],
    len: usize,
}

/// The batch has no room for another datagram: send it first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchFull;

/// What became of the datagrams of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sent {
    /// Taken by the kernel.
    pub datagrams: usize,
    /// Bytes of payload in them.
    pub bytes: usize,
    /// Not taken, for a reason that was reported; gone.
    pub failed: usize,
    /// Not tried, because the socket's buffer is full. They are still in the batch.
    pub left: usize,
}

impl Default for SendBatch<'_> {
    fn default() -> Self {
        Self { payloads: [&[]; BATCH], destinations: [Name::NONE; BATCH], len: 0 }
    }
}

impl<'a> SendBatch<'a> {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a datagram, to `destination` or, without one, to the peer of a connected socket.
    ///
    /// # Errors
    /// The batch is full.
    pub fn push(&mut self, payload: &'a [u8], destination: Option<SocketAddr>) -> Result<(), BatchFull> {
        match (self.payloads.get_mut(self.len), self.destinations.get_mut(self.len)) {
            (Some(slot), Some(name)) => {
                *slot = payload;
                *name = destination.map_or(Name::NONE, Name::from);
                self.len += 1;
                Ok(())
            }
            _ => Err(BatchFull),
        }
    }

    /// How many datagrams are in the batch.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the batch has no datagrams.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether the batch has no room for another datagram.
    pub fn is_full(&self) -> bool {
        self.len == BATCH
    }

    /// Empties the batch.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Sends the datagrams in order, without waiting. A datagram that the kernel does not take is
    /// passed over after `failed` was told its position in the batch and the error. Afterwards the
    /// batch holds those that found no room in the socket's buffer, and no others.
    ///
    /// `ConnectionRefused` and other errors of the network on a connected socket speak of a datagram
    /// sent earlier, but cost the one at hand: it is not sent. The kernel reports them at some later
    /// call, and forgets one that strikes in the middle of a batch, so that their number means little.
    pub fn send(&mut self, socket: impl AsFd, mut failed: impl FnMut(usize, io::Error)) -> Sent {
        let socket = socket.as_fd().as_raw_fd();
        let mut sent = Sent::default();
        let mut next = 0;
        while next < self.len {
            match self.send_from(socket, next) {
                // Not known of the kernel; if it happened, it would go on for ever.
                Ok(0) => break,
                Ok(count) => {
                    let end = (next + count).min(self.len);
                    sent.datagrams += end - next;
                    sent.bytes += self.payloads[next..end].iter().map(|payload| payload.len()).sum::<usize>();
                    next = end;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    failed(next, error);
                    sent.failed += 1;
                    next += 1;
                }
            }
        }
        self.payloads.copy_within(next..self.len, 0);
        self.destinations.copy_within(next..self.len, 0);
        self.len -= next;
        sent.left = self.len;
        sent
    }

    /// One `sendmmsg` of the datagrams from `first` on: how many the kernel took, at least one.
    fn send_from(&mut self, socket: libc::c_int, first: usize) -> io::Result<usize> {
        let mut vectors = [libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 }; BATCH];
        // SAFETY: `mmsghdr` is plain data of integers and pointers, for which zero is a value.
        let mut headers: [libc::mmsghdr; BATCH] = unsafe { std::mem::zeroed() };

        let pending = first..self.len;
        let count = pending.len();
        let datagrams = self.payloads[pending.clone()].iter().zip(&mut self.destinations[pending]);
        for ((header, vector), (payload, name)) in headers.iter_mut().zip(&mut vectors).zip(datagrams) {
            vector.iov_base = payload.as_ptr().cast_mut().cast();
            vector.iov_len = payload.len();
            let message = &mut header.msg_hdr;
            if name.len() > 0 {
                message.msg_namelen = name.len() as libc::socklen_t;
                message.msg_name = name.bytes_mut().as_mut_ptr().cast();
            }
            message.msg_iov = vector;
            message.msg_iovlen = 1;
        }

        retry(|| {
            // SAFETY: `headers` has BATCH elements, of which the first `count` <= BATCH are used.
            // Each points to one element of `vectors` and through it to a payload, and to a
            // destination or to null, with their true sizes: initialised memory, of this function
            // or borrowed by it, that stays until the call has returned. The kernel only reads
            // payloads and destinations, and writes nothing but `msg_len` of each header.
            unsafe {
                libc::sendmmsg(
                    socket,
                    headers.as_mut_ptr(),
                    count as libc::c_uint,
                    (libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) as _,
                )
            }
        })
    }
}
