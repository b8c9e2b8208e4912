//! The generation: a number that the kernel increments with each change of nftables, by anybody and in any table.

use rustix::io::Errno;

use super::Error;
use super::netlink::{Netlink, attribute, nftables_request};

/// NFNL_SUBSYS_NFTABLES and, in it, NFT_MSG_GETGEN.
const GET_GENERATION: u16 = 10 << 8 | 16;

/// NFTA_GEN_ID, a number in network byte order.
const ID: u16 = 1;

/// `struct nfgenmsg`: family, version, and a resource id; attributes follow.
pub(super) const NFGENMSG: usize = 4;

/// Reads the generation.
#[derive(Debug)]
pub(super) struct Generations(Netlink);

/// Detects changes of nftables by anybody.
#[derive(Debug)]
pub struct NftablesWatch {
    generations: Generations,
    last: Option<Generation>,
}

impl NftablesWatch {
    /// Prepares: the first check reports a change.
    ///
    /// # Errors
    /// The system cannot open a socket.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { generations: Generations::open()?, last: None })
    }

    /// Whether nftables has changed since the last call. False if the kernel does not tell.
    pub fn has_changed(&mut self) -> bool {
        let Ok(current) = self.generations.current() else { return false };
        self.last.replace(current) != Some(current)
    }
}

/// A state of nftables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Generation(u32);

impl Generation {
    /// The generation after one change. The kernel skips 0.
    pub(super) fn next(self) -> Self {
        Self(self.0.wrapping_add(1).max(1))
    }

    /// Parses the message NFT_MSG_NEWGEN.
    pub(super) fn parse(payload: &[u8]) -> Option<Self> {
        attribute(payload, NFGENMSG, ID)?.first_chunk().map(|id| Self(u32::from_be_bytes(*id)))
    }

    /// Whether it is earlier than another one; numbers wrap around.
    pub(super) fn is_before(self, other: Self) -> bool {
        let behind = other.0.wrapping_sub(self.0);
        behind != 0 && behind <= u32::MAX / 2
    }
}

impl Generations {
    /// Prepares.
    ///
    /// # Errors
    /// The system cannot open a socket.
    pub(super) fn open() -> Result<Self, Error> {
        Netlink::netfilter().map(Self).map_err(Error::Netlink)
    }

    /// The current generation.
    ///
    /// # Errors
    /// The kernel does not tell, usually for lack of CAP_NET_ADMIN.
    pub(super) fn current(&mut self) -> Result<Generation, Error> {
        let mut generation = None;
        let asked = self.0.exchange(nftables_request(GET_GENERATION, 0, &[]), |answer| {
            generation = Generation::parse(answer.payload())
        });
        asked.and_then(|()| generation.ok_or(Errno::BADMSG)).map_err(Error::Generation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_is_what_the_kernel_reads() {
        let request = nftables_request(GET_GENERATION, 0, &[]);
        assert_eq!(request.len(), 20);
        let buffer = netlink_packet_core::NetlinkBuffer::new_checked(&request).unwrap();
        assert_eq!((buffer.length(), buffer.message_type(), buffer.flags()), (20, 0x0a10, 5));
    }

    #[test]
    fn the_number_among_attributes() {
        let header = [1, 0, 0, 0];
        let name = [8, 0, 3, 0, b'n', b'f', b't', 0];
        let number = [8, 0, 1, 0, 0, 0, 1, 2];
        let parse = |attributes: &[&[u8]]| Generation::parse(&[&header, &*attributes.concat()].concat());
        assert_eq!(parse(&[&name, &number]), Some(Generation(258)));
        assert_eq!(parse(&[&name]), None);
        assert_eq!(parse(&[]), None);
        assert_eq!(parse(&[&[6, 0, 1, 0, 0, 1]]), None, "too short");
        assert_eq!(parse(&[&[200, 0, 1, 0]]), None, "longer than the message");
        assert_eq!(Generation::parse(&[]), None);
    }

    #[test]
    fn generations_go_round_and_none_is_0() {
        let last = Generation(u32::MAX);
        assert_eq!(Generation(7).next(), Generation(8));
        assert_eq!(last.next(), Generation(1));
        assert!(Generation(7).is_before(Generation(8)) && last.is_before(Generation(1)));
        assert!(!Generation(8).is_before(Generation(7)) && !Generation(7).is_before(Generation(7)));
    }
}
