//! The local detector by addresses, for socket mode. Pods that it does not match are left to the relay:
//! endpoints have to see the node's address on their connections to clusterIPs, and a translated connection
//! keeps the pod's own.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use arc_swap::ArcSwap;
use ipnet::IpNet;
use sluice_model::Family;
use sluice_socket::{Fate, is_local};

use super::news::News;

/// Where this node's pods have their addresses. The controller updates it, and the thread that enters network
/// namespaces asks it.
#[derive(Debug)]
pub struct Detector {
    ranges: ArcSwap<Ranges>,
    /// Whether the ranges are the Node's podCIDRs.
    follows_node: bool,
    news: News,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Ranges {
    /// The Node object has not been seen yet.
    NotKnown,
    /// These ranges. A family without any has no detector: no client's address is rewritten.
    Known(Vec<IpNet>),
}

impl Detector {
    /// A detector by `--cluster-cidr`.
    ///
    /// # Errors
    /// No file descriptor is left. The same holds for [`Detector::of_node`].
    pub fn of_cluster(cidrs: Vec<IpNet>) -> io::Result<Self> {
        Self::new(Ranges::Known(cidrs), false)
    }

    /// A detector by the Node's podCIDRs.
    pub fn of_node() -> io::Result<Self> {
        Self::new(Ranges::NotKnown, true)
    }

    fn new(ranges: Ranges, follows_node: bool) -> io::Result<Self> {
        Ok(Self { ranges: ArcSwap::from_pointee(ranges), follows_node, news: News::new()? })
    }

    /// Where the ranges come from, in words.
    pub(crate) fn what(&self) -> &'static str {
        if self.follows_node { "the Node's podCIDRs" } else { "--cluster-cidr" }
    }

    /// Sets the Node's podCIDRs; none if there is no such Node, or if it has none yet. Ignored unless the
    /// ranges are the Node's.
    pub(crate) fn set_node(&self, cidrs: &[IpNet]) {
        if !self.follows_node {
            return;
        }
        let ranges = Ranges::Known(cidrs.to_owned());
        if **self.ranges.load() != ranges {
            self.ranges.store(Arc::new(ranges));
            self.news.tell();
        }
    }

    /// Whether the Node's podCIDRs are not known yet.
    pub(crate) fn waits_for_node(&self) -> bool {
        **self.ranges.load() == Ranges::NotKnown
    }

    /// The descriptor to wait for.
    pub(super) fn news(&self) -> BorrowedFd<'_> {
        self.news.as_fd()
    }

    /// Marks the begin of a look: later changes are news.
    pub(super) fn begin_look(&self) {
        self.news.take();
    }

    /// What becomes of the sockets in a network namespace with these addresses. A socket may have any of them,
    /// so all have to match.
    pub(crate) fn fate(&self, addresses: &[IpAddr]) -> Fate {
        let ranges = self.ranges.load();
        let cidrs = match &**ranges {
            // Until then, an earlier agent's judgement stands.
            Ranges::NotKnown => return Fate::Unknown,
            Ranges::Known(cidrs) if cidrs.is_empty() => return Fate::Led,
            Ranges::Known(cidrs) => cidrs,
        };
        let mut others = addresses.iter().filter(|ip| !is_local(ip)).peekable();
        if others.peek().is_none() {
            return Fate::Unknown;
        }
        let has_detector = |ip: &IpAddr| cidrs.iter().any(|cidr| Family::of(cidr.addr()) == Family::of(*ip));
        let is_outside = |ip: &IpAddr| has_detector(ip) && !cidrs.iter().any(|cidr| cidr.contains(ip));
        if others.any(is_outside) { Fate::LeftAlone } else { Fate::Led }
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    fn cidrs(text: &str) -> Vec<IpNet> {
        text.split_whitespace().map(|cidr| cidr.parse().unwrap()).collect()
    }

    fn fate(detector: &Detector, addresses: &str) -> Fate {
        let local = ["127.0.0.1", "::1", "fe80::1"].map(|ip| ip.parse().unwrap());
        let others = addresses.split_whitespace().map(|ip| ip.parse().unwrap());
        detector.fate(&local.into_iter().chain(others).collect::<Vec<_>>())
    }

    #[test]
    fn a_pod_with_an_address_outside_of_the_ranges_is_left_to_the_relay() {
        use Fate::{Led, LeftAlone, Unknown};
        #[rustfmt::skip]
        let cases = [
            ("10.244.0.0/16",             "10.244.1.5",              Led),
            ("10.244.0.0/16",             "172.16.5.5",              LeftAlone),
            ("10.244.0.0/16",             "10.244.1.5 172.16.5.5",   LeftAlone),
            ("10.244.0.0/16",             "",                        Unknown),
            ("10.244.0.0/16",             "169.254.7.7",             Unknown),
            ("10.244.0.0/16",             "10.244.1.5 fd01::5",      Led),
            ("10.244.0.0/16",             "fd01::5",                 Led),
            ("10.244.0.0/16 fd00::/32",   "10.244.1.5 fd00::5",      Led),
            ("10.244.0.0/16 fd00::/32",   "10.244.1.5 fd01::5",      LeftAlone),
            ("10.244.0.0/16 10.7.0.0/16", "10.7.1.5",                Led),
            ("",                          "172.16.5.5",              Led),
            ("",                          "",                        Led),
        ];
        for (ranges, addresses, wanted) in cases {
            let detector = Detector::of_cluster(cidrs(ranges)).unwrap();
            assert_eq!(fate(&detector, addresses), wanted, "{ranges}: {addresses}");
        }
    }

    #[test]
    fn it_follows_the_node_and_says_what_is_new() {
        let detector = Detector::of_node().unwrap();
        let is_news = || {
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            let ready = poll(&mut [PollFd::new(&detector.news, PollFlags::IN)], Some(&now)).unwrap();
            detector.begin_look();
            ready == 1
        };
        assert!(detector.waits_for_node() && !is_news());
        assert_eq!(fate(&detector, "172.16.5.5"), Fate::Unknown);
        #[rustfmt::skip]
        let cases = [
            ("",              true,  [Fate::Led, Fate::Led]),
            ("10.244.1.0/24", true,  [Fate::Led, Fate::LeftAlone]),
            ("10.244.1.0/24", false, [Fate::Led, Fate::LeftAlone]),
            ("172.16.0.0/16", true,  [Fate::LeftAlone, Fate::Led]),
        ];
        for (of_node, news, wanted) in cases {
            detector.set_node(&cidrs(of_node));
            assert_eq!((is_news(), detector.waits_for_node()), (news, false), "{of_node}");
            assert_eq!(["10.244.1.5", "172.16.5.5"].map(|ip| fate(&detector, ip)), wanted, "{of_node}");
        }
    }
}
