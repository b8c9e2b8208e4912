//! Socket addresses as the kernel reads and writes them: `sockaddr_in` and `sockaddr_in6` as bytes.
//!
//! Bytes instead of libc's structs: the kernel copies them to and from user memory regardless of their
//! alignment, and parsing bytes needs no unsafe code. The layout is part of Linux's stable interface
//! (`ip(7)`, `ipv6(7)`).

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// Bytes of a `sockaddr_in`: family, port, address, eight of padding.
const V4_LEN: usize = size_of::<libc::sockaddr_in>();
/// Bytes of a `sockaddr_in6`: family, port, flow information, address, scope.
const V6_LEN: usize = size_of::<libc::sockaddr_in6>();

#[expect(clippy::cast_possible_truncation, reason = "the families are 2 and 10; sa_family_t has 16 bits")]
const INET: [u8; 2] = (libc::AF_INET as libc::sa_family_t).to_ne_bytes();
#[expect(clippy::cast_possible_truncation, reason = "the families are 2 and 10; sa_family_t has 16 bits")]
const INET6: [u8; 2] = (libc::AF_INET6 as libc::sa_family_t).to_ne_bytes();

/// A buffer for an address of either family, and the length of the address in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Name {
    bytes: [u8; V6_LEN],
    len: usize,
}

impl Name {
    /// No address, for a connected socket.
    pub(super) const NONE: Self = Self { bytes: [0; V6_LEN], len: 0 };

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8; V6_LEN] {
        &mut self.bytes
    }

    /// Sets the length that the kernel has written.
    pub(super) fn set_len(&mut self, len: libc::socklen_t) {
        self.len = (len as usize).min(V6_LEN);
    }

    /// The address, if it is an IPv4 or IPv6 one.
    pub(super) fn decode(&self) -> Option<SocketAddr> {
        decode(self.bytes.get(..self.len())?)
    }
}

impl From<SocketAddr> for Name {
    fn from(address: SocketAddr) -> Self {
        let mut name = Self::NONE;
        let bytes = &mut name.bytes;
        bytes[2..4].copy_from_slice(&address.port().to_be_bytes());
        match address {
            SocketAddr::V4(v4) => {
                bytes[0..2].copy_from_slice(&INET);
                bytes[4..8].copy_from_slice(&v4.ip().octets());
                name.len = V4_LEN;
            }
            SocketAddr::V6(v6) => {
                bytes[0..2].copy_from_slice(&INET6);
                bytes[4..8].copy_from_slice(&v6.flowinfo().to_ne_bytes());
                bytes[8..24].copy_from_slice(&v6.ip().octets());
                bytes[24..28].copy_from_slice(&v6.scope_id().to_ne_bytes());
                name.len = V6_LEN;
            }
        }
        name
    }
}

/// Parses a `sockaddr_in` or `sockaddr_in6`; `None` if it is neither.
pub(super) fn decode(bytes: &[u8]) -> Option<SocketAddr> {
    let port = u16::from_be_bytes(array(bytes, 2)?);
    match array(bytes, 0)? {
        INET => {
            let ip = Ipv4Addr::from(array::<4>(bytes, 4)?);
            Some(SocketAddrV4::new(ip, port).into())
        }
        INET6 => {
            let flow_info = u32::from_ne_bytes(array(bytes, 4)?);
            let ip = Ipv6Addr::from(array::<16>(bytes, 8)?);
            let scope = u32::from_ne_bytes(array(bytes, 24)?);
            Some(SocketAddrV6::new(ip, port, flow_info, scope).into())
        }
        _ => None,
    }
}

/// The `N` bytes at offset `at`, if there are that many.
pub(super) fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_written_as_socket2_writes_them_and_read_back_whole() {
        let scoped = SocketAddrV6::new("fe80::1".parse().unwrap(), 53, 0x12345, 7);
        for address in ["10.96.0.10:53", "255.1.2.3:65535", "[fd00::1:2]:8080", "[::ffff:10.0.0.1]:1"]
            .map(|text| text.parse().unwrap())
            .into_iter()
            .chain([SocketAddr::from(scoped)])
        {
            let name = Name::from(address);
            let expected = socket2::SockAddr::from(address);
            assert_eq!(name.len(), expected.len() as usize);
            // SAFETY: `as_ptr` points to `len` bytes that live as long as `expected`, and
            // `SockAddr::from(SocketAddr)` zeroes what it does not write.
            let bytes = unsafe { std::slice::from_raw_parts(expected.as_ptr().cast::<u8>(), name.len()) };
            assert_eq!(name.bytes[..name.len()], *bytes);
            assert_eq!(name.decode(), Some(address));
        }
    }

    #[test]
    fn what_is_not_an_address_is_none() {
        let whole = Name::from("[fd00::1]:80".parse::<SocketAddr>().unwrap());
        for len in 0..whole.len() {
            assert_eq!(decode(&whole.bytes[..len]), None, "{len} bytes");
        }
        assert_eq!(decode(&[0; V6_LEN]), None);
        assert_eq!(Name::NONE.decode(), None);
    }
}
