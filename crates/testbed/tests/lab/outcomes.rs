//! All outcomes of requests are told apart.

use std::io::Write;
use std::net::TcpListener;
use std::time::Duration;

use sluice_model::{Family, Protocol};
use sluice_testbed::lab::{Outcome, PATIENCE, SILENCE, WHO};
use socket2::SockRef;

use super::{FAMILIES, PORT, families_and_protocols, lab, well};

/// A rule for packets that the node forwards.
fn rule(verdict: &str) -> String {
    format!("table inet test {{ chain forward {{ type filter hook forward priority 0; {verdict}; }}; }}")
}

#[test]
fn a_port_that_nobody_has_is_refused() {
    let lab = lab();
    for (family, protocol) in families_and_protocols() {
        for client in [lab.pod(0), lab.pod(1), lab.node(), lab.outside()] {
            // Often enough to reach the kernel's default rate limits for ICMP messages.
            for _ in 0..200 {
                let outcome = client.ask(protocol, (lab.pod(0).ip(family), PORT).into(), PATIENCE);
                assert_eq!(outcome, Outcome::Refused, "{protocol} {family} from {}", client.name);
            }
        }
    }
}

#[test]
fn a_drop_is_silence() {
    let lab = lab();
    let server = well(lab.pod(0).serve(PORT));
    well(lab.node().ns.nft_file(&rule("drop")));
    for (family, protocol) in families_and_protocols() {
        let to = (lab.pod(0).ip(family), PORT).into();
        assert_eq!(lab.outside().ask(protocol, to, SILENCE), Outcome::Silent, "{protocol} {family}");
        // The rule affects no others.
        assert_eq!(lab.node().ask(protocol, to, PATIENCE).by(), Some("pod-0"), "{protocol} {family}");
    }
    assert_eq!((server.connections(), server.datagrams()), (2, 2), "the node's own");
}

#[test]
fn a_rejection_is_a_refusal() {
    let lab = lab();
    let _server = well(lab.pod(0).serve(PORT));
    well(
        lab.node()
            .ns
            .nft_file(&rule("meta l4proto tcp reject with tcp reset; reject with icmpx port-unreachable")),
    );
    for (family, protocol) in families_and_protocols() {
        let outcome = lab.outside().ask(protocol, (lab.pod(0).ip(family), PORT).into(), PATIENCE);
        assert_eq!(outcome, Outcome::Refused, "{protocol} {family}");
    }
}

#[test]
fn no_way_is_neither() {
    let lab = lab();
    well(lab.pod(0).ns.ip("route delete default"));
    well(lab.pod(0).ns.ip("-6 route delete default"));
    for family in FAMILIES {
        let outside = (lab.outside().ip(family), PORT).into();
        assert_eq!(lab.pod(0).ask(Protocol::Tcp, outside, PATIENCE), Outcome::Unreachable, "{family}");
        assert_eq!(lab.pod(0).ask(Protocol::Udp, outside, PATIENCE), Outcome::Unreachable, "{family}");
    }
}

#[test]
fn what_the_own_host_forbids_is_told_at_once() {
    let lab = lab();
    let _server = well(lab.pod(0).serve(PORT));
    well(lab.node().ns.nft_file(&rule("drop").replace("hook forward", "hook output")));
    for family in FAMILIES {
        let to = (lab.pod(0).ip(family), PORT).into();
        assert_eq!(lab.node().ask(Protocol::Udp, to, PATIENCE), Outcome::Forbidden, "{family}");
        // TCP retransmits.
        assert_eq!(lab.node().ask(Protocol::Tcp, to, SILENCE), Outcome::Silent, "{family}");
    }
}

#[test]
fn what_happens_after_the_handshake_is_not_a_refusal() {
    let lab = lab();
    let listener = lab.pod(0).ns.run(|| TcpListener::bind((lab.pod(0).v4, PORT))).unwrap();
    let to = listener.local_addr().unwrap();
    let ask = |patience| lab.outside().ask(Protocol::Tcp, to, patience);
    std::thread::scope(|scope| {
        let server = scope.spawn(|| {
            let (reset, _) = listener.accept().unwrap();
            SockRef::from(&reset).set_linger(Some(Duration::ZERO)).unwrap();
            drop(reset);
            let (closed, _) = listener.accept().unwrap();
            drop(closed);
            let (mut odd, _) = listener.accept().unwrap();
            odd.write_all(b"hello\n").unwrap();
            listener.accept().unwrap()
        });
        assert_eq!(ask(PATIENCE), Outcome::Reset);
        assert_eq!(ask(PATIENCE), Outcome::Closed);
        assert!(matches!(ask(PATIENCE), Outcome::Odd(text) if text.contains("hello")));
        assert_eq!(ask(SILENCE), Outcome::Stalled);
        drop(server.join().unwrap());
    });
    assert_eq!(ask(SILENCE), Outcome::Stalled, "a connection that nobody accepts is one");
}

#[test]
fn an_odd_datagram_is_not_an_answer() {
    let lab = lab();
    let pod = lab.pod(0);
    let socket = pod.ns.run(|| std::net::UdpSocket::bind((pod.v4, PORT))).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut question = [0; 16];
            let (length, client) = socket.recv_from(&mut question).unwrap();
            assert_eq!(&question[..length], WHO);
            socket.send_to(b"pod-0 nowhere 1\n", client).unwrap();
        });
        let to = (pod.ip(Family::V4), PORT).into();
        assert!(matches!(lab.outside().ask(Protocol::Udp, to, PATIENCE), Outcome::Odd(_)));
    });
}
