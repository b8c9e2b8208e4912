//! Flows of unconnected UDP sockets: which endpoint they keep to, and until when.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use sluice_socket_maps::{Endpoint, Kernel, endpoint_flags, protocol, verdict};

use crate::node::{Node, both, endpoint, key, serve, service};
use crate::udp::{answer, client, endpoints, received};

const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until the clock that flows go by has moved on.
fn next_tick() {
    let now = || clock_gettime(ClockId::MonotonicCoarse);
    let start = now();
    while now() == start {
        std::thread::yield_now();
    }
}

/// Has an endpoint send a datagram by itself until the client takes it for its own and not for the Service's.
fn speak_until_it_is_not_the_services(endpoint: &UdpSocket, client: &UdpSocket) {
    let to = (endpoint.local_addr().unwrap().ip(), client.local_addr().unwrap().port());
    let deadline = Instant::now() + PATIENCE;
    loop {
        endpoint.send_to(b"by itself", to).unwrap();
        if received(client).1 == endpoint.local_addr().unwrap() {
            return;
        }
        assert!(Instant::now() < deadline, "it is the Service's for ever");
    }
}

/// A client of one Service more than a socket has flows, with two endpoints each.
struct Crowd {
    services: Vec<SocketAddr>,
    endpoints: Vec<(Vec<UdpSocket>, Vec<SocketAddr>)>,
    client: UdpSocket,
}

impl Crowd {
    fn serve(node: &Node, kernel: &mut impl Kernel, v6: bool) -> Self {
        let services: Vec<_> = (1..=5).map(|number| service(v6, number, 53)).collect();
        let endpoints: Vec<_> = services.iter().map(|_| endpoints(&node.host, v6, 2)).collect();
        for (set, (to, (_, at))) in (1..).zip(services.iter().zip(&endpoints)) {
            serve(kernel, set, *to, at);
        }
        let client = client(&node.host, services[0]);
        Self { services, endpoints, client }
    }

    /// Asks a Service, and has this one of its endpoints answer.
    fn ask(&self, number: usize, turn: usize) {
        next_tick();
        let service = self.services[number - 1];
        self.client.send_to(b"ask", service).unwrap();
        answer(&self.endpoints[number - 1].0[turn]);
        assert_eq!(received(&self.client), (b"ask".to_vec(), service), "{number}");
    }
}

#[test]
fn who_talks_to_more_services_than_a_socket_has_flows_loses_the_one_that_was_silent_for_longest() {
    let node = Node::new();
    let mut kernel = node.attach().unwrap();
    for v6 in [false, true] {
        let crowd = Crowd::serve(&node, &mut kernel, v6);
        let ask = |number: usize, turn: usize| crowd.ask(number, turn);
        (1..=4).for_each(|number| ask(number, 0));
        // The first one goes on, and the second one is silent.
        ask(1, 0);
        ask(5, 0);
        [1, 3, 4, 5].into_iter().for_each(|number| ask(number, 0));
        ask(2, 1);
        assert_eq!([1, 2, 3, 4, 5].map(|set| kernel.cursor(set)), [1, 2, 1, 1, 1]);
    }
}

/// No program runs for a call that does not ask for the sender, as recv(2).
#[test]
fn what_is_received_without_asking_for_its_sender_does_not_make_a_flow_less_silent() {
    let node = Node::new();
    let mut kernel = node.attach().unwrap();
    for (v6, asks_for_sender) in [(false, false), (false, true), (true, false), (true, true)] {
        let crowd = Crowd::serve(&node, &mut kernel, v6);
        let ask = |number: usize, turn: usize| crowd.ask(number, turn);
        (1..=4).for_each(|number| ask(number, 0));
        next_tick();
        let Crowd { services, endpoints, client } = &crowd;
        let (of_first, at) = (&endpoints[0].0[0], &endpoints[0].1[0]);
        of_first.send_to(b"more", (at.ip(), client.local_addr().unwrap().port())).unwrap();
        if asks_for_sender {
            assert_eq!(received(client), (b"more".to_vec(), services[0]));
        } else {
            assert_eq!(client.recv(&mut [0; 64]).unwrap(), 4);
        }
        // It takes the place of the one that was silent for longest.
        ask(5, 0);
        ask(1, usize::from(!asks_for_sender));
    }
}

/// The first Service's flow has lost its place, and its endpoint may still answer. Both answers would come from one address.
#[test]
fn an_endpoint_of_a_displaced_flow_is_not_given_to_another_service() {
    let node = Node::new();
    let mut kernel = node.attach().unwrap();
    for v6 in [false, true] {
        let services: Vec<_> = (1..=6).map(|number| service(v6, number, 53)).collect();
        let endpoints: Vec<_> = (1..=5).map(|_| endpoints(&node.host, v6, 1)).collect();
        for (set, (to, (_, at))) in (1..).zip(services.iter().zip(&endpoints)) {
            serve(&mut kernel, set, *to, at);
        }
        serve(&mut kernel, 6, services[5], &endpoints[0].1);
        let client = client(&node.host, services[0]);
        for to in &services[..5] {
            next_tick();
            client.send_to(b"ask", to).unwrap();
        }
        client.send_to(b"ask", services[5]).expect_err("it is the relay's, and no packet can reach it");
        answer(&endpoints[0].0[0]);
        assert_eq!(received(&client), (b"ask".to_vec(), services[0]));
    }
}

#[test]
fn an_endpoint_that_was_silent_for_long_speaks_for_itself() {
    let node = Node::new();
    let mut kernel = node.attach().unwrap();
    for v6 in [false, true] {
        let (endpoints, at) = endpoints(&node.host, v6, 1);
        let to = service(v6, 1, 53);
        serve(&mut kernel, 1, to, &at);
        let client = client(&node.host, to);
        kernel.set_flow_idle(Duration::ZERO);
        client.send_to(b"ask", to).unwrap();
        answer(&endpoints[0]);
        assert_eq!(received(&client).1, to);
        next_tick();
        let to_client = (at[0].ip(), client.local_addr().unwrap().port());
        endpoints[0].send_to(b"late", to_client).unwrap();
        assert_eq!(received(&client).1, to, "for ever");
        kernel.set_flow_idle(Duration::from_nanos(1));
        speak_until_it_is_not_the_services(&endpoints[0], &client);
        // That was no answer, so it keeps nothing.
        kernel.set_flow_idle(Duration::ZERO);
        client.send_to(b"again", to).unwrap();
        answer(&endpoints[0]);
        assert_eq!(received(&client).1, to);
    }
}

/// Its address may be another pod's by now, which the client talks to as a peer.
#[test]
fn what_comes_from_an_endpoint_that_went_does_not_keep_its_flow() {
    let node = Node::new();
    let mut kernel = node.attach().unwrap();
    kernel.set_flow_idle(Duration::from_millis(100));
    for (set, v6) in [(1, false), (2, true)] {
        let (endpoints, at) = endpoints(&node.host, v6, 1);
        let to = service(v6, 1, 53);
        serve(&mut kernel, set, to, &at);
        let client = client(&node.host, to);
        client.send_to(b"ask", to).unwrap();
        answer(&endpoints[0]);
        received(&client);
        let mut gone = endpoint(at[0]);
        gone.incarnation = 2;
        kernel.write_endpoints(set * 10, &[gone]);
        speak_until_it_is_not_the_services(&endpoints[0], &client);
    }
}

#[test]
fn a_flow_goes_on_where_others_are_refused_until_its_endpoint_goes() {
    let node = Node::new();
    let mut kernel = node.attach().unwrap();
    for (set, v6) in [(1, false), (2, true)] {
        let (endpoints, at) = endpoints(&node.host, v6, 1);
        let to = service(v6, 1, 53);
        serve(&mut kernel, set, to, &at);
        let [flowing, other] = [(); 2].map(|()| client(&node.host, to));
        flowing.send_to(b"first", to).unwrap();
        answer(&endpoints[0]);
        kernel.put_frontends(&[(key(to, protocol::UDP), both(verdict::REFUSE))]).unwrap();
        flowing.send_to(b"on", to).unwrap();
        assert_eq!(answer(&endpoints[0]), b"on");
        assert_eq!(other.send_to(b"new", to).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        let mut gone = endpoint(at[0]);
        gone.incarnation = 2;
        kernel.write_endpoints(set * 10, &[gone]);
        assert_eq!(flowing.send_to(b"over", to).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }
}

/// Whom its place is given to makes no difference: by then its address may be another pod's.
#[test]
fn an_endpoint_that_was_silent_for_long_speaks_for_itself_after_another_one_has_taken_its_place() {
    const IDLE: Duration = Duration::from_millis(300);
    let node = Node::new();
    let mut kernel = node.attach().unwrap();
    let (endpoints, at) = endpoints(&node.host, false, 2);
    let to = service(false, 1, 53);
    serve(&mut kernel, 1, to, &at);
    let client = client(&node.host, to);
    kernel.set_flow_idle(IDLE);
    client.send_to(b"ask", to).unwrap();
    answer(&endpoints[0]);
    assert_eq!(received(&client).1, to);
    let now = || Duration::try_from(clock_gettime(ClockId::MonotonicCoarse)).unwrap();
    let silent_since = now();
    while now() <= silent_since + IDLE {
        std::thread::sleep(Duration::from_millis(1));
    }
    client.send_to(b"again", to).unwrap();
    answer(&endpoints[1]);
    assert_eq!(received(&client).1, to);
    endpoints[0].send_to(b"by itself", (at[0].ip(), client.local_addr().unwrap().port())).unwrap();
    assert_eq!(received(&client).1, at[0]);
}

/// Whose numbers mean something else: so who asks again may have another endpoint.
#[test]
fn an_answer_is_the_services_still_after_maps_of_another_size_have_taken_over() {
    let mut node = Node::new();
    let mut kernel = node.attach().unwrap();
    for (v6, more) in [(false, 1), (true, 2)] {
        let (endpoints, at) = endpoints(&node.host, v6, 1);
        let to = service(v6, 1, 53);
        serve(&mut kernel, 1, to, &at);
        let client = client(&node.host, to);
        client.send_to(b"ask", to).unwrap();
        drop(kernel);
        node.config.capacity.sets += more;
        kernel = node.attach().unwrap();
        assert!(kernel.is_fresh());
        answer(&endpoints[0]);
        assert_eq!(received(&client), (b"ask".to_vec(), to));
        serve(&mut kernel, 1, to, &at);
        client.send_to(b"again", to).unwrap();
        answer(&endpoints[0]);
        assert_eq!(received(&client), (b"again".to_vec(), to));
    }
}

#[test]
fn of_an_endpoint_without_flows_all_else_is_as_it_was() {
    let node = Node::new();
    let mut kernel = node.attach().unwrap();
    for ip in ["10.1.0.1", "fd01::1"] {
        let before = endpoint(SocketAddr::new(ip.parse().unwrap(), 53)).unproven().with_flows(7);
        let before = Endpoint { failures: 9, ..before };
        kernel.write_endpoints(10, &[before; 3]);
        kernel.end_flows(11);
        let after = Endpoint { flags: before.flags & !endpoint_flags::FLOWS, ..before };
        assert_eq!([10, 11, 12].map(|id| kernel.endpoint(id)), [before, after, before]);
    }
}
