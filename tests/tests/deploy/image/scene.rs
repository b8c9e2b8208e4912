//! A node of a lab that has the image, and containers that run there.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Container, PodSpec, Probe};
use serde_json::Value;
use sluice_model::{Family, Protocol};
use sluice_testbed::apiserver::{Apiserver, Resource};
use sluice_testbed::lab::{Host, Lab, LabError, PATIENCE, Process};
use tempfile::TempDir;

use super::cluster::{FAMILIES, cluster_ip, kube_proxy_config, service, slice};
use super::socket_mode::SocketPlace;
use crate::manifests::{daemonset, overlay, pod, with_components};
use crate::pod::{Node, arguments};

/// What the agent says once it serves.
pub(super) const READY: &str = "ready frontends";

/// A lab with an apiserver, `pod-1` as a Service's only endpoint, and a node that has the image.
pub(super) struct Scene {
    pub(super) lab: Lab,
    pub(super) node: Node,
    directory: TempDir,
    pub(super) apiserver: Apiserver,
    _runtime: tokio::runtime::Runtime,
    _server: sluice_testbed::lab::Server,
    /// Last: it goes when all threads of the lab have.
    pub(super) sockets: Option<SocketPlace>,
}

/// A container that runs, or has run.
pub(super) struct Running<'a> {
    pub(super) process: Process,
    pub(super) id: String,
    scene: &'a Scene,
}

impl Scene {
    pub(super) fn new() -> Self {
        Self::build(None)
    }

    pub(super) fn with_sockets() -> Self {
        Self::build(Some(SocketPlace::new()))
    }

    fn build(sockets: Option<SocketPlace>) -> Self {
        let from = |variable: &str| PathBuf::from(std::env::var_os(variable).expect(".ci/image sets it"));
        let lab = well(Lab::new());
        let server = well(lab.pod(1).serve(8080));
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let cidrs = ["10.96.0.0/16", "fd00:96::/112"].map(|cidr| cidr.parse().unwrap());
        let builder =
            Apiserver::builder().bind((lab.node().v4, 6443).into()).token("secret").service_cidrs(&cidrs);
        let apiserver = lab.node().ns.run(|| runtime.block_on(builder.start())).unwrap();
        apiserver.create(Resource::Nodes, lab.node_object()).unwrap();
        apiserver.create(Resource::Services, service()).unwrap();
        for family in FAMILIES {
            apiserver.create(Resource::EndpointSlices, slice(&lab, family)).unwrap();
        }
        let directory = TempDir::new().unwrap();
        let config: Value = serde_json::from_slice(&fs::read(from("SLUICE_IMAGE_CONFIG")).unwrap()).unwrap();
        let node = Node {
            name: "node",
            root: from("SLUICE_IMAGE_ROOT"),
            image: config["OCIv1"]["config"].clone(),
            files: directory.path().join("node"),
            directories: sockets
                .iter()
                .flat_map(|place| {
                    [place.bpffs(), place.netns()].iter().for_each(|path| fs::create_dir_all(path).unwrap());
                    place.name_namespace(lab.pod(0));
                    [
                        ("/sys/fs/cgroup", "/sys/fs/cgroup".into()),
                        ("/sys/fs/bpf", place.bpffs()),
                        ("/run/netns", place.netns()),
                    ]
                })
                .collect(),
            config_maps: BTreeMap::from([("kube-proxy", kube_proxy_config(&apiserver.url()))]),
            is_old: false,
            token: "secret",
            authority: apiserver.ca_pem(),
            service: "10.96.0.1",
        };
        Self { lab, node, directory, apiserver, _runtime: runtime, _server: server, sockets }
    }

    /// The pod of an overlay, with what a person has to fill in. Only sockets of the lab are decided about, if any are.
    pub(super) fn pod(&self, name: &str) -> PodSpec {
        let mut pod = self.fill_in(&overlay(name));
        pod.containers[0].args.as_mut().unwrap().extend(self.sockets.as_ref().map(SocketPlace::flag));
        pod
    }

    /// The same without socket mode.
    pub(super) fn relaying_pod(&self, name: &str) -> PodSpec {
        self.fill_in(&with_components(name, &["tproxy"]))
    }

    fn fill_in(&self, objects: &[Value]) -> PodSpec {
        let mut pod = pod(&daemonset(objects));
        for argument in pod.containers.iter_mut().flat_map(|container| container.args.iter_mut().flatten()) {
            if argument.starts_with("--master=") {
                *argument = format!("--master=https://{}:6443", self.lab.node().v4);
            } else if argument.starts_with("--cluster-cidr=") {
                argument.push_str(",fd00:244::/32");
            }
        }
        pod
    }

    /// Starts a container.
    pub(super) fn start(&self, pod: &PodSpec, container: &Container, arguments: &[String]) -> Running<'_> {
        let bundle = TempDir::new_in(self.directory.path()).unwrap().keep();
        let id = bundle.file_name().unwrap().to_str().unwrap().trim_start_matches('.').to_owned();
        self.node.bundle(pod, container, arguments, &bundle);
        let mut command = self.runc(&["run", "--bundle"]);
        command.arg(&bundle).arg(&id);
        Running { process: well(self.lab.node().spawn(&command)), id, scene: self }
    }

    /// Starts a pod: its init containers one after the other, then the agent.
    pub(super) fn start_pod(&self, pod: &PodSpec) -> Running<'_> {
        for container in pod.init_containers.iter().flatten() {
            let mut running = self.start(pod, container, &arguments(container, self.node.name));
            let status = well(running.process.wait(PATIENCE));
            assert!(status.success(), "{}: {:?}", container.name, running.process.lines());
        }
        let agent = &pod.containers[0];
        self.start(pod, agent, &arguments(agent, self.node.name))
    }

    pub(super) fn runc(&self, arguments: &[&str]) -> Command {
        let mut command =
            self.sockets.as_ref().map_or_else(|| Command::new("runc"), |place| place.command("runc"));
        command.arg("--root").arg(self.directory.path().join("runc"));
        command.args(arguments);
        command
    }

    /// The containers that there are.
    pub(super) fn containers(&self) -> String {
        String::from_utf8(self.runc(&["list", "--quiet"]).output().unwrap().stdout).unwrap()
    }

    /// All probes of an agent that runs succeed, by and by.
    #[track_caller]
    pub(super) fn assert_probed(&self, running: &Running<'_>, agent: &Container) {
        for probe in [&agent.startup_probe, &agent.liveness_probe, &agent.readiness_probe] {
            let deadline = Instant::now() + PATIENCE;
            while !running.probe(probe.as_ref().unwrap()) {
                assert!(Instant::now() < deadline, "{probe:?}: {:#?}", running.process.lines());
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    /// Everybody who can ask, and where.
    pub(super) fn questions(&self) -> Vec<(&Host, SocketAddr)> {
        let of_family = |family: Family| {
            let node_port = (self.lab.node().ip(family), 30_007).into();
            [
                (self.lab.pod(0), cluster_ip(family)),
                (self.lab.node(), cluster_ip(family)),
                (self.lab.outside(), node_port),
            ]
        };
        FAMILIES.into_iter().flat_map(of_family).collect()
    }

    /// Whether everybody is served now.
    pub(super) fn is_served(&self) -> bool {
        self.questions().into_iter().all(|(host, to)| {
            let asked = [Protocol::Tcp, Protocol::Udp].map(|protocol| host.ask(protocol, to, PATIENCE));
            asked.iter().all(|outcome| outcome.by() == Some("pod-1"))
        })
    }

    #[track_caller]
    pub(super) fn assert_served(&self) {
        for (host, to) in self.questions() {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let outcome = host.ask(protocol, to, PATIENCE);
                assert_eq!(outcome.by(), Some("pod-1"), "{protocol} {to} from {}: {outcome:?}", host.name);
            }
        }
    }

    /// What there is in the kernel.
    pub(super) fn kernel(&self) -> String {
        let ns = &self.lab.node().ns;
        let ip = ["rule", "-6 rule", "route show table all", "-6 route show table all"];
        well(ns.nft("list ruleset")) + &ip.map(|what| well(ns.ip(what))).concat()
    }
}

impl Running<'_> {
    /// Whether a probe succeeds, as the kubelet sees it.
    pub(super) fn probe(&self, probe: &Probe) -> bool {
        let command = probe.exec.as_ref().and_then(|exec| exec.command.as_ref()).unwrap();
        self.scene.runc(&["exec", &self.id]).args(command).output().unwrap().status.success()
    }

    pub(super) fn signal(&self, signal: &str) {
        assert!(self.scene.runc(&["kill", &self.id, signal]).status().unwrap().success());
    }

    #[track_caller]
    pub(super) fn assert_ends_well(&mut self, patience: Duration) {
        let status = well(self.process.wait(patience));
        assert!(status.success(), "{status}: {:#?}", self.process.lines());
    }

    /// Nothing has been in the way: the log warns of nothing that a manifest could change.
    #[track_caller]
    pub(super) fn assert_content(&self) {
        let lines = self.process.lines();
        let complaints =
            ["capabilit", "CAP_", "Read-only", "ermission", "cannot be set", "cannot set", "ERROR"];
        let complaint = lines.iter().find(|line| complaints.iter().any(|word| line.contains(word)));
        assert_eq!(complaint, None, "{lines:#?}");
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        // It has ended, or a test has failed.
        let _ = self.scene.runc(&["delete", "--force", &self.id]).output();
    }
}

/// Has a container run without some of its capabilities.
pub(super) fn take_away(container: &mut Container, capabilities: &[&str]) {
    let context = container.security_context.as_mut().unwrap();
    let all = context.capabilities.as_mut().unwrap().add.as_mut().unwrap();
    all.retain(|capability| !capabilities.contains(&&**capability));
}

/// An error as a person is to read it.
#[track_caller]
pub(super) fn well<T>(result: Result<T, LabError>) -> T {
    result.unwrap_or_else(|error| panic!("{error}"))
}
