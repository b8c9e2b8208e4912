//! Ancillary data of datagrams (`cmsg(3)`): messages that consist of a length (including the header), a
//! level, a type and data, each aligned to a word. Parsed as bytes, for the reasons in [`address`].

use std::ffi::c_int;
use std::net::SocketAddr;

use super::address;

const WORD: usize = size_of::<usize>();
const INT: usize = size_of::<c_int>();
const HEADER: usize = (WORD + 2 * INT).next_multiple_of(WORD);

/// The message that makes the kernel send a payload as a train.
pub(super) type SegmentSize = [u8; (HEADER + size_of::<u16>()).next_multiple_of(WORD)];

/// The message `UDP_SEGMENT`: split the payload into segments of `size` bytes.
pub(super) fn segment_size(size: u16) -> SegmentSize {
    let mut bytes = SegmentSize::default();
    let data = HEADER + size_of::<u16>();
    bytes[..WORD].copy_from_slice(&data.to_ne_bytes());
    bytes[WORD..WORD + INT].copy_from_slice(&libc::SOL_UDP.to_ne_bytes());
    bytes[WORD + INT..WORD + 2 * INT].copy_from_slice(&libc::UDP_SEGMENT.to_ne_bytes());
    bytes[HEADER..data].copy_from_slice(&size.to_ne_bytes());
    bytes
}

/// What the kernel reports about a datagram besides its source.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Received {
    /// `IP_ORIGDSTADDR`, `IPV6_ORIGDSTADDR`.
    pub(super) original_destination: Option<SocketAddr>,
    /// `UDP_GRO`: the size of the datagrams in a train.
    pub(super) segment_size: Option<u16>,
}

impl Received {
    /// Parses messages until the end or the first invalid one.
    pub(super) fn parse(mut control: &[u8]) -> Self {
        let mut ancillary = Self::default();
        while let Some((message, rest)) = Message::split(control) {
            match (message.level, message.kind) {
                (libc::IPPROTO_IP, libc::IP_ORIGDSTADDR) | (libc::IPPROTO_IPV6, libc::IPV6_ORIGDSTADDR) => {
                    ancillary.original_destination = address::decode(message.data);
                }
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    let size = address::array(message.data, 0).map(c_int::from_ne_bytes);
                    ancillary.segment_size = size.and_then(|size| u16::try_from(size).ok());
                }
                _ => {}
            }
            control = rest;
        }
        ancillary
    }
}

/// One message of ancillary data.
struct Message<'a> {
    level: c_int,
    kind: c_int,
    data: &'a [u8],
}

impl<'a> Message<'a> {
    /// Splits off the first message. Returns it and the rest.
    fn split(control: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let len = usize::from_ne_bytes(address::array(control, 0)?);
        let message = Self {
            level: c_int::from_ne_bytes(address::array(control, WORD)?),
            kind: c_int::from_ne_bytes(address::array(control, WORD + INT)?),
            data: control.get(HEADER..len)?,
        };
        // The last one may lack padding.
        Some((message, control.get(len.checked_next_multiple_of(WORD)?..).unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;
    use crate::udp::address::Name;

    /// The data of one message, as the kernel lays it out.
    fn message(level: c_int, kind: c_int, data: &[u8]) -> Vec<u8> {
        let mut bytes = (16 + data.len()).to_ne_bytes().to_vec();
        bytes.extend(level.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(data);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    const ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10)), 53);

    fn original_destination() -> Vec<u8> {
        message(libc::IPPROTO_IP, libc::IP_ORIGDSTADDR, &Name::from(ADDRESS).bytes_mut()[..16])
    }

    #[test]
    #[cfg(target_pointer_width = "64")]
    fn what_is_asked_for_is_found_in_any_order_among_other_messages() {
        let other = message(libc::SOL_SOCKET, libc::SO_TIMESTAMP, &[1; 13]);
        let size = message(libc::SOL_UDP, libc::UDP_GRO, &1200i32.to_ne_bytes());
        let expected = Received { original_destination: Some(ADDRESS), segment_size: Some(1200) };
        let (first, second) =
            ([&other, &size, &original_destination()], [&original_destination(), &size, &other]);
        for messages in [first, second] {
            let bytes: Vec<_> = messages.into_iter().flatten().copied().collect();
            assert_eq!(Received::parse(&bytes), expected);
        }
        assert_eq!(Received::parse(&other), Received::default());
        assert_eq!(Received::parse(&[]), Received::default());
        assert_eq!(Received::parse(&size[..20]).segment_size, Some(1200), "the last one is not padded");
    }

    #[test]
    #[cfg(target_pointer_width = "64")]
    fn malformed_ancillary_data_is_ignored_and_ends_the_search() {
        let wanted = original_destination();
        for cut in 0..wanted.len() {
            assert_eq!(Received::parse(&wanted[..cut]), Received::default(), "{cut} bytes");
        }
        for len in [0, 1, 15, 4096, usize::MAX - 3, usize::MAX] {
            let mut lying = wanted.clone();
            lying[..8].copy_from_slice(&len.to_ne_bytes());
            lying.extend(&wanted);
            assert_eq!(Received::parse(&lying), Received::default(), "length {len}");
        }
        for size in [-1, 65_536] {
            let size = message(libc::SOL_UDP, libc::UDP_GRO, &i32::to_ne_bytes(size));
            assert_eq!(Received::parse(&size).segment_size, None);
        }
    }
}
