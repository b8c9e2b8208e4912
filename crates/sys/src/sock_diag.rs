//! Messages of sock_diag(7) about TCP and UDP sockets: builds requests and parses replies. No system calls:
//! the owner of a netlink socket sends and receives.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// `SOCK_DIAG_BY_FAMILY`: the kernel replies with sockets.
pub const BY_FAMILY: u16 = 20;

/// `SOCK_DESTROY`: the kernel destroys the socket.
pub const DESTROY: u16 = 21;

/// `NLM_F_REQUEST` and `NLM_F_ACK`.
pub const REQUEST: u16 = 1 | 4;

/// `NLM_F_DUMP`: all matching sockets are requested.
pub const DUMP: u16 = 0x300;

/// The state of a listening TCP socket, as a bit of [`Request::states`] (`TCP_LISTEN`).
pub const LISTENING: u32 = 1 << 10;

/// The state of an unconnected UDP socket, as a bit of [`Request::states`] (`TCP_CLOSE`).
pub const UNCONNECTED: u32 = 1 << 7;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// `struct nlmsghdr`, followed by `struct inet_diag_req_v2`.
const LENGTH: u32 = 16 + 56;

/// The offset of `struct inet_diag_sockid` in the bodies of requests and replies.
const ID: usize = 4;
/// The length of that struct; the cookie is at its end.
const ID_LENGTH: usize = 48;

/// The sockets that a request is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// [`BY_FAMILY`] or [`DESTROY`].
    pub kind: u16,
    /// Flags of the message.
    pub flags: u16,
    /// Whether the sockets are IPv6 ones. These may have IPv4 addresses, which are mapped then.
    pub is_v6: bool,
    /// `IPPROTO_TCP` or `IPPROTO_UDP`.
    pub protocol: u8,
    /// A bit for each state that matches.
    pub states: u32,
    /// The socket's local address. A dump uses only its port.
    pub local: SocketAddr,
    /// The socket's remote address.
    pub remote: SocketAddr,
    /// The index of the interface that it is bound to, or 0.
    pub device: u32,
    /// Selects one of several sockets with these addresses; [`u64::MAX`] matches any.
    pub cookie: u64,
}

impl Request {
    /// The message with this sequence number.
    pub fn bytes(&self, sequence: u32) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(LENGTH as usize);
        bytes.extend(LENGTH.to_ne_bytes());
        bytes.extend(self.kind.to_ne_bytes());
        bytes.extend(self.flags.to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        // The kernel fills in the sender.
        bytes.extend([0; 4]);
        bytes.extend([if self.is_v6 { AF_INET6 } else { AF_INET }, self.protocol, 0, 0]);
        bytes.extend(self.states.to_ne_bytes());
        bytes.extend(self.local.port().to_be_bytes());
        bytes.extend(self.remote.port().to_be_bytes());
        for ip in [self.local.ip(), self.remote.ip()] {
            bytes.extend(address(ip, self.is_v6));
        }
        // The kernel finds a socket that is bound to an interface only with that interface.
        bytes.extend(self.device.to_ne_bytes());
        bytes.extend(self.cookie.to_ne_bytes());
        bytes
    }
}

/// An address in the 16 bytes of a socket of this family.
fn address(ip: IpAddr, is_v6: bool) -> [u8; 16] {
    match ip {
        IpAddr::V6(ip) => ip.octets(),
        IpAddr::V4(ip) if is_v6 => ip.to_ipv6_mapped().octets(),
        IpAddr::V4(ip) => {
            let mut octets = [0; 16];
            octets[..4].copy_from_slice(&ip.octets());
            octets
        }
    }
}

/// A socket in a dump (`struct inet_diag_msg`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shown {
    /// Its local address.
    pub local: SocketAddr,
    /// The index of the interface that it is bound to, or 0.
    pub device: u32,
    /// Its cookie.
    pub cookie: u64,
    /// Its inode number, as in the links in `/proc/PID/fd`; 0 if no process has it.
    pub inode: u32,
}

impl Shown {
    /// Parses the body of a reply; `None` if it is invalid.
    pub fn read(body: &[u8]) -> Option<Self> {
        let is_v6 = match *body.first()? {
            AF_INET => false,
            AF_INET6 => true,
            _ => return None,
        };
        let word = |at: usize| body.get(at..)?.first_chunk::<4>().copied();
        let port = u16::from_be_bytes(*body.get(ID..)?.first_chunk()?);
        let octets: &[u8; 16] = body.get(ID + 4..)?.first_chunk()?;
        let ip = if is_v6 {
            IpAddr::V6(Ipv6Addr::from(*octets))
        } else {
            IpAddr::V4(Ipv4Addr::from(*octets.first_chunk::<4>()?))
        };
        Some(Self {
            local: SocketAddr::new(ip, port),
            device: u32::from_ne_bytes(word(ID + 36)?),
            cookie: u64::from_ne_bytes(*body.get(ID + 40..)?.first_chunk()?),
            // Follows a timer, the lengths of both queues and a user.
            inode: u32::from_ne_bytes(word(ID + ID_LENGTH + 16)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_as_the_kernel_writes_it() {
        let mut body = vec![AF_INET, 10, 0, 0];
        body.extend(10_265u16.to_be_bytes());
        body.extend([0; 2]);
        body.extend(address(Ipv4Addr::LOCALHOST.into(), false));
        body.extend([0; 16]);
        body.extend(3u32.to_ne_bytes());
        body.extend(7u64.to_ne_bytes());
        body.extend([0; 16]);
        body.extend(99u32.to_ne_bytes());
        let shown = Shown::read(&body).unwrap();
        assert_eq!(shown, Shown { local: ([127, 0, 0, 1], 10_265).into(), device: 3, cookie: 7, inode: 99 });
        assert_eq!(Shown::read(&body[..70]), None, "cut off");
        assert_eq!(Shown::read(&[1]), None);
    }
}
