//! The health of endpoints is shared: what the relay finds out is what programs at clients' sockets go by.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail tests")]

use std::sync::Arc;
use std::time::Instant;

use sluice_capture::socket::{AtSockets, Ledger, Sockets};
use sluice_model::{
    Change, Endpoint, EndpointSlice, Family, Frontend, ObjectName, Protocol, Service, ServicePort, SlicePort,
};
use sluice_socket_maps::{Account, Capacity, Kernel, Maps, Memory};
use sluice_table::{
    Client, FrontendKey, Heard, Origin, Selection, SetName, SharedHealth, Upstream, Writer, WriterConfig,
};

const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

fn frontend(number: u8, protocol: Protocol) -> Frontend {
    Frontend::new([10, 96, 0, number].into(), 80, protocol)
}

/// A table with Services 1 to `count`, of both protocols and with endpoints 1 and 2, which are decided at sockets.
struct World {
    writer: Writer,
    sockets: Sockets<Memory>,
    health: SharedHealth,
}

impl World {
    fn new(count: u8, capacity: Capacity) -> Self {
        let config = WriterConfig { frontends_lead_back: false, ..WriterConfig::new("here") };
        let mut writer = Writer::new(config);
        writer.apply_all((1..=count).flat_map(service));
        let mut plan = writer.plan();
        writer.publish(&mut plan);
        writer.finish(&mut plan);
        let memory = Memory::new(capacity);
        let health = memory.health();
        let ledger = Arc::new(Ledger::new(|_| Account::default()));
        let mut sockets = Sockets::new(Maps::new(memory), writer.table(), ledger, false);
        for number in 1..=count {
            sockets.offer(&PROTOCOLS.map(|protocol| frontend(number, protocol)));
        }
        Self { writer, sockets, health }
    }

    fn select(&self, number: u8) -> Selection {
        let mut reader = self.writer.table().reader();
        let route = reader.lookup(FrontendKey::from(frontend(number, Protocol::Tcp))).unwrap();
        let client = Client { ip: [10, 244, 1, 1].into(), origin: Origin::LocalPod };
        route.select(client, Instant::now()).unwrap()
    }

    fn upstreams(&self, number: u8, protocol: Protocol) -> Vec<Arc<Upstream>> {
        let mut reader = self.writer.table().reader();
        let route = reader.lookup(FrontendKey::from(frontend(number, protocol))).unwrap();
        route.service_port().backends().cluster().upstreams().to_vec()
    }

    /// Whether each endpoint of a Service is in doubt; none if the programs do not know it.
    fn doubts(&self, number: u8, protocol: Protocol) -> Vec<Option<bool>> {
        let doubt = |upstream: &Arc<Upstream>| {
            upstream.socket_number(SetName::Cluster).map(|number| self.health.is_in_doubt(number))
        };
        self.upstreams(number, protocol).iter().map(doubt).collect()
    }
}

fn service(number: u8) -> Vec<Change> {
    let name = ObjectName::new("default", format!("s{number}"));
    let port = |protocol: Protocol| ServicePort {
        name: format!("{protocol}").into(),
        protocol,
        port: 80,
        node_port: None,
    };
    let service = Service::new(name.clone(), vec![[10, 96, 0, number].into()], PROTOCOLS.map(port).into());
    let slice_port = |protocol| SlicePort { name: format!("{protocol}").into(), protocol, number: 8080 };
    let slice = EndpointSlice {
        last_change: None,
        name: name.clone(),
        service: name,
        family: Family::V4,
        ports: PROTOCOLS.map(slice_port).into(),
        endpoints: [1, 2].map(|endpoint| Endpoint::ready([10, 1, number, endpoint].into())).into(),
    };
    vec![Change::Apply(service.into()), Change::Apply(slice.into())]
}

const LARGE: Capacity = Capacity { frontends: 100, sets: 100, slots: 1_000, endpoints: 1_000 };

#[test]
fn a_connection_of_the_relays_ends_a_doubt_and_one_that_fails_begins_one() {
    let world = World::new(1, LARGE);
    assert_eq!(world.doubts(1, Protocol::Tcp), [Some(true), Some(true)]);
    let mut selection = world.select(1);
    let first = selection.next(Instant::now()).unwrap();
    drop(selection.connected(&first, Instant::now()));
    assert_eq!(world.doubts(1, Protocol::Tcp), [Some(false), Some(true)]);

    let mut selection = world.select(1);
    let second = selection.next(Instant::now()).unwrap();
    assert!(!Arc::ptr_eq(&first, &second), "whoever is in doubt comes first");
    selection.fail(&second, Heard::Refusal, Instant::now());
    let other = selection.next(Instant::now()).unwrap();
    selection.fail(&other, Heard::Nothing, Instant::now());
    assert_eq!(world.doubts(1, Protocol::Tcp), [Some(true), Some(true)]);
    // A client that gives up, before anything was heard.
    let mut selection = world.select(1);
    let tried = selection.next(Instant::now()).unwrap();
    drop(selection.connected(&tried, Instant::now()));
    let mut selection = world.select(1);
    selection.next(Instant::now()).unwrap();
    drop(selection);
    assert_eq!(world.doubts(1, Protocol::Tcp).iter().filter(|doubt| **doubt == Some(true)).count(), 1);
}

#[test]
fn datagrams_have_no_part_in_it() {
    let world = World::new(1, LARGE);
    assert_eq!(world.doubts(1, Protocol::Udp), [None, None]);
}

#[test]
fn what_has_found_no_room_takes_part_once_there_is_some() {
    let mut world = World::new(2, Capacity { endpoints: 4, ..LARGE });
    assert_eq!(world.doubts(1, Protocol::Tcp), [Some(true), Some(true)]);
    assert_eq!(world.doubts(2, Protocol::Tcp), [None, None]);
    world.sockets.withdraw(&PROTOCOLS.map(|protocol| frontend(1, protocol)));
    assert_eq!(world.doubts(1, Protocol::Tcp), [None, None], "nothing is decided there any more");
    world.sockets.keep();
    assert_eq!(world.doubts(2, Protocol::Tcp), [Some(true), Some(true)]);
}
