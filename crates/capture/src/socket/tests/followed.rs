//! Clients that keep their endpoints, in the table and in the programs.

use std::net::IpAddr;
use std::time::Duration;

use sluice_socket_maps::AffinityKey;
use sluice_table::{Heard, Selection, WhyRelayed};

use super::*;

const ENOUGH: Capacity = Capacity { frontends: 100, sets: 100, slots: 100, endpoints: 100 };

/// A table with a Service with session affinity, and an agent's maps.
struct Kept {
    writer: Writer,
    sockets: Sockets<Memory>,
}

fn service(affinity: bool) -> Service {
    let ports = [Protocol::Tcp, Protocol::Udp].map(|protocol| sluice_model::ServicePort {
        name: if protocol == Protocol::Tcp { "main" } else { "datagrams" }.into(),
        protocol,
        port: 80,
        node_port: None,
    });
    let name = ObjectName::new("default", "web");
    let mut service = Service::new(name, vec![frontend(Protocol::Tcp).address.ip()], ports.to_vec());
    service.affinity = affinity.then_some(Duration::from_secs(100));
    service
}

fn client(number: u8) -> IpAddr {
    [10, 244, 1, number].into()
}

impl Kept {
    fn new(memory: Memory) -> Self {
        let mut writer = writer_with_pods();
        writer.apply(Change::Apply(service(true).into()));
        writer.apply(Change::Apply(slice(&[1, 2, 3]).into()));
        let mut plan = writer.plan();
        writer.publish(&mut plan);
        writer.finish(&mut plan);
        let ledger = Arc::new(Ledger::new(|_| Account::default()));
        let maps = Maps::adopt(memory).unwrap();
        let mut sockets = Sockets::new(maps, writer.table(), ledger, false);
        sockets.offer(&[frontend(Protocol::Tcp), frontend(Protocol::Udp)]);
        sockets.forget_others();
        sockets.beat();
        Self { writer, sockets }
    }

    fn change(&mut self, change: impl Into<sluice_model::Object>) {
        self.writer.apply(Change::Apply(change.into()));
        self.sockets.change(&self.writer.take_changed());
    }

    fn select(&self, number: u8) -> (Selection, Arc<sluice_table::Upstream>) {
        let client = Client { ip: client(number), origin: Origin::LocalPod };
        let mut reader = self.writer.table().reader();
        let route = reader.lookup(FrontendKey::from(frontend(Protocol::Tcp))).unwrap();
        let mut selection = route.select(client, Instant::now()).unwrap();
        let upstream = selection.next(Instant::now()).unwrap();
        (selection, upstream)
    }

    /// The endpoint to which the relay leads a client.
    fn relay(&self, number: u8) -> SocketAddr {
        let (mut selection, upstream) = self.select(number);
        drop(selection.connected(&upstream, Instant::now()));
        upstream.address()
    }

    /// The endpoint to which the programs lead it.
    fn lead(&self, number: u8) -> Option<SocketAddr> {
        self.sockets.written.maps.kernel().follow(client(number), frontend(Protocol::Tcp))
    }

    fn known(&self) -> usize {
        self.sockets.written.maps.kernel().clients().all().unwrap().len()
    }

    fn into_memory(self) -> Memory {
        let Self { writer, sockets } = self;
        let memory = sockets.written.maps.kernel().clone();
        // The memory of clients is dropped after that.
        drop(sockets);
        drop(writer);
        memory
    }
}

fn slice(endpoints: &[u8]) -> EndpointSlice {
    let name = ObjectName::new("default", "web");
    EndpointSlice {
        last_change: None,
        name: name.clone(),
        service: name,
        family: Family::V4,
        ports: vec![SlicePort { name: "main".into(), protocol: Protocol::Tcp, number: 8080 }],
        endpoints: endpoints.iter().map(|number| Endpoint::ready(at(*number).ip())).collect(),
    }
}

#[test]
fn the_programs_follow_the_relay() {
    let mut world = Kept::new(Memory::new(ENOUGH));
    assert_eq!(world.lead(1), None);
    let places: Vec<SocketAddr> = (1..=3).map(|number| world.relay(number)).collect();
    for (number, place) in (1..).zip(&places) {
        assert_eq!((world.lead(number), world.relay(number)), (Some(*place), *place), "{number}");
    }
    // One endpoint refuses: the relay moves the client, and the programs follow.
    let (mut selection, upstream) = world.select(1);
    selection.fail(&upstream, Heard::Refusal, Instant::now());
    assert_eq!(world.lead(1), None, "it is in doubt");
    let other = selection.next(Instant::now()).unwrap();
    drop(selection.connected(&other, Instant::now()));
    assert_eq!((world.lead(1), world.relay(1)), (Some(other.address()), other.address()));
    // An endpoint is removed.
    let gone = places[1];
    let rest: Vec<u8> = (1..=3).filter(|number| at(*number) != gone).collect();
    world.change(slice(&rest));
    assert_eq!(world.lead(2), None);
    let moved = world.relay(2);
    assert_eq!((moved == gone, world.lead(2)), (false, Some(moved)));
    // It is added again.
    world.change(slice(&[1, 2, 3]));
    assert_eq!((world.lead(2), world.relay(2)), (Some(moved), moved));
}

#[test]
fn nobody_is_known_where_clients_keep_nothing_any_more() {
    let mut world = Kept::new(Memory::new(ENOUGH));
    let before = world.relay(1);
    assert_eq!(world.lead(1), Some(before));
    world.change(service(false));
    let mut turn = || world.sockets.written.maps.kernel_mut().pick(frontend(Protocol::Tcp), false);
    let turns: Vec<Picked> = (0..2).map(|_| turn()).collect();
    assert!(!turns.contains(&Picked::Refused), "{turns:?}");
    world.change(service(true));
    assert_eq!(world.lead(1), None, "it is not the client of before");
    world.change(service(false));
    world.sockets.keep();
    assert_eq!((world.known(), world.sockets.stats().clients), (0, 0));
    // For UDP, the relay leads.
    world.change(service(true));
    let reason = WhyRelayed::Affinity.to_string();
    let udp = world.sockets.written.maps.kernel().frontend(frontend(Protocol::Udp).into());
    assert!(udp.is_none_or(|value| value.pod.verdict != sluice_socket_maps::verdict::BALANCE), "{reason}");
}

#[test]
fn whom_there_is_no_room_for_the_relay_leads_and_that_is_counted() {
    let world = Kept::new(Memory::new(Capacity { sets: 4, ..ENOUGH }));
    (1..=4).for_each(|number| _ = world.relay(number));
    assert_eq!((world.known(), world.lead(2), world.lead(4)), (2, Some(world.relay(2)), None));
    assert_eq!(world.relay(4), world.relay(4));
    assert_eq!(world.sockets.stats().refused_clients, 4);
}

#[test]
fn a_connection_that_is_relayed_is_one_call_and_none_where_there_is_no_room() {
    let world = Kept::new(Memory::new(Capacity { sets: 4, ..ENOUGH }));
    let calls = |client| {
        let before = world.sockets.written.maps.kernel().client_calls();
        world.relay(client);
        world.sockets.written.maps.kernel().client_calls() - before
    };
    assert_eq!([1, 2, 3, 1, 2, 3].map(calls), [1, 1, 0, 1, 1, 0]);
}

#[test]
fn a_successor_remembers_whom_its_predecessor_led_and_forgets_all_others() {
    let first = Kept::new(Memory::new(ENOUGH));
    let places = [1, 2].map(|number| first.relay(number));
    let memory = first.into_memory();
    // A client of a Service that no longer exists.
    let stray = AffinityKey::new(client(9), 1_000);
    let number = sluice_table::SocketNumber { id: 0, incarnation: 1 };
    memory.clients().keep(stray, number).unwrap();
    let second = Kept::new(memory);
    assert_eq!([1, 2].map(|number| second.lead(number)), places.map(Some));
    assert_eq!((second.known(), second.sockets.stats().clients), (2, 2));
    // In the reverse order: round robin would give a different result.
    for number in [2, 1, 2] {
        assert_eq!(second.relay(number), places[usize::from(number) - 1], "{number}");
    }
}

#[test]
fn what_the_nodes_own_sockets_come_from_is_learnt_anew_with_its_addresses() {
    let mut world = Kept::new(Memory::new(ENOUGH));
    let asked = |world: &Kept| world.sockets.written.maps.kernel().writes().sources;
    let before = asked(&world);
    world.sockets.set_interfaces(&[[192, 0, 2, 1].into()]);
    assert_eq!(asked(&world), before + 1);
}
