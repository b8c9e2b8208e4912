//! What people are told at objects of what only a node can find out.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use serde_json::Value;
use sluice_model::Family;
use sluice_testbed::apiserver::{Apiserver, Resource};
use sluice_testbed::lab::{Lab, PATIENCE, Process};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

use crate::manifests::Service;
use crate::monitoring::get;
use crate::scene::{AGENT, READY, sluice, until, well};

/// A node of a cluster.
struct Scene {
    lab: Lab,
    apiserver: Apiserver,
    _runtime: Runtime,
}

impl Scene {
    fn new() -> Self {
        let lab = well(Lab::new());
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let cidrs = ["10.96.0.0/16", "fd00:96::/112"].map(|cidr| cidr.parse().unwrap());
        let builder =
            Apiserver::builder().bind((lab.node().v4, 6443).into()).plain_http().service_cidrs(&cidrs);
        let apiserver = lab.node().ns.run(|| runtime.block_on(builder.start())).unwrap();
        apiserver.create(Resource::Nodes, lab.node_object()).unwrap();
        Self { lab, apiserver, _runtime: runtime }
    }

    /// Starts the agent, with metrics on loopback.
    fn start(&self, environment: &[(&str, &str)]) -> Process {
        let url = self.apiserver.url();
        let arguments = AGENT[..AGENT.len() - 1].iter().copied().chain(["127.0.0.1:10249", "--master", &url]);
        let mut command: Command = sluice(arguments);
        command.args(["--admin-socket", "0"]);
        command.envs(environment.iter().copied());
        let agent = well(self.lab.node().spawn(&command));
        well(agent.wait_for(READY, PATIENCE));
        agent
    }

    fn told(&self, reason: &str) -> Vec<Value> {
        let events = self.apiserver.list(Resource::Events);
        events.into_iter().filter(|event| event["reason"] == reason).collect()
    }
}

/// `nft` that fails while there is a file beside it.
const NFT: &str =
    "#!/bin/sh\n[ -e \"${0%/*}/broken\" ] && { echo no >&2; exit 1; }\nPATH=$REAL_PATH exec nft \"$@\"\n";

#[test]
fn a_capture_that_fails_is_one_event_at_the_node() {
    let scene = Scene::new();
    let directory = TempDir::new().unwrap();
    let (nft, broken) = (directory.path().join("nft"), directory.path().join("broken"));
    fs::write(&nft, NFT).unwrap();
    fs::set_permissions(&nft, fs::Permissions::from_mode(0o755)).unwrap();
    let path = std::env::var("PATH").unwrap();
    let first = format!("{}:{path}", directory.path().display());
    let _agent = scene.start(&[("REAL_PATH", &path), ("PATH", &first)]);

    fs::write(&broken, "").unwrap();
    // Somebody takes the rules away, and they cannot be put back.
    let ns = &scene.lab.node().ns;
    well(ns.nft("delete table inet sluice"));
    until("it is told", || !scene.told("FailedToCapture").is_empty());
    let event = scene.told("FailedToCapture").remove(0);
    assert_eq!((&event["type"], &event["regarding"]["kind"]), (&"Warning".into(), &"Node".into()));
    assert_eq!(event["regarding"]["name"], "node");
    assert!(event["note"].as_str().is_some_and(|note| note.contains("log says why")), "{event}");
    fs::remove_file(&broken).unwrap();
    until("the rules are back", || ns.nft("list table inet sluice").is_ok());
    assert_eq!(scene.told("FailedToCapture").len(), 1, "however often it was tried");
}

#[test]
fn a_health_check_node_port_that_is_taken_is_an_event_at_its_service_and_on_the_status_page() {
    const PORT: u16 = 32_000;
    let scene = Scene::new();
    let node = scene.lab.node();
    let place = SocketAddr::new(node.ip(Family::V4), PORT);
    let taken = node.ns.run(|| TcpListener::bind(place)).unwrap();
    let _agent = scene.start(&[]);
    let service = Service { policy: "Local", health_check_port: Some(PORT), ..Service::new(1) };
    let url = format!("--server={}", scene.apiserver.url());
    let cache = TempDir::new().unwrap();
    let words = [&url, "--cache-dir", cache.path().to_str().unwrap(), "create", "-f", "-"];
    well(node.ns.output_with_input("kubectl", &words, &service.manifest()));
    until("it is told", || !scene.told("FailedToStartServiceHealthcheck").is_empty());
    let event = scene.told("FailedToStartServiceHealthcheck").remove(0);
    assert_eq!((&event["type"], &event["regarding"]["kind"]), (&"Warning".into(), &"Service".into()));
    assert_eq!(event["regarding"]["name"], "s1");
    let note = event["note"].as_str().unwrap();
    assert!(note.contains(&place.to_string()) && note.contains("another process"), "{note}");

    let metrics = SocketAddr::from(([127, 0, 0, 1], 10_249));
    let complaint = format!("no health check on {place}");
    let says_so = || node.ns.run(|| get(metrics, "/status/data")).is_ok_and(|page| page.contains(&complaint));
    until("the page says so", says_so);
    drop(taken);
    until("it is served", || !says_so());
}
