//! What is remembered of connections where no socket can be asked, for how long, and what happens when that is too much:
//! answers on bridges, answers of endpoints in the node's own network, connections of the node's processes.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, TcpListener, TcpStream};
use std::time::Duration;

use sluice::proxy::{CaptureConfig, ProxyConfig};
use sluice_capture::tproxy::Stats;
use sluice_model::{Change, Endpoint, Family, Object, Protocol, TrafficPolicy};
use sluice_testbed::lab::{Host, Lab, Outcome, PATIENCE, SILENCE, Wiring, ask_on};

use super::rules::{KINDS, Kind};
use super::world::{BACKEND, FAMILIES, World, flow_idle, service, slices};

/// The sets, without the family's digit.
const BRIDGE: &str = "bridge sluice answers";
const HOST: &str = "inet sluice host_flows";
const NODE: &str = "inet sluice node_flows";

/// What is remembered for longer than this is remembered for as long as the connection is open: it sends something, if only a
/// keepalive, within 75 s.
const OPEN: u64 = 120;

/// What has ended is not remembered for longer than this, in seconds.
const ENDED: u64 = 10;

/// And what nobody has answered so far not for longer than this.
const ASKED: u64 = 15;

/// Service 1 with this endpoint, which nobody listens at so far.
fn world(endpoint: impl FnOnce(&Lab) -> &Host) -> World {
    world_with(|_| {}, endpoint)
}

/// The same, and something changed about the proxy.
fn world_with(change: impl FnOnce(&mut ProxyConfig), endpoint: impl FnOnce(&Lab) -> &Host) -> World {
    let lab = Lab::builder().wiring(Wiring::Bridged).build().unwrap_or_else(|error| panic!("{error}"));
    let host = endpoint(&lab).clone();
    let mut world = World::new(lab, change);
    let mut changes = vec![Change::Apply(service(1, TrafficPolicy::Cluster).into())];
    changes.extend(slices(1, &[(&host, "node")]));
    world.apply(changes);
    world
}

/// Has flows end after so long without a datagram.
fn set_idle(config: &mut ProxyConfig, idle: Duration) {
    config.dataplane.udp_idle = idle;
    let flow_idle = flow_idle(&config.dataplane);
    let CaptureConfig::Tproxy(capture) = &mut config.capture else { panic!("not capturing") };
    capture.flow_idle = flow_idle;
}

/// Of both families together, for how many more seconds each element of a set lives.
fn lives(world: &World, set: &str) -> Vec<u64> {
    let listed = |digit| {
        let listing = world.lab.node().ns.nft(&format!("--json list set {set}{digit}")).unwrap();
        let listing: serde_json::Value = serde_json::from_str(&listing).unwrap();
        let items = listing["nftables"].as_array().unwrap().clone();
        let elements = items.into_iter().find_map(|item| item["set"]["elem"].as_array().cloned());
        elements.unwrap_or_default().into_iter().map(|element| element["elem"]["expires"].as_u64().unwrap())
    };
    listed(4).chain(listed(6)).collect()
}

/// Waits until the set has these elements, by how long they live.
fn until(world: &World, set: &str, what: &str, is_so: impl Fn(&[u64]) -> bool) {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let lives = lives(world, set);
        if is_so(&lives) {
            return;
        }
        assert!(std::time::Instant::now() < deadline, "{set}: wanted {what}, there are {lives:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn refused_connections_leave_nothing_behind() {
    for (set, world) in [(BRIDGE, world(|lab| lab.pod(1))), (HOST, world(|lab| lab.node()))] {
        for family in FAMILIES {
            for client in [world.lab.pod(0), world.lab.node()] {
                for _ in 0..10 {
                    let outcome =
                        client.ask(Protocol::Tcp, world.address(Kind::ClusterIp, 1, family), PATIENCE);
                    assert!(matches!(outcome, Outcome::Reset | Outcome::Refused), "{outcome:?}");
                }
            }
        }
        assert_eq!((lives(&world, set), lives(&world, NODE)), (vec![], vec![]), "{set}");
    }
}

/// An endpoint that is silent must not fill the set: each SYN is one that is sent again.
#[test]
fn what_nobody_answers_is_remembered_for_seconds() {
    const SILENT: &str = "table inet silent {
        chain in { type filter hook input priority 0; tcp dport 8080 tcp flags syn drop; }
    }";
    for (set, endpoint) in [(BRIDGE, "pod"), (HOST, "node")] {
        let world = world(|lab| if endpoint == "pod" { lab.pod(1) } else { lab.node() });
        let host = if endpoint == "pod" { world.lab.pod(1) } else { world.lab.node() };
        host.ns.nft_file(SILENT).unwrap();
        let mut clients = Vec::new();
        for family in FAMILIES {
            // The relay answers the client, and asks the endpoint.
            let to = world.address(Kind::ClusterIp, 1, family);
            clients.push(world.lab.pod(0).tcp_stream(to, PATIENCE).unwrap());
            until(&world, set, "one that was begun", |lives| {
                lives.len() >= clients.len() && lives.iter().all(|left| *left <= ASKED)
            });
        }
    }
}

/// Where to turn answers to is known by the bridge's port, of which there is one for each pod.
#[test]
fn however_many_addresses_endpoints_have_they_take_one_place_in_the_map_of_ports() {
    let mut world = world(|lab| lab.pod(1));
    let pod = world.lab.pod(1).clone();
    let mut changes = slices(1, &[]);
    for change in &mut changes {
        let Change::Apply(Object::EndpointSlice(slice)) = change else { panic!("{change:?}") };
        let addresses = (0x20..0x30).map(|last| match slice.family {
            Family::V4 => IpAddr::from([10, 244, 1, last]),
            Family::V6 => format!("fd00:244:1::{last:x}").parse().unwrap(),
        });
        for ip in addresses {
            pod.ns.ip(&format!("address add {ip} dev eth0 nodad")).unwrap();
            slice.endpoints.push(Endpoint { node: Some("node".into()), ..Endpoint::ready(ip) });
        }
    }
    world.apply(changes);
    for family in FAMILIES {
        for _ in 0..16 {
            let outcome =
                world.lab.pod(0).ask(Protocol::Tcp, world.address(Kind::ClusterIp, 1, family), PATIENCE);
            assert!(matches!(outcome, Outcome::Reset | Outcome::Refused), "{outcome:?}");
        }
    }
    let listed = world.lab.node().ns.nft("list map bridge sluice ports").unwrap();
    assert_eq!(listed.matches(" expires ").count(), 1, "{listed}");
}

#[test]
fn connections_are_remembered_for_as_long_as_they_are_open_and_half_closed_ones_too() {
    for (set, endpoint) in [(BRIDGE, "pod"), (HOST, "node")] {
        let world = world(|lab| if endpoint == "pod" { lab.pod(1) } else { lab.node() });
        let host = if endpoint == "pod" { world.lab.pod(1) } else { world.lab.node() };
        for family in FAMILIES {
            let listener = host.ns.run(|| TcpListener::bind((host.ip(family), BACKEND)).unwrap());
            for client in [world.lab.pod(0), world.lab.node()] {
                // An endpoint does not see a process of its own node as another one.
                let sets = match (client.name.as_str(), set) {
                    ("node", HOST) => vec![NODE],
                    ("node", _) => vec![NODE, set],
                    _ => vec![set],
                };
                let connect = || {
                    let to = world.address(Kind::ClusterIp, 1, family);
                    let client = client.tcp_stream(to, PATIENCE).unwrap();
                    (client, listener.accept().unwrap().0)
                };
                let exchange = |mut from: &TcpStream, mut to: &TcpStream| {
                    from.write_all(b"hello").unwrap();
                    to.read_exact(&mut [0; 5]).unwrap();
                };
                let assert_lives = |what: &str, is_so: &dyn Fn(&[u64]) -> bool| {
                    sets.iter().for_each(|set| until(&world, set, what, is_so));
                };
                let open = |lives: &[u64]| lives.iter().filter(|left| **left > OPEN).count();
                // Beside it there may be what has ended shortly before.
                let ended = |lives: &[u64]| lives.iter().filter(|left| **left <= ENDED).count();
                let is_open = |lives: &[u64]| open(lives) == 1 && ended(lives) + 1 == lives.len();
                let is_over = |lives: &[u64]| ended(lives) == lives.len();

                // The client has said all that it wants to say.
                let (mine, theirs) = connect();
                exchange(&mine, &theirs);
                exchange(&theirs, &mine);
                assert_lives("an open one", &is_open);
                mine.shutdown(Shutdown::Write).unwrap();
                assert_eq!((&theirs).read(&mut [0]).unwrap(), 0);
                assert_lives("a half-closed one", &is_open);
                exchange(&theirs, &mine);
                assert_lives("the same after an answer", &is_open);
                drop(theirs);
                assert_eq!((&mine).read(&mut [0]).unwrap(), 0);
                drop(mine);
                assert_lives("one that is over", &is_over);

                // The endpoint ends it first; the last packets are ours and the client's.
                let (mine, theirs) = connect();
                exchange(&mine, &theirs);
                theirs.shutdown(Shutdown::Write).unwrap();
                assert_eq!((&mine).read(&mut [0]).unwrap(), 0);
                exchange(&mine, &theirs);
                drop(mine);
                assert_eq!((&theirs).read(&mut [0]).unwrap(), 0);
                assert_lives("one that is over", &is_over);

                // Resets, of either side.
                for _ in 0..2 {
                    let (mine, theirs) = connect();
                    exchange(&mine, &theirs);
                    assert_lives("an open one", &is_open);
                    let (one, other) = if family == Family::V4 { (mine, theirs) } else { (theirs, mine) };
                    socket2::SockRef::from(&one).set_linger(Some(Duration::ZERO)).unwrap();
                    drop(one);
                    assert!((&other).read(&mut [0]).is_err());
                    assert_lives("one that is over", &is_over);
                }
            }
        }
    }
}

#[test]
fn flows_are_remembered_a_little_longer_than_a_worker_keeps_them() {
    for ((set, endpoint), idle) in
        [(BRIDGE, "pod"), (HOST, "node")].into_iter().flat_map(|at| [(at, 30), (at, 180)])
    {
        let world = world_with(
            |config| set_idle(config, Duration::from_secs(idle)),
            |lab| match endpoint {
                "pod" => lab.pod(1),
                _ => lab.node(),
            },
        );
        let host = if endpoint == "pod" { world.lab.pod(1) } else { world.lab.node() };
        let _server = host.serve(BACKEND).unwrap();
        let flow = world.lab.pod(0).udp_socket(world.address(Kind::ClusterIp, 1, Family::V4)).unwrap();
        assert_eq!(ask_on(&flow, PATIENCE).by(), Some(host.name.as_str()));
        until(&world, set, "a question", |lives| lives.len() == 1 && (idle..idle + 10).contains(&lives[0]));
        let deadline = std::time::Instant::now() + PATIENCE;
        while lives(&world, set)[0] < 4 * idle {
            assert!(std::time::Instant::now() < deadline, "{:?}", lives(&world, set));
            assert_eq!(ask_on(&flow, PATIENCE).by(), Some(host.name.as_str()));
        }
    }
}

/// Bridges see fragments, of which only the first one has ports.
#[test]
fn datagrams_in_fragments_pass_whole_between_pods_of_one_bridge_and_are_remembered_as_one_flow() {
    let world = world(|lab| lab.pod(1));
    let _server = world.lab.pod(1).serve(BACKEND).unwrap();
    let client = world.lab.pod(0);
    let mut flows = 0;
    for family in FAMILIES {
        let of_service = world.address(Kind::ClusterIp, 1, family);
        // Then the client's own ones, which pass the node now, and are none of ours.
        let direct = (world.lab.pod(1).ip(family), BACKEND).into();
        for (to, is_ours) in [(of_service, true), (direct, false)] {
            for length in [2_000, 60_000] {
                let echoed = client.echo_udp(to, length, PATIENCE);
                assert!(echoed.is_ok(), "{family} {to}, {length} bytes: {echoed:?}");
                flows += usize::from(is_ours);
            }
        }
        assert_eq!(lives(&world, BRIDGE).len(), flows, "{family}");
    }
}

/// How many elements a set may have.
const SIZE: usize = 262_144;

/// Fills a set of IPv4 to its bound.
fn fill(world: &World, set: &str) {
    let mut script = format!("add element {set}4 {{ ");
    for number in lives(world, set).len()..SIZE {
        let (port, host) = (number % 50_000 + 1, number / 50_000);
        script.push_str(&format!("192.0.2.7 . tcp . 8080 . 192.0.2.{host} . {port} timeout 1h, "));
    }
    script.push_str("}\n");
    world.lab.node().ns.nft_file(&script).unwrap();
}

#[test]
fn a_full_set_cuts_nobody_off() {
    for (set, endpoint) in [(BRIDGE, "pod"), (NODE, "pod"), (HOST, "node")] {
        let world = world(|lab| if endpoint == "pod" { lab.pod(1) } else { lab.node() });
        let host = if endpoint == "pod" { world.lab.pod(1) } else { world.lab.node() };
        let _server = host.serve(BACKEND).unwrap();
        let client = if set == NODE { world.lab.node() } else { world.lab.pod(0) };
        let to = world.address(Kind::ClusterIp, 1, Family::V4);
        let before = client.udp_socket(to).unwrap();
        assert_eq!(ask_on(&before, PATIENCE).by(), Some(host.name.as_str()), "{set}");
        fill(&world, set);
        assert_eq!(ask_on(&before, PATIENCE).by(), Some(host.name.as_str()), "{set}");
        if set == HOST {
            // Its answer would be lost; so it is not made, until there is room.
            let mut waiting = client.tcp_stream(to, PATIENCE).unwrap();
            world.lab.node().ns.nft(&format!("flush set {HOST}4")).unwrap();
            let mut greeting = [0; 4];
            waiting.read_exact(&mut greeting).unwrap();
            assert_eq!(greeting, host.name.as_bytes());
            until_counted(&world, "packets that were dropped", |stats| stats.host_flows_full > 0);
            continue;
        }
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for kind in KINDS {
                let outcome = client.ask(protocol, world.address(kind, 1, Family::V4), PATIENCE);
                assert_eq!(outcome.by(), Some(host.name.as_str()), "{set} {protocol} {kind:?}: {outcome:?}");
            }
            // Neither does the client's own connection to the endpoint notice.
            let direct = client.ask(protocol, (host.ip(Family::V4), BACKEND).into(), PATIENCE);
            assert_eq!(direct.by(), Some(host.name.as_str()), "{set} {protocol}: {direct:?}");
        }
        until_counted(&world, "what was not remembered", |stats| {
            let (crowded, elements) = match set {
                NODE => (stats.node_flows_full, stats.node_flows),
                _ => (stats.answers_full, stats.answers),
            };
            // Older kernels do not say.
            crowded > 0 && elements.is_none_or(|elements| elements >= SIZE as u64)
        });
    }
}

/// As many addresses may be forged.
#[test]
fn where_every_set_that_clients_are_in_is_full_nobody_is_cut_off_on_a_bridge() {
    let world = world(|lab| lab.pod(1));
    let host = world.lab.pod(1);
    let server = host.serve(BACKEND).unwrap();
    fill(&world, BRIDGE);
    let elements = |set: &str, clients: &dyn Fn(u32) -> String| {
        let clients = (0..1 << 16).map(|number| format!("{} timeout 1h, ", clients(number)));
        let script = format!("add element bridge sluice {set} {{ {} }}\n", clients.collect::<String>());
        world.lab.node().ns.nft_file(&script).unwrap();
    };
    elements("crowd4", &|number| {
        format!("192.0.2.7 . udp . {} . 192.0.2.{}", 1 + number % 40_000, number / 40_000)
    });
    elements("pairs4", &|number| format!("192.0.2.7 . 10.1.{}.{}", number >> 8, number & 255));
    let (client, to) = (world.lab.pod(0), world.address(Kind::ClusterIp, 1, Family::V4));
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        for to in [to, (host.ip(Family::V4), BACKEND).into()] {
            let outcome = client.ask(protocol, to, PATIENCE);
            assert_eq!(outcome.by(), Some(host.name.as_str()), "{protocol} {to}: {outcome:?}");
        }
    }
    drop(server);
    assert_eq!(client.ask(Protocol::Udp, to, PATIENCE), Outcome::Refused);
    until_counted(&world, "what was not remembered", |stats| stats.answers_full > 0);
}

/// Waits until the capture has seen something.
fn until_counted(world: &World, what: &str, is_so: impl Fn(Stats) -> bool) {
    let observer = world.proxy().observer();
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let stats = observer.capture_stats().unwrap();
        if is_so(stats) {
            return;
        }
        assert!(std::time::Instant::now() < deadline, "wanted {what}, there is {stats:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_client_that_makes_too_many_new_connections_is_held_up_and_no_other_one() {
    let world = world(|lab| lab.node());
    let host = world.lab.node();
    let _server = host.serve(BACKEND).unwrap();
    let (fast, other) = (world.lab.pod(0), world.lab.pod(1));
    for (family, digit) in [(Family::V4, 4), (Family::V6, 6)] {
        let to = world.address(Kind::ClusterIp, 1, family);
        let open = fast.udp_socket(to).unwrap();
        assert_eq!(ask_on(&open, PATIENCE).by(), Some("node"));
        // As if it had made many.
        let element = |protocol: &str| {
            format!("element inet sluice clients_of_host_flows{digit} {{ {} . {protocol} ", fast.ip(family))
        };
        let spent = "limit rate over 1/hour burst 1 packets timeout 1h }";
        host.ns.nft(&format!("delete {}}}", element("udp"))).unwrap();
        host.ns.nft(&format!("add {}{spent}", element("udp"))).unwrap();
        let before = world.proxy().observer().capture_stats().unwrap().fast_clients;

        assert_eq!(fast.ask(Protocol::Udp, to, PATIENCE).by(), Some("node"), "the last one for an hour");
        assert_eq!(fast.ask(Protocol::Udp, to, SILENCE), Outcome::Silent);
        assert_eq!(ask_on(&open, PATIENCE).by(), Some("node"), "what is open goes on");
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            assert_eq!(other.ask(protocol, to, PATIENCE).by(), Some("node"), "{protocol}");
        }
        until_counted(&world, "packets that were dropped", |stats| stats.fast_clients > before);

        assert_eq!(fast.ask(Protocol::Tcp, to, PATIENCE).by(), Some("node"), "TCP has a bound of its own");
        host.ns.nft(&format!("delete {}}}", element("tcp"))).unwrap();
        host.ns.nft(&format!("add {}{spent}", element("tcp"))).unwrap();
        assert_eq!(fast.ask(Protocol::Tcp, to, PATIENCE).by(), Some("node"), "the last one for an hour");
        let mut waiting = fast.tcp_stream(to, PATIENCE).unwrap();
        host.ns.nft(&format!("delete {}}}", element("tcp"))).unwrap();
        let mut greeting = [0; 4];
        waiting.read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting, b"node", "it waits no longer than for its turn");
    }
}
