//! What a node lacks.

use std::path::Path;

use sluice_socket::{PINS, State, probe};

use crate::node::Node;

#[test]
fn where_programs_can_be_attached_the_probe_finds_nothing_missing() {
    let node = Node::new();
    drop(node.attach().unwrap());
    for finding in probe(Some(&node.config.cgroup), &node.config.pins, &["/proc/self/ns".into()]) {
        assert!(!finding.mend.is_empty());
        assert_eq!(finding.state, State::Ok, "{finding:?}");
    }
}

#[test]
fn without_privileges_the_probe_says_what_helps() {
    let output = std::process::Command::new("setpriv")
        .args(["--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "probe::says_it", "--ignored", "--show-output"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let line = |what| said.lines().find(|line| line.contains(what)).unwrap_or_else(|| panic!("{output:?}"));
    let programs = line("BPF programs");
    assert!(programs.contains("Missing") && programs.contains("CAP_BPF"), "{programs}");
    let room = line("room beside other programs");
    assert!(
        room.contains("Lesser") && room.contains("it cannot be looked at: Operation not permitted"),
        "{room}"
    );
}

#[test]
#[ignore = "the process of another test"]
fn says_it() {
    probe(None, Path::new(PINS), &[]).iter().for_each(|finding| println!("{finding:?}"));
}
