//! Compares the flow table with a model that is too simple to be wrong, over random histories.
//!
//! A history is determined by its seed. A failure prints the seed; `SLUICE_FLOW_SEED=<seed>` runs only that
//! history and prints each step.

mod rules;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use sluice_table::Origin;

use super::flow_class::Timeouts;
use super::flow_limits::Shares;
use super::flow_table::{
    Action, Cause, EndedFlow, Flow, FlowCounters, FlowId, FlowKey, FlowLimits, FlowTable, Lack,
};
use crate::client::{ClientKey, ListenerKind};

const SEED_VARIABLE: &str = "SLUICE_FLOW_SEED";
const SEEDS: u64 = 600;
const STEPS: usize = 500;

/// The data in the table: the endpoint, and the number of the opening.
type Upstream = (usize, u64);

/// A flow in the model.
#[derive(Debug, Clone)]
struct ModelFlow {
    id: FlowId,
    upstream: Upstream,
    has_port: bool,
    opened: Instant,
    last_used: Instant,
    datagrams: u64,
    replies: u64,
    is_conversation: bool,
}

struct Simulation {
    rng: StdRng,
    verbose: bool,
    limits: FlowLimits,
    /// The maximum number of flows with a port.
    ports: usize,
    table: FlowTable<Upstream>,
    now: Instant,

    flows: HashMap<FlowKey, ModelFlow>,
    /// The keys of `flows`, least recently used first.
    order: Vec<FlowKey>,
    counters: FlowCounters,
    /// All ids so far, with the key and the opening of each.
    ids: Vec<(FlowId, FlowKey, u64)>,
    openings: u64,
    serving: Vec<bool>,
    /// The number of flows that existed when a sweep was last requested and were not checked yet.
    unswept: usize,
}

/// The client that a flow counts for. All clients are outside; IPv6 clients count by network.
fn of(key: &FlowKey) -> ClientKey {
    ListenerKind::Captured(Origin::Outside).client_key(key.client.ip(), true)
}

/// Prints the seed when the thread panics.
struct Replay(u64);

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "seed {seed} failed; replay: {SEED_VARIABLE}={seed} cargo test -p sluice-dataplane flow_sim -- --nocapture",
                seed = self.0
            );
        }
    }
}

#[test]
fn every_history_agrees_with_the_model() {
    let one = std::env::var(SEED_VARIABLE).ok().map(|seed| seed.parse().unwrap());
    let mut seen = FlowCounters::default();
    for seed in one.map_or(0..SEEDS, |seed| seed..seed + 1) {
        let _replay = Replay(seed);
        let counters = Simulation::new(seed, one.is_some()).run();
        seen.opened += counters.opened;
        seen.idle += counters.idle;
        seen.evicted += counters.evicted;
        seen.over_share += counters.over_share;
        seen.evicted_for_port += counters.evicted_for_port;
        seen.gone += counters.gone;
        seen.closed += counters.closed;
        seen.replaced += counters.replaced;
    }
    if one.is_none() {
        let FlowCounters { idle, evicted, over_share, evicted_for_port, gone, closed, replaced, .. } = seen;
        let rarest = [idle, evicted, over_share, evicted_for_port, gone, closed, replaced].into_iter().min();
        assert!(rarest >= Some(SEEDS), "histories in which nothing happens prove nothing: {seen:?}");
    }
}

impl Simulation {
    fn new(seed: u64, verbose: bool) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let capacity = NonZeroUsize::new(rng.random_range(1..=24)).unwrap();
        let timeouts = Timeouts {
            idle: Duration::from_secs(30),
            stream: Duration::from_secs(if rng.random_bool(0.9) { 120 } else { 20 }),
            exchange: Duration::from_secs(if rng.random_bool(0.9) { 5 } else { 40 }),
        };
        let ports = rng.random_range(1..=capacity.get());
        let mut shares = |whole| Shares { share: rng.random_range(1..=whole), large: whole / 8 };
        let (places, port_shares) = (shares(capacity.get()), shares(ports));
        let limits = FlowLimits { capacity, places, ports: port_shares, timeouts };
        Self {
            serving: vec![true; rng.random_range(1..=5)],
            rng,
            verbose,
            limits,
            ports,
            table: FlowTable::new(limits),
            now: Instant::now(),
            flows: HashMap::new(),
            order: Vec::new(),
            counters: FlowCounters::default(),
            ids: Vec::new(),
            openings: 0,
            unswept: 0,
        }
    }

    fn run(mut self) -> FlowCounters {
        for _ in 0..STEPS {
            match self.rng.random_range(0..100) {
                0..40 => self.client_sends(),
                40..62 => self.upstream_replies(),
                62..66 => self.endpoint_changes(),
                66..82 => self.time_passes(),
                82..90 => self.expiry_runs(),
                90..95 => self.sweep_runs(),
                95..97 => self.worker_closes(),
                97..98 => self.worker_evicts(),
                _ => self.client_is_opened_twice(),
            }
            self.compare();
        }
        // In the end all clients are silent, and no flow remains.
        self.pass(Duration::from_secs(120));
        while !self.flows.is_empty() {
            self.expiry_runs();
            self.compare();
        }
        assert_eq!(self.counters.opened, self.counters.ended());
        self.counters
    }

    fn log(&self, step: std::fmt::Arguments<'_>) {
        if self.verbose {
            println!("{step}");
        }
    }

    /// Checks the invariants between steps.
    fn compare(&mut self) {
        assert!(self.table.len() <= self.limits.capacity.get(), "never more flows than the bound");
        assert_eq!((self.table.len(), self.table.with_port()), (self.flows.len(), self.with_port()));
        assert_eq!(self.table.counters(), self.counters);
        assert_eq!(self.table.next_deadline(), self.next_deadline());
    }

    fn touch(&mut self, key: FlowKey) -> &mut ModelFlow {
        self.order.retain(|other| *other != key);
        self.order.push(key);
        let flow = self.flows.get_mut(&key).unwrap();
        flow.last_used = self.now;
        flow.is_conversation |= flow.replies > 0 && flow.opened + Duration::from_secs(2) <= self.now;
        flow
    }

    /// Checks that the flow that the table ended is the one that the model expects, with all of its data.
    fn ended(&mut self, ended: EndedFlow<Upstream>, expected: FlowKey, cause: Cause) {
        self.log(format_args!("    ended {:?}: {:?}", ended.cause, ended.id));
        assert_eq!((ended.flow.key(), ended.cause), (expected, cause));
        let flow = self.flows.remove(&expected).expect("a flow ends once");
        self.order.retain(|key| *key != expected);
        assert_eq!((ended.id, ended.flow.upstream), (flow.id, flow.upstream));
        *self.counters.of_mut(cause) += 1;
    }

    // The steps.

    fn random_key(&mut self) -> FlowKey {
        let client = match self.rng.random_range(0..12u8) {
            n @ 0..6 => SocketAddr::from(([10, 1, 0, 1], 1000 + u16::from(n))),
            n @ 6..9 => SocketAddr::from(([10, 1, 0, n], 1000)),
            n => SocketAddr::from(([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(n)], 1000)),
        };
        let service = self.rng.random_range(0..3u8);
        let destination = match client {
            SocketAddr::V4(_) => SocketAddr::from(([10, 96, 0, service], 53)),
            SocketAddr::V6(_) => SocketAddr::from(([0xfd96, 0, 0, 0, 0, 0, 0, u16::from(service)], 53)),
        };
        FlowKey { client, destination }
    }

    fn random_count(&mut self) -> u64 {
        if self.rng.random_bool(0.9) { 1 } else { self.rng.random_range(2..64) }
    }

    /// Any id so far, of a flow that exists or of one that has ended.
    fn random_id(&mut self) -> Option<(FlowId, FlowKey, u64)> {
        let recent = self.ids.len().saturating_sub(20);
        let from = if self.rng.random_bool(0.9) { recent } else { 0 };
        (!self.ids.is_empty()).then(|| self.ids[self.rng.random_range(from..self.ids.len())])
    }

    fn client_sends(&mut self) {
        let (key, count) = (self.random_key(), self.random_count());
        self.log(format_args!("{key:?} sends {count}"));
        let serving = &self.serving;
        let valid = |flow: &Flow<Upstream>| {
            assert_eq!(flow.key(), key, "asked about the client's own flow");
            serving[flow.upstream.0]
        };
        let action = self.table.on_client_datagrams(key, count, self.now, valid);
        let known = self.flows.get(&key).cloned();
        match (action, known) {
            (Action::Forward(id), Some(flow)) => {
                assert!(self.serving[flow.upstream.0], "a flow ends when it is not valid");
                assert_eq!(id, flow.id, "a flow sticks to its endpoint while it is");
                self.touch(key).datagrams += count;
                assert_eq!(self.table.flow(id).unwrap().upstream, flow.upstream);
            }
            (Action::Open(Some(ended)), Some(flow)) => {
                assert!(!self.serving[flow.upstream.0]);
                self.ended(ended, key, Cause::Gone);
                self.open(key, count);
            }
            (Action::Open(None), None) => self.open(key, count),
            (action, flow) => panic!("{action:?} for {flow:?}"),
        }
    }

    /// Opens a flow if an endpoint serves.
    fn open(&mut self, key: FlowKey, count: u64) {
        let candidates: Vec<_> = (0..self.serving.len()).filter(|&endpoint| self.serving[endpoint]).collect();
        if candidates.is_empty() {
            return;
        }
        let endpoint = candidates[self.rng.random_range(0..candidates.len())];
        self.openings += 1;
        let upstream = (endpoint, self.openings);
        let has_port = self.rng.random_bool(0.5);
        if has_port && self.with_port() == self.ports {
            self.evict(of(&key), Lack::Port);
        }
        let (victims, cause) = match self.flows.contains_key(&key) {
            true => (vec![key], Cause::Replaced),
            false if self.flows.len() == self.limits.capacity.get() => self.victims(of(&key), Lack::Place),
            false => (Vec::new(), Cause::Idle),
        };
        let (id, displaced) = self.table.opened(key, of(&key), upstream, has_port, count, self.now);
        self.log(format_args!("    opened {id:?} to {upstream:?}"));
        self.made_room(displaced, &victims, cause);
        let flow = ModelFlow {
            id,
            upstream,
            has_port,
            opened: self.now,
            last_used: self.now,
            datagrams: count,
            replies: 0,
            is_conversation: false,
        };
        assert!(self.ids.iter().all(|&(former, ..)| former != id), "a name stands for one flow");
        self.ids.push((id, key, self.openings));
        self.flows.insert(key, flow);
        self.order.push(key);
        self.counters.opened += 1;
    }

    /// Checks that one of these flows has ended, if there are any.
    fn made_room(&mut self, ended: Option<EndedFlow<Upstream>>, victims: &[FlowKey], cause: Cause) {
        match ended {
            Some(ended) => {
                let key = ended.flow.key();
                assert!(victims.contains(&key), "{key:?} made room, expected of {victims:?}");
                self.ended(ended, key, cause);
            }
            None => assert!(victims.is_empty(), "none made room, expected of {victims:?}"),
        }
    }

    fn client_is_opened_twice(&mut self) {
        let key = self.random_key();
        self.log(format_args!("{key:?} is opened, whether it is open or not"));
        self.open(key, 1);
    }

    fn upstream_replies(&mut self) {
        let (Some((id, key, opening)), count) = (self.random_id(), self.random_count()) else { return };
        self.log(format_args!("{id:?} replies {count}"));
        let lives = self.flows.get(&key).is_some_and(|flow| flow.upstream.1 == opening);
        let to = self.table.on_replies(id, count, self.now).map(|flow| (flow.key(), flow.upstream));
        match to {
            Some((to, upstream)) => {
                assert!(lives, "nobody hears from a flow that has ended");
                assert_eq!(to, key, "no reply to a wrong client");
                let flow = self.touch(key);
                assert_eq!(flow.upstream, upstream);
                flow.replies += count;
            }
            None => assert!(!lives, "a flow that lives gets its replies"),
        }
    }

    fn endpoint_changes(&mut self) {
        let endpoint = self.rng.random_range(0..self.serving.len());
        self.serving[endpoint] = !self.serving[endpoint];
        self.log(format_args!("endpoint {endpoint} serves: {}", self.serving[endpoint]));
        if self.rng.random_bool(0.7) {
            self.table.request_sweep();
            self.unswept = self.flows.len();
        }
    }

    fn time_passes(&mut self) {
        let millis = match self.rng.random_range(0..20) {
            0..10 => self.rng.random_range(0..100),
            10..17 => self.rng.random_range(0..6_000),
            17..19 => self.rng.random_range(0..40_000),
            // Exactly to the deadline, or to the last moment before it.
            _ => {
                if let Some(deadline) = self.next_deadline() {
                    let before = Duration::from_nanos(self.rng.random_range(0..2));
                    self.pass(deadline.saturating_duration_since(self.now).saturating_sub(before));
                }
                return;
            }
        };
        self.pass(Duration::from_millis(millis));
    }

    fn pass(&mut self, time: Duration) {
        self.log(format_args!("{time:?} pass"));
        self.now += time;
    }

    fn expiry_runs(&mut self) {
        let limit = self.rng.random_range(0..10);
        self.log(format_args!("up to {limit} expire"));
        let mut expired = Vec::new();
        let count = self.table.expire(self.now, limit, &mut |flow| expired.push(flow));
        assert_eq!(count, expired.len());
        assert!(count <= limit);
        for flow in expired {
            let expected = self.next_to_expire().expect("none ends before its time");
            self.ended(flow, expected, Cause::Idle);
        }
        if count < limit {
            assert_eq!(self.next_to_expire(), None, "none outlives its time");
        }
    }

    fn sweep_runs(&mut self) {
        let limit = self.rng.random_range(1..8);
        self.log(format_args!("up to {limit} are swept"));
        assert_eq!(self.table.sweep_pending(), self.unswept > 0);
        let serving = &self.serving;
        let mut swept = Vec::new();
        self.table.sweep(limit, |flow| serving[flow.upstream.0], &mut |flow| swept.push(flow));
        assert!(swept.len() <= limit);
        for flow in swept {
            assert!(!self.serving[flow.flow.upstream.0], "only what is not valid is swept away");
            let key = flow.flow.key();
            self.ended(flow, key, Cause::Gone);
        }
        self.unswept = self.unswept.saturating_sub(limit);
        if self.rng.random_bool(0.3) {
            // After a complete sweep no invalid flow remains.
            self.table.request_sweep();
            let (table, serving) = (&mut self.table, &self.serving);
            let mut swept = Vec::new();
            while table.sweep_pending() {
                table.sweep(limit, |flow| serving[flow.upstream.0], &mut |flow| swept.push(flow));
            }
            for flow in swept {
                let key = flow.flow.key();
                self.ended(flow, key, Cause::Gone);
            }
            self.unswept = 0;
            assert!(self.flows.values().all(|flow| self.serving[flow.upstream.0]));
        }
    }

    fn worker_closes(&mut self) {
        let Some((id, key, opening)) = self.random_id() else { return };
        self.log(format_args!("{id:?} is closed"));
        let lives = self.flows.get(&key).is_some_and(|flow| flow.upstream.1 == opening);
        let closed = self.table.close(id);
        assert_eq!(closed.is_some(), lives);
        if let Some(closed) = closed {
            self.ended(closed, key, Cause::Closed);
        }
    }

    fn worker_evicts(&mut self) {
        let client = of(&self.random_key());
        let lack = if self.rng.random_bool(0.5) { Lack::Place } else { Lack::Port };
        self.evict(client, lack);
    }

    fn evict(&mut self, client: ClientKey, lack: Lack) {
        self.log(format_args!("{client} lacks a {lack:?}"));
        let (victims, cause) = self.victims(client, lack);
        let evicted = self.table.make_room(client, lack, self.now);
        self.made_room(evicted, &victims, cause);
    }
}
