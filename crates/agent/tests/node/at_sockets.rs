//! What is said of socket mode where it cannot be had: connections are relayed, and people learn why.

use std::process::Command;

use sluice_testbed::lab::PATIENCE;

use crate::scene::{AGENT, READY, Scene, sluice, well};

#[test]
fn where_it_cannot_be_had_all_is_relayed_and_log_and_status_say_why() {
    let scene = Scene::new();
    for (capture, said, warned) in [
        ("tproxy", "off: --capture tproxy", None),
        ("socket", "off: /proc is no cgroup of version 2", Some("/proc is no cgroup of version 2")),
        ("auto", "off: this node lacks cgroup2: another file system", Some("this node lacks cgroup2")),
    ] {
        let arguments = AGENT.map(|argument| if argument == "tproxy" { capture } else { argument });
        let mut command = sluice(arguments);
        command.arg("--manifests").arg(scene.manifests()).arg("--admin-socket").arg(scene.socket());
        // No place for programs: none is to be attached for this machine.
        command.args(["--socket-cgroup", "/proc", "--socket-pins", "/proc/sluice"]);
        let mut agent = well(scene.lab.node().spawn(&command));
        well(agent.wait_for(READY, PATIENCE));
        if let Some(warned) = warned {
            well(agent.wait_for(warned, PATIENCE));
        }
        scene.assert_served(1);
        let mut status = Command::new(env!("CARGO_BIN_EXE_sluice"));
        let status = status.args(["status", "-o", "json", "--admin-socket"]).arg(scene.socket()).output();
        let status: serde_json::Value = serde_json::from_slice(&status.unwrap().stdout).unwrap();
        let at_sockets = status["atSockets"].as_str().unwrap();
        assert!(at_sockets.starts_with(said), "{capture}: {at_sockets}");
        agent.kill();
    }
}
