//! Requests of sock_diag(7) about sockets of TCP and UDP, and what is read from the answers. No system call is made here:
//! whoever has a netlink socket sends and receives.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// `SOCK_DIAG_BY_FAMILY`: the kernel answers with sockets.
pub const BY_FAMILY: u16 = 20;

/// `SOCK_DESTROY`: the kernel destroys the socket.
pub const DESTROY: u16 = 21;

/// `NLM_F_REQUEST` and `NLM_F_ACK`.
pub const REQUEST: u16 = 1 | 4;

/// `NLM_F_DUMP`: all sockets that fit are wanted.
pub const DUMP: u16 = 0x300;

/// The state of a TCP socket that listens, as a bit of [`Request::states`] (`TCP_LISTEN`).
pub const LISTENING: u32 = 1 << 10;

/// The state of a UDP socket that is not connected, as a bit of [`Request::states`] (`TCP_CLOSE`).
pub const UNCONNECTED: u32 = 1 << 7;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// `struct nlmsghdr`, and `struct inet_diag_req_v2` behind it.
const LENGTH: u32 = 16 + 56;

/// `idiag_dport` and `idiag_src` in `struct inet_diag_sockid`, which is behind four bytes in requests' and answers' bodies.
const ID: usize = 4;
/// Its length, with the cookie at its end.
const ID_LENGTH: usize = 48;

/// The sockets that a request is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// [`BY_FAMILY`] or [`DESTROY`].
    pub kind: u16,
    /// Flags of the message.
    pub flags: u16,
    /// Whether the sockets are of IPv6. Those may have addresses of IPv4, which are mapped then.
    pub is_v6: bool,
    /// `IPPROTO_TCP` or `IPPROTO_UDP`.
    pub protocol: u8,
    /// A bit for each state that counts.
    pub states: u32,
    /// The socket's own address. A dump goes by its port alone.
    pub local: SocketAddr,
    /// The address that it is connected to.
    pub remote: SocketAddr,
    /// The interface that it is bound to, or 0.
    pub device: u32,
    /// Which socket it is, of several with these addresses: [`u64::MAX`] for any.
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
        // The kernel fills in who sends.
        bytes.extend([0; 4]);
        bytes.extend([if self.is_v6 { AF_INET6 } else { AF_INET }, self.protocol, 0, 0]);
        bytes.extend(self.states.to_ne_bytes());
        bytes.extend(self.local.port().to_be_bytes());
        bytes.extend(self.remote.port().to_be_bytes());
        for ip in [self.local.ip(), self.remote.ip()] {
            bytes.extend(address(ip, self.is_v6));
        }
        // The kernel finds a socket that is bound to an interface by that one only.
        bytes.extend(self.device.to_ne_bytes());
        bytes.extend(self.cookie.to_ne_bytes());
        bytes
    }
}

/// As a socket of this family has it, in 16 bytes.
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

/// A socket that a dump has shown (`struct inet_diag_msg`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shown {
    /// Its own address.
    pub local: SocketAddr,
    /// The interface that it is bound to, or 0.
    pub device: u32,
    /// Which socket it is.
    pub cookie: u64,
    /// The inode, by which links in `/proc/PID/fd` know it; 0 for one that no process has.
    pub inode: u32,
}

impl Shown {
    /// Reads the body of an answer; none where it is not one.
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
            // Behind a timer, the lengths of both queues and a user.
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
