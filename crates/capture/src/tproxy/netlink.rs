//! Netlink sockets: requests with their answers, and notices of others' changes.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NlasIterator,
};
use netlink_packet_route::RouteNetlinkMessage;
use rustix::io::Errno;
use rustix::net::netlink::{NETFILTER, SOCK_DIAG, SocketAddrNetlink};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with,
};

/// The kernel sends no longer messages: dumps grow to half of it.
const BUFFER: usize = 64 * 1024;

/// NLMSG_ALIGNTO: the alignment of messages.
const ALIGNMENT: usize = 4;

/// The timeout of an answer. The kernel answers at once, so only a bug can cause it.
const ANSWER: Duration = Duration::from_secs(5);

/// Groups of notices, as bits of a socket's address.
pub(super) mod groups {
    /// RTNLGRP_LINK: interfaces.
    pub(crate) const LINK: u32 = bit(1);
    /// RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR: their addresses.
    pub(crate) const ADDRESS: u32 = bit(5) | bit(9);
    /// RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV6_ROUTE: routes.
    pub(crate) const ROUTE: u32 = bit(7) | bit(11);
    /// RTNLGRP_IPV4_RULE, RTNLGRP_IPV6_RULE: policy rules.
    pub(crate) const RULE: u32 = bit(8) | bit(19);
    /// NFNLGRP_NFTABLES, of netfilter.
    pub(crate) const NFTABLES: u32 = bit(7);

    const fn bit(group: u32) -> u32 {
        1 << (group - 1)
    }
}

/// A netlink socket.
#[derive(Debug)]
pub(super) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    /// A socket for requests about links, addresses, routes and rules.
    ///
    /// # Errors
    /// The system cannot open a socket; the same for the next functions.
    pub(super) fn route() -> io::Result<Self> {
        Self::open(None, 0, 0)
    }

    /// A socket for requests about nftables.
    pub(super) fn netfilter() -> io::Result<Self> {
        Self::open(Some(NETFILTER), 0, 0)
    }

    /// A socket for requests about nftables, with this port (EADDRINUSE: another socket of this network
    /// namespace has it).
    pub(super) fn netfilter_at(port: u32) -> io::Result<Self> {
        Self::open(Some(NETFILTER), port, 0)
    }

    /// A socket for requests about TCP and UDP sockets.
    pub(super) fn sock_diag() -> io::Result<Self> {
        Self::open(Some(SOCK_DIAG), 0, 0)
    }

    /// A socket for notices of these [`groups`].
    pub(super) fn notices(groups: u32) -> io::Result<Self> {
        Self::open(None, 0, groups)
    }

    /// A socket for notices of all changes of nftables.
    pub(super) fn nftables_notices() -> io::Result<Self> {
        Self::open(Some(NETFILTER), 0, groups::NFTABLES)
    }

    fn open(protocol: Option<Protocol>, port: u32, groups: u32) -> io::Result<Self> {
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER))?;
        bind(&socket, &SocketAddrNetlink::new(port, groups))?;
        Ok(Self { socket, sequence: 0, buffer: vec![0; BUFFER] })
    }

    /// Makes the kernel filter dumps by the fields of the request. A kernel that does not support that dumps
    /// everything.
    pub(super) fn filter_dumps(&self) {
        if let Err(error) = sluice_sys::netlink::filter_dumps(&self.socket) {
            tracing::debug!(%error, "dumps of the kernel are not filtered");
        }
    }

    /// Whether there have been notices since the last call. Does not wait.
    pub(super) fn has_notices(&mut self) -> bool {
        let mut any = false;
        let were_lost = self.take_notices(|_| any = true).is_err();
        any || were_lost
    }

    /// Takes the notices since the last call. Does not wait.
    ///
    /// # Errors
    /// Some were lost because the socket was full (ENOBUFS), or the socket is unusable.
    pub(super) fn take_notices(&mut self, mut take: impl FnMut(NetlinkBuffer<&[u8]>)) -> Result<(), Errno> {
        let mut outcome = Ok(());
        loop {
            match recv(&self.socket, &mut self.buffer, RecvFlags::DONTWAIT) {
                Ok((length, _)) => {
                    messages(self.buffer.get(..length).unwrap_or_default()).for_each(&mut take);
                }
                // The notices that were not lost follow.
                Err(Errno::NOBUFS) => outcome = Err(Errno::NOBUFS),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return outcome,
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends a request about routing and takes all answers to it.
    ///
    /// # Errors
    /// The kernel's error.
    pub(super) fn request(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        mut take: impl FnMut(RouteNetlinkMessage),
    ) -> Result<(), Errno> {
        let mut message = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::from(message));
        message.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.exchange(bytes, |answer| {
            // An answer that the crate cannot parse is not one that was requested.
            if let Ok(answer) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(answer.into_inner())
                && let NetlinkPayload::InnerMessage(answer) = answer.payload
            {
                take(answer);
            }
        })
    }

    /// Sends a request, which has NLM_F_ACK among its flags, and takes all answers to it.
    ///
    /// # Errors
    /// The kernel's error.
    pub(super) fn exchange(
        &mut self,
        mut request: Vec<u8>,
        mut take: impl FnMut(NetlinkBuffer<&[u8]>),
    ) -> Result<(), Errno> {
        self.sequence = self.sequence.wrapping_add(1);
        NetlinkBuffer::new(&mut request).set_sequence_number(self.sequence);
        send(&self.socket, &request, SendFlags::empty())?;
        loop {
            let length = match recv(&self.socket, &mut self.buffer, RecvFlags::empty()) {
                Ok((length, _)) => length,
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error),
            };
            for message in messages(self.buffer.get(..length).unwrap_or_default()) {
                if message.sequence_number() != self.sequence {
                    continue;
                }
                match message.message_type() {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => return error_code(message.payload()),
                    _ => take(message),
                }
            }
        }
    }
}

/// `struct nlmsghdr`: where `struct nfgenmsg` begins.
const HEADER: usize = 16;

/// A request about nftables, with NLM_F_ACK: its type, the family (NFPROTO_*), and attributes by number.
pub(super) fn nftables_request(kind: u16, family: u8, attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut request = vec![0; HEADER];
    // `struct nfgenmsg`: family, version 0, no resource.
    request.extend_from_slice(&[family, 0, 0, 0]);
    for (kind, value) in attributes {
        let length = u16::try_from(ALIGNMENT + value.len()).unwrap_or(u16::MAX);
        request.extend_from_slice(&length.to_ne_bytes());
        request.extend_from_slice(&kind.to_ne_bytes());
        request.extend_from_slice(value);
        request.resize(request.len().next_multiple_of(ALIGNMENT), 0);
    }
    let length = u32::try_from(request.len()).unwrap_or(u32::MAX);
    let mut header = NetlinkBuffer::new(&mut request);
    header.set_length(length);
    header.set_message_type(kind);
    header.set_flags(NLM_F_REQUEST | NLM_F_ACK);
    request
}

/// The value of an attribute in a list that begins at an offset.
pub(super) fn attribute(bytes: &[u8], offset: usize, kind: u16) -> Option<Vec<u8>> {
    let mut attributes = NlasIterator::new(bytes.get(offset..)?).map_while(Result::ok);
    attributes.find(|attribute| attribute.kind() == kind).map(|attribute| attribute.value().to_vec())
}

/// The messages in one received buffer.
fn messages(received: &[u8]) -> impl Iterator<Item = NetlinkBuffer<&[u8]>> {
    let mut left = received;
    std::iter::from_fn(move || {
        let message = NetlinkBuffer::new_checked(left).ok()?;
        let length = usize::try_from(message.length()).ok()?.checked_next_multiple_of(ALIGNMENT)?;
        left = left.get(length..).unwrap_or_default();
        Some(message)
    })
}

/// The content of an NLMSG_ERROR: a negative errno, or 0 for success.
fn error_code(payload: &[u8]) -> Result<(), Errno> {
    match payload.first_chunk().map(|code| i32::from_ne_bytes(*code)) {
        Some(0) => Ok(()),
        Some(code) => Err(Errno::from_raw_os_error(code.saturating_neg())),
        None => Err(Errno::BADMSG),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_that_came_together() {
        let message = |length: u32, size: usize| {
            let mut message = length.to_ne_bytes().to_vec();
            message.resize(size, 7);
            message
        };
        let lengths =
            |received: &[u8]| -> Vec<u32> { messages(received).map(|message| message.length()).collect() };
        assert_eq!(lengths(&[message(16, 16), message(18, 20), message(16, 16)].concat()), [16, 18, 16]);
        assert_eq!(lengths(&message(18, 18)), [18], "the last one need not be aligned");
        assert!(lengths(&message(17, 16)).is_empty(), "cut off");
        assert!(lengths(&message(0, 16)).is_empty(), "no message is so short");
        assert!(lengths(&message(u32::MAX, 16)).is_empty());
        assert!(lengths(&[]).is_empty());
    }

    #[test]
    fn attributes_are_found_again_among_others() {
        let request = nftables_request(0x0a13, 1, &[(1, b"sluice\0"), (2, b"crowded\0"), (3, &[0, 0, 0, 1])]);
        let buffer = NetlinkBuffer::new_checked(&request).unwrap();
        assert_eq!((buffer.message_type(), buffer.flags()), (0x0a13, 5));
        assert_eq!(usize::try_from(buffer.length()).unwrap(), request.len());
        let find = |kind| attribute(buffer.payload(), 4, kind);
        assert_eq!(find(1).unwrap(), b"sluice\0");
        assert_eq!(find(2).unwrap(), b"crowded\0");
        assert_eq!((find(3), find(4)), (Some(vec![0, 0, 0, 1]), None));
        assert_eq!(attribute(&[1], 4, 1), None, "too short");
    }

    #[test]
    fn errors_are_negative() {
        assert_eq!(error_code(&[0; 4]), Ok(()));
        assert_eq!(error_code(&(-1i32).to_ne_bytes()), Err(Errno::PERM));
        assert_eq!(error_code(&[0; 3]), Err(Errno::BADMSG));
    }
}
