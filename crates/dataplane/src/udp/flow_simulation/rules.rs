//! The rules of the flow table, in terms of the model.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::{ModelFlow, Simulation, of};
use crate::client::ClientKey;
use crate::udp::flow_class::Timeouts;
use crate::udp::flow_table::{Cause, FlowKey, Lack};

impl Simulation {
    fn is_exchange(flow: &ModelFlow) -> bool {
        flow.datagrams == 1 && flow.replies == 1
    }

    fn is_pressed(&self) -> bool {
        self.flows.len() > self.limits.capacity.get() / 2
    }

    fn deadline(&self, flow: &ModelFlow, pressed: bool) -> Instant {
        let Timeouts { idle, stream, exchange } = self.limits.timeouts;
        flow.last_used
            + match (pressed, Self::is_exchange(flow), flow.is_conversation) {
                (true, true, _) => exchange,
                (false, false, true) => stream,
                _ => idle,
            }
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.flows.values().map(|flow| self.deadline(flow, self.is_pressed())).min()
    }

    /// The flow that has to expire next.
    pub(super) fn next_to_expire(&self) -> Option<FlowKey> {
        let over =
            |pressed| self.order.iter().find(|key| self.deadline(&self.flows[*key], pressed) <= self.now);
        over(false).or_else(|| over(true).filter(|_| self.is_pressed())).copied()
    }

    fn has(&self, key: &FlowKey, lack: Lack) -> bool {
        lack == Lack::Place || self.flows[key].has_port
    }

    pub(super) fn with_port(&self) -> usize {
        self.flows.values().filter(|flow| flow.has_port).count()
    }

    /// The flows of which one has to be evicted for a client's new flow, and the reason.
    pub(super) fn victims(&self, client: ClientKey, lack: Lack) -> (Vec<FlowKey>, Cause) {
        let holders = || self.order.iter().filter(|key| self.has(key, lack));
        let count = |client| holders().filter(|key| of(key) == client).count();
        let shares = if lack == Lack::Port { self.limits.ports } else { self.limits.places };
        let victim_of = |client| self.victim(|key| of(key) == client && self.has(key, lack));
        let cause = |cause| if lack == Lack::Port { Cause::EvictedForPort } else { cause };
        if count(client) > shares.share {
            return (victim_of(client).into_iter().collect(), cause(Cause::OverShare));
        }
        let clients: BTreeSet<ClientKey> = holders().map(of).collect();
        let over: Vec<ClientKey> =
            clients.iter().copied().filter(|&client| count(client) > shares.share).collect();
        if !over.is_empty() {
            return (over.into_iter().filter_map(victim_of).collect(), cause(Cause::OverShare));
        }
        let most = clients.iter().map(|&client| count(client)).max().unwrap_or(0);
        let victims = if count(client) > shares.large {
            victim_of(client).into_iter().collect()
        } else if lack == Lack::Port && most > shares.large {
            let finished = holders().find(|key| self.is_finished(&self.flows[*key])).copied();
            let largest = clients.into_iter().filter(|&client| count(client) == most).filter_map(victim_of);
            finished.map_or_else(|| largest.collect(), |finished| vec![finished])
        } else {
            self.victim(|key| self.has(key, lack)).into_iter().collect()
        };
        (victims, cause(Cause::Evicted))
    }

    fn is_finished(&self, flow: &ModelFlow) -> bool {
        Self::is_exchange(flow) && flow.last_used + Duration::from_millis(250) <= self.now
    }

    /// The flow among these that has to be evicted.
    fn victim(&self, among: impl Fn(&FlowKey) -> bool) -> Option<FlowKey> {
        let first = |wanted: &dyn Fn(&ModelFlow) -> bool| {
            self.order.iter().find(|key| among(key) && wanted(&self.flows[*key])).copied()
        };
        first(&|flow| self.is_finished(flow))
            .or_else(|| first(&|flow| flow.replies == 0))
            .or_else(|| first(&Self::is_exchange))
            .or_else(|| first(&|flow| !flow.is_conversation))
            .or_else(|| first(&|_| true))
    }
}
