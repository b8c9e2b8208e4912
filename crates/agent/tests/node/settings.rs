//! Settings of the kernel that the agent changes, what for, and how they become again what they were.

use std::process::Command;

use sluice_model::{Family, Protocol};
use sluice_testbed::lab::{Lab, PATIENCE, Process, SILENCE};

use crate::manifests::node_port;
use crate::scene::{CLEANUP, FromNowOn, Scene, sluice, until, well};

const TW_REUSE: &str = "net/ipv4/tcp_tw_reuse";
const MIGRATE_REQ: &str = "net/ipv4/tcp_migrate_req";

/// All of them, with what the agent makes of them. Those of bridges are there where br_netfilter is loaded.
const SETTINGS: [(&str, &str); 4] = [
    (TW_REUSE, "1"),
    (MIGRATE_REQ, "1"),
    ("net/bridge/bridge-nf-call-iptables", "0"),
    ("net/bridge/bridge-nf-call-ip6tables", "0"),
];

/// What they are on the node, as far as they are there.
pub(crate) fn values(lab: &Lab) -> Vec<(&'static str, String)> {
    let value = |name: &str| lab.node().ns.read(&format!("/proc/sys/{name}")).ok();
    SETTINGS.into_iter().filter_map(|(name, _)| Some((name, value(name)?.trim().to_owned()))).collect()
}

fn value(lab: &Lab, name: &str) -> String {
    values(lab).into_iter().find(|(known, _)| *known == name).unwrap().1
}

/// Cleanup, which succeeds.
fn clean_up(scene: &Scene) -> Process {
    let mut cleanup = well(scene.lab.node().spawn(&sluice(CLEANUP)));
    assert!(well(cleanup.wait(PATIENCE)).success(), "{:?}", cleanup.lines());
    cleanup
}

#[test]
fn cleanup_sets_back_what_agents_have_set_whatever_happened_in_between() {
    let scene = Scene::new();
    let before = values(&scene.lab);
    assert_eq!(value(&scene.lab, TW_REUSE), "2", "the kernel's default");
    let are_ours = || {
        let now = values(&scene.lab);
        now.len() == before.len()
            && now.iter().all(|(name, value)| SETTINGS.contains(&(*name, value.as_str())))
    };

    let mut first = scene.start();
    assert!(are_ours(), "{:?}", values(&scene.lab));
    // In whatever order.
    let written_down = || {
        let table = scene.nft("ruleset inet");
        let (_, table) = table.split_once("table inet sluice_settings {")?;
        let mut lines: Vec<String> = table.split("\n}").next()?.lines().map(str::to_owned).collect();
        lines.sort_unstable();
        Some(lines)
    };
    let first_time = written_down();
    assert!(first_time.is_some());
    first.kill();
    let mut second = scene.start();
    assert_eq!(written_down(), first_time, "what was first is not written over");
    well(scene.lab.node().ns.nft("flush ruleset"));
    until("it is written down again", || written_down() == first_time);
    second.kill();

    let said = clean_up(&scene);
    well(said.wait_for("set back: net.ipv4.tcp_tw_reuse=2", PATIENCE));
    assert_eq!(values(&scene.lab), before);
    assert_eq!(well(scene.lab.node().ns.nft("list ruleset")), "");
}

#[test]
fn what_an_administrator_has_changed_since_stays() {
    let scene = Scene::new();
    scene.start().kill();
    well(scene.lab.node().ns.set(TW_REUSE, "0"));
    let said = clean_up(&scene);
    well(said.wait_for("kept: net.ipv4.tcp_tw_reuse=0", PATIENCE));
    assert_eq!((&*value(&scene.lab, TW_REUSE), &*value(&scene.lab, MIGRATE_REQ)), ("0", "0"));

    // Who has switched it off has had a reason.
    scene.start().kill();
    assert_eq!(value(&scene.lab, TW_REUSE), "0");
}

/// As `sysctl --system` does.
#[test]
fn what_others_set_again_is_set_back_and_said() {
    let scene = Scene::new();
    let agent = scene.start();
    let said = FromNowOn::of(&agent);
    for (name, theirs) in [(TW_REUSE, "2"), (MIGRATE_REQ, "0")] {
        well(scene.lab.node().ns.set(name, theirs));
        until("it is set back", || value(&scene.lab, name) == "1");
    }
    said.wait_for(&["net.ipv4.tcp_tw_reuse is set to 1"]);
    said.wait_for(&["net.ipv4.tcp_migrate_req is set to 1"]);
    well(scene.lab.node().ns.set(TW_REUSE, "0"));
    well(scene.lab.node().ns.set(MIGRATE_REQ, "0"));
    until("a look", || value(&scene.lab, MIGRATE_REQ) == "1");
    assert_eq!(value(&scene.lab, TW_REUSE), "0", "who switches it off has a reason");
}

#[test]
fn where_a_setting_cannot_be_set_back_cleanup_says_what_to_do_and_does_not_forget_it() {
    let scene = Scene::new();
    scene.start().kill();
    let mut read_only = Command::new("unshare");
    let script = "mount -o bind,ro /proc/sys /proc/sys && exec \"$0\" \"$@\"";
    read_only
        .args(["--mount", "sh", "-c", script, env!("CARGO_BIN_EXE_sluice")])
        .args(CLEANUP)
        .env_remove("RUST_LOG");
    let mut cleanup = well(scene.lab.node().spawn(&read_only));
    let said = well(cleanup.wait_for("ERROR", PATIENCE));
    assert!(said.contains("sysctl -w net."), "{said}");
    assert!(!well(cleanup.wait(PATIENCE)).success());
    clean_up(&scene);
    assert_eq!((&*value(&scene.lab, TW_REUSE), &*value(&scene.lab, MIGRATE_REQ)), ("2", "0"));
}

/// Without the setting each of them would take its port for a minute.
#[test]
fn short_connections_with_the_nodes_address_take_ports_again() {
    let scene = Scene::new();
    let service = scene.service(3);
    let _agent = scene.start();
    scene.apply(&service);
    let outside = scene.lab.outside();
    let to = node_port(3, Family::V4);
    let ask = |patience| outside.ask(Protocol::Tcp, to, patience).by().is_some();
    until("the Service is there", || ask(SILENCE));
    // Ten ports, two endpoints.
    well(scene.lab.node().ns.set("net/ipv4/ip_local_port_range", "40000 40009"));
    let mut answered = 0;
    until("many more connections than there are ports", || {
        answered += u32::from(ask(PATIENCE));
        answered == 60
    });
}
