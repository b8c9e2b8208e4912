//! What a node lacks.

use sluice_socket::{State, probe};

use crate::node::Node;

#[test]
fn where_programs_can_be_attached_the_probe_finds_nothing_missing() {
    let node = Node::new();
    drop(node.attach().unwrap());
    // In a container the root of all cgroups may be out of sight, and /sys read-only.
    let own = ["cgroup2", "bpffs"];
    for finding in probe() {
        assert!(!finding.mend.is_empty());
        assert!(finding.state != State::Missing || own.contains(&finding.what), "{finding:?}");
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
    let line =
        said.lines().find(|line| line.contains("BPF programs")).unwrap_or_else(|| panic!("{output:?}"));
    assert!(line.contains("Missing") && line.contains("CAP_BPF"), "{line}");
}

#[test]
#[ignore = "the process of another test"]
fn says_it() {
    probe().iter().for_each(|finding| println!("{finding:?}"));
}
