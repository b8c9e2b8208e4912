//! Sends with `sendmsg` and `sendmmsg`. A datagram that fails does not hold up the others.

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::ops::{ControlFlow, Range};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr;

use super::address::Name;
use super::ancillary::{self, SegmentSize};
use super::joining::Joining;
use super::recv::retry;
use super::{BATCH, MAX_PAYLOAD_V4, Payload};

/// Up to [`BATCH`] datagrams, or trains of them, to be sent through one socket. Payloads are borrowed,
/// usually from a [`RecvBatch`](super::RecvBatch): create a batch on the stack, fill it, send it.
#[derive(Debug)]
pub struct SendBatch<'a> {
    payloads: [Payload<'a>; BATCH],
    destinations: [Name; BATCH],
    len: usize,
    largest: usize,
}

/// The batch has no room for another datagram: send it first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchFull;

/// The outcome for the datagrams of a batch; those of a train are counted one by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sent {
    /// Accepted by the kernel.
    pub datagrams: usize,
    /// Bytes of their payloads.
    pub bytes: usize,
    /// Not accepted, for an error that was reported, and dropped.
    pub failed: usize,
    /// Not sent, because the socket's buffer is full or `failed` has stopped the sending. They are still in
    /// the batch.
    pub left: usize,
}

impl Default for SendBatch<'_> {
    fn default() -> Self {
        Self {
            payloads: [Payload::from(&[][..]); BATCH],
            destinations: [Name::NONE; BATCH],
            len: 0,
            largest: 0,
        }
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

    /// Number of datagrams and trains in the batch.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Number of datagrams in the batch; those of a train are counted one by one.
    pub fn datagrams(&self) -> usize {
        self.payloads().map(Payload::datagrams).sum()
    }

    /// The datagrams and trains in the batch, in order.
    pub fn payloads(&self) -> impl Iterator<Item = Payload<'a>> {
        self.payloads[..self.len].iter().copied()
    }

    /// Whether the batch is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether the batch has no room for another datagram.
    pub fn is_full(&self) -> bool {
        self.len == BATCH
    }

    /// Empties the batch.
    pub fn clear(&mut self) {
        (self.len, self.largest) = (0, 0);
    }

    /// The size in bytes of the largest datagram added since the batch was created or cleared.
    pub fn largest(&self) -> usize {
        self.largest
    }

    /// Sends everything in order, without waiting. If the kernel does not accept a datagram, `failed` is
    /// called with its position in the batch and the error, and decides whether to skip it or to stop.
    /// Afterwards the batch contains only what did not fit into the socket's buffer or, after a stop, that
    /// datagram and all after it.
    ///
    /// A train that the kernel does not accept as one, because its datagrams would have to be fragmented or
    /// the device cannot split it, is sent as single datagrams.
    ///
    /// `ConnectionRefused` and other network errors on a connected socket are about an earlier datagram, but
    /// the current one is not sent. The kernel reports such errors with a later call, and forgets one that
    /// occurs in the middle of a batch, so their number means little.
    pub fn send(
        &mut self,
        socket: impl AsFd,
        mut failed: impl FnMut(usize, io::Error) -> ControlFlow<()>,
    ) -> Sent {
        self.send_reporting(socket.as_fd(), None, &mut failed)
    }

    /// Like [`Self::send`], for a UDP socket. Consecutive datagrams of one size to one destination are sent
    /// as a train, which costs little more than one datagram, within the limit in `joining`, which belongs to
    /// the socket.
    pub fn send_joined(
        &mut self,
        socket: impl AsFd,
        joining: &Joining,
        mut failed: impl FnMut(usize, io::Error) -> ControlFlow<()>,
    ) -> Sent {
        self.send_reporting(socket.as_fd(), Some(joining), &mut failed)
    }

    fn push_to(&mut self, payload: Payload<'a>, destination: Name) -> Result<(), BatchFull> {
        match (self.payloads.get_mut(self.len), self.destinations.get_mut(self.len)) {
            (Some(slot), Some(name)) => {
                (*slot, *name) = (payload, destination);
                self.len += 1;
                let size = payload.segment_size().map_or(payload.bytes().len(), |size| size.get().into());
                self.largest = self.largest.max(size);
                Ok(())
            }
            _ => Err(BatchFull),
        }
    }

    fn send_reporting(
        &mut self,
        socket: BorrowedFd<'_>,
        joining: Option<&Joining>,
        failed: &mut dyn FnMut(usize, io::Error) -> ControlFlow<()>,
    ) -> Sent {
        let mut sent = Sent::default();
        let mut next = 0;
        while next < self.len {
            let up_to = joining.map_or(0, Joining::up_to);
            match self.send_from(socket, next, up_to) {
                // The kernel is not known to do this. If it did, the loop would never end.
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
                Err(error) if is_about_trains(&error) && self.joined(next, up_to) > 1 => {
                    // Try again without joining: such datagrams are above the limit from now on.
                    if let Some(joining) = joining {
                        joining.failed(self.payloads[next].bytes().len(), &error);
                    }
                }
                Err(error) if self.payloads[next].datagrams() > 1 && is_about_trains(&error) => {
                    if !self.send_singly(socket, next, &mut sent, failed) {
                        break;
                    }
                    next += 1;
                }
                Err(error) => {
                    if failed(next, error).is_break() {
                        break;
                    }
                    sent.failed += self.payloads[next].datagrams();
                    next += 1;
                }
            }
        }
        if next > 0 {
            self.payloads.copy_within(next..self.len, 0);
            self.destinations.copy_within(next..self.len, 0);
            self.len -= next;
        }
        sent.left = self.datagrams();
        sent
    }

    /// Number of payloads from `first` on, at least one, that can be sent as one: datagrams of the same size
    /// to the same destination, of which the last may be shorter.
    fn joined(&self, first: usize, up_to: usize) -> usize {
        let Some(payload) = self.payloads.get(first) else { return 0 };
        let size = payload.bytes().len();
        if payload.segment_size().is_some() || size == 0 || size > up_to {
            return 1;
        }
        let (mut count, mut total) = (1, size);
        for at in first + 1..self.len {
            let next = self.payloads[at];
            let length = next.bytes().len();
            total += length;
            let fits = next.segment_size().is_none() && (1..=size).contains(&length) && total <= TRAIN;
            if !fits || self.destinations[at] != self.destinations[first] {
                break;
            }
            count += 1;
            if length < size {
                break;
            }
        }
        count
    }

    /// Sends the datagrams of a train one by one. Returns false if nothing more is to be sent; the rest of
    /// the train is then in its place.
    fn send_singly(
        &mut self,
        socket: BorrowedFd<'_>,
        train: usize,
        sent: &mut Sent,
        failed: &mut dyn FnMut(usize, io::Error) -> ControlFlow<()>,
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
            let part = batch.send_reporting(socket, None, &mut |_, error| failed(train, error));
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

    /// One system call for the batch from `first` on. Returns how many the kernel accepted, at least one.
    /// Datagrams of up to `up_to` bytes are joined.
    fn send_from(&mut self, socket: BorrowedFd<'_>, first: usize, up_to: usize) -> io::Result<usize> {
        let run = self.joined(first, up_to);
        if first + run == self.len {
            return self.send_one(socket, first, run);
        }
        self.send_many(socket, first, up_to)
    }

    /// One `sendmsg` for payloads that can be sent as one. It is cheaper than `sendmmsg` of one, and by far
    /// the most frequent.
    fn send_one(&mut self, socket: BorrowedFd<'_>, first: usize, run: usize) -> io::Result<usize> {
        let mut vectors = [NO_VECTOR; BATCH];
        let mut control = SegmentSize::default();
        let message = self.message(first..first + run, &mut vectors, &mut control);
        retry(|| {
            // SAFETY: `message` points to as many elements of `vectors` as it says, through them to payloads,
            // and to a destination and a control message or to null, with their true sizes. This is
            // initialised memory, of this function or borrowed by the batch, that outlives the call. The
            // kernel only reads it.
            unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, FLAGS) }
        })?;
        Ok(run)
    }

    /// One `sendmmsg`.
    fn send_many(&mut self, socket: BorrowedFd<'_>, first: usize, up_to: usize) -> io::Result<usize> {
        let mut controls = [SegmentSize::default(); BATCH];
        let mut vectors = [NO_VECTOR; BATCH];
        // SAFETY: `mmsghdr` is plain data of integers and pointers, for which zero is a value.
        let mut headers: [libc::mmsghdr; BATCH] = unsafe { std::mem::zeroed() };
        // The end of the payloads of each header.
        let mut ends = [0; BATCH];

        let (mut at, mut count) = (first, 0);
        let mut free = &mut vectors[..];
        for ((header, control), end) in headers.iter_mut().zip(&mut controls).zip(&mut ends) {
            if at == self.len {
                break;
            }
            let run = self.joined(at, up_to);
            let Some((own, rest)) = std::mem::take(&mut free).split_at_mut_checked(run) else { break };
            free = rest;
            header.msg_hdr = self.message(at..at + run, own, control);
            at += run;
            *end = at;
            count += 1;
        }

        let sent = retry(|| {
            // SAFETY: `headers` has BATCH elements, of which the first `count` <= BATCH are used. Each points
            // to its own elements of `vectors`, through them to payloads, and to a destination and a control
            // message or to null, with their true sizes. This is initialised memory, of this function or
            // borrowed by it, that outlives the call. The kernel only reads it, and writes nothing but
            // `msg_len` of each header.
            unsafe {
                libc::sendmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), count as libc::c_uint, FLAGS as _)
            }
        })?;
        Ok(sent.checked_sub(1).and_then(|last| ends.get(last)).map_or(0, |end| end - first))
    }

    /// The header for some payloads that are sent as one. It points to them and to their destination, in this
    /// batch, and to the given buffers: as many vectors as there are payloads, and a control message.
    #[expect(clippy::cast_possible_truncation, reason = "sizes of a few bytes, and at most BATCH")]
    fn message(
        &mut self,
        payloads: Range<usize>,
        vectors: &mut [libc::iovec],
        control: &mut SegmentSize,
    ) -> libc::msghdr {
        // SAFETY: `msghdr` is plain data of integers and pointers, for which zero is a value.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        let name = &mut self.destinations[payloads.start];
        if name.len() > 0 {
            message.msg_namelen = name.len() as _;
            message.msg_name = name.bytes_mut().as_mut_ptr().cast();
        }
        let payloads = &self.payloads[payloads];
        for (vector, payload) in vectors.iter_mut().zip(payloads) {
            vector.iov_base = payload.bytes().as_ptr().cast_mut().cast();
            vector.iov_len = payload.bytes().len();
        }
        message.msg_iov = vectors.as_mut_ptr();
        message.msg_iovlen = payloads.len().min(vectors.len()) as _;
        let size = match payloads {
            [payload] => payload.segment_size().map(NonZeroU16::get),
            [first, ..] => u16::try_from(first.bytes().len()).ok(),
            [] => None,
        };
        if let Some(size) = size {
            *control = ancillary::segment_size(size);
            message.msg_controllen = control.len() as _;
            message.msg_control = control.as_mut_ptr().cast();
        }
        message
    }
}

const FLAGS: libc::c_int = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;

const NO_VECTOR: libc::iovec = libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 };

/// The maximum size of a train in bytes: it is one packet until it leaves the machine.
const TRAIN: usize = MAX_PAYLOAD_V4;

/// Whether sending the datagrams of a train one by one may help. Depending on its version, Linux returns
/// EINVAL or EMSGSIZE if they exceed the path MTU or are too many, and EIO if the device has no checksum
/// offload or the route encrypts.
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
            let mut failed = |_, error: io::Error| panic!("{error}");
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
