use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::num::NonZeroUsize;

use mio::Poll;
use sluice_model::Protocol;
use sluice_sys::udp::BATCH;
use sluice_table::{FrontendKey, Writer};

use super::*;
use crate::Config;
use crate::client::ClientKey;
use crate::{test_core, test_table};

/// More than are opened in a few turns, and fewer than a socket's queue holds without privileges.
const FLOOD: usize = 300;

/// A slice that only the number of turns limits.
const LONG: Duration = Duration::from_secs(3_600);

/// A relay with one socket, whose turns the test runs.
struct World {
    relay: UdpRelay,
    core: Core,
    frontend: SocketAddr,
    endpoint: UdpSocket,
    _writer: Writer,
    poll: Poll,
}

impl World {
    fn new() -> Self {
        Self::with_endpoints_before(&[])
    }

    /// A world whose Service has these endpoints besides its own.
    fn with_endpoints_before(others: &[SocketAddr]) -> Self {
        Self::at(Ipv4Addr::LOCALHOST.into(), others)
    }

    /// The same, with its frontend and its own endpoint at this address.
    fn at(ip: IpAddr, others: &[SocketAddr]) -> Self {
        let endpoint = bind(ip);
        endpoint.set_nonblocking(true).unwrap();
        let listener = socket::listen((ip, 0).into(), None).unwrap();
        let frontend = listener.local_addr().unwrap();
        let endpoints = [others, &[endpoint.local_addr().unwrap()]].concat();
        let writer = test_table::writer(frontend, Protocol::Udp, &endpoints);
        let poll = Poll::new().unwrap();
        let mut core = test_core::core(&poll, &writer, 4 * FLOOD);
        let mut relay = relay(&core, 4 * FLOOD);
        relay.listen(listener, ListenerKind::Bound, &mut core).unwrap();
        Self { relay, core, frontend, endpoint, _writer: writer, poll }
    }

    /// Sends from this many ports of one client.
    fn flood(&self, count: usize) {
        // All are open at once, because a freed port could be assigned again.
        let clients: Vec<UdpSocket> = (0..count).map(|_| self.ask(Ipv4Addr::LOCALHOST, b"flood")).collect();
        assert_eq!(clients.len(), count);
    }

    fn ask(&self, client: Ipv4Addr, question: &[u8]) -> UdpSocket {
        let client = bind(client);
        client.send_to(question, self.frontend).unwrap();
        client
    }

    fn on_frontend(&mut self) {
        let id = self.relay.state.frontends.ids()[0];
        self.relay.on_frontend(id, &mut self.core);
    }

    fn end_turn(&mut self) {
        self.relay.run_ready(LONG, usize::MAX, &mut self.core);
    }

    /// Runs turns until nothing waits for one.
    fn end_turns(&mut self) {
        self.end_turn();
        while self.relay.has_ready() {
            self.end_turn();
        }
    }

    /// Opens a flow for each of this many clients; each has a reply from the endpoint and waits in line.
    fn flows_in_line(&mut self, count: usize) -> Vec<UdpSocket> {
        let clients: Vec<UdpSocket> = (0..count).map(|_| self.ask(Ipv4Addr::LOCALHOST, b"ask")).collect();
        self.on_frontend();
        self.end_turn();
        for _ in 0..count {
            let (_, flow) = self.endpoint.recv_from(&mut [0; 64]).unwrap();
            self.endpoint.send_to(b"answer", flow).unwrap();
        }
        let mut events = mio::Events::with_capacity(2 * count);
        self.poll.poll(&mut events, Some(LONG)).unwrap();
        for event in &events {
            if let Some(Source::Flow(id)) = Source::of(event.token()) {
                self.relay.state.flows.flow(id).unwrap().upstream.is_queued = true;
                self.relay.ready_flows.push_back(id);
            }
        }
        assert_eq!(self.relay.ready_flows.len(), count);
        clients
    }

    /// The payloads that the endpoint has received.
    fn received(&self) -> Vec<Vec<u8>> {
        let mut buffer = [0; 64];
        let receive = || self.endpoint.recv(&mut buffer).ok().map(|length| buffer[..length].to_vec());
        std::iter::from_fn(receive).collect()
    }

    fn stats(&self) -> crate::Stats {
        crate::Stats::sum([&*self.core.stats])
    }
}

/// A relay whose flows may have this many ports.
fn relay(core: &Core, ports: usize) -> UdpRelay {
    let limits = FlowLimits::new(NonZeroUsize::new(4 * FLOOD).unwrap(), ports, 100, Config::UDP_IDLE);
    let budget =
        Budget { descriptors: Arc::clone(&core.descriptors), ephemeral_ports: Descriptors::new(ports) };
    UdpRelay::new(limits, budget)
}

fn bind(ip: impl Into<IpAddr>) -> UdpSocket {
    UdpSocket::bind((ip.into(), 0)).unwrap()
}

/// Another client than the one that sends the flood.
const OTHER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

#[test]
fn a_turn_opens_few_flows_however_many_clients_wait() {
    let mut world = World::new();
    world.flood(FLOOD);
    world.on_frontend();
    assert_eq!(world.relay.flows(), OPENED_PER_TURN);
    assert!(world.relay.has_ready(), "the rest is not forgotten");
    world.end_turn();
    for turn in 2..=FLOOD / OPENED_PER_TURN {
        world.end_turn();
        assert_eq!(world.relay.flows(), turn * OPENED_PER_TURN);
    }
    world.end_turn();
    assert_eq!(world.relay.flows(), FLOOD);
    assert!(!world.relay.has_ready());
    assert_eq!(world.stats().udp_dropped_waiting + world.stats().udp_dropped_queue, 0);
}

#[test]
fn a_question_is_not_behind_a_flood_of_another_client() {
    let mut world = World::new();
    world.flood(FLOOD);
    let _other = world.ask(OTHER, b"question");
    world.on_frontend();
    world.end_turn();
    assert!(!world.received().contains(&b"question".to_vec()), "it is behind all that one turn receives");
    // After the second turn all was received, and a flow for the question is opened at once.
    world.end_turn();
    assert!(world.received().contains(&b"question".to_vec()));
    assert!(world.relay.flows() <= 2 * OPENED_PER_TURN);

    // Among others that wait, it gets its turn.
    let later: Vec<UdpSocket> = (0..OPENED_PER_TURN).map(|_| world.ask(OTHER, b"burst")).collect();
    world.on_frontend();
    world.end_turn();
    let burst = |received: Vec<Vec<u8>>| received.iter().filter(|payload| *payload == b"burst").count();
    let first = burst(world.received());
    assert_eq!(
        first,
        OPENED_AT_ONCE + OPENED_AT_ONCE / 2,
        "half of the turn at once, and its half of the rest"
    );
    world.end_turn();
    assert_eq!(first + burst(world.received()), later.len());
}

#[test]
fn what_follows_a_datagram_that_waits_does_not_overtake_it() {
    let mut world = World::new();
    // A turn ends when the client's flow is open and more datagrams for it follow.
    world.flood(2 * OPENED_PER_TURN - 1);
    let client = world.ask(Ipv4Addr::LOCALHOST, &[0]);
    world.on_frontend();
    assert!(world.relay.state.waiting.has_client(ClientKey::Address(Ipv4Addr::LOCALHOST.into())));
    let many = u8::try_from(2 * BATCH).unwrap();
    for number in 1..many {
        client.send_to(&[number], world.frontend).unwrap();
        world.on_frontend();
    }
    let mut numbers = Vec::new();
    for number in many.. {
        world.end_turn();
        numbers.extend(world.received().into_iter().filter(|payload| payload != b"flood").flatten());
        if !world.relay.has_ready() {
            assert_eq!(numbers, (0..number).collect::<Vec<u8>>());
            break;
        }
        client.send_to(&[number], world.frontend).unwrap();
        world.on_frontend();
    }
    assert!(numbers.len() > usize::from(many));
}

#[test]
fn a_turn_of_the_loop_moves_the_line_by_so_many_flows_or_for_so_long_and_the_rest_comes_next() {
    let mut world = World::new();
    let _clients = world.flows_in_line(10);
    let mut returned = Vec::new();
    for (slice, turns) in [(LONG, 3), (Duration::ZERO, 3), (Duration::ZERO, 3), (LONG, 4), (LONG, 9)] {
        assert!(world.relay.has_ready());
        world.relay.run_ready(slice, turns, &mut world.core);
        returned.push(world.stats().udp_datagrams_returned);
    }
    assert_eq!(returned, [3, 4, 5, 9, 10]);
    assert!(!world.relay.has_ready());
}

#[test]
fn what_clients_send_is_not_behind_a_line_of_flows() {
    let mut world = World::new();
    let clients = world.flows_in_line(10);
    clients[0].send_to(b"more", world.frontend).unwrap();
    let id = world.relay.state.frontends.ids()[0];
    world.relay.state.frontends.get_mut(id).unwrap().is_queued = true;
    world.relay.ready_frontends.push_back(id);
    world.relay.run_ready(LONG, 1, &mut world.core);
    assert_eq!(world.received(), [b"more"]);
    assert_eq!(world.stats().udp_datagrams_returned, 1);
}

#[test]
fn what_waits_for_a_frontend_goes_with_it() {
    let mut world = World::new();
    world.flood(2 * OPENED_PER_TURN);
    world.on_frontend();
    world.relay.close_frontend(world.frontend, &world.core);
    for _ in 0..2 {
        world.end_turn();
    }
    assert_eq!(world.relay.flows(), OPENED_PER_TURN, "none is opened any more");
    assert_eq!(world.stats().udp_unroutable, OPENED_PER_TURN as u64);
    assert!(!world.relay.has_ready());
}

#[test]
fn what_there_is_no_room_for_is_counted() {
    let mut world = World::new();
    world.relay.state.waiting = Waiting::new(10_000);
    world.flood(2 * OPENED_PER_TURN);
    world.on_frontend();
    world.end_turns();
    let stats = world.stats();
    assert!(stats.udp_dropped_waiting > 0);
    assert_eq!(stats.udp_datagrams_forwarded + stats.udp_dropped_waiting, 2 * OPENED_PER_TURN as u64);
}

/// Each refusal answers a datagram, and together they are no flood of their own.
#[test]
fn a_client_that_goes_on_at_a_limit_is_refused_no_more_often_than_any_other() {
    use socket2::{Domain, Socket, Type};

    if let Err(error) = Socket::new(Domain::IPV4, Type::RAW, Some(socket2::Protocol::ICMPV4)) {
        assert!(!rustix::process::geteuid().is_root(), "{error}");
        sluice_sys::skipped(format_args!("needs CAP_NET_RAW ({error})"));
        return;
    }
    let mut world = World::new();
    let _all = world.core.descriptors.take(4 * FLOOD).unwrap();
    let began = Instant::now();
    world.flood(FLOOD);
    world.on_frontend();
    world.end_turns();
    let stats = &world.core.stats;
    assert_eq!((stats.udp_over_limit.get(), world.relay.flows()), (FLOOD as u64, 0));
    let most = 100 * (began.elapsed().as_secs() + 1);
    assert!((100..=most).contains(&stats.udp_refusals.get()), "{} of {most}", stats.udp_refusals.get());
}

#[test]
fn what_is_sent_to_an_endpoint_that_has_gone_goes_to_another_one_whole_and_in_order() {
    // It keeps its port and is connected to another socket, so everything sent to it is refused.
    let (gone, peer) = (bind(Ipv4Addr::LOCALHOST), bind(Ipv4Addr::LOCALHOST));
    gone.connect(peer.local_addr().unwrap()).unwrap();
    let mut world = World::with_endpoints_before(&[gone.local_addr().unwrap()]);
    // The client whose flow goes there, and whose flow's socket has the error by now.
    let client = loop {
        let client = world.ask(Ipv4Addr::LOCALHOST, b"lost");
        world.on_frontend();
        world.end_turn();
        if world.received().is_empty() {
            break client;
        }
    };
    let flows = world.relay.flows();
    // Of different sizes, so that they fit neither into one train nor into one system call.
    let burst: Vec<Vec<u8>> = (0..10).map(|n| vec![n; 1 + usize::from(n % 3)]).collect();
    for payload in &burst {
        client.send_to(payload, world.frontend).unwrap();
    }
    world.on_frontend();
    assert_eq!(world.received(), burst);
    assert_eq!(world.relay.flows(), flows, "one in place of the other");
    let stats = world.stats();
    assert_eq!((stats.udp_dropped_error, stats.udp_dropped_full), (0, 0), "{stats:?}");
}

#[test]
fn a_turn_opens_few_flows_however_many_are_in_place_of_refused_ones() {
    let count = 2 * OPENED_PER_TURN;
    let mut world = World::new();
    let clients: Vec<UdpSocket> = (0..count).map(|_| world.ask(Ipv4Addr::LOCALHOST, b"first")).collect();
    world.on_frontend();
    world.end_turns();
    assert_eq!(world.stats().udp_flows_opened, count as u64);
    // From now on the endpoint refuses, and the flows get the error with their next datagrams.
    let peer = bind(Ipv4Addr::LOCALHOST);
    world.endpoint.connect(peer.local_addr().unwrap()).unwrap();
    for question in [b"second", b"third!"] {
        assert_eq!(world.stats().udp_flows_opened, count as u64);
        for client in &clients {
            client.send_to(question, world.frontend).unwrap();
        }
        world.on_frontend();
    }
    assert_eq!(world.stats().udp_flows_opened, (count + OPENED_PER_TURN) as u64);
    world.end_turns();
    let stats = world.stats();
    assert_eq!(stats.udp_flows_opened, 2 * count as u64);
    assert_eq!(stats.udp_datagrams_forwarded, 3 * count as u64, "none is lost: {stats:?}");
}

#[test]
fn endpoints_without_a_route_cost_a_few_datagrams_four_tries_each_and_none_after_that() {
    // A link-local address without a scope has no route.
    let without: Vec<SocketAddr> =
        (1..=20).map(|n| (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, n), 53).into()).collect();
    let mut world = World::at(Ipv6Addr::LOCALHOST.into(), &without);
    let key = FrontendKey::new(world.frontend.ip(), world.frontend.port(), Protocol::Udp);
    let route = Arc::clone(world.core.reader.lookup(key).unwrap());
    // Sends from one client after the other, each with a new flow. Returns the number of retries, and whether
    // the datagram arrived.
    let mut ask = || {
        let tries_before = route.service_port().traffic().retries;
        let client = bind(Ipv6Addr::LOCALHOST);
        client.send_to(b"ask", world.frontend).unwrap();
        world.on_frontend();
        world.end_turn();
        (route.service_port().traffic().retries - tries_before, !world.received().is_empty())
    };
    let first: Vec<_> = (0..7).map(|_| ask()).collect();
    assert!(first.iter().all(|(retries, _)| *retries <= 3), "{first:?}");
    assert!(first[6].1, "{first:?}");
    assert_eq!([(); 50].map(|()| ask()), [(0, true); 50]);
    let traffic = route.service_port().traffic();
    assert_eq!((traffic.failures, traffic.passed_over), (0, 0), "none is blamed");
}

/// The kernel reports a refusal before the datagrams that have arrived.
#[test]
fn what_an_endpoint_has_answered_before_it_refuses_goes_to_the_client() {
    let mut world = World::new();
    let client = world.ask(Ipv4Addr::LOCALHOST, b"first");
    world.on_frontend();
    world.end_turn();
    let (_, flow) = world.endpoint.recv_from(&mut [0; 64]).unwrap();
    let endpoint = std::mem::replace(&mut world.endpoint, bind(Ipv4Addr::LOCALHOST));
    for answer in [b"a", b"b", b"c"] {
        endpoint.send_to(answer, flow).unwrap();
    }
    drop(endpoint);
    client.send_to(b"second", world.frontend).unwrap();
    world.on_frontend();
    let mut events = mio::Events::with_capacity(8);
    world.poll.poll(&mut events, Some(LONG)).unwrap();
    let flows = events.iter().filter_map(|event| Source::of(event.token()));
    for source in Vec::from_iter(flows) {
        if let Source::Flow(id) = source {
            world.relay.on_flow(id, &mut world.core);
        }
    }
    assert_eq!(world.stats().udp_flows_ended, 1);
    let answers = [0; 3].map(|_| {
        let mut answer = [0];
        client.recv(&mut answer).unwrap();
        answer
    });
    assert_eq!(answers, [*b"a", *b"b", *b"c"]);
}

#[test]
fn an_endpoint_that_sends_much_at_once_waits_in_line() {
    let mut world = World::new();
    let client = world.ask(Ipv4Addr::LOCALHOST, b"much");
    client.set_nonblocking(true).unwrap();
    world.on_frontend();
    world.end_turn();
    let (_, flow) = world.endpoint.recv_from(&mut [0; 64]).unwrap();
    for _ in 0..2 * BATCH {
        world.endpoint.send_to(b".", flow).unwrap();
    }
    let mut events = mio::Events::with_capacity(8);
    world.poll.poll(&mut events, Some(LONG)).unwrap();
    let flows = events.iter().filter_map(|event| match Source::of(event.token()) {
        Some(Source::Flow(id)) => Some(id),
        _ => None,
    });
    let [id] = Vec::from_iter(flows)[..] else { panic!("one flow") };
    world.relay.on_flow(id, &mut world.core);
    let received = || (0..).take_while(|_| client.recv(&mut [0; 64]).is_ok()).count();
    assert_eq!((received(), world.relay.has_ready()), (BATCH, true));
    world.end_turns();
    assert_eq!(received(), BATCH);
}
