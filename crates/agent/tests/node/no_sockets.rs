//! Where connections cannot be decided at their sockets, or not all of them: the rest is relayed, and the reason is told.

use std::io;
use std::net::UdpSocket;
use std::process::Command;

use sluice_model::Family;
use sluice_testbed::lab::PATIENCE;

use crate::at_sockets::{Sockets, metrics, value};
use crate::manifests::{Service, cluster_ip};
use crate::scene::{sluice, until};

#[test]
fn where_sockets_cannot_be_had_all_is_relayed_and_the_reason_is_told() {
    let sockets = Sockets::new();
    let scene = &sockets.scene;
    for capture in ["auto", "socket"] {
        let agent = sockets.start(1, capture, &scene.manifests());
        scene.assert_served(1);
        let status = agent.json(&["status"]);
        assert_eq!(status["mode"], "tproxy");
        let why = status["atSockets"].as_str().unwrap().to_owned();
        assert!(why.contains("in no bpffs") && why.contains("mount"), "{why}");
        let told = metrics(&scene.lab);
        let labels = [r#"mode="tproxy""#, &format!("wanted=\"{capture}\""), "in no bpffs"];
        assert_eq!(value(&told, "sluice_capture_info", &labels), Some(1.0), "{told}");
        let explained = agent.json(&[
            "explain",
            &scene.lab.pod(0).v4.to_string(),
            &cluster_ip(1, Family::V4).to_string(),
        ]);
        assert_eq!(explained["atSocket"]["verdict"], "pass");
        agent.stop();
    }
    assert_eq!(sockets.programs(), "");
}

/// A kernel without BTF, and an agent that has not the rights.
#[test]
fn where_the_kernel_or_the_agent_lacks_something_all_is_relayed_and_the_reason_is_told() {
    let sockets = Sockets::new();
    let scene = &sockets.scene;
    let hide = "mount --bind /dev/null /sys/kernel/btf/vmlinux && exec \"$0\" \"$@\"";
    let lacking: [(&[&str], &str); 2] = [
        (&["unshare", "--mount", "sh", "-c", hide], "BTF"),
        (
            &["setpriv", "--bounding-set=-bpf,-perfmon,-sys_admin", "--inh-caps=-bpf,-perfmon,-sys_admin"],
            "CAP_BPF",
        ),
    ];
    for (runner, lacks) in lacking {
        for capture in ["auto", "socket"] {
            let mut command = Command::new(runner[0]);
            command.args(&runner[1..]).arg(sluice([] as [&str; 0]).get_program());
            let agent = sockets.start_by(command, 1, capture, Some(sockets.cgroup.path()), &sockets.pins());
            scene.assert_served(1);
            let status = agent.json(&["status"]);
            assert_eq!(status["mode"], "tproxy", "{lacks} {capture}");
            let why = status["atSockets"].as_str().unwrap();
            assert!(why.starts_with("off: ") && why.contains(lacks), "{lacks} {capture}: {why}");
            assert_eq!(sockets.programs(), "", "{lacks} {capture}");
            agent.stop();
        }
    }
}

/// The other's program is one of an agent's, attached alone.
#[test]
fn beside_a_program_that_allows_no_other_all_is_relayed_and_check_says_whose_it_is() {
    let sockets = Sockets::new();
    let (scene, cgroup) = (&sockets.scene, sockets.cgroup.path().to_str().unwrap());
    let pinned = sockets.pins().with_file_name("other");
    let pinned = pinned.to_str().unwrap();
    let node = &scene.lab.node().ns;
    let first = sockets.start(1, "socket", &sockets.pins());
    let programs = sockets.programs();
    let id = programs.split("cgroup_inet4_connect").next().unwrap().split_whitespace().last().unwrap();
    node.output("bpftool", &["prog", "pin", "id", id, pinned]).unwrap();
    first.stop();
    sluice_socket::remove(&sockets.pins()).unwrap();
    until("nothing is attached", || sockets.programs().is_empty());
    let bpftool = |what, flags: &[&str]| {
        let attached = ["cgroup", what, cgroup, "cgroup_inet4_connect", "pinned", pinned];
        node.output("bpftool", &[&attached, flags].concat()).unwrap();
    };
    // As far as this machine has what socket mode needs, the finding has this alone.
    let check = || {
        let mut command = sluice(["check", "-o", "json", "--socket-cgroup", cgroup, "--socket-pins"]);
        command.arg(sockets.pins()).env_remove("KUBECONFIG").env_remove("KUBERNETES_SERVICE_HOST");
        let output = node.run(|| command.output()).unwrap();
        let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let findings = said["findings"].as_array().unwrap().clone();
        let finding = findings.into_iter().find(|finding| finding["about"] == "socket mode").unwrap();
        ["what", "fix"].map(|key| finding[key].as_str().unwrap().to_owned())
    };

    bpftool("attach", &[]);
    let wanted = format!("program {id} at {cgroup} allows none beside it for connect4");
    let agent = sockets.start(1, "auto", &sockets.pins());
    agent.wait_for("all connections are relayed: this node lacks room beside other programs");
    agent.wait_for(&wanted);
    scene.assert_served(1);
    let status = agent.json(&["status"]);
    assert_eq!(status["mode"], "tproxy");
    assert!(status["atSockets"].as_str().unwrap().contains(&wanted), "{status}");
    agent.stop();
    let [what, fix] = check();
    assert!(what.ends_with(&format!("for want of: room beside other programs ({wanted})")), "{what}");
    assert!(fix.contains("bpftool cgroup show") && fix.contains("BPF_F_ALLOW_MULTI"), "{fix}");
    bpftool("detach", &[]);

    bpftool("attach", &["multi"]);
    let [what, _] = check();
    assert!(what.contains("have what they need") && what.contains("one is at"), "{what}");
    let agent = sockets.start(1, "auto", &sockets.pins());
    assert_eq!(agent.json(&["status"])["mode"], "socket");
    scene.assert_served(1);
    bpftool("detach", &[]);
}

#[test]
fn what_has_no_room_is_relayed_and_counted_and_it_is_said_what_to_raise() {
    let sockets = Sockets::new();
    let scene = &sockets.scene;
    let mut little = Command::new("sh");
    little.args(["-c", "exec \"$0\" \"$@\" --socket-endpoints 3"]).arg(sluice([] as [&str; 0]).get_program());
    let agent = sockets.start_by(little, 1, "socket", Some(sockets.cgroup.path()), &sockets.pins());
    agent.wait_for(
        "service ports do not fit into the maps of socket mode, and are relayed: raise --socket-endpoints",
    );
    [1, 2].into_iter().for_each(|number| scene.assert_served(number));
    // Each of eight service ports has two endpoints.
    let waiting = || value(&metrics(&scene.lab), "sluice_socket_waiting", &[]);
    until("all but one wait", || waiting() == Some(7.0));
    [1, 2].into_iter().for_each(|number| scene.delete(&Service::new(number)));
    until("nothing waits", || waiting() == Some(0.0));
}

/// As in a pod that has fewer rights than the manifests give it.
#[test]
fn where_pods_sockets_could_not_be_ended_their_connected_ones_of_udp_are_relayed() {
    let sockets = Sockets::new();
    let scene = &sockets.scene;
    let mut without = Command::new("setpriv");
    without
        .args(["--bounding-set=-sys_admin", "--inh-caps=-sys_admin"])
        .arg(sluice([] as [&str; 0]).get_program());
    let agent = sockets.start_by(without, 1, "socket", Some(sockets.cgroup.path()), &sockets.pins());
    agent.wait_for("pods' UDP sockets that are connected are relayed");
    let to = cluster_ip(1, Family::V4);
    let [pod, node] = [scene.lab.pod(0), scene.lab.node()].map(|host| {
        host.ns.run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.connect(to).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket
        })
    });
    let ask = |socket: &UdpSocket| {
        socket.send(b"who").unwrap();
        // A read with a time limit may be interrupted.
        while let Err(error) = socket.recv(&mut [0; 64]) {
            assert_eq!(error.kind(), io::ErrorKind::Interrupted);
        }
    };
    ask(&pod);
    ask(&node);
    let list = agent.json(&["connections", "--protocol", "udp"]);
    let state = |socket: &UdpSocket| {
        let client = socket.local_addr().unwrap().to_string();
        let rows = list["items"].as_array().unwrap();
        rows.iter().find(|row| row["client"] == client).map(|row| row["state"].clone())
    };
    assert_eq!(state(&node), Some("translated".into()), "{list}");
    assert_eq!(state(&pod), Some("answered".into()), "{list}");
    // Its endpoint goes, whichever that is: another one answers.
    for is_here in [true, false] {
        let service = Service::new(1);
        let (here, there) = (scene.lab.pod(1), scene.lab.other_pod(0));
        scene.apply(&if is_here { service.here(here) } else { service.there(there) });
        until("it is the only endpoint", || {
            let service = agent.json(&["services", "s1"]);
            let mut ports = service["items"][0]["ports"].as_array().unwrap().iter();
            ports.all(|port| {
                let endpoints = port["endpoints"].as_array().unwrap();
                endpoints.len() == 1 && endpoints[0]["isHere"] == is_here
            })
        });
        ask(&pod);
    }
}

/// Whoever has a namespace of its own on this machine is no node of the machine, whose sockets are all below the root.
#[test]
fn in_a_network_namespace_of_its_own_the_root_of_all_cgroups_is_left_alone_unless_asked_for() {
    let sockets = Sockets::new();
    let agent = sockets.start_by(sluice([] as [&str; 0]), 1, "auto", None, &sockets.pins());
    let status = agent.json(&["status"]);
    assert_eq!(status["mode"], "tproxy");
    assert!(status["atSockets"].as_str().unwrap().contains("--socket-cgroup"), "{status}");
    sockets.scene.assert_served(1);
    assert!(!sockets.pins().exists());
}
