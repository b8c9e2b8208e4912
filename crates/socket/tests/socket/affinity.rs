//! Clients that keep their endpoints: the relay decides, which is a listener in the client's namespace here, and its
//! connections to come are led to where it says.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use sluice_socket::Attached;
use sluice_socket_maps::{
    AffinityKey, Endpoint, Kernel, Set, SetAffinity, SharedClients, endpoint_flags, protocol, set_flags,
};
use sluice_sys::bpf::{self, Mapping};
use sluice_table::SocketNumber;
use sluice_testbed::lab::Namespace;
use socket2::{Domain, Socket, Type};

use crate::node::{CAPACITY, Node, balance, endpoint, endpoint_ip, mapped, serve, service};

const PATIENCE: Duration = Duration::from_secs(5);

/// By what clients of set 1 are found.
const NUMBER: u32 = 7;

const HOUR_MS: u32 = 3_600_000;

/// A node where connections to Services come to the relay of the namespace that they are of, if nobody leads them elsewhere, from
/// addresses of the namespace's own.
struct Scene {
    node: Node,
    kernel: Attached,
    clients: SharedClients,
    endpoints: Vec<TcpListener>,
    relays: [TcpListener; 2],
    to: SocketAddr,
}

fn source(v6: bool, number: u8) -> IpAddr {
    if v6 { format!("fd01::{number}").parse().unwrap() } else { [10, 1, 0, number].into() }
}

fn relay(namespace: &Namespace, first: u8) -> TcpListener {
    let batch: String = [first, first + 1]
        .map(|number| {
            format!("addr add 10.1.0.{number}/32 dev lo\naddr add fd01::{number}/128 dev lo nodad\n")
        })
        .concat();
    let routes = format!(
        "route add local 10.96.0.0/24 dev lo src 10.1.0.{first}\nroute add local fd96::/64 dev lo src fd01::{first}\n"
    );
    namespace.ip_batch(&(batch + &routes)).unwrap();
    namespace.run(|| TcpListener::bind("[::]:80")).unwrap()
}

fn connect(namespace: &Namespace, to: SocketAddr) -> TcpStream {
    namespace.run(|| TcpStream::connect_timeout(&to, PATIENCE)).unwrap()
}

/// One that something is done to first.
fn connect_as(namespace: &Namespace, to: SocketAddr, prepare: impl FnOnce(&Socket) + Send) -> TcpStream {
    namespace.run(|| {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
        prepare(&socket);
        socket.connect_timeout(&to.into(), PATIENCE).unwrap();
        socket.into()
    })
}

/// One that is bound to an address.
fn connect_from(namespace: &Namespace, from: IpAddr, to: SocketAddr) -> TcpStream {
    connect_as(namespace, to, |socket| socket.bind(&SocketAddr::new(from, 0).into()).unwrap())
}

/// Whose connection it is that was made just now.
#[track_caller]
fn accept(listener: &TcpListener, client: &TcpStream) -> SocketAddr {
    listener.set_nonblocking(true).unwrap();
    let deadline = Instant::now() + PATIENCE;
    loop {
        match listener.accept() {
            Ok((_, from)) => return from,
            Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < deadline => {
                std::thread::yield_now();
            }
            Err(error) => panic!("{client:?} has not come here: {error}"),
        }
    }
}

impl Scene {
    /// Two endpoints, which are the pod's.
    fn new(v6: bool) -> Self {
        let node = Node::new();
        let mut kernel = node.attach().unwrap();
        let relays = [relay(&node.pod, 1), relay(&node.host, 3)];
        let endpoints: Vec<TcpListener> = node
            .pod
            .run(|| (1..=2).map(|number| TcpListener::bind((endpoint_ip(v6, number), 0)).unwrap()).collect());
        let at: Vec<SocketAddr> = endpoints.iter().map(|to| to.local_addr().unwrap()).collect();
        let to = service(v6, 1, 80);
        serve(&mut kernel, 1, to, &at);
        kernel.write_affinity(1, SetAffinity { number: NUMBER, timeout_ms: HOUR_MS });
        let clients = kernel.clients();
        Self { node, kernel, clients, endpoints, relays, to }
    }

    /// What the relay of a namespace sees of a connection that was made just now.
    #[track_caller]
    fn relayed(&self, relay: usize, client: &TcpStream) -> IpAddr {
        let from = accept(&self.relays[relay], client);
        assert_eq!(from.port(), client.local_addr().unwrap().port());
        from.ip().to_canonical()
    }

    /// The endpoint that a connection was led to which was made just now.
    #[track_caller]
    fn led(&self, endpoint: usize, client: &TcpStream) {
        let from = accept(&self.endpoints[endpoint], client);
        assert_eq!(from.port(), client.local_addr().unwrap().port());
        assert_eq!(client.peer_addr().unwrap().ip().to_canonical(), self.to.ip());
    }

    /// The relay leads a client to an endpoint, and says so.
    fn keep(&self, client: IpAddr, endpoint: u32) {
        self.clients.keep(key(client), number(endpoint)).unwrap();
    }

    /// The pod's client has connected, and been led to the first endpoint.
    fn begin(&self) -> IpAddr {
        let source = self.relayed(0, &connect(&self.node.pod, self.to));
        self.keep(source, 0);
        self.led(0, &connect(&self.node.pod, self.to));
        source
    }

    fn has_agent(&self) {
        let now = clock_gettime(ClockId::Monotonic);
        self.kernel.heartbeat(u64::try_from(now.tv_sec).unwrap() * 1_000_000_000 + 3_600_000_000_000);
    }
}

fn key(client: IpAddr) -> AffinityKey {
    AffinityKey::new(client, NUMBER)
}

/// As the maps have it.
fn number(endpoint: u32) -> SocketNumber {
    SocketNumber { id: 10 + endpoint, incarnation: 1 }
}

#[test]
fn a_second_connection_is_led_to_where_the_first_one_was() {
    for (v6, is_mapped) in [(false, false), (true, false), (false, true)] {
        let scene = Scene::new(v6);
        let to = if is_mapped { mapped(scene.to) } else { scene.to };
        let pod = &scene.node.pod;
        let from = scene.relayed(0, &connect(pod, to));
        assert_eq!(from, source(v6, 1));
        // It is known, but nobody has decided.
        scene.relayed(0, &connect(pod, to));
        scene.keep(from, 1);
        for _ in 0..3 {
            scene.led(1, &connect(pod, to));
        }
        assert_eq!(scene.kernel.set(1).cursor, 0, "no turn was taken");
        assert_eq!([0, 1].map(|n| scene.kernel.account(10 + n).connections), [0, 3]);
        // The relay has led it elsewhere.
        scene.keep(from, 0);
        scene.led(0, &connect(pod, to));
        scene.clients.forget(key(from)).unwrap();
        scene.relayed(0, &connect(pod, to));
    }
}

#[test]
fn clients_have_endpoints_of_their_own() {
    let scene = Scene::new(false);
    let Node { pod, host, .. } = &scene.node;
    let (one, other) = (scene.begin(), scene.relayed(1, &connect(host, scene.to)));
    assert_eq!((one, other), (source(false, 1), source(false, 3)));
    scene.relayed(1, &connect(host, scene.to));
    scene.keep(other, 1);
    scene.led(0, &connect(pod, scene.to));
    // The endpoints are the pod's: nobody is there in the host's namespace.
    let refused = host.run(|| TcpStream::connect_timeout(&scene.to, PATIENCE)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    assert_eq!([0, 1].map(|n| scene.kernel.endpoint(10 + n).failures().count), [0, 1]);
}

#[test]
fn a_socket_that_is_bound_is_the_client_that_its_address_is() {
    for v6 in [false, true] {
        let scene = Scene::new(v6);
        let (pod, second) = (&scene.node.pod, source(v6, 2));
        let first = scene.begin();
        assert_eq!(scene.relayed(0, &connect_from(pod, second, scene.to)), second);
        scene.led(0, &connect(pod, scene.to));
        scene.clients.forget(key(first)).unwrap();
        scene.keep(second, 1);
        // From there an IPv4 endpoint on loopback is not reached, one of IPv6 is.
        if v6 {
            scene.led(1, &connect_from(pod, second, scene.to));
        }
        assert_eq!(
            scene.relayed(0, &connect(pod, scene.to)),
            first,
            "it is none that another one is taken for"
        );
    }
}

#[test]
fn a_client_that_was_idle_for_the_timeout_is_the_relays_again_and_each_connection_begins_it_anew() {
    let mut scene = Scene::new(false);
    let client = scene.begin();
    let has_been_idle = |scene: &Scene, millis: u64| {
        while scene.clients.idle(key(client)).unwrap() < Duration::from_millis(millis) {
            std::thread::yield_now();
        }
    };
    has_been_idle(&scene, 3);
    let before = Instant::now();
    scene.led(0, &connect(&scene.node.pod, scene.to));
    assert!(scene.clients.idle(key(client)).unwrap() <= before.elapsed());
    scene.kernel.write_affinity(1, SetAffinity { number: NUMBER, timeout_ms: 1 });
    has_been_idle(&scene, 1);
    scene.relayed(0, &connect(&scene.node.pod, scene.to));
    assert!(scene.clients.idle(key(client)).unwrap() >= Duration::from_millis(1), "that was none of its own");
    scene.kernel.write_affinity(1, SetAffinity { number: NUMBER, timeout_ms: HOUR_MS });
    scene.led(0, &connect(&scene.node.pod, scene.to));
}

#[test]
fn an_endpoint_that_has_left_or_means_something_else_is_kept_by_nobody() {
    let mut scene = Scene::new(false);
    scene.begin();
    scene.kernel.leave(10);
    scene.relayed(0, &connect(&scene.node.pod, scene.to));
    // The number is given to another one.
    let at = scene.endpoints[1].local_addr().unwrap();
    scene.kernel.write_endpoints(10, &[Endpoint { incarnation: 2, ..endpoint(at) }]);
    scene.relayed(0, &connect(&scene.node.pod, scene.to));
    // One that the kernel cannot lead an IPv4 socket to.
    let at = SocketAddr::new(endpoint_ip(true, 1), 80);
    scene.kernel.write_endpoints(10, &[endpoint(at)]);
    scene.relayed(0, &connect(&scene.node.pod, scene.to));
    // Of UDP that says nothing.
    let flags = endpoint(at).with_flows(5).flags;
    scene.kernel.write_endpoints(10, &[endpoint(at).with_flows(5)]);
    scene.kernel.leave(10);
    assert_eq!(scene.kernel.endpoint(10).flags, flags);
}

#[test]
fn an_endpoint_in_doubt_is_left_to_the_relay_while_there_is_one() {
    let scene = Scene::new(false);
    let client = scene.begin();
    scene.has_agent();
    scene.led(0, &connect(&scene.node.pod, scene.to));
    scene.kernel.health().has_failed(number(0));
    scene.relayed(0, &connect(&scene.node.pod, scene.to));
    // It has moved the client.
    scene.keep(client, 1);
    scene.led(1, &connect(&scene.node.pod, scene.to));
    scene.keep(client, 0);
    scene.relayed(0, &connect(&scene.node.pod, scene.to));
    scene.kernel.health().has_served(number(0));
    scene.led(0, &connect(&scene.node.pod, scene.to));
    scene.kernel.health().has_failed(number(0));
    scene.kernel.heartbeat(0);
    scene.led(0, &connect(&scene.node.pod, scene.to));
}

#[test]
fn where_clients_keep_no_endpoint_any_more_turns_are_taken_and_nobody_is_known_later() {
    let mut scene = Scene::new(false);
    scene.begin();
    scene.kernel.write_affinity(1, SetAffinity::default());
    for endpoint in [0, 1, 0] {
        scene.led(endpoint, &connect(&scene.node.pod, scene.to));
    }
    scene.kernel.write_affinity(1, SetAffinity { number: NUMBER + 1, timeout_ms: HOUR_MS });
    scene.relayed(0, &connect(&scene.node.pod, scene.to));
}

#[test]
fn a_client_that_there_is_no_room_for_is_the_relays() {
    let scene = Scene::new(false);
    let most = u8::try_from(CAPACITY.sets / 4).unwrap();
    (0..most).for_each(|n| scene.keep([10, 9, 0, n].into(), 0));
    let client = scene.relayed(0, &connect(&scene.node.pod, scene.to));
    assert!(scene.clients.keep(key(client), number(0)).is_err());
    assert_eq!(scene.clients.all().unwrap().len(), usize::from(most));
    scene.relayed(0, &connect(&scene.node.pod, scene.to));
    scene.clients.forget(key([10, 9, 0, 1].into())).unwrap();
    scene.keep(client, 0);
    scene.led(0, &connect(&scene.node.pod, scene.to));
}

#[test]
fn clients_outlive_the_agent() {
    let mut scene = Scene::new(false);
    let client = scene.begin();
    let Scene { node, kernel, .. } = scene;
    drop((kernel, scene.clients));
    scene.kernel = node.attach().unwrap();
    scene.clients = scene.kernel.clients();
    scene.node = node;
    let all = scene.clients.all().unwrap();
    assert_eq!(
        all.iter().map(|kept| (kept.key, kept.number)).collect::<Vec<_>>(),
        [(key(client), number(0))]
    );
    scene.led(0, &connect(&scene.node.pod, scene.to));
}

#[test]
fn a_socket_with_a_device_or_a_mark_of_its_own_is_the_relays_and_says_nothing_of_others() {
    for v6 in [false, true] {
        let scene = Scene::new(v6);
        let (pod, to) = (&scene.node.pod, scene.to);
        // What has the mark comes from another address.
        let (family, net) = if v6 { ("-6 ", "fd96::/64") } else { ("", "10.96.0.0/24") };
        let second = source(v6, 2);
        for line in [
            format!("{family}rule add pref 5 lookup local"),
            format!("{family}rule del pref 0"),
            format!("{family}rule add pref 1 fwmark 7 lookup 100"),
            format!("{family}route add local {net} dev lo src {second} table 100"),
        ] {
            pod.output("sh", &["-c", &format!("ip {line}")]).unwrap();
        }
        scene.begin();
        let marked = || connect_as(pod, to, |socket| socket.set_mark(7).unwrap());
        assert_eq!(scene.relayed(0, &marked()), second);
        scene.keep(second, 1);
        assert_eq!(scene.relayed(0, &marked()), second);
        scene.relayed(0, &connect_as(pod, to, |socket| socket.bind_device(Some(b"lo")).unwrap()));
        scene.led(0, &connect(pod, to));
        // Nothing has to be guessed of one that is bound to an address; an IPv4 endpoint is not reached from there.
        if v6 {
            let bound = connect_as(pod, to, |socket| {
                socket.set_mark(7).unwrap();
                socket.bind(&SocketAddr::new(second, 0).into()).unwrap();
            });
            scene.led(1, &bound);
        }
    }
}

#[test]
fn what_the_nodes_sockets_come_from_is_learnt_anew_when_its_addresses_change() {
    let mut scene = Scene::new(false);
    scene.begin();
    let host = |scene: &Scene| scene.node.host.run(|| TcpStream::connect_timeout(&scene.to, PATIENCE));
    let before = scene.relayed(1, &host(&scene).unwrap());
    scene.keep(before, 1);
    assert!(host(&scene).is_err(), "it is led to an endpoint, which is in the pod's namespace");
    scene
        .node
        .host
        .ip_batch("addr add 10.1.0.9/32 dev lo\nroute change local 10.96.0.0/24 dev lo src 10.1.0.9\n")
        .unwrap();
    scene.kernel.forget_sources();
    assert_eq!(scene.relayed(1, &host(&scene).unwrap()), source(false, 9));
    scene.led(0, &connect(&scene.node.pod, scene.to));
}

/// The array of what sockets come from.
fn sources(node: &Node) -> Mapping {
    Mapping::new(bpf::get(&node.pins().join("sources")).unwrap().as_fd()).unwrap()
}

#[test]
fn an_address_that_somebody_is_just_writing_is_nobodys() {
    let scene = Scene::new(false);
    scene.begin();
    scene.keep(source(false, 2), 1);
    let sources = sources(&scene.node);
    let known: Vec<_> =
        sources.words().chunks(6).filter(|words| words[0].load(Ordering::Relaxed) != 0).collect();
    assert_eq!(known.len(), 1);
    // The other half of the address, behind that of the Service and its port.
    let last = &sources.halves()[(known[0].as_ptr() as usize - sources.words().as_ptr() as usize) / 4 + 10];
    assert_eq!(last.load(Ordering::Relaxed), u32::from_ne_bytes([10, 1, 0, 1]));
    last.store(u32::from_ne_bytes([10, 1, 0, 2]), Ordering::Relaxed);
    scene.relayed(0, &connect(&scene.node.pod, scene.to));
    scene.led(0, &connect(&scene.node.pod, scene.to));
}

#[test]
fn many_addresses_are_known_for_one_namespace_and_the_last_ones_of_all() {
    const PORTS: std::ops::Range<u16> = 1000..1400;
    let mut scene = Scene::new(false);
    let ip = scene.to.ip();
    let at: Vec<SocketAddr> = scene.endpoints.iter().map(|to| to.local_addr().unwrap()).collect();
    let connect_all = |scene: &Scene| {
        let is_led = |port: &u16| {
            let client = TcpStream::connect((ip, *port));
            client.is_ok_and(|client| accept(&scene.endpoints[0], &client).port() != 0)
        };
        scene.node.pod.run(|| PORTS.filter(is_led).count())
    };
    serve(&mut scene.kernel, 1, scene.to, &at);
    scene.kernel.write_affinity(1, SetAffinity { number: NUMBER, timeout_ms: HOUR_MS });
    let frontends: Vec<_> =
        PORTS.map(|port| (crate::node::key(SocketAddr::new(ip, port), protocol::TCP), balance(1))).collect();
    scene.kernel.put_frontends(&frontends).unwrap();
    // Nobody is at those ports of the relay.
    assert_eq!(connect_all(&scene), 0);
    scene.keep(source(false, 1), 0);
    let led = connect_all(&scene);
    assert!(led > PORTS.len() * 95 / 100, "{led}");
    // One that has lost its place learns it again, in that of another one.
    assert!(connect_all(&scene) >= led);
}

#[test]
fn an_endpoint_that_is_just_given_to_another_one_is_nobodys() {
    const ROUNDS: usize = 200_000;
    let mut scene = Scene::new(true);
    // Bound, so nothing has to be learnt; of UDP, as that takes no time.
    let client = source(true, 2);
    scene.keep(client, 0);
    let to = scene.to;
    let socket = scene.node.pod.run(|| std::net::UdpSocket::bind((client, 0)).unwrap());
    let connect = || {
        socket.connect(to).unwrap();
        rustix::net::connect_unspec(&socket).unwrap();
    };
    let led = |scene: &Scene| scene.kernel.account(10).connections;
    scene.node.pod.run(connect);
    assert_eq!(led(&scene), 1);
    let at = scene.endpoints[0].local_addr().unwrap();
    // It has left, and is another one's that has not.
    let turns = [
        Endpoint { flags: endpoint_flags::LEFT, ..endpoint(at) },
        Endpoint { incarnation: 2, ..endpoint(at) },
    ];
    let is_over = AtomicBool::new(false);
    let Scene { node, kernel, .. } = &mut scene;
    kernel.write_endpoints(10, &turns[..1]);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                turns.iter().for_each(|turn| kernel.write_endpoints(10, &[*turn]));
            }
        });
        node.pod.run(|| (0..ROUNDS).for_each(|_| connect()));
        is_over.store(true, Ordering::Relaxed);
    });
    assert_eq!(led(&scene), 1);
}

#[test]
fn sets_whose_clients_keep_endpoints_have_bounds_and_beyond_them_are_the_relays() {
    let mut scene = Scene::new(false);
    let keeps = SetAffinity { number: NUMBER, timeout_ms: HOUR_MS };
    scene.begin();
    let most = CAPACITY.sets / 4;
    for set in 2..most + 2 {
        scene.kernel.write_affinity(set, SetAffinity { number: 100 + set, timeout_ms: 1000 + set });
    }
    let of = |scene: &Scene, set: u32| SetAffinity::unpack(scene.kernel.set(set).affinity);
    assert_eq!(of(&scene, most), SetAffinity { number: 100 + most, timeout_ms: 1000 + most });
    scene.kernel.write_affinity(most, SetAffinity { number: 100 + most, timeout_ms: 5 });
    assert_eq!(of(&scene, most), SetAffinity { number: 100 + most, timeout_ms: 5 });
    let beyond = most + 1;
    assert_eq!(of(&scene, beyond).number, 0);
    assert_ne!(of(&scene, beyond).timeout_ms, 1000 + beyond, "who wants that writes it again");
    // Set 1 gives its place away, and has none when it wants one.
    scene.kernel.write_flags(1, set_flags::RANDOM);
    scene.kernel.write_affinity(1, SetAffinity::default());
    scene.kernel.write_affinity(beyond, SetAffinity { number: 1, timeout_ms: 1 });
    assert_eq!(of(&scene, beyond), SetAffinity { number: 1, timeout_ms: 1 });
    scene.kernel.write_affinity(1, keeps);
    scene.relayed(0, &connect(&scene.node.pod, scene.to));
    assert_eq!((scene.kernel.set(1).cursor, scene.kernel.set(1).flags), (0, set_flags::RANDOM));
    // Written anew, one has given its place away.
    scene.kernel.write_set(2, Set::default());
    assert_eq!(of(&scene, 2), SetAffinity::default());
    scene.kernel.write_affinity(1, keeps);
    scene.led(0, &connect(&scene.node.pod, scene.to));
    // So has one that the next agent finds nowhere.
    scene.kernel.write_affinity(3, SetAffinity::default());
    let Scene { node, kernel, .. } = scene;
    drop((kernel, scene.clients));
    scene.kernel = node.attach().unwrap();
    scene.clients = scene.kernel.clients();
    scene.node = node;
    assert_eq!(of(&scene, 1), keeps);
    scene.kernel.write_affinity(2, keeps);
    assert_eq!(of(&scene, 2), keeps);
    scene.kernel.write_affinity(3, keeps);
    assert_eq!(of(&scene, 3).number, 0);
    scene.led(0, &connect(&scene.node.pod, scene.to));
}
