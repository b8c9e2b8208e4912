//! Nothing is left when a lab is over.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use sluice_testbed::lab::{Host, Lab, Namespace, PATIENCE};

use super::{lab, this_test, until, well};

/// Notices when namespaces are gone: each holds one end of a veth, whose removal removes the other end.
struct Canary(Namespace);

impl Canary {
    fn new(paths: &[String]) -> Self {
        let namespace = well(Namespace::new("canary"));
        for (n, path) in paths.iter().enumerate() {
            well(namespace.ip(&format!("link add canary{n} type veth peer name canary netns {path}")));
        }
        Self(namespace)
    }

    fn alive(&self) -> usize {
        self.0.read("/proc/net/dev").unwrap().matches("canary").count()
    }
}

fn hosts(lab: &Lab) -> [&Host; 8] {
    let pods = [lab.pod(0), lab.pod(1), lab.other_pod(0), lab.other_pod(1)];
    let [a, b, c, d] = pods;
    [lab.router(), lab.node(), lab.other(), lab.outside(), a, b, c, d]
}

fn paths(lab: &Lab) -> Vec<String> {
    hosts(lab).map(|host| host.ns.path().to_str().unwrap().to_owned()).into()
}

/// A handle of a process that stays valid if its id is reused.
fn watch(id: u32) -> OwnedFd {
    pidfd_open(Pid::from_raw(id.try_into().unwrap()).unwrap(), PidfdFlags::empty()).unwrap()
}

fn has_ended(process: &OwnedFd) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&now)).unwrap() == 1
}

fn until_gone(canary: &Canary) {
    until("all namespaces are gone", || canary.alive() == 0);
}

#[test]
fn nothing_is_left_of_a_lab_that_is_dropped() {
    let lab = lab();
    let canary = Canary::new(&paths(&lab));
    let server = well(lab.pod(0).serve(80));
    let load = lab.outside().load(sluice_model::Protocol::Tcp, (lab.pod(0).v4, 80).into());
    assert!(load.answers_more(3, PATIENCE));
    let process = well(lab.node().spawn(Command::new("sh").args(["-c", "sleep 1000 & echo child $!; wait"])));
    let watched = watch(process.id());
    let child = well(process.wait_for("child ", PATIENCE));
    let child = watch(child.trim_start_matches("child ").parse().unwrap());
    assert_eq!(canary.alive(), 8);
    assert!(!has_ended(&watched) && !has_ended(&child));

    drop((load, server, process));
    assert!(has_ended(&watched), "drop waits for it");
    until("what it started has ended", || has_ended(&child));
    drop(lab);
    until_gone(&canary);
}

#[test]
fn a_connection_that_the_kernel_has_still_to_end_does_not_keep_a_lab() {
    let lab = lab();
    let canary = Canary::new(&paths(&lab));
    let server = well(lab.pod(0).serve(80));
    let stream = lab.outside().tcp_stream((lab.pod(0).v4, 80).into(), PATIENCE).unwrap();
    well(
        lab.node()
            .ns
            .nft_file("table inet test { chain forward { type filter hook forward priority 0; drop; }; }"),
    );
    // Nothing will acknowledge its FIN.
    drop(stream);
    drop((server, lab));
    until_gone(&canary);
}

#[test]
fn nothing_is_left_of_a_lab_whose_test_has_failed() {
    let mut witness = None;
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let lab = lab();
        let _server = well(lab.pod(0).serve(80));
        let process = well(lab.node().spawn(Command::new("sleep").arg("1000")));
        witness = Some((Canary::new(&paths(&lab)), watch(process.id())));
        lab.node().ns.run(|| panic!("meant to be: a test fails in a namespace"));
    }));
    assert!(panicked.is_err());
    let (canary, process) = witness.unwrap();
    assert!(has_ended(&process));
    until_gone(&canary);
}

/// Set in the program that is to be killed.
const VICTIM: &str = "SLUICE_LAB_TEST_VICTIM";

#[test]
fn nothing_is_left_of_a_lab_whose_program_was_killed() {
    if std::env::var_os(VICTIM).is_some() {
        let lab = lab();
        let process = well(lab.node().spawn(Command::new("sleep").arg("1000")));
        println!("\nvictim {} {}", process.id(), paths(&lab).join(" "));
        loop {
            std::thread::park();
        }
    }
    // If this program has to be restarted for a lab, that happens before it has a child.
    drop(lab());
    let name = "leftovers::nothing_is_left_of_a_lab_whose_program_was_killed";
    let mut victim = this_test(&[], name).env(VICTIM, "1").stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(victim.stdout.take().unwrap()).lines().map_while(Result::ok);
    let line = lines.find(|line| line.starts_with("victim ")).expect("it makes a lab");
    let words: Vec<String> = line.split(' ').skip(1).map(str::to_owned).collect();
    let (id, paths) = words.split_first().unwrap();
    let canary = Canary::new(paths);
    let process = watch(id.parse().unwrap());
    assert_eq!(canary.alive(), 8);
    assert!(!has_ended(&process));

    victim.kill().unwrap();
    victim.wait().unwrap();
    until("its program has ended", || has_ended(&process));
    until_gone(&canary);
}
