//! What clients keep when one agent takes over from another: UDP flows and sticky clients have the endpoints that they had.

use std::net::UdpSocket;

use rustix::process::Signal;
use sluice_model::Protocol;
use sluice_testbed::lab::{Host, PATIENCE, ask_on};

use crate::manifests::Service;
use crate::scene::{Scene, well};

/// The Service with session affinity.
const STICKY: u8 = 7;

/// Sockets for each place that questions come from: with two endpoints one that is chosen anew is the same by chance half of the
/// time.
const SOCKETS: usize = 6;

struct Flow<'a> {
    host: &'a Host,
    socket: UdpSocket,
    endpoint: String,
}

/// Who answers on a socket.
#[track_caller]
fn answer(host: &Host, socket: &UdpSocket) -> String {
    let outcome = ask_on(socket, PATIENCE);
    outcome.by().unwrap_or_else(|| panic!("{}: {outcome:?}", host.name)).to_owned()
}

#[track_caller]
fn assert_all_go_on(flows: &[Flow<'_>], when: &str) {
    for Flow { host, socket, endpoint } in flows {
        assert_eq!(&answer(host, socket), endpoint, "{when}, from {} at {socket:?}", host.name);
    }
}

/// Who answers each sticky client, over TCP and UDP.
#[track_caller]
fn sticky(scene: &Scene) -> Vec<String> {
    let questions = scene.questions(STICKY);
    let ask = |(host, to): &(&Host, _)| {
        [Protocol::Tcp, Protocol::Udp].map(|protocol| {
            let outcome = host.ask(protocol, *to, PATIENCE);
            outcome.by().unwrap_or_else(|| panic!("{to} from {}: {outcome:?}", host.name)).to_owned()
        })
    };
    questions.iter().flat_map(ask).collect()
}

#[test]
fn flows_and_sticky_clients_keep_their_endpoints_while_one_agent_takes_over_from_another() {
    let scene = Scene::new();
    scene.apply(&Service { affinity: true, ..scene.service(STICKY) });
    let mut agent = scene.start();
    let mut flows = Vec::new();
    for (host, to) in scene.questions(2) {
        for _ in 0..SOCKETS {
            let socket = host.udp_socket(to).unwrap();
            let endpoint = answer(host, &socket);
            flows.push(Flow { host, socket, endpoint });
        }
    }
    let clients = sticky(&scene);
    let distinct: std::collections::BTreeSet<_> = clients.iter().collect();
    assert_eq!(distinct.len(), 2, "{clients:?}");
    // More than once: the third agent knows of them by the second one.
    for _ in 0..2 {
        let said = agent.lines().len();
        let next = scene.start();
        while !agent.lines()[said..].iter().any(|line| line.contains("another agent takes new connections")) {
            assert_all_go_on(&flows, "while the next agent starts");
        }
        assert_all_go_on(&flows, "with two agents");
        agent.signal(Signal::TERM).unwrap();
        assert_all_go_on(&flows, "while the agent before ends");
        assert!(well(agent.wait(PATIENCE)).success());
        assert_all_go_on(&flows, "after that");
        assert_eq!(sticky(&scene), clients);
        agent = next;
    }
}
