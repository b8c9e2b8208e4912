//! Whose the numbers are that the programs count by.

use std::sync::Mutex;

use sluice_model::{Change, Endpoint, EndpointSlice, Family, ObjectName, Service, SlicePort};
use sluice_socket_maps::{Account, Capacity, Memory};
use sluice_table::{FrontendKey, Traffic, Writer, WriterConfig};

use super::*;

const ROOM: Capacity = Capacity { frontends: 100, sets: 100, slots: 100, endpoints: 4 };

/// A table with one Service, what is decided at sockets, and what programs would have counted.
struct World {
    writer: Writer,
    sockets: Sockets<Memory>,
    ledger: Arc<Ledger>,
    accounts: Arc<Mutex<HashMap<u32, Account>>>,
}

fn frontend(protocol: Protocol) -> Frontend {
    Frontend::new([10, 96, 0, 1].into(), 80, protocol)
}

fn at(number: u8) -> SocketAddr {
    ([10, 244, 0, number], 8080).into()
}

impl World {
    fn new(protocol: Protocol, endpoints: &[u8]) -> Self {
        let mut writer = Writer::new(WriterConfig::new("here"));
        writer.follow_changes();
        let accounts = Arc::<Mutex<HashMap<u32, Account>>>::default();
        let read = Arc::clone(&accounts);
        let ledger =
            Arc::new(Ledger::new(move |id| read.lock().unwrap().get(&id).copied().unwrap_or_default()));
        let sockets = Sockets::new(Maps::new(Memory::new(ROOM)), writer.table(), Arc::clone(&ledger), false);
        let mut world = Self { writer, sockets, ledger, accounts };
        let name = ObjectName::new("default", "web");
        let port = sluice_model::ServicePort { name: "main".into(), protocol, port: 80, node_port: None };
        let service = Service::new(name, vec![frontend(protocol).address.ip()], vec![port]);
        world.writer.apply(Change::Apply(service.into()));
        world.endpoints(protocol, endpoints);
        let mut plan = world.writer.plan();
        world.writer.publish(&mut plan);
        world.writer.finish(&mut plan);
        world.sockets.offer(&[frontend(protocol)]);
        world
    }

    fn endpoints(&mut self, protocol: Protocol, endpoints: &[u8]) {
        let name = ObjectName::new("default", "web");
        let slice = EndpointSlice {
            last_change: None,
            name: name.clone(),
            service: name,
            family: Family::V4,
            ports: vec![SlicePort { name: "main".into(), protocol, number: 8080 }],
            endpoints: endpoints.iter().map(|number| Endpoint::ready(at(*number).ip())).collect(),
        };
        self.writer.apply(Change::Apply(slice.into()));
        self.sockets.change(&self.writer.take_changed());
    }

    /// Has an endpoint, which is one now, have done so much more.
    fn count(&mut self, number: u8, more: Account) {
        let (key, _) = self.sockets.ports.iter().next().unwrap();
        let (_, id) = self.sockets.maps.members(*key).find(|(address, _)| *address == at(number)).unwrap();
        self.count_id(id, more);
    }

    fn count_id(&mut self, id: u32, more: Account) {
        let mut accounts = self.accounts.lock().unwrap();
        let account = accounts.entry(id).or_default();
        account.connections += more.connections;
        account.failed += more.failed;
        account.closed += more.closed;
        account.bytes_to += more.bytes_to;
        account.duration_us += more.duration_us;
        // The maps ask the kernel, which is this one.
        self.sockets.maps.kernel_mut().set_account(id, *account);
    }

    fn port(&self, protocol: Protocol) -> Arc<ServicePort> {
        let key = FrontendKey::from(frontend(protocol));
        Arc::clone(self.writer.table().reader().lookup(key).unwrap().service_port())
    }

    fn traffic(&self, protocol: Protocol) -> Traffic {
        self.ledger.settle();
        self.port(protocol).traffic()
    }

    fn traffic_of(&self, protocol: Protocol, number: u8) -> Traffic {
        self.ledger.settle();
        let endpoints = self.port(protocol).endpoints();
        endpoints.iter().find(|upstream| upstream.address() == at(number)).unwrap().stats().traffic()
    }
}

fn made(connections: u64) -> Account {
    Account { connections, ..Account::default() }
}

fn closed(closed: u64, bytes_to: u64) -> Account {
    Account { closed, bytes_to, duration_us: 1_000 * closed, ..Account::default() }
}

#[test]
fn what_connections_did_is_told_of_their_endpoint_and_stays_in_the_sum_when_it_goes() {
    let mut world = World::new(Protocol::Tcp, &[1, 2]);
    world.count(1, made(5));
    world.count(1, Account { failed: 1, ..closed(2, 70) });
    world.count(2, made(1));
    let one = world.traffic_of(Protocol::Tcp, 1);
    assert_eq!((one.connections, one.translated, one.failures, one.active), (4, 4, 1, 2));
    assert_eq!((one.bytes_to_endpoint, one.translated_closed, one.translated_micros), (70, 2, 2_000));
    assert_eq!(world.traffic_of(Protocol::Tcp, 2).connections, 1);

    // It goes, and its connections end later.
    world.endpoints(Protocol::Tcp, &[2]);
    assert_eq!(world.ledger.upstream(0).unwrap().address(), at(1));
    world.count_id(0, closed(1, 30));
    let sum = world.traffic(Protocol::Tcp);
    assert_eq!((sum.connections, sum.active, sum.bytes_to_endpoint), (5, 2, 100));
    world.count_id(0, closed(1, 5));
    let sum = world.traffic(Protocol::Tcp);
    assert_eq!((sum.connections, sum.active, sum.bytes_to_endpoint), (5, 1, 105));
    assert!(world.ledger.upstream(0).is_none(), "nothing comes of it any more");
    assert_eq!((world.ledger.sum().connections, world.ledger.sum().closed), (6, 4));
}

#[test]
fn a_number_that_means_something_else_takes_nothing_along() {
    let mut world = World::new(Protocol::Tcp, &[1, 2, 3, 4]);
    world.count(1, made(3));
    // There are four numbers: that of the first is given to the fifth.
    world.endpoints(Protocol::Tcp, &[2, 3, 4]);
    world.count_id(0, closed(1, 10));
    world.endpoints(Protocol::Tcp, &[2, 3, 4, 5]);
    world.accounts.lock().unwrap().remove(&0);
    assert_eq!(world.traffic_of(Protocol::Tcp, 5), Traffic::default());
    let sum = world.traffic(Protocol::Tcp);
    assert_eq!(
        (sum.connections, sum.active, sum.bytes_to_endpoint),
        (3, 0, 10),
        "also of before it was taken away"
    );
    world.count(5, made(1));
    assert_eq!(world.traffic_of(Protocol::Tcp, 5).connections, 1);
    assert_eq!(world.traffic(Protocol::Tcp).connections, 4);
}

#[test]
fn an_endpoint_that_is_back_before_it_was_missed_counts_as_another_one_does() {
    let mut world = World::new(Protocol::Tcp, &[1]);
    world.count(1, made(2));
    world.ledger.settle();
    // Both before anybody looks.
    let before = world.port(Protocol::Tcp).endpoints();
    let name = ObjectName::new("default", "web");
    world.writer.apply(Change::Delete(sluice_model::ObjectRef::EndpointSlice(name)));
    world.endpoints(Protocol::Tcp, &[1]);
    assert!(!Arc::ptr_eq(&before[0], &world.port(Protocol::Tcp).endpoints()[0]), "it is a new one");
    drop(before);
    world.count(1, closed(1, 9));
    let one = world.traffic_of(Protocol::Tcp, 1);
    assert_eq!((one.connections, one.active, one.bytes_to_endpoint), (0, 1, 9));
    let sum = world.traffic(Protocol::Tcp);
    assert_eq!((sum.connections, sum.active, sum.bytes_to_endpoint), (2, 1, 9));
}

#[test]
fn of_datagram_sockets_it_is_known_that_they_were() {
    let mut world = World::new(Protocol::Udp, &[1, 2]);
    world.count(1, made(2));
    assert_eq!((world.traffic(Protocol::Udp).translated, world.traffic(Protocol::Udp).active), (2, 0));
    world.count(1, made(1));
    world.endpoints(Protocol::Udp, &[2]);
    assert!(world.ledger.upstream(0).is_none());
    assert_eq!(world.traffic(Protocol::Udp).translated, 3);
}

#[test]
fn what_an_earlier_agent_has_told_is_not_told_again_and_what_is_open_is() {
    let mut world = World::new(Protocol::Tcp, &[1]);
    world.count(1, made(7));
    world.count(1, closed(3, 50));
    let Sockets { maps, .. } = world.sockets;
    let read = Arc::clone(&world.accounts);
    let ledger = Arc::new(Ledger::new(move |id| read.lock().unwrap().get(&id).copied().unwrap_or_default()));
    let maps = Maps::adopt(maps.into_kernel()).unwrap();
    let mut sockets = Sockets::new(maps, world.writer.table(), Arc::clone(&ledger), false);
    sockets.offer(&[frontend(Protocol::Tcp)]);
    sockets.forget_others();
    world = World { sockets, ledger, ..world };
    let sum = world.traffic(Protocol::Tcp);
    assert_eq!((sum.translated, sum.active, sum.bytes_to_endpoint), (0, 4, 0));
    world.count(1, made(1));
    world.count(1, closed(1, 6));
    let sum = world.traffic(Protocol::Tcp);
    assert_eq!((sum.translated, sum.active, sum.bytes_to_endpoint), (1, 4, 6));
}
