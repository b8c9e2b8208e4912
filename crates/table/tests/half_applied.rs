//! Readers on several threads, while the writer changes a Service without pause: none may ever see a
//! half-applied state. All threads use only the public API, as a worker does.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use sluice_model::{
    Change, Endpoint, EndpointSlice, Family, Object, ObjectName, Protocol, Service, ServicePort, SlicePort,
    TrafficPolicy,
};
use sluice_table::{
    Balance, Client, FrontendKey, Heard, Origin, Reader, Route, SourceAddress, Table, Verdict, Writer,
    WriterConfig,
};

/// Number of versions of the Service. Enough for readers to meet thousands of changes during their look-ups.
const GENERATIONS: u16 = 4_000;

const READERS: usize = 3;

const CLUSTER_IP: [u8; 4] = [10, 96, 0, 1];

/// The Service in generation `n`: two external IPs that only this generation has, and rules that belong
/// together.
fn service(n: u16) -> Service {
    let [high, low] = n.to_be_bytes();
    let is_even = n.is_multiple_of(2);
    let port = ServicePort { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port: None };
    Service {
        external_ips: vec![[198, 51, high, low].into(), [198, 52, high, low].into()],
        external_policy: if is_even { TrafficPolicy::Cluster } else { TrafficPolicy::Local },
        affinity: is_even.then_some(Duration::from_secs(10)),
        annotations: if is_even {
            Default::default()
        } else {
            [("balance".into(), "random".into())].into_iter().collect()
        },
        ..Service::new(ObjectName::new("default", "web"), vec![CLUSTER_IP.into()], vec![port])
    }
}

/// The endpoints in generation `n`: three or four, all with a port number that only this generation has.
fn slice(n: u16) -> EndpointSlice {
    let endpoint = |i| Endpoint { node: Some("here".into()), ..Endpoint::ready([10, 0, 0, i].into()) };
    EndpointSlice {
        last_change: None,
        name: ObjectName::new("default", "web-a"),
        service: ObjectName::new("default", "web"),
        family: Family::V4,
        ports: vec![SlicePort { name: "".into(), protocol: Protocol::Tcp, number: 1_000 + n }],
        endpoints: (1..=count(n)).map(endpoint).collect(),
    }
}

fn count(n: u16) -> u8 {
    if n.is_multiple_of(2) { 3 } else { 4 }
}

fn key(ip: [u8; 4]) -> FrontendKey {
    FrontendKey::new(IpAddr::from(ip), 80, Protocol::Tcp)
}

/// Writes all generations; each is its Service, then its endpoints, then the publication.
fn write(writer: &mut Writer, generations: std::ops::Range<u16>) {
    for n in generations {
        writer.apply(Change::Apply(Object::Service(service(n))));
        writer.apply(Change::Apply(Object::EndpointSlice(slice(n))));
        let mut plan = writer.plan();
        writer.publish(&mut plan);
        writer.finish(&mut plan);
    }
}

/// Runs `look` on several threads, each for as long as the writer writes and once more. Fails if one of them
/// never ran in between.
fn while_writing(look: impl Fn(&mut Reader) + Sync) {
    let mut writer = Writer::new(WriterConfig::new("here"));
    write(&mut writer, 0..1);
    let table: Table = writer.table().clone();
    let (done, looking) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..READERS {
            scope.spawn(|| {
                let mut reader = table.reader();
                looking.fetch_add(1, Ordering::SeqCst);
                while !done.load(Ordering::SeqCst) {
                    look(&mut reader);
                }
                look(&mut reader);
            });
        }
        while looking.load(Ordering::SeqCst) < READERS {
            thread::yield_now();
        }
        write(&mut writer, 1..GENERATIONS);
        done.store(true, Ordering::SeqCst);
    });
}

fn outside() -> Client {
    Client { ip: [192, 0, 2, 1].into(), origin: Origin::Outside }
}

/// The generation of a set of endpoints, which must be the same for all.
fn generation(ports: impl Iterator<Item = u16>) -> u16 {
    let ports: Vec<u16> = ports.collect();
    let generation = ports[0] - 1_000;
    assert_eq!(ports.len(), usize::from(count(generation)), "all endpoints of one generation: {ports:?}");
    assert!(ports.iter().all(|port| *port == ports[0]), "no endpoints of another: {ports:?}");
    generation
}

#[test]
fn endpoints_are_all_of_one_version_and_never_older_than_before() {
    while_writing(|reader| {
        let route = Arc::clone(reader.lookup(key(CLUSTER_IP)).expect("the cluster IP stays"));
        let mut latest = 0;
        for _ in 0..16 {
            let answer = route.answer(outside());
            assert_eq!(answer.verdict, Verdict::Relay, "there is no moment without endpoints");
            let seen = generation(answer.endpoints.iter().map(|upstream| upstream.address().port()));
            assert!(seen >= latest, "{seen} after {latest}");
            latest = seen;
        }
    });
}

#[test]
fn rules_are_all_of_one_version() {
    while_writing(|reader| {
        let route = Arc::clone(reader.lookup(key(CLUSTER_IP)).expect("the cluster IP stays"));
        let backends = route.service_port().backends();
        let even = (Balance::RoundRobin, true);
        let odd = (Balance::Random, false);
        let seen = (backends.balance(), backends.affinity().is_some());
        assert!(seen == even || seen == odd, "{seen:?}");
        assert_eq!(backends.tally().known, backends.cluster().upstreams().len());
        generation(backends.local().upstreams().iter().map(|upstream| upstream.address().port()));
    });
}

#[test]
fn a_selection_always_finds_an_endpoint_that_is_or_was_just_served() {
    while_writing(|reader| {
        let now = Instant::now();
        let route = reader.lookup(key(CLUSTER_IP)).expect("the cluster IP stays");
        let mut selection = route.select(outside(), now).expect("there is no moment without endpoints");
        let mut tried = BTreeSet::new();
        let first = selection.next(now).expect("a relay verdict comes with an endpoint");
        tried.insert(first.address());
        selection.fail(&first, Heard::Refusal, now);
        let second = selection.next(now).expect("there are at least three endpoints");
        assert!(tried.insert(second.address()), "no endpoint is named twice");
        let lease = selection.connected(&second, now);
        assert_eq!(selection.source_address(&lease), SourceAddress::Node, "not a local pod");
    });
}

#[test]
fn the_frontends_of_a_service_come_and_go_together() {
    /// Looks up both addresses of a generation, the second one between two look-ups of the first.
    fn both(reader: &mut Reader, n: u16) -> bool {
        let [high, low] = n.to_be_bytes();
        let first = key([198, 51, high, low]);
        let second = key([198, 52, high, low]);
        let before: Option<Arc<Route>> = reader.lookup(first).cloned();
        let between = reader.lookup(second).is_some();
        let after: Option<Arc<Route>> = reader.lookup(first).cloned();
        if let (Some(before), Some(after)) = (&before, &after)
            && Arc::ptr_eq(before, after)
        {
            assert!(between, "generation {n}: one of two frontends is missing");
        }
        if before.is_none() && after.is_none() && between {
            // It was published after the first look-up and withdrawn before the last: at least two
            // publications ago, so a newer generation must be there by now.
            let newer = (n + 1..GENERATIONS).any(|newer| {
                let [high, low] = newer.to_be_bytes();
                reader.lookup(key([198, 51, high, low])).is_some()
            });
            assert!(newer, "generation {n}: the second of two frontends alone");
        }
        before.is_some()
    }
    while_writing(|reader| {
        // The generation that the writer is at, give or take one, according to the endpoints.
        let route = Arc::clone(reader.lookup(key(CLUSTER_IP)).expect("the cluster IP stays"));
        let at = generation(route.answer(outside()).endpoints.iter().map(|u| u.address().port()));
        for n in at.saturating_sub(1)..(at + 3).min(GENERATIONS) {
            both(reader, n);
        }
    });
}

#[test]
fn a_route_that_is_gone_says_so_and_its_endpoints_end() {
    let mut writer = Writer::new(WriterConfig::new("here"));
    write(&mut writer, 0..1);
    let mut reader = writer.table().reader();
    let now = Instant::now();
    let route = Arc::clone(reader.lookup(key([198, 51, 0, 0])).expect("generation 0"));
    let upstream = route.select(outside(), now).expect("relayed").next(now).expect("an endpoint");
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while route.keeps_flow(&upstream) {
                thread::yield_now();
            }
            ended.store(true, Ordering::SeqCst);
        });
        write(&mut writer, 1..2);
    });
    assert!(ended.load(Ordering::SeqCst));
    assert!(reader.lookup(key([198, 51, 0, 0])).is_none() && reader.lookup(key([198, 51, 0, 1])).is_some());
}
