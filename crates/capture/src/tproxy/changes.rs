//! Follows changes of nftables that concern our table: the kernel reports each one, so the table need not be listed.

use netlink_packet_core::{NetlinkBuffer, NlasIterator};

use super::generation::{Generation, NFGENMSG};
use super::netlink::Netlink;
use super::ruleset::TABLE;

/// NFNL_SUBSYS_NFTABLES and, in it, NFT_MSG_NEWGEN, the last message of each transaction.
const NEW_GENERATION: u16 = 10 << 8 | 15;

/// NFPROTO_INET and NFPROTO_BRIDGE: the families of our tables.
const FAMILIES: [u8; 2] = [1, 7];

/// The table's name, in the messages about tables, chains, rules, sets, elements, objects and flow tables alike
/// (NFTA_TABLE_NAME, NFTA_CHAIN_TABLE, ...).
const TABLE_NAME: u16 = 1;

/// Follows changes.
#[derive(Debug, Default)]
pub(super) struct Changes {
    kernel: Option<Netlink>,
    followed: Followed,
}

/// The generation up to which no change concerned our table.
#[derive(Debug, Default)]
struct Followed {
    /// `None` after a change that did, or after missed notices.
    until: Option<Generation>,
    /// The transaction being reported concerns it.
    is_concerned: bool,
}

impl Changes {
    /// Starts to listen; [`Changes::begin`] must follow.
    pub(super) fn listen(&mut self) {
        // Without a socket all changes count as missed.
        self.kernel = Netlink::nftables_notices().ok();
        self.followed = Followed::default();
    }

    /// Stops listening: our own transactions would be reported element by element.
    pub(super) fn pause(&mut self) {
        *self = Self::default();
    }

    /// Notes that the table was correct in this generation, which is not before [`Changes::listen`].
    pub(super) fn begin(&mut self, at: Generation) {
        self.followed.until = Some(at);
    }

    /// The generation up to which nothing has concerned our table, if it is known.
    pub(super) fn until(&mut self) -> Option<Generation> {
        let taken = self.kernel.as_mut()?.take_notices(|message| self.followed.take(&message));
        if taken.is_err() {
            self.followed.until = None;
        }
        self.followed.until
    }
}

impl Followed {
    fn take(&mut self, message: &NetlinkBuffer<&[u8]>) {
        if message.message_type() != NEW_GENERATION {
            self.is_concerned |= concerns_us(message.payload());
            return;
        }
        let is_concerned = std::mem::take(&mut self.is_concerned);
        let (Some(until), Some(new)) = (self.until, Generation::parse(message.payload())) else {
            self.until = None;
            return;
        };
        if until.is_before(new) {
            self.until = (new == until.next() && !is_concerned).then_some(new);
        }
    }
}

fn concerns_us(payload: &[u8]) -> bool {
    let is_family = payload.first().is_some_and(|family| FAMILIES.contains(family));
    let mut attributes = NlasIterator::new(payload.get(NFGENMSG..).unwrap_or_default()).map_while(Result::ok);
    let table = attributes.find(|attribute| attribute.kind() == TABLE_NAME);
    // A change that cannot be read may concern us.
    table.is_none_or(|name| is_family && name.value().strip_suffix(&[0]) == Some(TABLE.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEW_ELEMENT: u16 = 10 << 8 | 12;

    fn message(kind: u16, family: u8, attribute: &[u8]) -> Vec<u8> {
        let attribute_length = u16::try_from(4 + attribute.len()).unwrap();
        let mut payload = vec![family, 0, 0, 0];
        payload.extend_from_slice(&attribute_length.to_ne_bytes());
        payload.extend_from_slice(&1u16.to_ne_bytes());
        payload.extend_from_slice(attribute);
        let mut message = u32::try_from(16 + payload.len()).unwrap().to_ne_bytes().to_vec();
        message.extend_from_slice(&kind.to_ne_bytes());
        message.extend_from_slice(&[0; 10]);
        message.extend_from_slice(&payload);
        message
    }

    fn generation(number: u32) -> Generation {
        Generation::parse(&message(NEW_GENERATION, 0, &number.to_be_bytes())[16..]).unwrap()
    }

    /// Name of the case, messages (a generation, or a table's family and name), generation up to which nothing
    /// concerned us, starting from generation 7.
    type Case = (&'static str, &'static [Result<u32, (u8, &'static str)>], Option<u32>);

    #[rustfmt::skip]
    const CASES: &[Case] = &[
        ("nothing",                            &[], Some(7)),
        ("others' tables",                     &[Err((1, "filter\0")), Err((2, "nat\0")), Ok(8), Err((1, "x\0")), Ok(9)], Some(9)),
        ("a transaction that is not over yet", &[Err((1, "filter\0")), Ok(8), Err((1, "sluice\0"))], Some(8)),
        ("our table",                          &[Err((1, "filter\0")), Err((1, "sluice\0")), Ok(8)], None),
        ("our table, and then others'",        &[Err((1, "sluice\0")), Ok(8), Ok(9)], None),
        ("our name in another family",         &[Err((2, "sluice\0")), Ok(8)], Some(8)),
        ("our table for bridges",              &[Err((7, "sluice\0")), Ok(8)], None),
        ("a name that begins like ours",       &[Err((1, "sluice2\0")), Err((1, "slu\0")), Ok(8)], Some(8)),
        ("a name without its end",             &[Err((1, "sluice")), Ok(8)], Some(8)),
        ("a transaction was missed",           &[Ok(9)], None),
        ("what was before is over",            &[Err((1, "sluice\0")), Ok(6), Err((1, "sluice\0")), Ok(7), Ok(8)], Some(8)),
    ];

    #[test]
    fn cases() {
        for (name, messages, wanted) in CASES {
            let mut followed = Followed { until: Some(generation(7)), is_concerned: false };
            for told in *messages {
                let bytes = match told {
                    Ok(number) => message(NEW_GENERATION, 0, &number.to_be_bytes()),
                    Err((family, table)) => message(NEW_ELEMENT, *family, table.as_bytes()),
                };
                followed.take(&NetlinkBuffer::new_checked(&*bytes).unwrap());
            }
            assert_eq!(followed.until, wanted.map(generation), "{name}");
        }
    }

    #[test]
    fn what_cannot_be_read_may_be_ours() {
        for payload in [&[][..], &[1], &[1, 0, 0, 0], &[1, 0, 0, 0, 200, 0, 1, 0]] {
            assert!(concerns_us(payload), "{payload:?}");
        }
    }
}
