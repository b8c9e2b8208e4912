//! Sending: `sendmmsg`, one bad datagram not in the way of the others.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr;

use super::address::Name;
use super::ancillary::{self, SegmentSize};
use super::recv::retry;
use super::{BATCH, Payload};

/// Up to [`BATCH`] datagrams, or trains of them, to be sent over one socket. Payloads are borrowed,
/// usually from a [`RecvBatch`](super::RecvBatch): build one on the stack, fill it, send it.
#[derive(Debug)]
pub struct SendBatch<'a> {
    payloads: [Payload<'a>; BATCH],
    destinations: [Name; BATCH],
    len: usize,
}

/// The batch has no room for another datagram: send it first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchFull;

/// What became of the datagrams of a batch; those of a train count one by one.
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
        Self { payloads: [Payload::from(&[][..]); BATCH], destinations: [Name::NONE; BATCH], len: 0 }
    }
}

impl<'a> SendBatch<'a> {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a datagram or a train, to `destination` or, without one, to the peer of a connected socket.
    ///
    /// # Errors
    /// The batch is full.
    pub fn push(
        &mut self,
        payload: impl Into<Payload<'a>>,
        destination: Option<SocketAddr>,
    ) -> Result<(), BatchFull> {
        self.push_to(payload.into(), destination.map_or(Name::NONE, Name::from))
    }

    /// How many datagrams and trains are in the batch.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing in the batch.
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

    /// Sends everything in order, without waiting. A datagram that the kernel does not take is passed
    /// over after `failed` was told its position in the batch and the error. Afterwards the batch holds
    /// what found no room in the socket's buffer, and nothing else.
    ///
    /// A train that the kernel does not take as one, since its datagrams would have to be fragmented or
    /// the device cannot do it, is sent one by one.
    ///
    /// `ConnectionRefused` and other errors of the network on a connected socket speak of a datagram
    /// sent earlier, but cost the one at hand: it is not sent. The kernel reports them at some later
    /// call, and forgets one that strikes in the middle of a batch, so that their number means little.
    pub fn send(&mut self, socket: impl AsFd, mut failed: impl FnMut(usize, io::Error)) -> Sent {
        self.send_reporting(socket.as_fd(), &mut failed)
    }

    fn push_to(&mut self, payload: Payload<'a>, destination: Name) -> Result<(), BatchFull> {
        match (self.payloads.get_mut(self.len), self.destinations.get_mut(self.len)) {
            (Some(slot), Some(name)) => {
                (*slot, *name) = (payload, destination);
                self.len += 1;
                Ok(())
            }
            _ => Err(BatchFull),
        }
    }

    fn send_reporting(&mut self, socket: BorrowedFd<'_>, failed: &mut dyn FnMut(usize, io::Error)) -> Sent {
        let mut sent = Sent::default();
        let mut next = 0;
        while next < self.len {
            match self.send_from(socket, next) {
                // Not known of the kernel; if it happened, it would go on for ever.
                Ok(0) => break,
                Ok(count) => {
                    let end = (next + count).min(self.len);
                    for payload in &self.payloads[next..end] {
                        sent.datagrams += payload.datagrams();
                        sent.bytes += payload.bytes().len();
                    }
                    next = end;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if self.payloads[next].datagrams() > 1 && is_about_trains(&error) => {
                    if !self.send_singly(socket, next, &mut sent, failed) {
                        break;
                    }
                    next += 1;
                }
                Err(error) => {
                    failed(next, error);
                    sent.failed += self.payloads[next].datagrams();
                    next += 1;
                }
            }
        }
        self.payloads.copy_within(next..self.len, 0);
        self.destinations.copy_within(next..self.len, 0);
        self.len -= next;
        sent.left = self.payloads[..self.len].iter().map(|payload| payload.datagrams()).sum();
        sent
    }

    /// Sends the datagrams of a train one by one. False: the socket is full, and what is left of the
    /// train is in its place.
    fn send_singly(
        &mut self,
        socket: BorrowedFd<'_>,
        train: usize,
        sent: &mut Sent,
        failed: &mut dyn FnMut(usize, io::Error),
    ) -> bool {
        let (payload, destination) = (self.payloads[train], self.destinations[train]);
        let Some(size) = payload.segment_size() else { return true };
        let mut rest = payload.bytes();
        while !rest.is_empty() {
            let mut batch = SendBatch::new();
            for segment in rest.chunks(usize::from(size.get())).take(BATCH) {
                batch.push_to(segment.into(), destination).unwrap_or(());
            }
            let count = batch.len();
            let part = batch.send_reporting(socket, &mut |_, error| failed(train, error));
            sent.datagrams += part.datagrams;
            sent.bytes += part.bytes;
            sent.failed += part.failed;
            let tried = (count - batch.len()) * usize::from(size.get());
            rest = rest.get(tried..).unwrap_or_default();
            if !batch.is_empty() {
                self.payloads[train] = Payload::train(rest, size.get());
                return false;
            }
        }
        true
    }

    /// One `sendmmsg` of what is in the batch from `first` on: how much the kernel took, at least one.
    #[expect(clippy::cast_possible_truncation, reason = "sizes of a few bytes, and at most BATCH")]
    fn send_from(&mut self, socket: BorrowedFd<'_>, first: usize) -> io::Result<usize> {
        let socket = socket.as_raw_fd();
        let mut controls = [SegmentSize::default(); BATCH];
        let mut vectors = [libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 }; BATCH];
        // SAFETY: `mmsghdr` is plain data of integers and pointers, for which zero is a value.
        let mut headers: [libc::mmsghdr; BATCH] = unsafe { std::mem::zeroed() };

        let pending = first..self.len;
        let count = pending.len();
        let datagrams = self.payloads[pending.clone()].iter().zip(&mut self.destinations[pending]);
        let memory = vectors.iter_mut().zip(&mut controls);
        for ((header, (vector, control)), (payload, name)) in headers.iter_mut().zip(memory).zip(datagrams) {
            let bytes = payload.bytes();
            vector.iov_base = bytes.as_ptr().cast_mut().cast();
            vector.iov_len = bytes.len();
            let message = &mut header.msg_hdr;
            if name.len() > 0 {
                message.msg_namelen = name.len() as _;
                message.msg_name = name.bytes_mut().as_mut_ptr().cast();
            }
            message.msg_iov = vector;
            message.msg_iovlen = 1;
            if let Some(size) = payload.segment_size() {
                *control = ancillary::segment_size(size.get());
                message.msg_controllen = control.len() as _;
                message.msg_control = control.as_mut_ptr().cast();
            }
        }

        retry(|| {
            // SAFETY: `headers` has BATCH elements, of which the first `count` <= BATCH are used.
            // Each points to one element of `vectors` and through it to a payload, and to a
            // destination and a control message or to null, with their true sizes: initialised
            // memory, of this function or borrowed by it, that stays until the call has returned.
            // The kernel only reads all of these, and writes nothing but `msg_len` of each header.
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

/// Whether sending the datagrams of a train one by one may help. Linux says EINVAL or EMSGSIZE,
/// depending on its version, where they are larger than the path takes or too many, and EIO where
/// the device has no checksum offload or the route encrypts.
fn is_about_trains(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EMSGSIZE | libc::EIO))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    #[test]
    fn a_train_sent_singly_keeps_what_finds_no_room() {
        // A socket pair, because over loopback a datagram leaves its sender's buffer at once.
        let (sender, receiver) = UnixDatagram::pair().unwrap();
        rustix::net::sockopt::set_socket_send_buffer_size(&sender, 4096).unwrap();
        receiver.set_nonblocking(true).unwrap();
        let bytes: Vec<u8> = (0..=255).cycle().take(100 * 7 + 3).collect();
        let mut batch = SendBatch::new();
        batch.push(Payload::train(&bytes, 7), None).unwrap();
        let (mut sent, mut received, mut stops) = (Sent::default(), Vec::new(), 0);
        loop {
            let mut failed = |_, error| panic!("{error}");
            let done = batch.send_singly(sender.as_fd(), 0, &mut sent, &mut failed);
            let mut buffer = [0; 100];
            while let Ok(len) = receiver.recv(&mut buffer) {
                received.push(buffer[..len].to_vec());
            }
            assert_eq!(received.len(), sent.datagrams);
            if done {
                break;
            }
            assert_eq!(batch.payloads[0].datagrams(), 101 - sent.datagrams);
            stops += 1;
        }
        assert!(stops > 0, "the buffer took it all at once; the test is about when it does not");
        assert_eq!(sent, Sent { datagrams: 101, bytes: bytes.len(), failed: 0, left: 0 });
        assert!(received.iter().map(Vec::as_slice).eq(bytes.chunks(7)));
    }
}
