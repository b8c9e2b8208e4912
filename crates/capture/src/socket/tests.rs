//! Which endpoint an id belongs to that the programs count by.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Instant;

use sluice_model::{Change, Endpoint, EndpointSlice, Family, ObjectName, Protocol, Service, SlicePort};
use sluice_socket_maps::{Account, Capacity, IdChange, Memory, Picked};
use sluice_table::{Client, FrontendKey, LocalPods, Origin, SetName, Traffic, Writer, WriterConfig};

use super::*;

mod flows;
mod followed;
mod room;

const ROOM: Capacity = Capacity { frontends: 100, sets: 100, slots: 100, endpoints: 4 };

/// A table with one Service, the socket mode, and the counters that programs would have.
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

/// A table for rules that recognise this node's pods, as an agent that decides about pods has.
fn writer_with_pods() -> Writer {
    let local_pods = LocalPods::DetectedIn(vec![Family::V4]);
    let mut writer =
        Writer::new(WriterConfig { frontends_lead_back: false, local_pods, ..WriterConfig::new("here") });
    writer.follow_changes();
    writer
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

    /// Adds to the account of a current endpoint.
    fn count(&mut self, number: u8, more: Account) {
        let (key, _) = self.sockets.offered.ports.iter().next().unwrap();
        let mut numbers = self.sockets.written.maps.numbers(*key, SetName::Cluster);
        let id = numbers.find(|(address, _)| *address == at(number)).unwrap().1.id;
        drop(numbers);
        self.count_id(id, more);
    }

    fn count_id(&mut self, id: u32, more: Account) {
        let mut accounts = self.accounts.lock().unwrap();
        let account = accounts.entry(id).or_default();
        account.connections = account.connections.wrapping_add(more.connections);
        account.failed = account.failed.wrapping_add(more.failed);
        account.closed = account.closed.wrapping_add(more.closed);
        account.bytes_to += more.bytes_to;
        account.duration_us += more.duration_us;
        // The maps read from the kernel, which is this one.
        self.sockets.written.maps.kernel_mut().set_account(id, *account);
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

fn made(connections: u32) -> Account {
    Account { connections, ..Account::default() }
}

fn closed(closed: u32, bytes_to: u64) -> Account {
    Account { closed, bytes_to, duration_us: 1_000 * u64::from(closed), ..Account::default() }
}

#[test]
fn what_connections_did_is_told_of_their_endpoint_and_stays_in_the_sum_when_it_goes() {
    let mut world = World::new(Protocol::Tcp, &[1, 2]);
    world.count(1, made(4));
    world.count(1, Account { failed: 1, ..closed(2, 70) });
    world.count(2, made(1));
    let one = world.traffic_of(Protocol::Tcp, 1);
    assert_eq!((one.connections, one.translated, one.failures, one.active), (4, 4, 1, 2));
    assert_eq!((one.bytes_to_endpoint, one.translated_closed, one.translated_micros), (70, 2, 2_000));
    assert_eq!(world.traffic_of(Protocol::Tcp, 2).connections, 1);

    // The endpoint is removed, and its connections end later.
    world.endpoints(Protocol::Tcp, &[2]);
    assert_eq!(world.ledger.upstream(0).unwrap().address(), at(1));
    world.count_id(0, closed(1, 30));
    let sum = world.traffic(Protocol::Tcp);
    assert_eq!((sum.connections, sum.active, sum.bytes_to_endpoint), (5, 2, 100));
    world.count_id(0, closed(1, 5));
    let sum = world.traffic(Protocol::Tcp);
    assert_eq!((sum.connections, sum.active, sum.bytes_to_endpoint), (5, 1, 105));
    assert!(world.ledger.upstream(0).is_none(), "nothing comes of it any more");
    assert_eq!((world.ledger.sum().connections, world.ledger.sum().closed), (5, 4));
}

#[test]
fn a_number_that_means_something_else_takes_nothing_along() {
    let mut world = World::new(Protocol::Tcp, &[1, 2, 3, 4]);
    world.count(1, made(3));
    // There are four ids: that of the first is given to the fifth.
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
    // Both happen before anybody reads.
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
    let Sockets { written: Written { maps, .. }, .. } = world.sockets;
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

#[test]
fn numbers_that_begin_again_are_no_fewer_connections() {
    let mut world = World::new(Protocol::Tcp, &[1]);
    world.count(1, made((1 << 31) - 1));
    world.count(1, closed((1 << 31) - 1, 0));
    // Nobody reads except the periodic work.
    world.sockets.keep();
    world.count(1, made((1 << 31) - 1));
    world.count(1, closed((1 << 31) - 3, 0));
    let one = world.traffic_of(Protocol::Tcp, 1);
    assert_eq!((one.connections, one.translated_closed, one.active), ((1 << 32) - 2, (1 << 32) - 4, 2));
    world.count(1, made(5));
    world.count(1, closed(6, 0));
    let one = world.traffic_of(Protocol::Tcp, 1);
    assert_eq!((one.connections, one.translated_closed, one.active), ((1 << 32) + 3, (1 << 32) + 2, 1));
}

#[test]
fn an_account_that_is_cleared_for_what_comes_next_is_told_once() {
    let mut world = World::new(Protocol::Tcp, &[1, 2, 3, 4]);
    world.count(1, made(3));
    assert_eq!(world.traffic(Protocol::Tcp).connections, 3);
    // Somebody reads while the id is being given to another endpoint.
    let account = world.accounts.lock().unwrap().insert(0, Account::default()).unwrap();
    assert_eq!(world.traffic(Protocol::Tcp).connections, 3);
    world.ledger.follow(&[IdChange::Freed(0, account)]);
    assert_eq!((world.traffic(Protocol::Tcp).connections, world.ledger.sum().connections), (3, 3));
}

#[test]
fn an_endpoint_that_is_over_is_let_go_without_anybody_looking() {
    let mut world = World::new(Protocol::Tcp, &[1, 2]);
    world.count(1, made(1));
    world.endpoints(Protocol::Tcp, &[2]);
    assert!(world.ledger.upstream(0).is_some(), "a connection is open");
    world.count_id(0, closed(1, 9));
    world.sockets.keep();
    assert!(world.ledger.upstream(0).is_none());
}

#[test]
fn an_agent_that_comes_back_after_another_one_goes_by_the_maps_that_it_finds() {
    let mut world = World::new(Protocol::Tcp, &[1, 2]);
    world.sockets.keep();
    // The earlier agent had maps of another size; these are new.
    let ledger = Arc::new(Ledger::new(|_| Account::default()));
    let room = Capacity { endpoints: 8, ..ROOM };
    let mut sockets = Sockets::new(Maps::new(Memory::new(room)), world.writer.table(), ledger, false);
    sockets.offer(&[frontend(Protocol::Tcp)]);
    sockets.written.maps.kernel_mut().beat();
    assert_eq!(sockets.written.maps.kernel_mut().pick(frontend(Protocol::Tcp), true), Picked::Untranslated);
    // The relay finds that they serve.
    let client = Client { ip: [10, 0, 0, 1].into(), origin: Origin::Node };
    for _ in 0..2 {
        let route = world.writer.table().reader().lookup(FrontendKey::from(frontend(Protocol::Tcp))).cloned();
        let mut selection = route.unwrap().select(client, Instant::now()).unwrap();
        let upstream = selection.next(Instant::now()).unwrap();
        drop(selection.connected(&upstream, Instant::now()));
    }
    for _ in 0..2 {
        let picked = sockets.written.maps.kernel_mut().pick(frontend(Protocol::Tcp), true);
        assert!(matches!(picked, Picked::Endpoint(_)), "{picked:?}");
    }
}

#[test]
fn more_ports_than_are_changed_at_a_time_are_all_told() {
    let count = 2 * TOGETHER + 1;
    let frontends: Vec<Frontend> = (0..count)
        .map(|n| {
            let [.., high, low] = n.to_be_bytes();
            Frontend::new([10, 97, high, low].into(), 80, Protocol::Tcp)
        })
        .collect();
    let mut writer = Writer::new(WriterConfig::new("here"));
    for (n, frontend) in frontends.iter().enumerate() {
        let name = ObjectName::new("default", format!("web-{n}"));
        let port = sluice_model::ServicePort {
            name: "main".into(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: None,
        };
        writer.apply(Change::Apply(Service::new(name, vec![frontend.address.ip()], vec![port]).into()));
    }
    let mut plan = writer.plan();
    writer.publish(&mut plan);
    writer.finish(&mut plan);
    let room = Capacity { frontends: u32::try_from(count).unwrap(), ..ROOM };
    let ledger = Arc::new(Ledger::new(|_| Account::default()));
    let mut sockets = Sockets::new(Maps::new(Memory::new(room)), writer.table(), ledger, false);
    sockets.offer(&frontends);
    assert_eq!((sockets.stats().frontends, sockets.stats().waiting), (count, 0));
    for frontend in &frontends {
        assert_eq!(sockets.written.maps.kernel_mut().pick(*frontend, false), Picked::Refused, "{frontend:?}");
    }
    sockets.withdraw(&frontends);
    assert_eq!((sockets.stats().frontends, sockets.offered.ports.len()), (0, 0));
}
