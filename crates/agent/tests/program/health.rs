//! The ports of the agent itself: health of the node, and who has them while one agent follows another.

use std::net::{SocketAddr, TcpListener};

use rustix::process::Signal;
use sluice_testbed::apiserver::Apiserver;

use crate::apiserver::Cluster;
use crate::common::{Agent, address, backend, free_port, get, service, slice, until};

const NODE: &str = "apiVersion: v1\nkind: Node\nmetadata: {name: node-1}\nstatus: {addresses: [{type: InternalIP, address: 127.0.0.1}]}\n";

/// Status and body of an answer.
fn ask(server: SocketAddr, path: &str) -> (u16, serde_json::Value) {
    let answer = get(server, path);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer}")))
}

#[tokio::test(flavor = "multi_thread")]
async fn load_balancers_hear_that_a_node_is_to_go_and_kubelets_do_not() {
    let cluster = Cluster::start(Apiserver::builder()).await;
    let kubeconfig = cluster.kubeconfig();
    let mut agent = Agent::start(&[
        "--kubeconfig",
        &kubeconfig,
        "--hostname-override",
        "node-1",
        "--healthz-bind-address",
        "127.0.0.1:0",
        "--metrics-bind-address",
        "127.0.0.1:0",
    ]);
    let health = agent.port("serving health checks of the node");
    let metrics = agent.port("serving metrics");
    let until_counted = |wanted: u8| {
        let line = format!("\nsluice_apiserver_has_node {wanted}");
        until(&line, || get(metrics, "/metrics").contains(&line));
    };
    let healthz = || ask(health, "/healthz");
    let (status, body) = healthz();
    assert_eq!((status, &body["nodeEligible"]), (503, &false.into()), "a cluster without this node: {body}");
    let (status, body) = ask(health, "/livez");
    assert_eq!((status, &body["healthy"], body.get("nodeEligible")), (200, &true.into(), None), "{body}");

    let metrics_now = get(metrics, "/metrics");
    for line in [
        "proxy_healthz_total{code=\"503\"} 1\n",
        "proxy_livez_total{code=\"200\"} 1\n",
        "proxy_livez_total{code=\"503\"} 0\n",
    ] {
        assert!(metrics_now.contains(&format!("\nkubeproxy_{line}")), "{line} is not in:\n{metrics_now}");
    }

    let warning = agent.wait_for("has no Node \"node-1\":");
    assert!(warning.contains("WARN") && warning.contains("--hostname-override"), "{warning}");
    until_counted(0);

    cluster.kubectl("create -f -", NODE);
    until("the node is sent to", || healthz().0 == 200);
    agent.wait_for("has the Node \"node-1\" now");
    until_counted(1);
    let (_, body) = healthz();
    assert_eq!(body["lastUpdated"].as_str().unwrap().len(), body["currentTime"].as_str().unwrap().len());
    assert_eq!(body["status"]["IPv6"]["healthy"], true, "{body}");

    let taint = r#"{"spec":{"taints":[{"key":"ToBeDeletedByClusterAutoscaler","effect":"NoSchedule"}]}}"#;
    cluster.kubectl(&format!("patch node node-1 --type merge -p {taint}"), "");
    until("the node is about to go", || healthz().0 == 503);
    assert_eq!(ask(health, "/livez").0, 200);
    cluster.kubectl(r#"patch node node-1 --type merge -p {"spec":{"taints":[]}}"#, "");
    until("it stays after all", || healthz().0 == 200);
    cluster.kubectl("delete node node-1", "");
    until("it is gone", || healthz().0 == 503);
    assert_eq!(ask(health, "/livez").0, 200);
    agent.wait_for("no Node \"node-1\" any more");
    until_counted(0);
    cluster.kubectl("create -f -", NODE);
    until("it is there again", || healthz().0 == 200);
    let times = |text: &str| agent.heard().iter().filter(|line| line.contains(text)).count();
    assert_eq!(["has no Node \"node-1\":", "any more: nodePorts"].map(times), [1, 1]);
}

#[test]
fn the_next_agent_has_the_port_as_soon_as_this_one_is_told_to_stop() {
    let directory = tempfile::TempDir::new().unwrap();
    let frontend = free_port(address());
    std::fs::write(directory.path().join("a.yaml"), service("a", frontend) + &slice("a", &[backend(1)]))
        .unwrap();
    let place = free_port(address());
    let arguments =
        ["--manifests", directory.path().to_str().unwrap(), "--healthz-bind-address", &place.to_string()];
    let first = Agent::start(&arguments);
    until("the first serves", || ask(place, "/healthz").0 == 200);
    // An open connection keeps it from ending.
    let _open = std::net::TcpStream::connect(frontend).unwrap();
    let mut second = Agent::start(&arguments);
    let complaint = second.wait_for("no health checks of the node");
    assert!(
        complaint.contains(&place.to_string()) && complaint.contains("--healthz-bind-address"),
        "{complaint}"
    );
    first.signal(Signal::TERM);
    second.wait_for("serving health checks of the node");
    assert_eq!(ask(place, "/healthz").0, 200);
}

#[test]
fn with_hard_fail_a_taken_port_ends_the_agent() {
    let directory = tempfile::TempDir::new().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let place = taken.local_addr().unwrap().to_string();
    for flag in ["--healthz-bind-address", "--metrics-bind-address"] {
        let manifests = directory.path().to_str().unwrap();
        let mut agent = Agent::spawn(&["--manifests", manifests, flag, &place, "--bind-address-hard-fail"]);
        let line = agent.wait_for("ERROR");
        assert!(line.contains(&place) && line.contains(flag), "{line}");
        assert_eq!(agent.wait().code(), Some(1));
    }
}
