//! The image on a node of a lab, run as the DaemonSet says: its containers one after the other, with their capabilities,
//! mounts and arguments, in the node's network. `runc` runs them.
//!
//! `.ci/image` builds the image, and runs this with `SLUICE_IMAGE_ROOT` and `SLUICE_IMAGE_CONFIG`.

mod cluster;
mod scene;
mod socket_mode;

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Container;
use serde_json::{Value, json};
use sluice_model::{Family, Protocol};
use sluice_testbed::lab::{Load, PATIENCE};

use cluster::cluster_ip;
use scene::{READY, Scene, take_away, well};

/// A table as kube-proxy's nftables mode has it: it leads to the lab's endpoint, by IPv4.
fn kube_proxy(scene: &Scene) -> String {
    let (to, endpoint) = (cluster_ip(Family::V4), scene.lab.pod(1).v4);
    let lead = format!(
        "ip daddr {} meta l4proto {{ tcp, udp }} th dport {} dnat to {endpoint}:8080",
        to.ip(),
        to.port()
    );
    format!(
        "table ip kube-proxy {{
            comment \"rules for kube-proxy\"
            chain services {{ {lead}; }}
            chain nat-prerouting {{ type nat hook prerouting priority dstnat; jump services; }}
            chain nat-output {{ type nat hook output priority -100; jump services; }}
        }}"
    )
}

/// Has kube-proxy's rules be there, and the Service be served by them.
#[track_caller]
fn serve_by_kube_proxy(scene: &Scene) {
    well(scene.lab.node().ns.nft_file(&kube_proxy(scene)));
    for (client, protocol) in [scene.lab.pod(0), scene.lab.node()]
        .into_iter()
        .flat_map(|c| [Protocol::Tcp, Protocol::Udp].map(|p| (c, p)))
    {
        let outcome = client.ask(protocol, cluster_ip(Family::V4), PATIENCE);
        assert_eq!(outcome.by(), Some("pod-1"), "{protocol} from {}: {outcome:?}", client.name);
    }
}

#[test]
#[ignore = "needs the image: .ci/image builds it and runs this"]
fn the_daemonset_serves_a_node_is_updated_under_load_and_leaves_nothing() {
    let scene = Scene::new();
    let before = scene.kernel();
    let kill = Duration::from_secs(30);
    for name in ["managed", "kubeadm"] {
        let pod = scene.pod(name);
        let agent = &pod.containers[0];
        serve_by_kube_proxy(&scene);
        let begin = Instant::now();
        let mut first = scene.start_pod(&pod);
        well(first.process.wait_for(READY, PATIENCE));
        eprintln!("{name}: serves after {:?}, init containers and all", begin.elapsed());
        assert!(!scene.kernel().contains("kube-proxy"), "{name}: what kube-proxy has left is gone");
        let setting = scene.lab.node().ns.read("/proc/sys/net/ipv4/tcp_migrate_req").unwrap();
        assert_eq!(setting, "1");
        scene.assert_served();
        scene.assert_probed(&first, agent);

        let loads: Vec<Load> = scene
            .questions()
            .into_iter()
            .flat_map(|(host, to)| [Protocol::Tcp, Protocol::Udp].map(|protocol| host.load(protocol, to)))
            .collect();
        let assert_answered = || {
            assert!(
                loads.iter().all(|load| load.answers_more(25, PATIENCE)),
                "{name}: questions are answered"
            )
        };
        assert_answered();
        let mut second = scene.start_pod(&pod);
        // The kubelet tells the first one to end once the second one is ready.
        scene.assert_probed(&second, agent);
        // It is ready by itself. Its log may take a moment longer than the answer to a probe.
        well(second.process.wait_for(READY, PATIENCE));
        first.signal("TERM");
        first.assert_ends_well(kill);
        assert!(
            first.process.lines().iter().any(|line| line.contains("another agent takes new connections"))
        );
        first.assert_content();
        let is_written = |line: &String| line.contains("table inet sluice is written");
        assert!(!second.process.lines().iter().any(is_written), "the rules are as the first one left them");
        assert_answered();
        for report in loads.into_iter().map(Load::stop) {
            let logs = [&first, &second].map(|agent| agent.process.lines());
            assert_eq!(report.failed, 0, "{name}: {report:?}; {logs:#?}");
        }

        second.signal("TERM");
        second.assert_ends_well(kill);
        second.assert_content();
        // Settings are set back by who may write to /proc/sys.
        let settings = pod.init_containers.iter().flatten().find(|container| container.name == "settings");
        let mut cleanup = scene.start(&pod, settings.unwrap(), &["cleanup".to_owned()]);
        cleanup.assert_ends_well(PATIENCE);
        drop((first, second, cleanup));
        assert_eq!(scene.containers(), "");
        assert_eq!(scene.kernel(), before, "{name}: nothing is left");
        // Back again.
        serve_by_kube_proxy(&scene);
        well(scene.lab.node().ns.nft("delete table ip kube-proxy"));
    }
}

#[test]
#[ignore = "needs the image: .ci/image builds it and runs this"]
fn each_capability_of_the_agent_is_one_that_its_check_asks_for_and_no_more_are() {
    let scene = Scene::new();
    let pod = scene.relaying_pod("managed");
    let level = |container: &Container| {
        let arguments = ["check", "--output", "json"].map(str::to_owned);
        let mut running = scene.start(&pod, container, &arguments);
        well(running.process.wait(PATIENCE));
        let findings: Value = serde_json::from_str(&running.process.lines().concat()).unwrap();
        let found = findings["findings"].as_array().unwrap().iter().find(|f| f["about"] == "capabilities");
        found.unwrap()["level"].clone()
    };
    let agent = pod.containers[0].clone();
    assert_eq!(level(&agent), "ok");
    let capabilities = |container: &Container| {
        container.security_context.clone().unwrap().capabilities.unwrap().add.unwrap()
    };
    for capability in capabilities(&agent) {
        let mut without = agent.clone();
        take_away(&mut without, &[&capability]);
        assert_ne!(level(&without), "ok", "without {capability}");
    }
}

#[test]
#[ignore = "needs the image: .ci/image builds it and runs this"]
fn the_image_has_what_it_needs_and_nothing_to_log_in_with() {
    let scene = Scene::new();
    let root = &scene.node.root;
    assert_eq!(scene.node.image["Entrypoint"], json!(["/usr/bin/sluice"]));
    assert_eq!(scene.node.image["Labels"]["org.opencontainers.image.licenses"], "Apache-2.0");
    for program in ["sh", "bash", "dash", "apt-get", "su"] {
        let found =
            ["bin", "sbin", "usr/bin", "usr/sbin"].map(|folder| root.join(folder).join(program).exists());
        assert_eq!(found, [false; 4], "{program}");
    }
    // Programs run, so all that they are linked against is there.
    let pod = scene.pod("managed");
    let mut container = pod.containers[0].clone();
    for line in [
        "nft --version",
        "sysctl --version",
        "ip -Version",
        "ipset --version",
        "ipvsadm --version",
        "iptables-legacy-save --version",
        "ip6tables-legacy-restore --version",
    ] {
        container.command = Some(line.split(' ').map(str::to_owned).collect());
        let mut running = scene.start(&pod, &container, &[]);
        let status = well(running.process.wait(PATIENCE));
        // ipvsadm looks for IPVS first, which this kernel may not have.
        let lines = running.process.lines().concat();
        assert!(status.success() || lines.contains("initialize ipvs"), "{line}: {lines}");
    }
}
