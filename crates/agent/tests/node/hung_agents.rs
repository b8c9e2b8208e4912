//! An agent that hangs beside one that takes over from it: its listeners take nothing that is new.

use rustix::process::Signal;
use sluice_model::{Family, Protocol};
use sluice_testbed::lab::{PATIENCE, Process, SILENCE};

use crate::manifests::cluster_ip;
use crate::scene::{Conversation, READY, Scene, sluice, until, well};

/// Each from a port of its own, so that the kernel would give a share of them to anybody who listens.
const QUESTIONS: usize = 40;

fn start(scene: &Scene) -> Process {
    let agent = well(scene.lab.node().spawn(scene.command().args(["--grace-period", "600"])));
    well(agent.wait_for(READY, PATIENCE));
    agent
}

#[track_caller]
fn assert_all_answered(scene: &Scene) {
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let unanswered = |_: &usize| {
            let outcome = scene.lab.pod(0).ask(protocol, cluster_ip(1, Family::V4), SILENCE);
            outcome.by().is_none()
        };
        let lost = (0..QUESTIONS).filter(unanswered).count();
        assert_eq!(lost, 0, "{protocol}: so many of {QUESTIONS} questions are lost");
    }
    scene.assert_served(2);
}

#[test]
fn what_is_new_is_not_lost_at_the_listeners_of_an_agent_that_hangs() {
    let scene = Scene::new();
    let hung = start(&scene);
    hung.signal(Signal::STOP).unwrap();
    let mut new = start(&scene);
    well(new.wait_for("another agent on this node hangs", PATIENCE));
    assert_all_answered(&scene);
    let status = || {
        let output = sluice(["status", "--admin-socket"]).arg(scene.socket()).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(status().contains("another agent on this node hangs"), "{}", status());

    // One that wakes up lets go, and serves again if it is to. What is open stays so.
    hung.signal(Signal::CONT).unwrap();
    well(hung.wait_for("another agent takes new connections", PATIENCE));
    well(new.wait_for("has let go of its listeners", PATIENCE));
    until("nothing is wrong any more", || !status().contains("hangs"));
    let mut conversation = Conversation::begin(scene.lab.pod(0), cluster_ip(1, Family::V4));
    conversation.say("by the new one");
    assert_all_answered(&scene);
    new.kill();
    well(hung.wait_for("this one takes new connections again", PATIENCE));
    until("its rules are there", || scene.nft("ruleset").contains("127.0.0.1:10265"));
    assert_all_answered(&scene);
}

#[test]
fn an_agent_that_wakes_up_after_its_successor_has_died_has_listeners_again() {
    let scene = Scene::new();
    let hung = start(&scene);
    hung.signal(Signal::STOP).unwrap();
    let mut new = start(&scene);
    new.kill();
    hung.signal(Signal::CONT).unwrap();
    until("its rules are there", || scene.nft("ruleset").contains("127.0.0.1:10265"));
    until("it serves", || {
        scene.lab.pod(0).ask(Protocol::Tcp, cluster_ip(1, Family::V4), SILENCE).by().is_some()
    });
    assert_all_answered(&scene);

    // The next one, beside another that hangs, does as well.
    hung.signal(Signal::STOP).unwrap();
    let second = start(&scene);
    second.signal(Signal::STOP).unwrap();
    let _third = start(&scene);
    assert_all_answered(&scene);
}
