//! Services that name the address at which the agent reaches its apiserver, which is on another node.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};
use sluice_model::{Family, Protocol};
use sluice_testbed::apiserver::{Apiserver, Resource};
use sluice_testbed::lab::{Bpffs, Cgroup, Lab, SILENCE, Server};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::at_sockets::{Agent, METRICS, metrics, value};
use crate::manifests::{BACKEND, Service, cluster_ip};
use crate::scene::{AGENT, sluice, until, well};

const PORT: u16 = 6443;

const CAPTURES: [&str; 2] = ["tproxy", "socket"];

/// A lab with an apiserver on the other node, and a backend on this one.
struct World {
    apiserver: Apiserver,
    // Before the cgroup, which their threads are in.
    _runtime: Runtime,
    _server: Server,
    lab: Lab,
    directory: TempDir,
    cgroup: Cgroup,
    bpffs: Bpffs,
}

impl World {
    fn new() -> Self {
        let (bpffs, cgroup) = (Bpffs::mount().unwrap(), Cgroup::enter().unwrap());
        let lab = well(Lab::new());
        let server = well(lab.pod(1).serve(BACKEND));
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let cidrs = ["10.96.0.0/16", "fd00:96::/112"].map(|cidr| cidr.parse().unwrap());
        let builder =
            Apiserver::builder().bind((lab.other().v4, PORT).into()).token("t").service_cidrs(&cidrs);
        let apiserver = lab.other().ns.run(|| runtime.block_on(builder.start())).unwrap();
        apiserver.create(Resource::Nodes, lab.node_object()).unwrap();
        let directory = TempDir::new().unwrap();
        fs::write(directory.path().join("kubeconfig"), apiserver.kubeconfig().unwrap()).unwrap();
        Self { apiserver, _runtime: runtime, _server: server, lab, directory, cgroup, bpffs }
    }

    /// The Service that has the apiserver's address and port, with the backend as its endpoint; and its slice.
    fn intruder(&self) -> [Value; 2] {
        let service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": "intruder", "namespace": "default" },
            "spec": {
                "clusterIP": "10.96.0.66", "clusterIPs": ["10.96.0.66"], "externalIPs": [self.lab.other().v4],
                "ports": [{ "name": "tcp", "protocol": "TCP", "port": PORT }],
            },
        });
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": "intruder-a", "namespace": "default",
                "labels": { "kubernetes.io/service-name": "intruder" },
            },
            "addressType": "IPv4",
            "ports": [{ "name": "tcp", "protocol": "TCP", "port": BACKEND }],
            "endpoints": [{ "addresses": [self.lab.pod(1).v4], "nodeName": "node" }],
        });
        [service, slice]
    }

    fn create(&self, objects: impl IntoIterator<Item = Value>) {
        for object in objects {
            let resource =
                if object["kind"] == "Service" { Resource::Services } else { Resource::EndpointSlices };
            self.apiserver.create(resource, object).unwrap();
        }
    }

    fn command(&self, capture: &str, metrics: &str) -> Command {
        let mut command = sluice(AGENT.map(|argument| match argument {
            "tproxy" => capture,
            "0" => metrics,
            other => other,
        }));
        command.arg("--socket-cgroup").arg(self.cgroup.path());
        command.arg("--socket-pins").arg(self.bpffs.path().join("sluice"));
        command.args(["--socket-namespaces=", "--grace-period", "1"]);
        command
    }

    /// An agent that follows the apiserver, once it is ready.
    fn start(&self, capture: &str) -> Agent {
        let mut command = self.command(capture, METRICS);
        command.arg("--kubeconfig").arg(self.directory.path().join("kubeconfig"));
        Agent::start(command, &self.lab, self.directory.path(), 1)
    }

    /// An agent that knows nothing of the apiserver and serves the intruder, to the node's own processes as well.
    fn start_for_intruder(&self, capture: &str) -> Agent {
        let manifests = self.directory.path().join("manifests");
        fs::create_dir(&manifests).unwrap();
        let objects = [vec![self.lab.node_object()], self.intruder().into()].concat();
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects });
        fs::write(manifests.join("all.json"), list.to_string()).unwrap();
        let mut command = self.command(capture, "0");
        command.arg("--manifests").arg(&manifests);
        let agent = Agent::start(command, &self.lab, self.directory.path(), 2);
        until("the apiserver's address is the intruder's", || self.leads_to_intruder());
        agent
    }

    fn leads_to_intruder(&self) -> bool {
        let to = (self.lab.other().v4, PORT).into();
        self.lab.node().ask(Protocol::Tcp, to, SILENCE).by() == Some("pod-1")
    }

    /// What is created now is served: the agent hears of it.
    #[track_caller]
    fn assert_is_followed(&self, number: u8) {
        self.create(Service::new(number).here(self.lab.pod(1)).objects());
        until("a new Service is served", || {
            let outcome = self.lab.pod(0).ask(Protocol::Tcp, cluster_ip(number, Family::V4), SILENCE);
            outcome.by() == Some("pod-1")
        });
    }
}

#[test]
fn a_service_at_the_apiservers_address_comes_and_goes_and_the_agent_sees_all_of_it() {
    for capture in CAPTURES {
        let world = World::new();
        let agent = world.start(capture);
        world.assert_is_followed(1);
        world.create(world.intruder());
        until("it is known", || agent.ask(&["services"]).contains("intruder"));
        world.apiserver.drop_connections();
        world.assert_is_followed(2);
        agent.wait_for("is the address of the apiserver that this agent follows");
        assert!(!world.leads_to_intruder(), "{capture}: nobody is led there");

        let to = format!("{}:{PORT}", world.lab.other().v4);
        let told = agent.json(&["explain", &world.lab.pod(0).v4.to_string(), &to]);
        let why = told["outcome"]["why"].as_str().unwrap_or_default();
        assert!(why.contains("this agent reaches the apiserver at this address"), "{told}");
        let problems = agent.json(&["status"])["problems"].to_string();
        assert!(problems.contains("default/intruder") && problems.contains(&to), "{problems}");
        assert_eq!(value(&metrics(&world.lab), "sluice_frontends_left_out", &[]), Some(1.0));
        drop(agent);

        let agent = world.start(capture);
        world.assert_is_followed(3);
        world.apiserver.delete(Resource::Services, "default", "intruder").unwrap();
        world.apiserver.drop_connections();
        until("its end is seen", || {
            !agent.json(&["status"])["problems"].to_string().contains("default/intruder")
        });
        world.assert_is_followed(4);
    }
}

#[test]
fn what_an_earlier_agent_has_left_at_the_apiservers_address_does_not_keep_the_next_one_out() {
    for capture in CAPTURES {
        for still_runs in [false, true] {
            let world = World::new();
            let earlier = world.start_for_intruder(capture);
            let earlier = still_runs.then_some(earlier);
            let agent = world.start(capture);
            agent.wait_for(
                "an earlier agent has left rules that lead connections to the apiserver to a Service",
            );
            world.assert_is_followed(1);
            assert!(!world.leads_to_intruder(), "{capture}, {still_runs}");
            drop(earlier);
        }
    }
}
