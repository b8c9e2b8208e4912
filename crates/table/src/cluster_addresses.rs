//! Destinations among the cluster's addresses that no frontend matches: ports that a Service does not have,
//! and addresses that no Service has.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use sluice_model::ServiceCidr;

use crate::{Reason, Verdict};

/// A change of the cluster's addresses. The capture turns it into two rules after those of the frontends:
/// refuse connections to a live cluster IP, then drop connections to a range.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClusterAddressChange {
    /// Cluster IPs that a Service now has.
    pub added: Vec<IpAddr>,
    /// Cluster IPs that no Service has any more.
    pub removed: Vec<IpAddr>,
    /// All ranges that cluster IPs come from, sorted; `None` if they have not changed.
    pub ranges: Option<Vec<IpNet>>,
}

impl ClusterAddressChange {
    /// Nothing changed.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.ranges.is_none()
    }
}

/// The live cluster IPs and the ServiceCIDRs.
#[derive(Debug, Default)]
pub(crate) struct ClusterAddresses {
    /// The number of Services that name each cluster IP.
    live: HashMap<IpAddr, usize>,
    cidrs: BTreeMap<Arc<str>, ServiceCidr>,
    /// Cluster IPs that came or went since the last [`take_change`](Self::take_change), and
    /// whether they were live then.
    touched: BTreeMap<IpAddr, bool>,
    /// Cluster IPs that came or went since the last [`take_moved`](Self::take_moved).
    moved: BTreeSet<IpAddr>,
    told_ranges: Vec<IpNet>,
}

impl ClusterAddresses {
    pub(crate) fn add(&mut self, ip: IpAddr) {
        let count = self.live.entry(ip).or_insert(0);
        self.touched.entry(ip).or_insert(*count > 0);
        *count += 1;
        if *count == 1 {
            self.note_move(ip);
        }
    }

    pub(crate) fn remove(&mut self, ip: IpAddr) {
        if let Some(count) = self.live.get_mut(&ip) {
            self.touched.entry(ip).or_insert(true);
            *count -= 1;
            if *count == 0 {
                self.live.remove(&ip);
                self.note_move(ip);
            }
        }
    }

    /// Records that an address came or went. If it came and went again, that cancels out.
    fn note_move(&mut self, ip: IpAddr) {
        if !self.moved.remove(&ip) {
            self.moved.insert(ip);
        }
    }

    /// The cluster IPs that came or went since the last call.
    pub(crate) fn take_moved(&mut self) -> BTreeSet<IpAddr> {
        std::mem::take(&mut self.moved)
    }

    /// Whether a Service has the address as a cluster IP.
    pub(crate) fn is_live(&self, ip: IpAddr) -> bool {
        self.live.contains_key(&ip)
    }

    pub(crate) fn set_cidr(&mut self, cidr: ServiceCidr) {
        self.cidrs.insert(Arc::clone(&cidr.name), cidr);
    }

    pub(crate) fn remove_cidr(&mut self, name: &str) {
        self.cidrs.remove(name);
    }

    fn ranges(&self) -> Vec<IpNet> {
        let ranges = self.cidrs.values().flat_map(|cidr| &cidr.cidrs).copied();
        ranges.collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// The range that contains this address.
    pub(crate) fn range_of(&self, ip: IpAddr) -> Option<IpNet> {
        self.cidrs.values().find_map(|cidr| cidr.range_of(ip))
    }

    /// The verdict for a connection to an address that matches no frontend; `None` if the address is not the
    /// cluster's.
    pub(crate) fn verdict(&self, ip: IpAddr) -> Option<Verdict> {
        if self.live.contains_key(&ip) {
            Some(Verdict::Refuse(Reason::NoSuchPort))
        } else if self.range_of(ip).is_some() {
            Some(Verdict::Drop(Reason::Unallocated))
        } else {
            None
        }
    }

    /// What changed since the last call.
    pub(crate) fn take_change(&mut self) -> ClusterAddressChange {
        let mut change = ClusterAddressChange::default();
        for (ip, was_live) in std::mem::take(&mut self.touched) {
            match (was_live, self.live.contains_key(&ip)) {
                (false, true) => change.added.push(ip),
                (true, false) => change.removed.push(ip),
                _ => {}
            }
        }
        let ranges = self.ranges();
        if ranges != self.told_ranges {
            self.told_ranges.clone_from(&ranges);
            change.ranges = Some(ranges);
        }
        change
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.live.is_empty() && self.cidrs.is_empty() && self.touched.is_empty() && self.moved.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn cidr(name: &str, cidrs: &str) -> ServiceCidr {
        let cidrs = cidrs.split_whitespace().map(|cidr| cidr.parse().unwrap()).collect();
        ServiceCidr { name: name.into(), cidrs }
    }

    #[test]
    fn cases() {
        let mut addresses = ClusterAddresses::default();
        addresses.add(ip("10.96.0.10"));
        addresses.add(ip("172.30.0.1"));
        addresses.add(ip("fd00::10"));
        addresses.set_cidr(cidr("kubernetes", "10.96.0.0/16 fd00::/108"));
        addresses.set_cidr(cidr("extra", "10.100.0.0/24"));
        let refused = Some(Verdict::Refuse(Reason::NoSuchPort));
        let dropped = Some(Verdict::Drop(Reason::Unallocated));
        #[rustfmt::skip]
        let cases = [
            ("a live cluster IP without such a port is refused", "10.96.0.10", refused),
            ("IPv6: a live cluster IP without such a port",      "fd00::10", refused),
            ("a live cluster IP outside every range, too",       "172.30.0.1", refused),
            ("an unallocated address of a range: silence",       "10.96.0.11", dropped),
            ("IPv6: an unallocated address",                     "fd00::11", dropped),
            ("an unallocated address of a second ServiceCIDR",   "10.100.0.1", dropped),
            ("next to a live address outside every range",       "172.30.0.2", None),
            ("any other address is none of ours",                "192.0.2.1", None),
        ];
        for (name, address, wanted) in cases {
            assert_eq!(addresses.verdict(ip(address)), wanted, "{name}");
        }
    }

    #[test]
    fn changes_are_told_once_and_only_in_effect() {
        let mut addresses = ClusterAddresses::default();
        addresses.add(ip("10.96.0.1"));
        addresses.add(ip("10.96.0.1"));
        addresses.add(ip("10.96.0.2"));
        addresses.set_cidr(cidr("a", "10.96.0.0/16"));
        let change = addresses.take_change();
        assert_eq!(change.added, [ip("10.96.0.1"), ip("10.96.0.2")]);
        assert_eq!(change.ranges, Some(vec!["10.96.0.0/16".parse().unwrap()]));
        assert!(addresses.take_change().is_empty());

        addresses.remove(ip("10.96.0.1"));
        addresses.remove(ip("10.96.0.2"));
        addresses.add(ip("10.96.0.2"));
        addresses.set_cidr(cidr("b", "10.96.0.0/16"));
        assert!(addresses.take_change().is_empty(), "one of two went; one came back; the range is known");

        addresses.remove(ip("10.96.0.1"));
        addresses.remove_cidr("a");
        addresses.remove_cidr("b");
        let change = addresses.take_change();
        assert_eq!((change.removed, change.ranges), (vec![ip("10.96.0.1")], Some(Vec::new())));
        addresses.remove(ip("10.96.0.2"));
        addresses.take_change();
        assert!(addresses.is_empty());
    }
}
