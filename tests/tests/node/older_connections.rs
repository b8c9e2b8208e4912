//! Connections that are older than the Service whose address and port they are to: an external IP, a load balancer's, a
//! nodePort. conntrack has them go on under kube-proxy, which only new ones are led by.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};

use sluice::proxy::CaptureConfig;
use sluice_model::{Change, Family, ObjectRef, Service, TrafficPolicy};
use sluice_testbed::lab::{Host, Lab, PATIENCE, Server, Wiring, ask_on};
use sluice_tests::wait;

use super::hosts::{lab, track, tracking_lab};
use super::rules::Kind;
use super::world::{BACKEND, FAMILIES, PORT, Sockets, World, name, service, slices};

/// Whoever serves what the Service is not for.
const ENDPOINT: &str = "other-pod-0";

/// A connection to a server of the lab.
struct Talk {
    stream: BufReader<TcpStream>,
    by: String,
    context: String,
}

impl Talk {
    fn begin(client: &Host, to: SocketAddr) -> Self {
        let context = format!("{} to {to}", client.name);
        let stream = client.tcp_stream(to, PATIENCE).unwrap_or_else(|error| panic!("{context}: {error}"));
        let mut stream = BufReader::new(stream);
        let mut greeting = String::new();
        stream.read_line(&mut greeting).unwrap_or_else(|error| panic!("{context}: {error}"));
        let by = greeting.split(' ').next().unwrap_or_default().to_owned();
        Self { stream, by, context }
    }

    /// Says something, and hears it from the server.
    fn exchange(&mut self) -> io::Result<()> {
        self.stream.get_ref().write_all(b"still here\n")?;
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        if line == "still here\n" { Ok(()) } else { Err(io::Error::other(format!("heard {line:?}"))) }
    }

    fn goes_on(&mut self, when: &str) {
        self.exchange().unwrap_or_else(|error| panic!("{} ({}), {when}: {error}", self.context, self.by));
    }
}

/// What others serve: hosts elsewhere, a pod of this node, and a process of it; and who is asked there.
struct Others {
    addresses: Vec<(SocketAddr, &'static str)>,
    /// Pods talk to each other on a bridge.
    is_bridged: bool,
    _servers: Vec<Server>,
}

impl Others {
    fn serve(world: &World, wiring: Wiring) -> Self {
        let lab = &world.lab;
        let node_port = world.address(Kind::NodePort, 1, Family::V4).port();
        let hosts = [
            (lab.outside(), "outside", PORT),
            (lab.other(), "other", PORT),
            (lab.pod(1), "pod-1", PORT),
            (lab.node(), "node", node_port),
        ];
        let servers = hosts.iter().map(|(host, _, port)| host.serve(*port).unwrap());
        let mut servers: Vec<Server> = servers.collect();
        servers.push(lab.other_pod(0).serve(BACKEND).unwrap());
        let addresses = FAMILIES
            .iter()
            .flat_map(|family| hosts.map(|(host, name, port)| ((host.ip(*family), port).into(), name)));
        Self { addresses: addresses.collect(), is_bridged: wiring == Wiring::Bridged, _servers: servers }
    }

    /// Connections of a pod and of a process to all of them, and whom they are to.
    fn talks(&self, world: &World) -> Vec<(Talk, &'static str)> {
        let clients = [world.lab.pod(0), world.lab.node()];
        let pairs = self.addresses.iter().flat_map(|pair| clients.map(|client| (client, pair)));
        let passes_the_node =
            |client: &Host, name: &str| !(self.is_bridged && client.name == "pod-0" && name == "pod-1");
        let pairs = pairs.filter(|(client, (_, name))| passes_the_node(client, name));
        pairs.map(|(client, (to, name))| (Talk::begin(client, *to), *name)).collect()
    }
}

/// Service 1 has all of these addresses.
fn service_at_others(world: &World) -> Service {
    let lab = &world.lab;
    let mut service = service(1, TrafficPolicy::Cluster);
    service.external_ips =
        FAMILIES.iter().flat_map(|family| [lab.outside(), lab.pod(1)].map(|host| host.ip(*family))).collect();
    service.load_balancer_ips = FAMILIES.map(|family| lab.other().ip(family)).to_vec();
    service
}

fn add_service(world: &mut World) {
    let mut changes = slices(1, &[(world.lab.other_pod(0), "other")]);
    changes.push(Change::Apply(service_at_others(world).into()));
    world.apply(changes);
}

fn remove_service(world: &mut World) {
    world.apply([Change::Delete(ObjectRef::Service(name(1)))]);
}

/// Connections to others, and then to the Service, while it comes, goes, and comes again.
fn check(world: &mut World, wiring: Wiring) {
    let others = Others::serve(world, wiring);
    let mut direct = others.talks(world);
    let who = |talks: &[(Talk, &str)], wanted: &dyn Fn(&str) -> String, when: &str| {
        for (talk, name) in talks {
            assert_eq!(talk.by, wanted(name), "{} {when}", talk.context);
        }
    };
    let go_on = |talks: &mut [(Talk, &str)], when: &str| {
        // Often enough for acknowledgements to be late, and to be on their own.
        for _ in 0..3 {
            talks.iter_mut().for_each(|(talk, _)| talk.goes_on(when));
        }
    };
    who(&direct, &str::to_owned, "before the Service");
    go_on(&mut direct, "before the Service");

    add_service(world);
    go_on(&mut direct, "with the Service");
    let mut served = others.talks(world);
    who(&served, &|_| ENDPOINT.to_owned(), "with the Service");
    go_on(&mut served, "with the Service");

    world.apply(slices(1, &[]));
    go_on(&mut direct, "without endpoints");
    go_on(&mut served, "without endpoints");
    remove_service(world);
    go_on(&mut direct, "without the Service");
    go_on(&mut served, "without the Service");
    let mut later = others.talks(world);
    who(&later, &str::to_owned, "without the Service");

    add_service(world);
    go_on(&mut direct, "with the Service again");
    go_on(&mut served, "with the Service again");
    go_on(&mut later, "with the Service again");
    who(&others.talks(world), &|_| ENDPOINT.to_owned(), "with the Service again");
}

#[test]
fn they_go_on_and_new_ones_are_the_services() {
    for wiring in [Wiring::Routed, Wiring::Bridged] {
        let lab = Lab::builder().wiring(wiring).build().unwrap_or_else(|error| panic!("{error}"));
        track(&lab);
        check(&mut World::new(lab, |_| {}), wiring);
    }
}

/// Where connection tracking is off the agent does not switch it on: forwarded packets would pay for it.
#[test]
fn they_go_on_once_connections_are_tracked_and_where_they_are_not_those_to_processes_do() {
    let mut world = World::new(lab(), |_| {});
    let node = world.lab.node().clone();
    let has_rules = || node.ns.nft("list table inet sluice").unwrap().contains("ct state");
    let is_tracked = || node.ns.read("/proc/sys/net/netfilter/nf_conntrack_count").unwrap().trim() != "0";
    let port = world.address(Kind::NodePort, 1, Family::V4).port();
    let _server = node.serve(port).unwrap();
    let mut talks: Vec<Talk> = Vec::new();
    for client in [world.lab.pod(0), &node, world.lab.outside()] {
        talks.extend(FAMILIES.map(|family| Talk::begin(client, (node.ip(family), port).into())));
    }
    add_service(&mut world);
    talks.iter_mut().for_each(|talk| talk.goes_on("with the Service, and not tracked"));
    remove_service(&mut world);
    assert!(!has_rules() && !is_tracked());

    track(&world.lab);
    wait::until("the rules ask connection tracking", has_rules);
    drop((talks, _server));
    check(&mut world, Wiring::Routed);
}

#[test]
fn the_same_where_it_is_decided_at_the_sockets() {
    let sockets = Sockets::new();
    check(&mut World::with_sockets(sockets, tracking_lab()), Wiring::Routed);
}

/// Of wg-quick: it has a bit of ours.
#[test]
fn they_go_on_where_others_mark_packets_of_pods() {
    const MARKS: &str = "table inet others { chain prerouting {
        type filter hook prerouting priority mangle;
        iifname \"veth*\" meta mark set meta mark | 0xca6c
    }; }";
    let mut world = World::new(tracking_lab(), |_| {});
    world.lab.node().ns.nft_file(MARKS).unwrap();
    check(&mut world, Wiring::Routed);
}

/// What connection tracking is to know nothing of while this is there.
const UNTRACKED: &str = "table inet others {
    chain prerouting { type filter hook prerouting priority -350; meta l4proto tcp notrack; }
    chain output { type filter hook output priority -350; meta l4proto tcp notrack; }
}";

/// Connections that connection tracking knows nothing of, as after a node has started again.
fn forgotten(world: &World, begin: impl FnOnce() -> Vec<Talk>) -> Vec<Talk> {
    let node = &world.lab.node().ns;
    node.nft_file(UNTRACKED).unwrap();
    let mut talks = begin();
    talks.iter_mut().for_each(|talk| talk.goes_on("at first"));
    node.nft("delete table inet others").unwrap();
    talks
}

#[test]
fn what_is_in_no_connection_is_reset_by_the_service() {
    let mut world = World::new(tracking_lab(), |_| {});
    let hosts = [world.lab.outside(), world.lab.pod(1)];
    let _servers = hosts.map(|host| host.serve(PORT).unwrap());
    let clients = [world.lab.pod(0), world.lab.node()];
    let talks = forgotten(&world, || {
        let addresses =
            FAMILIES.iter().flat_map(|family| hosts.map(|host| SocketAddr::from((host.ip(*family), PORT))));
        addresses.flat_map(|to| clients.map(|client| Talk::begin(client, to))).collect()
    });
    add_service(&mut world);
    for mut talk in talks {
        let outcome = talk.exchange().map_err(|error| error.kind());
        assert_eq!(outcome, Err(io::ErrorKind::ConnectionReset), "{}", talk.context);
    }
}

#[test]
fn what_a_process_has_a_socket_for_is_its_own_though_nothing_else_knows_it() {
    for track in [false, true] {
        let mut world = tracking(track);
        let (node, port) = (world.lab.node(), world.address(Kind::NodePort, 1, Family::V4).port());
        let _server = node.serve(port).unwrap();
        let clients = [world.lab.pod(0), node, world.lab.outside()];
        let mut talks = forgotten(&world, || {
            let addresses = FAMILIES.iter().map(|family| SocketAddr::from((node.ip(*family), port)));
            addresses.flat_map(|to| clients.map(|client| Talk::begin(client, to))).collect()
        });
        add_service(&mut world);
        talks.iter_mut().for_each(|talk| talk.goes_on("with the Service"));
    }
}

fn tracking(track: bool) -> World {
    World::new(tracking_lab(), |config| {
        let CaptureConfig::Tproxy(capture) = &mut config.capture else { panic!("not capturing") };
        capture.track = track;
    })
}

/// The endpoint of Service 1 has the external IP and port of Service 2.
#[test]
fn what_workers_send_is_no_client_s_though_nothing_else_knows_it() {
    for track in [false, true] {
        let mut world = tracking(track);
        let outside = world.lab.outside().clone();
        let _servers = [outside.serve(BACKEND).unwrap(), world.lab.other_pod(0).serve(BACKEND).unwrap()];
        let mut second = service(2, TrafficPolicy::Cluster);
        second.external_ips = FAMILIES.map(|family| outside.ip(family)).to_vec();
        second.ports.iter_mut().for_each(|port| port.port = BACKEND);
        let mut changes = slices(1, &[(&outside, "elsewhere")]);
        changes.extend(slices(2, &[(world.lab.other_pod(0), "other")]));
        changes.extend([service(1, TrafficPolicy::Cluster), second].map(|it| Change::Apply(it.into())));
        world.apply(changes);
        let talks = forgotten(&world, || {
            let addresses = FAMILIES.iter().map(|family| world.address(Kind::ClusterIp, 1, *family));
            // One worker's connection has its client's address, the other's the node's.
            let clients = [world.lab.pod(0), world.lab.node()];
            addresses.flat_map(|to| clients.map(|client| Talk::begin(client, to))).collect()
        });
        for mut talk in talks {
            assert_eq!(talk.by, "outside");
            talk.goes_on("later");
        }
    }
}

#[test]
fn a_connection_of_a_process_to_a_service_outlives_its_endpoints_though_nothing_else_knows_it() {
    for track in [false, true] {
        let mut world = tracking(track);
        let _server = world.lab.other_pod(0).serve(BACKEND).unwrap();
        add_service(&mut world);
        let mut talks = forgotten(&world, || {
            let kinds = [Kind::ClusterIp, Kind::ExternalIp, Kind::NodePort];
            let addresses = kinds.into_iter().flat_map(|kind| {
                FAMILIES.map(|family| match kind {
                    Kind::ExternalIp => (world.lab.outside().ip(family), PORT).into(),
                    kind => world.address(kind, 1, family),
                })
            });
            addresses.map(|to| Talk::begin(world.lab.node(), to)).collect()
        });
        world.apply(slices(1, &[]));
        talks.iter_mut().for_each(|talk| talk.goes_on("without endpoints"));
    }
}

/// kube-proxy deletes what conntrack knows of flows to a Service's address that are not the Service's.
#[test]
fn flows_are_the_services_from_their_next_datagram_on() {
    let mut world = World::new(tracking_lab(), |_| {});
    let _servers = [(world.lab.outside(), PORT), (world.lab.other_pod(0), BACKEND)]
        .map(|(host, port)| host.serve(port).unwrap());
    let mut flows = Vec::new();
    for family in FAMILIES {
        let to = (world.lab.outside().ip(family), PORT).into();
        flows.extend([world.lab.pod(0), world.lab.node()].map(|client| client.udp_socket(to).unwrap()));
    }
    // Twice, so that conntrack has seen both directions.
    by(&flows, "outside");
    by(&flows, "outside");
    add_service(&mut world);
    by(&flows, ENDPOINT);
    remove_service(&mut world);
    by(&flows, "outside");
}

/// Under kube-proxy the first NAT that has led a flow somewhere is the only one.
#[test]
fn flows_of_pods_that_somebody_has_led_to_an_external_ip_arrive_there() {
    // Not one of those that rules know to be decided about before.
    const HIGH_PORT: u16 = 9_000;
    let mut world = World::new(tracking_lab(), |_| {});
    let outside = world.lab.outside();
    let _servers = [(outside, HIGH_PORT), (world.lab.other_pod(0), BACKEND)]
        .map(|(host, port)| host.serve(port).unwrap());
    let nat = format!(
        "table inet others {{ chain prerouting {{
            type nat hook prerouting priority dstnat;
            ip daddr 198.51.100.1 udp dport 7000 dnat ip to {}:{HIGH_PORT}
            ip6 daddr fd00:51::1 udp dport 7000 dnat ip6 to [{}]:{HIGH_PORT}
        }}; }}",
        outside.v4, outside.v6
    );
    world.lab.node().ns.nft_file(&nat).unwrap();
    let flows = ["198.51.100.1:7000", "[fd00:51::1]:7000"]
        .map(|to| world.lab.pod(0).udp_socket(to.parse().unwrap()).unwrap());
    by(&flows, "outside");
    let mut service = service_at_others(&world);
    service.ports.iter_mut().for_each(|port| port.port = HIGH_PORT);
    add_service(&mut world);
    world.apply([Change::Apply(service.into())]);
    by(&flows, "outside");
}

fn by(flows: &[UdpSocket], who: &str) {
    for flow in flows {
        let outcome = ask_on(flow, PATIENCE);
        assert_eq!(outcome.by(), Some(who), "{:?}: {outcome:?}", flow.peer_addr());
    }
}
