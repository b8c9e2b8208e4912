//! The local detector in socket mode: endpoints see the node's address on connections to clusterIPs of pods that it does not match.

use std::net::IpAddr;

use serde_json::json;
use sluice_model::{Family, Protocol};
use sluice_testbed::lab::{Bpffs, Cgroup, Host, Lab, Names, Outcome, PATIENCE};

use crate::at_sockets::{Agent, METRICS, metrics, value};
use crate::manifests::{FAMILIES, cluster_ip};
use crate::scene::{AGENT, Scene, sluice, until, well};

/// A scene with a pod that is inside of the ranges, and one that is not.
struct World {
    scene: Scene,
    cgroup: Cgroup,
    bpffs: Bpffs,
    names: Names,
}

impl World {
    fn new() -> Self {
        let bpffs = Bpffs::mount().unwrap();
        let cgroup = Cgroup::enter().unwrap();
        let scene = Scene::of(well(Lab::builder().pods(3).build()));
        let names = Names::new().unwrap();
        [0, 2].into_iter().for_each(|pod| names.add(&scene.lab.pod(pod).ns).unwrap());
        Self { scene, cgroup, bpffs, names }
    }

    fn inside(&self) -> &Host {
        self.scene.lab.pod(0)
    }

    fn outside(&self) -> &Host {
        self.scene.lab.pod(2)
    }

    /// The networks of some pods, which have nobody else in them.
    fn cidrs(&self, pods: &[usize]) -> Vec<String> {
        let pods = pods.iter().map(|pod| self.scene.lab.pod(*pod));
        pods.flat_map(|pod| [format!("{}/32", pod.v4), format!("{}/128", pod.v6)]).collect()
    }

    fn start(&self, detector: &[&str]) -> Agent {
        let kept = AGENT.map(|argument| match argument {
            "tproxy" => "socket",
            "0" => METRICS,
            other => other,
        });
        let detects = kept.iter().position(|argument| *argument == "--cluster-cidr").unwrap();
        let mut command = sluice(&kept[..detects]);
        command.args(&kept[detects + 2..]).args(detector);
        command.arg("--manifests").arg(self.scene.manifests());
        command.arg("--socket-cgroup").arg(self.cgroup.path());
        command.arg("--socket-pins").arg(self.bpffs.path().join("sluice"));
        command.arg("--socket-namespaces").arg(self.names.path()).args(["--grace-period", "1"]);
        Agent::start(command, &self.scene.lab, self.scene.manifests().parent().unwrap(), 1)
    }
}

/// Which addresses the endpoints of Service 1 see of a host: over each protocol and family often enough that each endpoint is
/// trusted and has been chosen.
fn seen(host: &Host) -> Vec<IpAddr> {
    let mut seen = Vec::new();
    for family in FAMILIES {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for _ in 0..12 {
                let outcome = host.ask(protocol, cluster_ip(1, family), PATIENCE);
                let Outcome::Answered { source, .. } = outcome else { panic!("{protocol}: {outcome:?}") };
                seen.push(source);
            }
        }
    }
    seen.sort_unstable();
    seen.dedup();
    seen
}

/// What they see of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sees {
    /// Its own address in all cases.
    Own,
    /// In none.
    Others,
    /// In some.
    Both,
}

fn sees(host: &Host) -> Sees {
    let own = [IpAddr::V4(host.v4), IpAddr::V6(host.v6)];
    let (kept, others): (Vec<_>, Vec<_>) = seen(host).into_iter().partition(|ip| own.contains(ip));
    match (kept.is_empty(), others.is_empty()) {
        (false, true) => Sees::Own,
        (true, _) => Sees::Others,
        (false, false) => Sees::Both,
    }
}

#[test]
fn pods_outside_of_the_cluster_cidr_are_relayed_with_the_nodes_address() {
    let world = World::new();
    let (inside, outside) = (world.inside(), world.outside());
    let agent = world.start(&["--cluster-cidr", &world.cidrs(&[0, 1]).join(",")]);
    assert_eq!([inside, outside].map(sees), [Sees::Own, Sees::Others]);

    let to = cluster_ip(1, Family::V4).to_string();
    let explain = |host: &Host| agent.json(&["explain", &host.v4.to_string(), &to]);
    let told = explain(outside);
    assert_eq!(
        (&told["sourceAddress"], &told["atSocket"]["verdict"]),
        (&json!("node"), &json!("pass")),
        "{told}"
    );
    let why = "the client is a pod of this node that has an address outside of --cluster-cidr, and is left to the relay";
    assert_eq!(told["atSocket"]["why"], why);
    let told = explain(inside);
    let wanted = (&json!("client"), &json!("translate"));
    assert_eq!((&told["sourceAddress"], &told["atSocket"]["verdict"]), wanted, "{told}");
    let status = agent.json(&["status"])["atSockets"].as_str().unwrap().to_owned();
    let words =
        format!("of 1 pods; 1 more are left to the relay ({} is outside of --cluster-cidr)", outside.v4);
    assert!(status.ends_with(&words), "{status}");
    let told = metrics(&world.scene.lab);
    let numbers = ["", "_kept_out"].map(|of| value(&told, &format!("sluice_socket_namespaces{of}"), &[]));
    assert_eq!(numbers, [Some(1.0), Some(1.0)]);

    // A second network comes to a pod that has been judged, which nothing tells of.
    well(inside.ns.ip("address add 172.16.5.5/32 dev lo"));
    until("it is left to the relay", || agent.ask(&["status"]).contains("2 more are left to the relay"));
    assert_eq!(explain(inside)["atSocket"]["why"], why);
    well(inside.ns.ip("address del 172.16.5.5/32 dev lo"));
    until("it is decided about again", || agent.ask(&["status"]).contains("1 more are left to the relay"));
    assert_eq!(sees(inside), Sees::Own);
    agent.stop();
}

#[test]
fn the_nodes_pod_cidrs_are_followed() {
    let world = World::new();
    let (inside, outside) = (world.inside(), world.outside());
    let put = |cidrs: Vec<String>| {
        let mut node = world.scene.lab.node_object();
        node["spec"]["podCIDR"] = cidrs.first().cloned().into();
        node["spec"]["podCIDRs"] = cidrs.into();
        world.scene.put("node", &node.to_string());
    };
    put(Vec::new());
    let agent = world.start(&["--detect-local-mode", "NodeCIDR"]);
    until("without podCIDRs nobody is told apart", || [inside, outside].map(sees) == [Sees::Own; 2]);
    put(world.cidrs(&[0]));
    until("the podCIDRs have come", || [inside, outside].map(sees) == [Sees::Own, Sees::Others]);
    put(world.cidrs(&[2]));
    until("they are others", || [inside, outside].map(sees) == [Sees::Others, Sees::Own]);
    assert!(agent.ask(&["status"]).contains("is outside of the Node's podCIDRs"));
    agent.stop();
}
