//! The endpoint of a UDP flow whose datagrams now come to another worker, or to another agent.
//!
//! While one agent takes over from another, the group of sockets that the kernel spreads clients' datagrams
//! over (`SO_REUSEPORT`) changes twice: the new agent's sockets join, then the old agent's leave. Each time
//! most clients move to another socket, whose worker does not know their flows. Meanwhile, all workers of an
//! agent share this memory. It starts with the flows of the old agent; every flow that is opened is added; a
//! worker that opens a flow checks it first. It ends by itself, because flows that are idle for longer would
//! have ended anyway. At all other times a check is one atomic load.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use dashmap::DashMap;

use super::flow_key::FlowKey;
use crate::FlowEnds;

/// The maximum number of remembered flows; further ones are opened as new flows. About 10 MB.
const MOST: usize = 65_536;

/// The memory that an agent's workers share.
#[derive(Debug, Default)]
pub(crate) struct Recall {
    is_active: AtomicBool,
    flows: DashMap<FlowKey, SocketAddr, foldhash::fast::RandomState>,
    until: Mutex<Option<Instant>>,
}

impl Recall {
    /// Remembers flows, except those that are already remembered, and all flows that are opened until
    /// `until`.
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

    /// Records that a flow was opened.
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

    /// Forgets everything once its time is over.
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
