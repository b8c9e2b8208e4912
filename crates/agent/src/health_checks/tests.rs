//! The servers with real sockets, fed by a real table.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::atomic::AtomicBool;

use sluice_model::{
    Change, Endpoint, EndpointSlice, Family, ObjectName, ObjectRef, Protocol, Service, ServicePort, SlicePort,
};
use sluice_table::{Writer, WriterConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::*;
use crate::events::Events;

const DEADLINE: Duration = Duration::from_secs(20);

/// A port on an address that stays this test's: the socket does not listen, so clients are refused unless
/// somebody shares the port and does, and nobody is given it by chance.
struct Reserved {
    port: u16,
    _sockets: Vec<TcpSocket>,
}

fn reserve(addresses: &[IpAddr]) -> Reserved {
    let bind = |address: SocketAddr| {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.unwrap();
        socket.set_reuseport(true).unwrap();
        socket.bind(address).map(|()| socket)
    };
    'another: loop {
        let first = bind((addresses[0], 0).into()).unwrap();
        let port = first.local_addr().unwrap().port();
        let mut sockets = vec![first];
        for ip in &addresses[1..] {
            match bind((*ip, port).into()) {
                Ok(socket) => sockets.push(socket),
                Err(_) => continue 'another,
            }
        }
        return Reserved { port, _sockets: sockets };
    }
}

/// Addresses that the tests share; ports are what sets tests apart.
const V4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 10));
const OTHER_V4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 11));
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// All addresses of a family.
const ALL_V4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);
const ALL_V6: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

struct World {
    writer: Writer,
    checks: HealthChecks,
    healthy: Arc<AtomicBool>,
}

impl World {
    fn new(addresses: &[IpAddr]) -> Self {
        Self::with_listeners(addresses, Listeners::new(usize::MAX))
    }

    fn with_listeners(addresses: &[IpAddr], listeners: Listeners) -> Self {
        let writer = Writer::new(WriterConfig::new("here"));
        let healthy = Arc::new(AtomicBool::new(true));
        let asked = Arc::clone(&healthy);
        let checks = HealthChecks::start(writer.table().clone(), listeners, Events::default(), move || {
            asked.load(Ordering::Relaxed)
        });
        checks.update(addresses.to_vec());
        Self { writer, checks, healthy }
    }

    fn apply(&mut self, change: Change) {
        self.writer.apply(change);
        let mut plan = self.writer.plan();
        self.writer.publish(&mut plan);
    }

    fn add(&mut self, name: &str, health_check_port: u16) {
        self.add_at(name, health_check_port, &["10.96.0.1", "fd96::1"]);
    }

    fn add_at(&mut self, name: &str, health_check_port: u16, addresses: &[&str]) {
        let port =
            ServicePort { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port: Some(30_080) };
        let name = ObjectName::new("default", name);
        let addresses = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
        let mut service = Service::new(name, addresses, vec![port]);
        service.health_check_node_port = Some(health_check_port);
        self.apply(Change::Apply(service.into()));
    }

    fn remove(&mut self, name: &str) {
        self.apply(Change::Delete(ObjectRef::Service(ObjectName::new("default", name))));
    }

    /// Gives a Service so many local ready endpoints of a family.
    fn endpoints(&mut self, name: &str, family: Family, number: u8) {
        let endpoints = (1..=number).map(|n| {
            let address = match family {
                Family::V4 => IpAddr::from([10, 0, 0, n]),
                Family::V6 => IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(n)]),
            };
            Endpoint { node: Some("here".into()), ..Endpoint::ready(address) }
        });
        self.apply(Change::Apply(
            EndpointSlice {
                last_change: None,
                name: ObjectName::new("default", format!("{name}-{family:?}")),
                service: ObjectName::new("default", name),
                family,
                ports: vec![SlicePort { name: "".into(), protocol: Protocol::Tcp, number: 8080 }],
                endpoints: endpoints.collect(),
            }
            .into(),
        ));
    }
}

/// Status and number of endpoints that a port answers with; `None` where nobody listens.
async fn ask(ip: IpAddr, port: u16) -> Option<(u16, usize)> {
    let mut stream = TcpStream::connect((ip, port)).await.ok()?;
    stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: node\r\n\r\n").await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let json: serde_json::Value = serde_json::from_str(body).unwrap();
    let endpoints = usize::try_from(json["localEndpoints"].as_u64().unwrap()).unwrap();
    assert!(head.contains(&format!("x-load-balancing-endpoint-weight: {endpoints}")), "{head}");
    Some((head.split(' ').nth(1).unwrap().parse().unwrap(), endpoints))
}

/// Waits until so many ports are open, and so many cannot be had.
async fn until_counted(world: &World, open: usize, failed: usize) {
    let counts = || (world.checks.stats().open(), world.checks.stats().failed());
    let counted = tokio::time::timeout(DEADLINE, async {
        while counts() != (open, failed) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    assert!(counted.await.is_ok(), "wanted {open} open and {failed} failed, there are {:?}", counts());
}

/// Waits until a port answers this.
async fn until(ip: IpAddr, port: u16, wanted: Option<(u16, usize)>) {
    let answered = tokio::time::timeout(DEADLINE, async {
        while ask(ip, port).await != wanted {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    if answered.await.is_err() {
        panic!("wanted {wanted:?} of {ip} port {port}, the answer is {:?}", ask(ip, port).await);
    }
}

#[tokio::test]
async fn answers_are_live() {
    let reserved = reserve(&[V4]);
    let mut world = World::new(&[V4]);
    world.add("web", reserved.port);
    until(V4, reserved.port, Some((503, 0))).await;
    world.endpoints("web", Family::V4, 2);
    assert_eq!(ask(V4, reserved.port).await, Some((200, 2)), "the very next request");
    world.healthy.store(false, Ordering::Relaxed);
    assert_eq!(ask(V4, reserved.port).await, Some((503, 2)));
    world.healthy.store(true, Ordering::Relaxed);
    world.endpoints("web", Family::V4, 0);
    assert_eq!(ask(V4, reserved.port).await, Some((503, 0)));
}

#[tokio::test]
async fn each_family_has_its_own_number() {
    let reserved = reserve(&[V4, V6]);
    let mut world = World::new(&[V4, V6]);
    world.add("web", reserved.port);
    world.endpoints("web", Family::V6, 3);
    until(V4, reserved.port, Some((503, 0))).await;
    until(V6, reserved.port, Some((200, 3))).await;
}

#[tokio::test]
async fn a_service_of_one_family_answers_in_that_family_only() {
    let reserved = reserve(&[V4, V6]);
    let mut world = World::new(&[V4, V6]);
    world.add_at("web", reserved.port, &["fd96::1"]);
    until(V6, reserved.port, Some((503, 0))).await;
    assert_eq!(ask(V4, reserved.port).await, None);
    world.add("web", reserved.port);
    until(V4, reserved.port, Some((503, 0))).await;
    world.add_at("web", reserved.port, &["10.96.0.1"]);
    until(V6, reserved.port, None).await;
    until(V4, reserved.port, Some((503, 0))).await;
}

#[tokio::test]
async fn ports_come_and_go_with_the_service_and_others_stay() {
    let (first, second) = (reserve(&[V4]), reserve(&[V4]));
    let mut world = World::new(&[V4]);
    world.add("a", first.port);
    world.add("b", second.port);
    until(V4, first.port, Some((503, 0))).await;
    until(V4, second.port, Some((503, 0))).await;
    // A connection that has asked for nothing so far shows whether the server was left alone.
    let mut waiting = TcpStream::connect((V4, second.port)).await.unwrap();
    world.remove("a");
    until(V4, first.port, None).await;
    waiting.write_all(b"GET / HTTP/1.1\r\nhost: node\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    waiting.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert_eq!(world.checks.stats().open(), 1);
}

#[tokio::test]
async fn a_service_made_anew_on_the_same_port_is_the_one_that_answers() {
    let reserved = reserve(&[V4]);
    let mut world = World::new(&[V4]);
    world.add("a", reserved.port);
    world.endpoints("a", Family::V4, 1);
    until(V4, reserved.port, Some((200, 1))).await;
    world.remove("a");
    world.add("b", reserved.port);
    world.endpoints("b", Family::V4, 2);
    until(V4, reserved.port, Some((200, 2))).await;
}

#[tokio::test]
async fn nothing_is_served_without_addresses_and_changes_of_them_are_followed() {
    let reserved = reserve(&[V4, OTHER_V4]);
    let other = reserve(&[V4]);
    let mut world = World::new(&[]);
    world.add("web", reserved.port);
    world.add("other", other.port);
    assert_eq!(ask(V4, reserved.port).await, None);
    world.checks.update(vec![V4]);
    until(V4, reserved.port, Some((503, 0))).await;
    assert_eq!(ask(OTHER_V4, reserved.port).await, None);
    world.checks.update(vec![OTHER_V4, "fe80::1".parse().unwrap()]);
    until(OTHER_V4, reserved.port, Some((503, 0))).await;
    until(V4, reserved.port, None).await;
    assert_eq!((world.checks.stats().open(), world.checks.stats().failed()), (2, 0), "no link-local address");
    world.checks.update(Vec::new());
    until(OTHER_V4, reserved.port, None).await;
}

#[tokio::test]
async fn all_addresses_of_a_family_are_those_of_no_other() {
    let reserved = reserve(&[ALL_V4, ALL_V6]);
    let mut world = World::new(&[ALL_V6]);
    world.add("web", reserved.port);
    world.endpoints("web", Family::V6, 3);
    until(V6, reserved.port, Some((200, 3))).await;
    assert_eq!(ask(V4, reserved.port).await, None, "IPv6 alone");
    world.checks.update(vec![ALL_V4, ALL_V6]);
    until(V4, reserved.port, Some((503, 0))).await;
    assert_eq!(ask(OTHER_V4, reserved.port).await, Some((503, 0)));
    assert_eq!(ask(V6, reserved.port).await, Some((200, 3)));
    until_counted(&world, 2, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_refused_while_an_address_becomes_all_of_them_and_one_again() {
    let reserved = reserve(&[ALL_V4]);
    let mut world = World::new(&[V4]);
    world.add("web", reserved.port);
    until(V4, reserved.port, Some((503, 0))).await;
    let to = SocketAddr::new(V4, reserved.port);
    let is_over = Arc::new(AtomicBool::new(false));
    let client = std::thread::spawn({
        let is_over = Arc::clone(&is_over);
        move || {
            while !is_over.load(Ordering::Relaxed) {
                // Whoever was not accepted in time is reset, and asks again.
                let mut stream = match std::net::TcpStream::connect(to) {
                    Err(error) => {
                        assert_ne!(error.kind(), ErrorKind::ConnectionRefused, "somebody listens");
                        continue;
                    }
                    Ok(stream) => stream,
                };
                let _ = stream.write_all(b"GET / HTTP/1.1\r\nhost: node\r\n\r\n");
                let _ = stream.read_to_end(&mut Vec::new());
            }
        }
    });
    for round in 0..40 {
        let takes_all = round % 2 == 0;
        world.checks.update(vec![if takes_all { ALL_V4 } else { V4 }]);
        let changed = tokio::time::timeout(DEADLINE, async {
            while TcpStream::connect((OTHER_V4, reserved.port)).await.is_ok() != takes_all {
                tokio::task::yield_now().await;
            }
        });
        changed.await.expect("it is listened elsewhere");
        until_counted(&world, 1, 0).await;
    }
    is_over.store(true, Ordering::Relaxed);
    client.join().expect("nobody was refused");
    until(V4, reserved.port, Some((503, 0))).await;
}

#[tokio::test]
async fn a_port_that_is_taken_disturbs_no_other_and_is_had_once_it_is_free() {
    let squatter = TcpListener::bind((V4, 0)).await.unwrap();
    let taken = squatter.local_addr().unwrap().port();
    let free = reserve(&[V4]);
    let mut world = World::new(&[V4]);
    world.add("a", taken);
    world.add("b", free.port);
    world.endpoints("a", Family::V4, 1);
    until(V4, free.port, Some((503, 0))).await;
    assert_eq!((world.checks.stats().open(), world.checks.stats().failed()), (1, 1));
    drop(squatter);
    until(V4, taken, Some((200, 1))).await;
    assert_eq!(ask(V4, free.port).await, Some((503, 0)));
}

#[tokio::test]
async fn a_port_of_two_services_is_the_first_ones() {
    let reserved = reserve(&[V4]);
    let mut world = World::new(&[V4]);
    world.endpoints("a", Family::V4, 1);
    world.endpoints("b", Family::V4, 2);
    world.add("b", reserved.port);
    until(V4, reserved.port, Some((200, 2))).await;
    world.add("a", reserved.port);
    until(V4, reserved.port, Some((200, 1))).await;
    world.remove("a");
    until(V4, reserved.port, Some((200, 2))).await;
}

#[tokio::test]
async fn dropping_it_closes_all_ports() {
    let reserved = reserve(&[V4]);
    let mut world = World::new(&[V4]);
    world.add("web", reserved.port);
    until(V4, reserved.port, Some((503, 0))).await;
    drop(world);
    until(V4, reserved.port, None).await;
}

#[tokio::test]
async fn two_agents_share_a_port_as_in_a_rolling_update() {
    let reserved = reserve(&[V4]);
    let mut worlds = [World::new(&[V4]), World::new(&[V4])];
    for world in &mut worlds {
        world.add("web", reserved.port);
        world.endpoints("web", Family::V4, 1);
    }
    let both_serve = tokio::time::timeout(DEADLINE, async {
        while worlds.iter().any(|world| world.checks.stats().open() == 0) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    both_serve.await.expect("both have the port");
    let [old, _new] = worlds;
    drop(old);
    until(V4, reserved.port, Some((200, 1))).await;
}

#[tokio::test]
async fn ports_take_no_more_descriptors_than_there_are_for_them_and_give_them_back() {
    let (first, second) = (reserve(&[V4, OTHER_V4]), reserve(&[V4, OTHER_V4]));
    let listeners = Listeners::new(3);
    let mut world = World::with_listeners(&[V4, OTHER_V4], listeners.clone());
    world.add("first", first.port);
    until_counted(&world, 2, 0).await;
    world.add("second", second.port);
    until_counted(&world, 3, 1).await;
    assert!(listeners.take(1).is_err());
    let is_said = |failures: &[Failure]| failures.iter().any(|failure| failure.what.contains("ulimit -n"));
    assert!(is_said(&world.checks.stats().failures()));
    world.remove("first");
    until_counted(&world, 2, 0).await;
    assert!(listeners.take(1).is_ok());
    world.remove("second");
    until_counted(&world, 0, 0).await;
    assert!(listeners.take(3).is_ok());
}
