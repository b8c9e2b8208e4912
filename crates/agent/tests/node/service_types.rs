//! A Service that changes its type, its families and its ports while it is used, on an apiserver: who is served by then,
//! who goes on, and what is left of it.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;

use serde_json::{Value, json};
use sluice_model::{Family, Protocol};
use sluice_testbed::apiserver::{Apiserver, Resource};
use sluice_testbed::lab::{Bpffs, Cgroup, Host, Lab, PATIENCE, SILENCE, Server};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::at_sockets::{Agent, METRICS, metrics};
use crate::manifests::{BACKEND, FAMILIES, PORT, cluster_ip, external_ip, node_port};
use crate::scene::{AGENT, Conversation, nft, sluice, until, well};

const HEALTH: u16 = 32_000;

/// The port that the Service has after it was changed, under another name.
const OTHER_PORT: u16 = 81;

/// Fields are dropped in this order: the agent before the namespaces and the cgroup that it is in.
struct Scene {
    agent: Agent,
    apiserver: Apiserver,
    _runtime: Runtime,
    _servers: Vec<Server>,
    lab: Lab,
    _cgroup: Cgroup,
    bpffs: Bpffs,
    _directory: TempDir,
}

impl Scene {
    /// With `pod-1` and `other-pod-0` as endpoints of the Service to be, and another Service, which stays as it is.
    fn new(capture: &str) -> Self {
        let (bpffs, cgroup) = (well(Bpffs::mount()), well(Cgroup::enter()));
        let lab = well(Lab::new());
        // The last one is on no pod's network, where whoever writes slices by hand may lead.
        let servers =
            [lab.pod(1), lab.other_pod(0), lab.other()].map(|host| well(host.serve(BACKEND))).into();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let cidrs = ["10.96.0.0/16", "fd00:96::/112"].map(|cidr| cidr.parse().unwrap());
        let builder = Apiserver::builder().bind((lab.node().v4, 6443).into()).service_cidrs(&cidrs);
        let apiserver = lab.node().ns.run(|| runtime.block_on(builder.start())).unwrap();
        apiserver.create(Resource::Nodes, lab.node_object()).unwrap();
        let stays = crate::manifests::Service::new(1).here(lab.pod(1));
        for item in serde_json::from_str::<Value>(&stays.manifest()).unwrap()["items"].as_array().unwrap() {
            let resource =
                if item["kind"] == "Service" { Resource::Services } else { Resource::EndpointSlices };
            apiserver.create(resource, item.clone()).unwrap();
        }
        let directory = TempDir::new().unwrap();
        let kubeconfig = directory.path().join("kubeconfig");
        fs::write(&kubeconfig, apiserver.kubeconfig().unwrap()).unwrap();
        let mut command = sluice(AGENT.map(|argument| match argument {
            "tproxy" => capture,
            "0" => METRICS,
            other => other,
        }));
        command.arg("--kubeconfig").arg(&kubeconfig).args(["--service-metrics", "endpoint"]);
        if capture == "socket" {
            command.arg("--socket-cgroup").arg(cgroup.path());
            command.arg("--socket-pins").arg(bpffs.path().join("sluice")).arg("--socket-namespaces=");
        }
        let agent = Agent::start(command, &lab, directory.path(), 1);
        Self {
            agent,
            apiserver,
            _runtime: runtime,
            _servers: servers,
            lab,
            _cgroup: cgroup,
            bpffs,
            _directory: directory,
        }
    }

    /// Writes the Service, as an update if it is there.
    fn put(&self, mut spec: Value, status: Value) {
        let selector = json!({ "app": "web" });
        spec.as_object_mut().unwrap().entry("selector").or_insert(selector);
        let service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": "s9", "namespace": "default" },
            "spec": spec, "status": { "loadBalancer": status },
        });
        let written = match self.apiserver.get(Resource::Services, "default", "s9") {
            Some(_) => self.apiserver.update(Resource::Services, service.clone()),
            None => self.apiserver.create(Resource::Services, service.clone()),
        };
        written.unwrap_or_else(|status| panic!("{status:?}: {service}"));
        self.apiserver.update_status(Resource::Services, service).unwrap();
    }

    /// Writes its slices, one a family.
    fn put_slices(&self, families: &[Family], names: [&str; 2], endpoints: &[(&Host, &str)]) {
        for family in FAMILIES {
            let name = format!("s9-{family}").to_lowercase();
            let is_there = self.apiserver.get(Resource::EndpointSlices, "default", &name).is_some();
            if !families.contains(&family) {
                if is_there {
                    self.apiserver.delete(Resource::EndpointSlices, "default", &name).unwrap();
                }
                continue;
            }
            let endpoint = |(host, node): &(&Host, &str)| json!({ "addresses": [host.ip(family)], "conditions": { "ready": true }, "nodeName": node });
            let slice = json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {
                    "name": name, "namespace": "default", "labels": { "kubernetes.io/service-name": "s9" },
                },
                "addressType": family.to_string(),
                "ports": [
                    { "name": names[0], "protocol": "TCP", "port": BACKEND },
                    { "name": names[1], "protocol": "UDP", "port": BACKEND },
                ],
                "endpoints": endpoints.iter().map(endpoint).collect::<Vec<_>>(),
            });
            let resource = Resource::EndpointSlices;
            let written = if is_there {
                self.apiserver.update(resource, slice)
            } else {
                self.apiserver.create(resource, slice)
            };
            written.unwrap();
        }
    }

    /// Waits until a host is served at an address, over both protocols, or until it is not.
    #[track_caller]
    fn await_served(&self, host: &Host, to: SocketAddr, wanted: bool) {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            until(&format!("{} is served at {protocol} {to}: {wanted}", host.name), || {
                host.ask(protocol, to, SILENCE).by().is_some() == wanted
            });
        }
    }

    /// The same for a pod and the node's own processes at cluster IPs.
    #[track_caller]
    fn await_cluster_ips(&self, port: u16, served: &[Family]) {
        for family in FAMILIES {
            for host in [self.lab.pod(0), self.lab.node()] {
                self.await_served(host, (cluster_ip(9, family).ip(), port).into(), served.contains(&family));
            }
        }
    }

    /// And for the host outside at nodePorts.
    #[track_caller]
    fn await_node_ports(&self, served: &[Family]) {
        for family in FAMILIES {
            self.await_served(self.lab.outside(), node_port(9, family), served.contains(&family));
        }
    }

    /// What the agent and the kernel have, apart from what others use.
    fn all_there_is(&self) -> String {
        let told = metrics(&self.lab);
        let is_counted = |line: &&str| {
            line.starts_with("sluice_frontends ")
                || line.starts_with("sluice_socket_frontends ")
                || line.contains(r#"service="s9""#)
        };
        let told: Vec<_> = told.lines().filter(is_counted).collect();
        format!("{}\n{}\n{:#?}", nft(&self.lab, "table inet sluice"), told.join("\n"), self.frontends())
    }

    /// What the programs have, where there are any.
    fn frontends(&self) -> Vec<String> {
        let Ok(mut versions) = fs::read_dir(self.bpffs.path().join("sluice")) else { return Vec::new() };
        let pin = versions.next().unwrap().unwrap().path().join("frontends");
        let dump = Command::new("bpftool").args(["-j", "map", "dump", "pinned"]).arg(pin).output().unwrap();
        assert!(dump.status.success(), "{dump:?}");
        let elements: Vec<Value> = serde_json::from_slice(&dump.stdout).unwrap();
        let mut keys: Vec<_> = elements.iter().map(|element| element["key"].to_string()).collect();
        keys.sort_unstable();
        keys
    }

    fn has_health_port(&self, ip: IpAddr) -> bool {
        self.lab.outside().tcp_stream((ip, HEALTH).into(), PATIENCE).is_ok()
    }
}

/// The spec of one that has its number's addresses, of these families.
fn spec(kind: &str, families: &[Family], more: Value) -> Value {
    let ips: Vec<IpAddr> = families.iter().map(|&family| cluster_ip(9, family).ip()).collect();
    let names: Vec<String> = families.iter().map(ToString::to_string).collect();
    let policy = if families.len() > 1 { "PreferDualStack" } else { "SingleStack" };
    let mut spec = json!({
        "type": kind, "clusterIP": ips[0], "clusterIPs": ips, "ipFamilies": names, "ipFamilyPolicy": policy,
        "ports": ports(["tcp", "udp"], PORT, kind != "ClusterIP"),
    });
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    spec
}

fn ports(names: [&str; 2], port: u16, has_node_port: bool) -> Value {
    let port = |name: &str, protocol: &str| {
        let mut port = json!({ "name": name, "protocol": protocol, "port": port, "targetPort": BACKEND });
        if has_node_port {
            port["nodePort"] = node_port(9, Family::V4).port().into();
        }
        port
    };
    json!([port(names[0], "TCP"), port(names[1], "UDP")])
}

fn all_go_on(conversations: &mut [Conversation], line: &str) {
    conversations.iter_mut().for_each(|conversation| conversation.say(line));
}

#[test]
fn a_service_takes_every_type_one_after_the_other_and_leaves_nothing_by_tproxy() {
    take_every_type("tproxy");
}

#[test]
fn a_service_takes_every_type_one_after_the_other_and_leaves_nothing_at_sockets() {
    take_every_type("socket");
}

fn take_every_type(capture: &str) {
    let scene = Scene::new(capture);
    let (pod, node, outside) = (scene.lab.pod(0), scene.lab.node(), scene.lab.outside());
    let both = [(scene.lab.pod(1), "node"), (scene.lab.other_pod(0), "other")];
    let (v4, v6) = (Family::V4, Family::V6);
    let names = ["tcp", "udp"];
    scene.await_served(pod, cluster_ip(1, v4), true);
    let (before, files) = (scene.all_there_is(), scene.agent.open_files());
    assert_eq!(scene.frontends().is_empty(), capture == "tproxy");
    let mut open: Vec<Conversation> = Vec::new();

    // One family.
    scene.put(spec("ClusterIP", &[v4], json!({})), json!({}));
    scene.put_slices(&[v4], names, &both);
    scene.await_cluster_ips(PORT, &[v4]);
    scene.await_node_ports(&[]);
    open.extend([pod, node].map(|host| Conversation::begin(host, cluster_ip(9, v4))));

    // The other one as well.
    scene.put(spec("ClusterIP", &[v4, v6], json!({})), json!({}));
    scene.put_slices(&FAMILIES, names, &both);
    scene.await_cluster_ips(PORT, &FAMILIES);
    open.extend([pod, node].map(|host| Conversation::begin(host, cluster_ip(9, v6))));
    all_go_on(&mut open, "dual-stack");

    // One endpoint for each client, and then no more.
    let affinity = json!({ "sessionAffinity": "ClientIP" });
    let answering = || {
        let by = (0..4).map(|_| pod.ask(Protocol::Tcp, cluster_ip(9, v4), PATIENCE).by().map(str::to_owned));
        by.collect::<std::collections::BTreeSet<_>>().len()
    };
    assert_eq!(answering(), 2);
    scene.put(spec("ClusterIP", &FAMILIES, affinity), json!({}));
    until("a client keeps its endpoint", || answering() == 1);
    scene.put(spec("ClusterIP", &FAMILIES, json!({ "sessionAffinity": "None" })), json!({}));
    until("it does not any more", || answering() == 2);
    all_go_on(&mut open, "affinity");

    scene.put(spec("NodePort", &FAMILIES, json!({})), json!({}));
    scene.await_node_ports(&FAMILIES);
    scene.await_cluster_ips(PORT, &FAMILIES);
    open.extend(FAMILIES.map(|family| Conversation::begin(outside, node_port(9, family))));
    all_go_on(&mut open, "node port");

    // With an address that is given later, and a port for load balancers.
    let local = json!({ "externalTrafficPolicy": "Local", "healthCheckNodePort": HEALTH });
    scene.put(spec("LoadBalancer", &FAMILIES, local.clone()), json!({}));
    for family in FAMILIES {
        until("the health check port is open", || scene.has_health_port(node.ip(family)));
        scene.await_served(outside, external_ip(9, family), false);
    }
    let ingress = json!({ "ingress": FAMILIES.map(|family| json!({ "ip": external_ip(9, family).ip() })) });
    scene.put(spec("LoadBalancer", &FAMILIES, local), ingress);
    for family in FAMILIES {
        for host in [outside, node] {
            scene.await_served(host, external_ip(9, family), true);
        }
        open.push(Conversation::begin(outside, external_ip(9, family)));
    }
    scene.await_node_ports(&FAMILIES);
    all_go_on(&mut open, "load balancer");

    // Other names and numbers; the slices follow a while after.
    let renamed = |kind| spec(kind, &FAMILIES, json!({ "ports": ports(["web", "dns"], OTHER_PORT, true) }));
    scene.put(renamed("NodePort"), json!({}));
    scene.await_cluster_ips(PORT, &[]);
    scene.await_cluster_ips(OTHER_PORT, &[]);
    scene.put_slices(&FAMILIES, ["web", "dns"], &both);
    scene.await_cluster_ips(OTHER_PORT, &FAMILIES);
    scene.await_cluster_ips(PORT, &[]);
    scene.await_node_ports(&FAMILIES);
    for family in FAMILIES {
        scene.await_served(outside, external_ip(9, family), false);
        until("the health check port is closed", || !scene.has_health_port(node.ip(family)));
    }
    all_go_on(&mut open, "renamed");

    // Down to one family again; its slice of the other one lags behind.
    scene.put_slices(&FAMILIES, names, &both);
    scene.put(spec("ClusterIP", &[v4], json!({})), json!({}));
    scene.await_cluster_ips(PORT, &[v4]);
    scene.await_cluster_ips(OTHER_PORT, &[]);
    scene.await_node_ports(&[]);
    scene.put_slices(&[v4], names, &both);
    all_go_on(&mut open, "single-stack");

    scene.put(json!({ "type": "ExternalName", "externalName": "example.com" }), json!({}));
    scene.await_cluster_ips(PORT, &[]);
    all_go_on(&mut open, "external name");

    // From there it may become headless, which takes it out of the watch.
    let headless = json!({ "type": "ClusterIP", "clusterIP": "None", "ports": ports(names, PORT, false) });
    scene.put(headless, json!({}));
    all_go_on(&mut open, "headless");
    assert_eq!(metrics(&scene.lab).lines().find(|line| line.starts_with("sluice_frontends ")), {
        before.lines().find(|line| line.starts_with("sluice_frontends "))
    });
    scene.put(json!({ "type": "ExternalName", "externalName": "example.com" }), json!({}));

    // Back, in the other family first, and without a selector: where it leads is written by hand.
    scene.put(spec("ClusterIP", &[v6, v4], json!({ "selector": null })), json!({}));
    scene.put_slices(&FAMILIES, names, &[(scene.lab.other(), "other")]);
    scene.await_cluster_ips(PORT, &FAMILIES);
    for (family, host) in FAMILIES.into_iter().flat_map(|family| [(family, pod), (family, node)]) {
        let outcome = host.ask(Protocol::Tcp, cluster_ip(9, family), PATIENCE);
        assert_eq!(outcome.by(), Some("other"), "{outcome:?}");
    }
    all_go_on(&mut open, "selectorless");

    // Gone, and its slices after it, which nobody owns.
    scene.apiserver.delete(Resource::Services, "default", "s9").unwrap();
    scene.await_cluster_ips(PORT, &[]);
    all_go_on(&mut open, "deleted");
    scene.put_slices(&[], names, &[]);
    scene.await_served(pod, cluster_ip(1, v4), true);
    all_go_on(&mut open, "forgotten");
    drop(open);
    until("nothing is left of it", || scene.all_there_is() == before);
    until("no descriptor is, either", || scene.agent.open_files() <= files);
    let log = scene.agent.log();
    assert!(!log.contains("ERROR") && !log.contains("WARN"), "{log}");
}
