//! What others break by hand is mended, and new connections work again.

use std::net::SocketAddr;

use sluice_model::Protocol;
use sluice_testbed::lab::{Host, Process, SILENCE};

use crate::scene::{Conversation, FromNowOn, Scene, until, well};

/// Breaks something, and waits until the agent says that it has mended it, in a line with these parts.
#[track_caller]
fn break_and_wait(scene: &Scene, agent: &Process, tool: &str, arguments: &str, said: &[&str]) {
    let from_now_on = FromNowOn::of(agent);
    let words: Vec<&str> = arguments.split(' ').collect();
    well(scene.lab.node().ns.output(tool, &words));
    from_now_on.wait_for(said);
    until("new connections work again", || scene.questions(1).into_iter().all(is_answered));
    scene.assert_served(2);
}

fn is_answered((host, to): (&Host, SocketAddr)) -> bool {
    [Protocol::Tcp, Protocol::Udp].into_iter().all(|protocol| host.ask(protocol, to, SILENCE).by().is_some())
}

#[test]
fn a_flushed_ruleset_and_a_deleted_table_are_written_again() {
    let scene = Scene::new();
    let agent = scene.start();
    let mut conversations: Vec<_> =
        scene.questions(1).into_iter().map(|(host, to)| Conversation::begin(host, to)).collect();
    let written = scene.nft("table inet sluice");
    for (arguments, why) in [
        ("flush ruleset", "are reset"),
        ("delete table inet sluice", "are reset"),
        ("flush table inet sluice", "missing or strange"),
    ] {
        break_and_wait(
            &scene,
            &agent,
            "nft",
            arguments,
            &["WARN", "the nftables table inet sluice is repaired", why],
        );
        assert_eq!(scene.nft("table inet sluice"), written);
        conversations.iter_mut().for_each(|conversation| conversation.say(arguments));
    }
}

#[test]
fn single_elements_rules_and_chains_come_back() {
    let scene = Scene::new();
    let agent = scene.start();
    let written = scene.nft("table inet sluice");
    for arguments in [
        "flush map inet sluice frontends4",
        "delete element inet sluice node_ports6 { tcp . 30001 }",
        "add element inet sluice cluster_ips4 { 10.96.0.99 }",
        "flush chain inet sluice prerouting",
        "insert rule inet sluice output drop",
    ] {
        break_and_wait(&scene, &agent, "nft", arguments, &["WARN", "is repaired"]);
        assert_eq!(scene.nft("table inet sluice"), written, "{arguments}");
    }
}

#[test]
fn policy_rules_and_routes_come_back() {
    let scene = Scene::new();
    let agent = scene.start();
    let mut conversations: Vec<_> =
        scene.questions(1).into_iter().map(|(host, to)| Conversation::begin(host, to)).collect();
    for (arguments, item) in [
        ("rule del priority 90", "the IPv4 policy rule"),
        ("-6 rule del priority 90", "the IPv6 policy rule"),
        ("route flush table 7583", "the IPv4 route"),
        ("-6 route flush table 7583", "the IPv6 route"),
        // In its place.
        ("route replace unreachable default table 7583", "the IPv4 route"),
        ("-6 route replace unreachable default table 7583", "the IPv6 route"),
    ] {
        break_and_wait(&scene, &agent, "ip", arguments, &["WARN", item, "was gone, and is back"]);
        conversations.iter_mut().for_each(|conversation| conversation.say(arguments));
    }
}

#[test]
fn what_can_be_put_back_is_while_something_else_cannot_and_both_are_said() {
    let scene = Scene::new();
    let agent = scene.start();
    let ns = &scene.lab.node().ns;
    let said = FromNowOn::of(&agent);
    well(ns.output("ip", &["link", "set", "lo", "down"]));
    said.wait_for(&["captured packets are lost", "the IPv6 route"]);
    well(ns.output("ip", &["-6", "rule", "del", "priority", "90"]));
    said.wait_for(&["the IPv6 policy rule for captured packets was gone, and is back"]);
    well(ns.output("ip", &["link", "set", "lo", "up"]));
    said.wait_for(&["policy rules and routes are as they are to be again"]);
    scene.assert_served(1);
}

#[test]
fn interfaces_that_come_and_go_disturb_nothing() {
    let scene = Scene::new();
    let _agent = scene.start();
    let loads = scene.load();
    for number in 0..10 {
        let name = format!("extra{number}");
        well(scene.lab.node().ns.ip_batch(&format!(
            "link add {name} type bridge\naddress add 10.99.0.{number}/32 dev {name}\nlink set {name} up\n\
             link delete {name}\n"
        )));
    }
    loads.assert_unharmed();
}

#[test]
fn what_is_broken_all_the_time_is_mended_each_time_and_said_no_more_than_can_be_read() {
    let scene = Scene::new();
    let agent = scene.start();
    let ns = &scene.lab.node().ns;
    let is_there =
        || ns.output("ip", &["rule", "show", "priority", "90"]).is_ok_and(|rules| !rules.is_empty());
    for _ in 0..14 {
        until("the rule is there", is_there);
        well(ns.output("ip", &["rule", "del", "priority", "90"]));
    }
    until("the rule is there", is_there);
    let lines = agent.lines();
    assert_eq!(lines.iter().filter(|line| line.contains("was gone, and is back")).count(), 10, "{lines:#?}");
    scene.assert_served(1);
}
