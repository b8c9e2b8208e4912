//! Periodically checks how full the sets are that packets fill, and counts and logs the effects of full ones.
//! That costs the kernel one small answer per set and counter, never a list of elements.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use tracing::{debug, warn};

use super::Error;
use super::counters::Counters;
use super::generation::NFGENMSG;
use super::lifetimes::FLOW_RATE;
use super::netlink::{Netlink, attribute, nftables_request};
use super::ruleset::{BRIDGE, INET, TABLE};

/// The interval of checks.
const PAUSE: Duration = Duration::from_secs(2);

/// How often the same complaint is logged.
const SAID_AGAIN: Duration = Duration::from_secs(60);

/// NFT_MSG_GETSET, in NFNL_SUBSYS_NFTABLES.
const GET_SET: u16 = 10 << 8 | 10;
/// NFTA_SET_TABLE, NFTA_SET_NAME; NFTA_SET_COUNT, which kernels before 6.18 do not have.
const SET: (u16, u16, u16) = (1, 2, 20);

/// NFT_MSG_GETOBJ.
const GET_OBJECT: u16 = 10 << 8 | 19;
/// NFTA_OBJ_TABLE, NFTA_OBJ_NAME, NFTA_OBJ_TYPE, NFTA_OBJ_DATA.
const OBJECT: (u16, u16, u16, u16) = (1, 2, 3, 4);
/// NFT_OBJECT_COUNTER.
const COUNTER: u32 = 1;
/// NFTA_COUNTER_PACKETS.
const PACKETS: u16 = 2;

/// A counter of the kernel: packets that a limit affected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bound {
    /// host_flows was full.
    HostFlows,
    /// One client made too many connections and flows that need an entry in host_flows.
    FastClient,
    /// node_flows was full.
    NodeFlows,
    /// answers was full.
    Answers,
}

impl Bound {
    pub(super) const ALL: [Self; 4] = [Self::HostFlows, Self::FastClient, Self::NodeFlows, Self::Answers];

    /// The table's family, and the counter's name.
    fn counter(self) -> (&'static str, &'static str) {
        match self {
            Self::HostFlows => (INET, "crowded"),
            Self::FastClient => (INET, "fast_clients"),
            Self::NodeFlows => (INET, "unremembered"),
            Self::Answers => (BRIDGE, "crowded"),
        }
    }

    /// The log line, with advice.
    fn complaint(self, packets: u64) -> String {
        match self {
            Self::HostFlows => format!(
                "{packets} packets to endpoints in this node's network were dropped: the set host_flows is full, and new \
                 connections wait until others end. Fix: see who has so many (nft list set {INET} {TABLE} \
                 host_flows4, the last address of each) and keep them away, or lower --client-share"
            ),
            Self::FastClient => format!(
                "{packets} packets to endpoints in this node's network were dropped: a client made more than {FLOW_RATE} \
                 new connections or flows a second (of flows fewer with an --udp-idle-timeout of more than 30 s). Fix: \
                 see who (nft list set {INET} {TABLE} clients_of_host_flows4), and have it use connections for longer"
            ),
            Self::NodeFlows => format!(
                "{packets} new connections of this node's processes are not remembered: the set node_flows is full, and \
                 they end when their Service does. Fix: see which process has so many (ss --tcp --numeric)"
            ),
            Self::Answers => format!(
                "{packets} packets to endpoints on bridges were not remembered one by one: the set answers4 or answers6 is \
                 full, and all that these endpoints send to the same clients, or to anybody, takes the way through the node, \
                 which is slower. Fix: see who has so many (nft list set {BRIDGE} {TABLE} answers4, the last \
                 address of each)"
            ),
        }
    }
}

/// The number of elements that packets have added, by set; both families together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Remembered {
    HostFlows,
    NodeFlows,
    Answers,
}

impl Remembered {
    pub(super) const ALL: [Self; 3] = [Self::HostFlows, Self::NodeFlows, Self::Answers];

    fn sets(self) -> (&'static str, [&'static str; 2]) {
        match self {
            Self::HostFlows => (INET, ["host_flows4", "host_flows6"]),
            Self::NodeFlows => (INET, ["node_flows4", "node_flows6"]),
            Self::Answers => (BRIDGE, ["answers4", "answers6"]),
        }
    }
}

/// Runs the checks.
#[derive(Debug)]
pub(super) struct Crowding {
    netlink: Netlink,
    due: Option<Instant>,
    meters: [Meter; Bound::ALL.len()],
    counters: Arc<Counters>,
}

/// The state of one counter.
#[derive(Debug, Default)]
struct Meter {
    /// Its last value.
    last: u64,
    /// Counted, but not logged yet.
    unsaid: u64,
    silent_until: Option<Instant>,
}

impl Meter {
    /// Takes the counter's value; returns its growth. It restarts from zero when its table is recreated.
    fn advance(&mut self, now: u64) -> u64 {
        let last = std::mem::replace(&mut self.last, now);
        let grown = if now >= last { now - last } else { now };
        self.unsaid += grown;
        grown
    }

    /// The number to log, if it is due.
    fn take_unsaid(&mut self, now: Instant) -> Option<u64> {
        if self.unsaid == 0 || self.silent_until.is_some_and(|until| now < until) {
            return None;
        }
        self.silent_until = Some(now + SAID_AGAIN);
        Some(std::mem::take(&mut self.unsaid))
    }
}

impl Crowding {
    /// Prepares. Earlier counts are not this agent's.
    ///
    /// # Errors
    /// The system cannot open a socket.
    pub(super) fn open(counters: Arc<Counters>) -> Result<Self, Error> {
        let netlink = Netlink::netfilter().map_err(Error::Netlink)?;
        let mut crowding = Self { netlink, due: None, meters: Default::default(), counters };
        crowding.meters = Bound::ALL.map(|bound| {
            let (family, name) = bound.counter();
            // Without a table, the counter starts at zero.
            let last = crowding.packets(family, name).unwrap_or(0);
            Meter { last, ..Meter::default() }
        });
        Ok(crowding)
    }

    /// Checks, if it is due.
    pub(super) fn look(&mut self, now: Instant) {
        if self.due.is_some_and(|due| now < due) {
            return;
        }
        self.due = Some(now + PAUSE);
        for (bound, index) in Bound::ALL.into_iter().zip(0..) {
            let (family, name) = bound.counter();
            let packets = match self.packets(family, name) {
                Ok(packets) => packets,
                // The table does not exist yet, or not any more.
                Err(error) => {
                    debug!("cannot look at the counter {name}: {error}");
                    continue;
                }
            };
            let Some(meter) = self.meters.get_mut(index) else { continue };
            self.counters.crowded(bound, meter.advance(packets));
            if let Some(packets) = meter.take_unsaid(now) {
                warn!("{}", bound.complaint(packets));
            }
        }
        for remembered in Remembered::ALL {
            let (family, sets) = remembered.sets();
            let sizes = sets.map(|set| self.elements(family, set));
            let sum = sizes.into_iter().sum::<Option<u64>>();
            self.counters.remembered(remembered, sum);
        }
    }

    /// The value of a counter, in packets.
    fn packets(&mut self, family: &str, name: &str) -> Result<u64, Errno> {
        let (of_table, of_name, of_type, of_data) = OBJECT;
        let (table, name) = (text(TABLE), text(name));
        let request = nftables_request(
            GET_OBJECT,
            number(family),
            &[(of_table, &table), (of_name, &name), (of_type, &COUNTER.to_be_bytes())],
        );
        let mut packets = None;
        self.netlink.exchange(request, |answer| {
            packets = attribute(answer.payload(), NFGENMSG, of_data)
                .and_then(|data| attribute(&data, 0, PACKETS)?.first_chunk().copied())
                .map(u64::from_be_bytes);
        })?;
        packets.ok_or(Errno::BADMSG)
    }

    /// The number of elements in a set; `None` if the kernel does not tell.
    fn elements(&mut self, family: &str, name: &str) -> Option<u64> {
        let (of_table, of_name, of_count) = SET;
        let (table, name) = (text(TABLE), text(name));
        let request = nftables_request(GET_SET, number(family), &[(of_table, &table), (of_name, &name)]);
        let mut count = None;
        let asked = self.netlink.exchange(request, |answer| {
            count = attribute(answer.payload(), NFGENMSG, of_count)
                .and_then(|count| count.first_chunk().copied())
                .map(|count| u64::from(u32::from_be_bytes(count)));
        });
        asked.ok().and(count)
    }
}

/// NFPROTO_INET, NFPROTO_BRIDGE.
fn number(family: &str) -> u8 {
    if family == BRIDGE { 7 } else { 1 }
}

/// The kernel's format: with a terminating zero.
fn text(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_before_this_agent_is_none_of_its_and_a_new_table_begins_anew() {
        let mut meter = Meter { last: 7, ..Meter::default() };
        assert_eq!([7, 10, 2].map(|now| meter.advance(now)), [0, 3, 2]);
    }

    #[test]
    fn it_is_said_once_a_minute_and_nothing_is_left_out() {
        let mut meter = Meter::default();
        let start = Instant::now();
        assert_eq!(meter.take_unsaid(start), None);
        meter.advance(3);
        assert_eq!(meter.take_unsaid(start), Some(3));
        meter.advance(8);
        assert_eq!(meter.take_unsaid(start + PAUSE), None);
        meter.advance(9);
        assert_eq!(meter.take_unsaid(start + SAID_AGAIN), Some(6));
        assert_eq!(meter.take_unsaid(start + 3 * SAID_AGAIN), None, "there is nothing new");
    }

    #[test]
    fn every_complaint_says_how_many_and_what_to_do() {
        for bound in Bound::ALL {
            let complaint = bound.complaint(42);
            assert!(complaint.starts_with("42 ") && complaint.contains("Fix: "), "{complaint}");
        }
    }
}
