//! Servers that echo bytes, flows that last, and load.

use std::io::{BufRead, BufReader, ErrorKind, Write};

use sluice_model::{Family, Protocol};
use sluice_testbed::lab::{PATIENCE, SILENCE, ask_on};

use super::{FAMILIES, PORT, PROTOCOLS, lab, until, well};

#[test]
fn datagrams_of_any_size_come_back_as_they_were() {
    let lab = lab();
    let server = well(lab.other_pod(0).serve(PORT));
    for family in FAMILIES {
        let to = (lab.other_pod(0).ip(family), PORT).into();
        for length in [0, 1, 2_000, 60_000, 65_507] {
            let echo = lab.pod(0).echo_udp(to, length, PATIENCE);
            assert!(echo.is_ok(), "{length} bytes over {family}: {echo:?}");
        }
    }
    assert_eq!(server.datagrams(), 10);
    let nobody = (lab.pod(1).v4, PORT).into();
    let refused = lab.pod(0).echo_udp(nobody, 10, PATIENCE).map_err(|error| error.kind());
    assert_eq!(refused, Err(ErrorKind::ConnectionRefused));
}

#[test]
fn a_connection_carries_megabytes_both_ways() {
    let lab = lab();
    let _server = well(lab.other_pod(0).serve(PORT));
    for family in FAMILIES {
        let to = (lab.other_pod(0).ip(family), PORT).into();
        lab.outside().echo_tcp(to, 8 << 20, PATIENCE).unwrap();
        lab.outside().echo_tcp(to, 0, PATIENCE).unwrap();
    }
}

#[test]
fn an_echo_that_is_not_one_is_noticed() {
    let lab = lab();
    let pod = lab.pod(0);
    let socket = pod.ns.run(|| std::net::UdpSocket::bind((pod.v4, PORT))).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut datagram = [0; 100];
            let mut spoilt = |change: fn(&[u8]) -> Vec<u8>| {
                let (length, client) = socket.recv_from(&mut datagram).unwrap();
                socket.send_to(&change(&datagram[..length]), client).unwrap();
            };
            spoilt(|datagram| datagram[1..].to_vec());
            spoilt(|datagram| [datagram, b"x"].concat());
            spoilt(|datagram| datagram.iter().map(|byte| byte / 2).collect());
        });
        for _ in 0..3 {
            let echo = lab.pod(1).echo_udp((pod.ip(Family::V4), PORT).into(), 100, PATIENCE);
            assert_eq!(echo.map_err(|error| error.kind()), Err(ErrorKind::InvalidData));
        }
    });
}

#[test]
fn a_flow_keeps_its_port_and_a_connection_its_server() {
    let lab = lab();
    let server = well(lab.pod(0).serve(PORT));
    let to = (lab.pod(0).v6, PORT).into();

    let flow = lab.outside().udp_socket(to).unwrap();
    let first = ask_on(&flow, PATIENCE);
    assert_eq!(first.by(), Some("pod-0"));
    assert_eq!(ask_on(&flow, PATIENCE), first);
    assert_ne!(lab.outside().ask(Protocol::Udp, to, PATIENCE), first, "another flow has another port");

    let mut stream = BufReader::new(lab.outside().tcp_stream(to, PATIENCE).unwrap());
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    assert!(line.starts_with("pod-0 fd00:20::20 "), "{line}");
    line.clear();
    stream.get_mut().write_all(b"still there\n").unwrap();
    stream.read_line(&mut line).unwrap();
    assert_eq!(line, "still there\n");
    // When the server ends, its connections end.
    drop(server);
    line.clear();
    assert!(matches!(stream.read_line(&mut line), Ok(0) | Err(_)), "{line}");
    assert_eq!(ask_on(&flow, PATIENCE), sluice_testbed::lab::Outcome::Refused);
}

#[test]
fn load_counts_what_is_answered_and_what_is_not() {
    let lab = lab();
    let pod = lab.pod(0);
    for protocol in PROTOCOLS {
        let server = well(pod.serve(PORT));
        let load = lab.outside().load(protocol, (pod.v4, PORT).into());
        assert!(load.answers_more(50, PATIENCE));
        assert_eq!(load.report().failures, [""; 0]);

        drop(server);
        // The request that was in progress when the server ended may have ended otherwise.
        until("refusals", || load.report().failed > 1);
        assert!(!load.answers_more(1, SILENCE), "nobody is there to answer");
        let server = well(pod.serve(PORT));
        assert!(load.answers_more(50, PATIENCE));

        let report = load.stop();
        assert!(!report.slowest.is_zero());
        assert!(report.answered >= 100 && report.failed > 1, "{report:?}");
        assert!(report.failures.len() <= 20 && report.failures[1].contains("Refused"), "{report:?}");
        drop(server);
    }
}
