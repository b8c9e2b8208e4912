//! Which endpoint a UDP flow goes to when its datagrams come to another worker than before, or to another agent.
//!
//! While one agent takes over from another, the sockets that clients' datagrams are spread over by the kernel
//! (`SO_REUSEPORT`) change twice: the new agent's join, then the old agent's leave. Each time most clients are led to
//! another socket, whose worker knows nothing of their flows. For that time all workers of an agent share this memory: it
//! begins with the flows that the old agent had, every flow that is opened meanwhile is added, and a worker that opens a
//! flow asks it first. It ends by itself, since flows that are silent for longer would have ended, too. At all other
//! times a look at it is one atomic load.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use dashmap::DashMap;

use super::flow_key::FlowKey;
use crate::FlowEnds;

/// How many flows are remembered at the most; the others are opened as new ones. Some 10 MB.
const MOST: usize = 65_536;

/// The memory that an agent's workers share.
#[derive(Debug, Default)]
pub(crate) struct Recall {
    is_active: AtomicBool,
    flows: DashMap<FlowKey, SocketAddr, foldhash::fast::RandomState>,
    until: Mutex<Option<Instant>>,
}

impl Recall {
    /// Remembers flows, other than those that are remembered already, and all that are opened until then.
    pub(crate) fn begin(&self, flows: impl IntoIterator<Item = FlowEnds>, until: Instant) {
        let mut end = self.until();
        *end = Some(end.map_or(until, |end| end.max(until)));
        self.is_active.store(true, Ordering::Relaxed);
        for FlowEnds { client, frontend, endpoint } in flows {
            let key = FlowKey { client, destination: frontend };
            if self.flows.len() < MOST {
                self.flows.entry(key).or_insert(endpoint);
            }
        }
    }

    /// The endpoint that a flow had.
    pub(crate) fn endpoint(&self, key: FlowKey) -> Option<SocketAddr> {
        self.is_active
            .load(Ordering::Relaxed)
            .then(|| self.flows.get(&key).map(|endpoint| *endpoint))
            .flatten()
    }

    /// Notes that a flow was opened.
    pub(crate) fn opened(&self, key: FlowKey, endpoint: SocketAddr) {
        if self.is_active.load(Ordering::Relaxed) {
            self.insert(key, endpoint);
        }
    }

    fn insert(&self, key: FlowKey, endpoint: SocketAddr) {
        if self.flows.len() < MOST || self.flows.contains_key(&key) {
            self.flows.insert(key, endpoint);
        }
    }

    /// Forgets everything if the time is over.
    pub(crate) fn end_if_due(&self, now: Instant) {
        let mut until = self.until();
        if until.is_some_and(|until| until <= now) {
            *until = None;
            self.is_active.store(false, Ordering::Relaxed);
            self.flows.clear();
            self.flows.shrink_to_fit();
        }
    }

    fn until(&self) -> MutexGuard<'_, Option<Instant>> {
        self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn ends(number: u32, endpoint: u8) -> FlowEnds {
        let client = SocketAddr::from((std::net::Ipv4Addr::from_bits(0x0a00_0000 + number), 5_000));
        FlowEnds {
            client,
            frontend: ([10, 96, 0, 1], 53).into(),
            endpoint: ([10, 244, 0, endpoint], 53).into(),
        }
    }

    fn key(ends: FlowEnds) -> FlowKey {
        FlowKey { client: ends.client, destination: ends.frontend }
    }

    #[test]
    fn flows_are_remembered_for_a_time_and_then_nothing_is() {
        let (recall, now) = (Recall::default(), Instant::now());
        let until = now + Duration::from_secs(120);
        recall.opened(key(ends(1, 1)), ends(1, 1).endpoint);
        assert_eq!(recall.endpoint(key(ends(1, 1))), None, "nobody takes over");
        recall.begin([ends(1, 1), ends(2, 2)], until);
        recall.opened(key(ends(3, 3)), ends(3, 3).endpoint);
        for number in 1..=3 {
            let ends = ends(number.into(), number);
            assert_eq!(recall.endpoint(key(ends)), Some(ends.endpoint));
        }
        recall.end_if_due(until - Duration::from_millis(1));
        assert!(recall.endpoint(key(ends(1, 1))).is_some());
        recall.end_if_due(until);
        assert_eq!((recall.flows.len(), recall.flows.capacity()), (0, 0));
        recall.opened(key(ends(1, 1)), ends(1, 1).endpoint);
        assert_eq!(recall.flows.len(), 0, "and nothing is added any more");
    }

    #[test]
    fn what_this_agent_has_opened_itself_counts_for_more_than_what_it_is_told_later() {
        let (recall, until) = (Recall::default(), Instant::now() + Duration::from_secs(120));
        recall.begin([ends(1, 1)], until);
        recall.opened(key(ends(1, 2)), ends(1, 2).endpoint);
        recall.begin([ends(1, 3), ends(2, 3)], until);
        assert_eq!(recall.endpoint(key(ends(1, 0))), Some(ends(1, 2).endpoint));
        assert_eq!(recall.endpoint(key(ends(2, 0))), Some(ends(2, 3).endpoint));
    }

    #[test]
    fn there_are_no_more_than_it_may_have() {
        let recall = Recall::default();
        let flows = (0..u32::try_from(MOST).unwrap() + 100).map(|number| ends(number, 1));
        recall.begin(flows, Instant::now() + Duration::from_secs(120));
        recall.opened(key(ends(u32::MAX >> 8, 1)), ends(0, 1).endpoint);
        assert_eq!(recall.flows.len(), MOST);
        recall.opened(key(ends(0, 2)), ends(0, 2).endpoint);
        assert_eq!(recall.endpoint(key(ends(0, 0))), Some(ends(0, 2).endpoint), "one that is there may move");
    }
}
