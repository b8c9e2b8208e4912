//! Two agents at a time, as while an update is rolled out, with different views of the cluster: one of them serves.

use std::fs;
use std::path::Path;

use rustix::process::Signal;
use sluice_model::{Family, Protocol};
use sluice_testbed::lab::{Outcome, PATIENCE, Process};

use crate::manifests::cluster_ip;
use crate::scene::{Conversation, FromNowOn, READY, Scene, until, well};

/// Starts an agent that follows other manifests, and waits until it is ready.
fn start_with(scene: &Scene, manifests: &Path) -> Process {
    let mut command = scene.command_following(manifests);
    let agent = well(scene.lab.node().spawn(command.args(["--grace-period", "600"])));
    well(agent.wait_for(READY, PATIENCE));
    agent
}

/// Manifests of these Services.
fn manifests(scene: &Scene, name: &str, services: &[u8]) -> std::path::PathBuf {
    let directory = scene.manifests().with_file_name(name);
    fs::create_dir(&directory).unwrap();
    fs::copy(scene.manifests().join("node.json"), directory.join("node.json")).unwrap();
    for number in services {
        let service = scene.service(*number);
        fs::write(directory.join(service.name()).with_extension("json"), service.manifest()).unwrap();
    }
    directory
}

#[test]
fn the_new_one_alone_serves_and_writes_the_rules_and_the_old_one_comes_back_if_it_dies() {
    let scene = Scene::new();
    scene.apply(&scene.service(3));
    let old = well(scene.lab.node().spawn(scene.command().args(["--grace-period", "600"])));
    well(old.wait_for(READY, PATIENCE));
    let loads = scene.load();
    let mut conversation = Conversation::begin(scene.lab.pod(0), cluster_ip(1, Family::V4));

    // It knows another Service, and another one no longer.
    let directory = manifests(&scene, "others", &[1, 2, 4]);
    let mut new = start_with(&scene, &directory);
    // From the first question on.
    for _ in 0..20 {
        scene.assert_served(4);
    }
    well(old.wait_for("another agent takes new connections", PATIENCE));
    let rules = scene.nft("ruleset");
    assert!(rules.contains("10.96.0.4 . tcp . 80") && !rules.contains("10.96.0.3 . tcp . 80"));

    // The old one follows changes, and makes none of them.
    for round in 0..10 {
        let said = FromNowOn::of(&old);
        if round % 2 == 0 {
            scene.delete(&scene.service(2))
        } else {
            scene.apply(&scene.service(2))
        }
        scene.apply(&scene.service(5 + round));
        said.wait_for(&["frontends changed"]);
        loads.assert_answered();
        conversation.say("it goes on");
    }
    let clients = |host, number| host_asks(&scene, host, number);
    assert_eq!(scene.nft("ruleset"), rules);
    assert!(clients(0, 5).by().is_none());
    // What is damaged is mended once, and as the new one has it.
    let said = FromNowOn::of(&new);
    well(scene.lab.node().ns.nft("add element inet sluice cluster_ips4 { 10.96.0.99 }"));
    said.wait_for(&["WARN", "the nftables table inet sluice is repaired"]);
    assert_eq!(scene.nft("ruleset"), rules);
    loads.assert_unharmed();

    new.kill();
    well(old.wait_for("this one takes new connections again", PATIENCE));
    until("the old one serves what it knows", || clients(0, 5).by().is_some());
    scene.assert_served(3);
    assert!(!scene.nft("ruleset").contains("10.96.0.4 . tcp . 80"));
    conversation.say("still here");

    // And gives way again.
    let loads = scene.load();
    let _next = start_with(&scene, &directory);
    for _ in 0..20 {
        scene.assert_served(4);
    }
    let mut old = old;
    old.signal(Signal::TERM).unwrap();
    well(old.wait_for("no new connections from now on: another agent", PATIENCE));
    conversation.say("to the end");
    drop(conversation);
    assert!(well(old.wait(PATIENCE)).success());
    assert_eq!(scene.nft("ruleset"), rules);
    loads.assert_unharmed();
    for line in old.lines() {
        assert!(!line.contains("is repaired") && !line.contains("changes of Services wait"), "{line}");
    }
}

fn host_asks(scene: &Scene, pod: usize, number: u8) -> Outcome {
    scene.lab.pod(pod).ask(Protocol::Tcp, cluster_ip(number, Family::V4), sluice_testbed::lab::SILENCE)
}
