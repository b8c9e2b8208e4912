//! Room for clients that keep their endpoints: who gets it, and that it is released.

use std::net::IpAddr;
use std::time::Duration;

use sluice_model::ObjectRef;

use super::*;
use crate::socket::ended::AT_ONCE;

/// Services with two ports each, with session affinity.
struct Scene {
    writer: Writer,
    sockets: Sockets<Memory>,
    kernel: Memory,
}

fn name(service: u8) -> ObjectName {
    ObjectName::new("default", format!("web-{service}"))
}

fn frontend(service: u8, port: u16) -> Frontend {
    Frontend::new([10, 96, 1, service].into(), port, Protocol::Tcp)
}

fn pod(number: u16) -> Client {
    let [high, low] = number.to_be_bytes();
    Client { ip: [10, 244, high, low].into(), origin: Origin::LocalPod }
}

impl Scene {
    fn new(room: u32, host_only: bool) -> Self {
        let writer = writer_with_pods();
        let memory = Memory::new(Capacity { frontends: 100, sets: room, slots: 100, endpoints: 100 });
        // The clone shares the known clients with the memory that is written to.
        let kernel = memory.clone();
        let ledger = Arc::new(Ledger::new(|_| Account::default()));
        let sockets = Sockets::new(Maps::new(memory), writer.table(), ledger, host_only);
        let mut scene = Self { writer, sockets, kernel };
        (1..=3).for_each(|service| scene.serve(service));
        scene
    }

    fn serve(&mut self, number: u8) {
        let port = |port| sluice_model::ServicePort {
            name: format!("p{port}").into(),
            protocol: Protocol::Tcp,
            port,
            node_port: None,
        };
        let ip = frontend(number, 80).address.ip();
        let mut service = Service::new(name(number), vec![ip], vec![port(80), port(81)]);
        service.affinity = Some(Duration::from_secs(100));
        let port =
            |port| SlicePort { name: format!("p{port}").into(), protocol: Protocol::Tcp, number: 8080 };
        let slice = EndpointSlice {
            last_change: None,
            name: name(number),
            service: name(number),
            family: Family::V4,
            ports: vec![port(80), port(81)],
            endpoints: vec![Endpoint::ready(at(1).ip())],
        };
        self.apply([Change::Apply(service.into()), Change::Apply(slice.into())]);
    }

    fn delete(&mut self, number: u8) {
        self.apply([
            Change::Delete(ObjectRef::Service(name(number))),
            Change::Delete(ObjectRef::EndpointSlice(name(number))),
        ]);
    }

    fn apply(&mut self, changes: impl IntoIterator<Item = Change>) {
        self.writer.apply_all(changes);
        self.sockets.change(&self.writer.take_changed());
        let mut plan = self.writer.plan();
        self.writer.publish(&mut plan);
        let of = |states: &[sluice_table::FrontendState]| -> Vec<Frontend> {
            states.iter().map(|state| state.frontend).collect()
        };
        self.sockets.withdraw(&of(&plan.withdraw));
        self.sockets.offer(&of(&plan.offer));
        self.writer.finish(&mut plan);
    }

    /// The relay leads a client of a Service.
    fn relay(&self, service: u8, port: u16, client: Client) -> Arc<ServicePort> {
        let mut reader = self.writer.table().reader();
        let route = reader.lookup(FrontendKey::from(frontend(service, port))).unwrap();
        let port = Arc::clone(route.service_port());
        let mut selection = route.select(client, Instant::now()).unwrap();
        let upstream = selection.next(Instant::now()).unwrap();
        drop(selection.connected(&upstream, Instant::now()));
        port
    }

    fn flood(&self, service: u8, port: u16) {
        (0..5_000).for_each(|number| _ = self.relay(service, port, pod(number)));
    }

    fn known(&self) -> usize {
        let known = self.kernel.clients().all().unwrap().len();
        assert_eq!(self.sockets.stats().clients, known);
        known
    }
}

#[test]
fn a_service_has_as_much_room_as_is_left_for_all_others() {
    let mut scene = Scene::new(64, false);
    scene.flood(1, 80);
    assert_eq!((scene.known(), scene.sockets.stats().most_clients), (32, 64));
    scene.flood(1, 81);
    assert_eq!(scene.known(), 32, "another port of it");
    assert_eq!(scene.sockets.stats().refused_clients, 2 * 5_000 - 32);
    scene.flood(2, 80);
    assert_eq!(scene.known(), 32 + 16);
    scene.flood(3, 80);
    assert_eq!(scene.known(), 32 + 16 + 8);
    // A known client may connect again.
    let refused = scene.sockets.stats().refused_clients;
    scene.relay(1, 80, pod(0));
    assert_eq!((scene.known(), scene.sockets.stats().refused_clients), (32 + 16 + 8, refused));
    // The room of a deleted Service is available to the others.
    scene.delete(1);
    scene.sockets.keep();
    assert_eq!(scene.known(), 16 + 8);
    scene.flood(3, 81);
    assert_eq!(scene.known(), 16 + 24);
}

#[test]
fn clients_of_a_service_that_is_gone_are_forgotten_some_at_a_time_while_its_sessions_last() {
    let mut scene = Scene::new(10_000, false);
    scene.flood(1, 80);
    // A session that stays open.
    let port = scene.relay(2, 80, pod(1));
    scene.flood(2, 81);
    scene.relay(2, 80, pod(2));
    let all = scene.known();
    assert!(all > 7_000, "{all}");
    scene.delete(2);
    let others = 5_000;
    let mut keeps = 0;
    while scene.known() > others {
        let before = scene.kernel.client_calls();
        scene.sockets.keep();
        // One call for all, and the rest of the last bucket.
        let calls = scene.kernel.client_calls() - before;
        assert!(calls <= AT_ONCE as u64 + 100, "{calls}");
        keeps += 1;
        assert!(keeps <= 10, "{} are left", scene.known());
    }
    assert!(keeps >= 7, "{keeps}");
    // Whoever looks into the table next has the latest.
    scene.serve(4);
    let before = scene.kernel.client_calls();
    scene.sockets.keep();
    let gone = Arc::downgrade(&port);
    drop(port);
    assert!(gone.upgrade().is_none(), "the last session has ended");
    assert_eq!(scene.kernel.client_calls(), before, "and whoever ends it has nothing to do");
    assert_eq!(scene.kernel.follow(pod(1).ip, frontend(2, 80)), None);
}

#[test]
fn only_whom_the_programs_may_lead_is_told() {
    let node = |ip: &str| Client { ip: ip.parse().unwrap(), origin: Origin::Node };
    let outside = Client { origin: Origin::Outside, ..pod(3) };
    let scene = Scene::new(100, true);
    let clients = [pod(1), outside, node("127.0.0.2"), node("192.0.2.1"), node("127.0.0.1"), node("::1")];
    let known = clients.map(|client| {
        scene.relay(1, 80, client);
        scene.known()
    });
    assert_eq!(known, [0, 0, 0, 1, 2, 3]);
    assert_eq!(scene.sockets.stats().refused_clients, 0, "nothing was asked for");
    let scene = Scene::new(100, false);
    let known = clients.map(|client| {
        scene.relay(1, 80, client);
        scene.known()
    });
    assert_eq!(known, [1, 1, 1, 2, 3, 4]);
    // The same address as a client outside the node: it is forgotten.
    scene.relay(1, 80, Client { origin: Origin::Outside, ..pod(1) });
    assert_eq!(scene.known(), 3);
    let ips: Vec<IpAddr> =
        scene.kernel.clients().all().unwrap().iter().map(|kept| kept.key.client()).collect();
    assert!(!ips.contains(&pod(1).ip));
}
