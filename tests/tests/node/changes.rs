//! Services that change while they are used, and what the kernel is asked to do for it.

use std::net::SocketAddr;

use sluice_model::{Change, Family, ObjectRef, Protocol, TrafficPolicy};
use sluice_testbed::lab::{Lab, Outcome, PATIENCE, Server, ask_on};

use super::rules::Kind;
use super::world::{BACKEND, FAMILIES, World, name, service, slices};

/// A lab, and Service 1 with `pod-1` and `other-pod-0` behind it.
fn world() -> (World, Vec<Server>) {
    let lab = Lab::new().unwrap_or_else(|error| panic!("{error}"));
    let servers = [lab.pod(1), lab.other_pod(0)].map(|host| host.serve(BACKEND).unwrap()).into();
    let mut world = World::new(lab, |_| {});
    let changes = with_both_endpoints(&world, 1);
    world.apply(changes);
    (world, servers)
}

/// A Service with both endpoints.
fn with_both_endpoints(world: &World, number: u8) -> Vec<Change> {
    let (here, there) = (world.lab.pod(1), world.lab.other_pod(0));
    let mut changes = vec![Change::Apply(service(number, TrafficPolicy::Cluster).into())];
    changes.extend(slices(number, &[(here, "node"), (there, "other")]));
    changes
}

#[test]
fn a_service_that_goes_away_is_refused_and_its_datagrams_go_nowhere_at_once() {
    let (mut world, _servers) = world();
    let to: SocketAddr = world.address(Kind::NodePort, 1, Family::V4);
    let flow = world.lab.outside().udp_socket(to).unwrap();
    assert!(ask_on(&flow, PATIENCE).by().is_some());
    world.apply([Change::Delete(ObjectRef::Service(name(1)))]);
    assert_eq!(ask_on(&flow, PATIENCE), Outcome::Refused, "nobody has the port any more");
    assert_eq!(world.lab.outside().ask(Protocol::Tcp, to, PATIENCE), Outcome::Refused);

    let changes = with_both_endpoints(&world, 1);
    world.apply(changes);
    assert!(ask_on(&flow, PATIENCE).by().is_some(), "the same client, decided afresh");
}

#[test]
fn a_flow_moves_when_its_endpoint_goes_and_is_refused_when_none_is_left() {
    let (mut world, _servers) = world();
    for family in FAMILIES {
        let flow = world.lab.pod(0).udp_socket(world.address(Kind::ClusterIp, 1, family)).unwrap();
        let first = ask_on(&flow, PATIENCE);
        assert_eq!(ask_on(&flow, PATIENCE).by(), first.by(), "a flow stays where it is");
        let (here, there) = (world.lab.pod(1).clone(), world.lab.other_pod(0).clone());
        let left = if first.by() == Some("pod-1") { (&there, "other") } else { (&here, "node") };
        world.apply(slices(1, &[left]));
        assert_eq!(ask_on(&flow, PATIENCE).by(), Some(left.0.name.as_str()));
        world.apply(slices(1, &[]));
        assert_eq!(ask_on(&flow, PATIENCE), Outcome::Refused);
        world.apply(slices(1, &[(&here, "node"), (&there, "other")]));
        assert!(ask_on(&flow, PATIENCE).by().is_some());
    }
}

#[test]
fn a_dead_endpoint_is_passed_over_without_the_client_noticing() {
    let (world, mut servers) = world();
    servers.pop();
    for family in FAMILIES {
        for _ in 0..20 {
            let outcome =
                world.lab.pod(0).ask(Protocol::Tcp, world.address(Kind::ClusterIp, 1, family), PATIENCE);
            assert_eq!(outcome.by(), Some("pod-1"), "{outcome:?}");
        }
    }
    assert!(world.proxy().stats().tcp_retries > 0);
}

#[test]
fn other_services_do_not_notice_changes() {
    let (mut world, _servers) = world();
    let address = |kind| world.address(kind, 1, Family::V4);
    let loads = [
        world.lab.pod(0).load(Protocol::Tcp, address(Kind::ClusterIp)),
        world.lab.outside().load(Protocol::Tcp, address(Kind::NodePort)),
        world.lab.pod(0).load(Protocol::Udp, address(Kind::ClusterIp)),
        world.lab.node().load(Protocol::Udp, address(Kind::ClusterIp)),
    ];
    for round in 0..20 {
        let mut other = with_both_endpoints(&world, 2 + round % 3);
        if round % 2 == 0 {
            other.truncate(1);
        }
        world.apply(other);
        world.apply([Change::Delete(ObjectRef::Service(name(2 + (round + 1) % 3)))]);
        world.tick();
        for load in &loads {
            assert!(load.answers_more(1, PATIENCE), "round {round}: {:?}", load.report());
        }
    }
    for load in loads {
        assert!(load.answers_more(50, PATIENCE), "{:?}", load.report());
        let report = load.stop();
        assert_eq!(report.failed, 0, "{report:?}");
    }
}

#[test]
fn an_open_connection_outlives_its_endpoint_and_its_service() {
    use std::io::{BufRead, BufReader, Write};
    let (mut world, _servers) = world();
    for family in FAMILIES {
        let stream =
            world.lab.pod(0).tcp_stream(world.address(Kind::ClusterIp, 1, family), PATIENCE).unwrap();
        let mut answers = BufReader::new(&stream);
        let mut echo = |text: &str| {
            let mut line = String::new();
            (&stream).write_all(text.as_bytes()).unwrap();
            answers.read_line(&mut line).unwrap();
            line
        };
        // The first line is who is there.
        echo("one\n");
        world.apply(slices(1, &[]));
        assert_eq!(echo("two\n"), "one\n");
        world.apply([Change::Delete(ObjectRef::Service(name(1)))]);
        assert_eq!(echo("three\n"), "two\n");
        let changes = with_both_endpoints(&world, 1);
        world.apply(changes);
        assert_eq!(echo("four\n"), "three\n");
    }
}
