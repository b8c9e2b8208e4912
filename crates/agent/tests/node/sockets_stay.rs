//! Agents that end while connections are decided at their sockets, by programs that stay.

use std::ffi::OsStr;
use std::process::Command;

use rustix::process::Signal;
use sluice_model::{Family, Protocol};
use sluice_testbed::lab::{Bpffs, Cgroup, Host, Load, PATIENCE, Process, SILENCE};

use crate::manifests::{FAMILIES, cluster_ip, node_port};
use crate::scene::{Conversation, FromNowOn, READY, Scene, sluice, until, well};

/// A scene whose clients are decided about.
struct Place {
    scene: Scene,
    cgroup: Cgroup,
    /// Last: it goes when all threads of the scene have.
    bpffs: Bpffs,
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = sluice_socket::remove(&self.bpffs.path().join("sluice"));
    }
}

impl Place {
    fn new() -> Self {
        let bpffs = well(Bpffs::mount());
        let cgroup = well(Cgroup::enter());
        Self { scene: Scene::new(), cgroup, bpffs }
    }

    fn spawn(&self) -> Process {
        let of_tproxy = self.scene.command();
        let mode = |argument| if argument == OsStr::new("tproxy") { OsStr::new("socket") } else { argument };
        let mut command = sluice(of_tproxy.get_args().map(mode));
        command.arg("--socket-pins").arg(self.bpffs.path().join("sluice"));
        command.arg("--socket-cgroup").arg(self.cgroup.path());
        command.args(["--socket-namespaces=", "--grace-period", "600"]);
        well(self.scene.lab.node().spawn(&self.bpffs.seen_by(&command)))
    }

    fn start(&self) -> Process {
        let agent = self.spawn();
        well(agent.wait_for(READY, PATIENCE));
        agent
    }

    /// The clients that are decided about, and where they connect to.
    fn clients(&self) -> Vec<(&Host, Family)> {
        let hosts = [self.scene.lab.pod(0), self.scene.lab.node()];
        hosts.into_iter().flat_map(|host| FAMILIES.map(|family| (host, family))).collect()
    }

    /// Makes connections until none is left to the relay any more.
    fn prove(&self) {
        until("every endpoint has been connected to", || {
            let before = self.relayed();
            for (host, family) in self.clients() {
                for _ in 0..4 {
                    let outcome = host.ask(Protocol::Tcp, cluster_ip(1, family), PATIENCE);
                    assert!(outcome.by().is_some(), "{outcome:?}");
                }
            }
            before.is_some() && before == self.relayed()
        });
    }

    /// How many connections the workers of the agent have taken so far.
    fn relayed(&self) -> Option<u64> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"));
        command.args(["status", "-o", "json", "--admin-socket"]).arg(self.scene.socket());
        let told: serde_json::Value = serde_json::from_slice(&command.output().unwrap().stdout).ok()?;
        told["counters"]["tcp_accepted"].as_u64()
    }

    /// Load on Service 1 over TCP, and on Service 2 over UDP.
    fn load(&self) -> Vec<Load> {
        let of = |(host, family): (&Host, Family)| {
            [(Protocol::Tcp, 1), (Protocol::Udp, 2)]
                .map(|(protocol, number)| host.load(protocol, cluster_ip(number, family)))
        };
        self.clients().into_iter().flat_map(of).collect()
    }
}

#[track_caller]
fn assert_answered(loads: &[Load]) {
    for load in loads {
        assert!(load.answers_more(25, PATIENCE), "{:?}", load.report());
    }
}

#[track_caller]
fn assert_unharmed(loads: Vec<Load>) {
    assert_answered(&loads);
    for load in loads {
        let report = load.stop();
        assert_eq!(report.failed, 0, "{report:#?}");
    }
}

#[test]
fn kill_9_and_a_new_agent_cost_no_connection_that_is_made_and_none_that_is_open() {
    let place = Place::new();
    let mut agent = place.start();
    place.prove();
    let to = |family| cluster_ip(1, family);
    let mut conversations: Vec<Conversation> =
        place.clients().into_iter().map(|(host, family)| Conversation::begin(host, to(family))).collect();
    let loads = place.load();
    for _ in 0..3 {
        assert_answered(&loads);
        agent.kill();
        assert_answered(&loads);
        conversations.iter_mut().for_each(|conversation| conversation.say("nobody is there"));
        agent = place.start();
        assert_answered(&loads);
        conversations.iter_mut().for_each(|conversation| conversation.say("somebody is"));
    }
    assert_unharmed(loads);
    drop(agent);
}

#[test]
fn an_endpoint_that_nobody_serves_costs_no_error_with_an_agent_and_is_passed_over_without_one() {
    let place = Place::new();
    let mut agent = place.start();
    place.scene.apply(&place.scene.service(3).there(place.scene.lab.other_pod(1)));
    let ask = |patience| place.scene.lab.pod(0).ask(Protocol::Tcp, cluster_ip(3, Family::V4), patience);
    until("the Service is here", || ask(SILENCE).by().is_some());
    let hosts = [place.scene.lab.pod(0), place.scene.lab.node()];
    let loads = hosts.map(|host| host.load(Protocol::Tcp, cluster_ip(3, Family::V4)));
    for load in &loads {
        assert!(load.answers_more(200, PATIENCE), "{:?}", load.report());
    }
    let relayed = place.relayed().unwrap();
    let reports = loads.map(Load::stop);
    assert!(reports.iter().all(|report| report.failed == 0), "{reports:#?}");
    let answered: u64 = reports.iter().map(|report| report.answered).sum();
    assert!(
        relayed < answered * 2 / 3,
        "{relayed} of {answered}: those to two of three endpoints are not relayed"
    );

    agent.kill();
    // Its last word is believed for a while, and somebody has to find out again that nobody is there.
    until("three rounds are answered", || (0..9).all(|_| ask(SILENCE).by().is_some()));
}

#[test]
fn an_agent_that_is_replaced_leaves_the_sockets_to_its_successor_while_it_still_has_connections() {
    let place = Place::new();
    let first = place.start();
    place.prove();
    let loads = place.load();
    let lab = &place.scene.lab;
    let mut relayed = Conversation::begin(lab.outside(), node_port(1, Family::V4));
    let second = place.start();
    let seen = FromNowOn::of(&second);
    first.signal(Signal::TERM).unwrap();
    seen.wait_for(&["decided at their sockets", "as this agent knows all"]);
    relayed.say("the first one still has me");
    assert_unharmed(loads);
}
