//! Agents that follow one with another `--capture` or another size of maps, which still runs or has ended.

use std::process::Command;

use crate::at_sockets::Sockets;
use crate::scene::{sluice, until};

/// The other one has not ended, and so it holds them at the start.
#[test]
fn an_agent_that_decides_nothing_removes_what_another_one_has_attached_once_that_lets_go() {
    let sockets = Sockets::new();
    let scene = &sockets.scene;
    let first = sockets.start(1, "socket", &sockets.pins());
    scene.assert_served(1);
    assert_ne!(sockets.programs(), "");
    let second = sockets.start(2, "tproxy", &sockets.pins());
    until("they are gone", || sockets.programs().is_empty());
    second.wait_for("nothing is decided at sockets any more: what an earlier agent has left is removed");
    first.stop();
    scene.assert_served(1);
    assert_eq!(second.json(&["status"])["atSockets"], "off: --capture tproxy");
}

#[test]
fn where_maps_are_to_have_another_size_programs_go_on_until_the_next_agent_knows_all() {
    let sockets = Sockets::new();
    sockets.start(1, "socket", &sockets.pins()).stop();
    let mut larger = Command::new("sh");
    larger
        .args(["-c", "exec \"$0\" \"$@\" --socket-endpoints 200000"])
        .arg(sluice([] as [&str; 0]).get_program());
    let agent = sockets.start_by(larger, 1, "socket", Some(sockets.cgroup.path()), &sockets.pins());
    agent.wait_for("connections are decided at their sockets, as");
    let log = agent.log();
    let place = |text: &str| log.find(text).unwrap_or_else(|| panic!("{text}: {log}"));
    assert!(place("what an earlier agent has attached goes on until all is known") < place("ready"));
    sockets.scene.assert_served(1);
    assert_eq!(agent.json(&["status"])["mode"], "socket");
}
