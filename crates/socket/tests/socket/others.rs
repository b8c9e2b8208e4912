//! Programs of others at the cgroup, and what the probe says of them.

use std::fs;
use std::path::{Path, PathBuf};

use sluice_socket::{Config, Error, Finding, Programs, State, probe};

use crate::life::until_attached;
use crate::node::{Node, remove_pinned};

/// A program of somebody else: one of the object's own, pinned elsewhere.
struct Other<'a> {
    node: &'a Node,
    pinned: PathBuf,
    id: String,
}

impl<'a> Other<'a> {
    fn new(node: &'a Node) -> Self {
        drop(node.attach().unwrap());
        let pinned = node.config.pins.with_file_name("other");
        let programs = node.programs();
        let id = programs.lines().find(|line| line.contains("sluice_connect4")).unwrap();
        let id = id.split_whitespace().next().unwrap().to_owned();
        node.host.output("bpftool", &["prog", "pin", "id", &id, pinned.to_str().unwrap()]).unwrap();
        assert!(remove_pinned(&node.config.pins));
        until_attached(node, 0);
        Self { node, pinned, id }
    }

    fn bpftool(&self, what: &str, cgroup: &Path, flags: &[&str]) {
        let [cgroup, pinned] = [cgroup, &self.pinned].map(|path| path.to_str().unwrap());
        let arguments = [&["cgroup", what, cgroup, "cgroup_inet4_connect", "pinned", pinned], flags].concat();
        self.node.host.output("bpftool", &arguments).unwrap();
    }
}

fn room(config: &Config) -> Finding {
    let findings = probe(Some(&config.cgroup), &config.pins, &[]);
    findings.into_iter().find(|finding| finding.what == "room beside other programs").unwrap()
}

#[test]
fn a_cgroup_that_somebody_has_for_himself_is_left_alone() {
    let node = Node::new();
    let other = Other::new(&node);
    other.bpftool("attach", &node.config.cgroup, &[]);
    let refused = node.attach().unwrap_err();
    assert!(
        matches!(&refused, Error::Exclusive { program, .. } if program == "sluice_connect4"),
        "{refused}"
    );
    assert!(!node.config.pins.exists(), "nothing stays of the attempt");
    until_attached(&node, 1);
    assert_eq!(node.programs().lines().count(), 1);
}

/// What the kernel does is tried for each: the probe says the same.
#[test]
fn the_probe_says_beside_whose_programs_ours_are_not_attached() {
    let node = Node::new();
    let other = Other::new(&node);
    let at = &node.config.cgroup;
    let below = at.join("below");
    fs::create_dir(&below).unwrap();
    let [here, there] = [at, &below].map(|cgroup| Config { cgroup: cgroup.clone(), ..node.config.clone() });
    let program = format!("program {} at {} allows none beside it for connect4", other.id, at.display());
    let [none, none_below] = [at, &below].map(|cgroup| format!("none is at {}", cgroup.display()));
    let one = format!("one is at {}: 1 for connect4", at.display());
    assert_eq!(room(&here).seen, none);
    let cases: [(&[&str], &Config, State, &str); 6] = [
        (&[], &here, State::Missing, &program),
        (&[], &there, State::Missing, &program),
        (&["override"], &here, State::Missing, &program),
        (&["override"], &there, State::Ok, &none_below),
        (&["multi"], &here, State::Ok, &one),
        (&["multi"], &there, State::Ok, &none_below),
    ];
    for (flags, config, state, seen) in cases {
        other.bpftool("attach", at, flags);
        let said = room(config);
        assert_eq!((said.state, &*said.seen), (state, seen), "{flags:?}");
        assert!(said.mend.contains("bpftool cgroup show"), "{said:?}");
        let attached = node.host.run(|| Programs::attach(config));
        assert_eq!(attached.is_ok(), state == State::Ok, "{flags:?} {attached:?}");
        if let Ok(attached) = attached {
            // Our own are none of others.
            assert_eq!(room(config).seen, seen);
            drop(attached);
            assert!(remove_pinned(&config.pins));
        }
        other.bpftool("detach", at, &[]);
        assert_eq!(room(&here).seen, none);
    }
    fs::remove_dir(&below).unwrap();
}
