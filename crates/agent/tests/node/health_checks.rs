//! healthCheckNodePort: what load balancers outside are told of a Service's endpoints on the node.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use sluice_model::Family;
use sluice_testbed::lab::{Host, PATIENCE};

use crate::manifests::{FAMILIES, Service, external_ip};
use crate::scene::{READY, Scene, until, well};

const PORT: u16 = 32_000;

/// An answer of the server.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: u16,
    /// `X-Load-Balancing-Endpoint-Weight`
    weight: Option<String>,
    body: serde_json::Value,
}

fn ask(host: &Host, to: SocketAddr) -> std::io::Result<Answer> {
    let mut stream = host.tcp_stream(to, PATIENCE)?;
    write!(stream, "GET / HTTP/1.1\r\nhost: node\r\nconnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    // A port that is closed at this moment says nothing.
    let (head, body) = text.split_once("\r\n\r\n").ok_or(ErrorKind::UnexpectedEof)?;
    let weight = head.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("x-load-balancing-endpoint-weight").then(|| value.to_owned())
    });
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Ok(Answer { status, weight, body: serde_json::from_str(body).unwrap() })
}

#[test]
fn load_balancers_are_told_of_endpoints_on_the_node_and_nobody_on_loopback() {
    let scene = Scene::new();
    let service = || Service {
        policy: "Local",
        health_check_port: Some(PORT),
        ..Service::new(1).there(scene.lab.other_pod(0))
    };
    scene.apply(&service());
    let _agent = scene.start();
    let (node, outside) = (scene.lab.node(), scene.lab.outside());
    let steps = [
        (service(), 503, 0),
        (service().here(scene.lab.pod(1)), 200, 1),
        (service().here(scene.lab.pod(1)).here(scene.lab.pod(0)), 200, 2),
        (service(), 503, 0),
    ];
    for (service, status, endpoints) in steps {
        scene.apply(&service);
        for to in FAMILIES.map(|family| SocketAddr::new(node.ip(family), PORT)) {
            let wanted = Answer {
                status,
                weight: Some(endpoints.to_string()),
                body: serde_json::json!({
                    "service": { "namespace": "default", "name": "s1" },
                    "localEndpoints": endpoints,
                    "serviceProxyHealthy": true,
                }),
            };
            until(&format!("{to}: {wanted:?}"), || ask(outside, to).is_ok_and(|answer| answer == wanted));
        }
    }
    for to in [SocketAddr::from((Ipv4Addr::LOCALHOST, PORT)), (Ipv6Addr::LOCALHOST, PORT).into()] {
        assert_eq!(ask(node, to).unwrap_err().kind(), ErrorKind::ConnectionRefused, "{to}");
    }

    scene.delete(&service());
    for to in FAMILIES.map(|family| SocketAddr::new(node.ip(family), PORT)) {
        let is_refused = || ask(outside, to).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused);
        until("the port is closed", is_refused);
    }
}

#[test]
fn with_all_addresses_health_checks_are_answered_where_only_a_route_leads_to_the_node() {
    let scene = Scene::new();
    let (node, outside) = (scene.lab.node(), scene.lab.outside());
    // As the agent of Google's machines has load balancers' addresses.
    for (family, prefix) in FAMILIES.into_iter().zip([32, 128]) {
        let (version, ip) = (if family == Family::V4 { "-4" } else { "-6" }, external_ip(1, family).ip());
        well(node.ns.ip(&format!("{version} route add local {ip}/{prefix} dev lo")));
    }
    scene.apply(&Service { policy: "Local", health_check_port: Some(PORT), ..scene.service(1) });
    let mut command = scene.command();
    command.args(["--nodeport-addresses", "all"]);
    let agent = well(node.spawn(&command));
    well(agent.wait_for(READY, PATIENCE));
    for family in FAMILIES {
        for (host, ip) in
            [(outside, node.ip(family)), (outside, external_ip(1, family).ip()), (node, loopback(family))]
        {
            let to = SocketAddr::new(ip, PORT);
            until(&format!("{to} answers"), || ask(host, to).is_ok_and(|answer| answer.status == 200));
        }
    }
}

fn loopback(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::LOCALHOST.into(),
        Family::V6 => Ipv6Addr::LOCALHOST.into(),
    }
}
