//! Asks the kernel to end a socket: `SOCK_DESTROY` of sock_diag(7).

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::retry_on_intr;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};
use sluice_sys::sock_diag::{DESTROY, REQUEST, Request};

use crate::census::Translated;

/// How long to wait for an answer. At present, the kernel answers before the request's send returns.
const PATIENCE: Duration = Duration::from_secs(1);

/// Ends sockets of the network namespace in which it was opened.
#[derive(Debug)]
pub(crate) struct Diag {
    socket: OwnedFd,
    /// The latest request's sequence number.
    sequence: u32,
}

impl Diag {
    pub(crate) fn open() -> io::Result<Self> {
        let (flags, protocol) = (SocketFlags::CLOEXEC, Some(netlink::SOCK_DIAG));
        Self::over(socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, protocol)?, PATIENCE)
    }

    /// The same over any datagram socket.
    pub(crate) fn over(socket: OwnedFd, patience: Duration) -> io::Result<Self> {
        set_socket_timeout(&socket, Timeout::Recv, Some(patience))?;
        set_socket_timeout(&socket, Timeout::Send, Some(patience))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Ends a socket. Its cookie makes sure that no later socket with the same addresses is ended. `ENOENT`:
    /// there is no such socket; `EAGAIN`: there was no answer.
    pub(crate) fn end(&mut self, socket: &Translated) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let request = request(socket, self.sequence);
        retry_on_intr(|| send(&self.socket, &request, SendFlags::empty()))?;
        let mut bytes = [0; 1024];
        loop {
            let (length, _) = retry_on_intr(|| recv(&self.socket, bytes.as_mut_slice(), RecvFlags::empty()))?;
            let (sequence, error) = answer(bytes.get(..length).unwrap_or_default())?;
            // A late answer belongs to an earlier request.
            if sequence == self.sequence {
                return if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) };
            }
        }
    }
}

/// Parses an answer: a header of 16 bytes with length, type (`NLMSG_ERROR`), sequence number and sender, then
/// the error, which is 0 for success.
fn answer(bytes: &[u8]) -> io::Result<(u32, i32)> {
    const ERROR: u16 = 2;
    let invalid = || io::Error::from(io::ErrorKind::InvalidData);
    let word = |at: usize| bytes.get(at..)?.first_chunk::<4>().copied();
    let kind = bytes.get(4..).and_then(|bytes| bytes.first_chunk::<2>()).ok_or_else(invalid)?;
    let (sequence, error) = word(8).zip(word(16)).ok_or_else(invalid)?;
    if u16::from_ne_bytes(*kind) != ERROR {
        return Err(invalid());
    }
    Ok((u32::from_ne_bytes(sequence), i32::from_ne_bytes(error).saturating_neg()))
}

fn request(socket: &Translated, sequence: u32) -> Vec<u8> {
    let request = Request {
        kind: DESTROY,
        flags: REQUEST,
        is_v6: socket.is_v6,
        protocol: socket.protocol,
        // All states.
        states: u32::MAX,
        local: socket.local,
        remote: socket.endpoint,
        device: socket.device,
        cookie: socket.cookie,
    };
    request.bytes(sequence)
}
