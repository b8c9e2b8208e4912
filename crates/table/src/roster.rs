//! The endpoints of a service port, and the traffic of former endpoints.
//!
//! The writer updates it together with the endpoints; commands and metrics read it. Workers do not.

use std::net::SocketAddr;
use std::sync::Arc;

use sluice_model::ServicePortName;

use crate::{Condition, Traffic, Upstream};

/// The current endpoints, usable or not, and what remains of former ones.
#[derive(Debug, Default)]
pub(crate) struct Roster {
    /// Sorted by address.
    current: Vec<Arc<Upstream>>,
    /// No longer in the slices, but with connections that are open or about to be. At most as many as there
    /// are connections.
    leaving: Vec<Arc<Upstream>>,
    /// The traffic of former endpoints that nobody holds any more.
    left: Traffic,
}

impl Roster {
    /// Every endpoint that the slices name.
    pub(crate) fn current(&self) -> &[Arc<Upstream>] {
        &self.current
    }

    /// The endpoint in the slices that has this address.
    pub(crate) fn at(&self, address: SocketAddr) -> Option<&Arc<Upstream>> {
        let place = self.current.binary_search_by_key(&address, |upstream| upstream.address()).ok()?;
        self.current.get(place)
    }

    /// The sum over all current and former endpoints.
    pub(crate) fn traffic(&mut self) -> Traffic {
        self.settle();
        let mut sum = self.left;
        for upstream in self.current.iter().chain(&self.leaving) {
            sum += upstream.stats().traffic();
        }
        sum
    }

    /// Replaces the current endpoints by those at these addresses of a service port, which are sorted and
    /// unique. Endpoints that stay are the same objects. Returns those that are gone, for [`Roster::retire`].
    pub(crate) fn take_over(
        &mut self,
        port: &Arc<ServicePortName>,
        addresses: impl Iterator<Item = SocketAddr>,
    ) -> Vec<Arc<Upstream>> {
        let mut gone = Vec::new();
        let mut old = std::mem::take(&mut self.current).into_iter().peekable();
        self.current = addresses
            .map(|address| {
                while let Some(before) = old.next_if(|upstream| upstream.address() < address) {
                    gone.push(before);
                }
                old.next_if(|upstream| upstream.address() == address)
                    .unwrap_or_else(|| Arc::new(Upstream::new(address, Arc::clone(port))))
            })
            .collect();
        gone.extend(old);
        gone
    }

    /// Marks endpoints as not serving. Their traffic still counts.
    pub(crate) fn retire(&mut self, gone: Vec<Arc<Upstream>>) {
        gone.iter().for_each(|upstream| upstream.set_condition(Condition::default()));
        self.leaving.extend(gone);
        self.settle();
    }

    /// Adds up the traffic of former endpoints that nobody else holds: it cannot change any more.
    fn settle(&mut self) {
        let left = &mut self.left;
        self.leaving.retain_mut(|upstream| {
            let is_held = Arc::get_mut(upstream).is_none();
            if !is_held {
                *left += upstream.stats().traffic();
            }
            is_held
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::Lease;
    use crate::upstream::tests::test_port;

    fn addresses(ports: &[u16]) -> Vec<SocketAddr> {
        ports.iter().map(|port| ([10, 0, 0, 1], *port).into()).collect()
    }

    fn change(roster: &mut Roster, ports: &[u16]) {
        let gone = roster.take_over(&test_port(), addresses(ports).into_iter());
        roster.retire(gone);
    }

    #[test]
    fn endpoints_that_stay_are_the_same_and_those_that_left_still_count() {
        let mut roster = Roster::default();
        change(&mut roster, &[1, 2, 3]);
        let [one, two, _] = roster.current() else { panic!("three endpoints") };
        let (one, two) = (Arc::clone(one), Arc::clone(two));
        let lease = Lease::of(&two);
        one.stats().bytes_to_endpoint.fetch_add(5, Ordering::Relaxed);
        change(&mut roster, &[1, 4]);
        assert!(Arc::ptr_eq(&roster.current()[0], &one));
        assert!(!two.is_serving());
        assert_eq!((roster.traffic().connections, roster.traffic().active), (1, 1));

        two.stats().bytes_to_endpoint.fetch_add(7, Ordering::Relaxed);
        drop((two, lease));
        assert_eq!(roster.leaving.len(), 1);
        let traffic = roster.traffic();
        assert_eq!((traffic.connections, traffic.active, traffic.bytes_to_endpoint), (1, 0, 12));
        assert!(roster.leaving.is_empty(), "nobody holds it any more");

        drop(one);
        change(&mut roster, &[]);
        assert_eq!(roster.traffic().bytes_to_endpoint, 12);
        change(&mut roster, &[1]);
        assert_eq!(roster.traffic().bytes_to_endpoint, 12, "a namesake begins at nothing, the sum does not");
    }
}
