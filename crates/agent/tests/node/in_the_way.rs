//! What comes into the way of an agent while it runs is noticed, said once, and shown until it is gone.

use crate::scene::{FromNowOn, Scene, sluice, until, well};

fn status(scene: &Scene) -> String {
    let output = sluice(["status", "--admin-socket"]).arg(scene.socket()).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn settings_firewalls_and_kube_proxys_rules_that_come_later_are_said_and_shown() {
    let scene = Scene::new();
    let node = scene.lab.node();
    let agent = scene.start();
    assert!(!status(&scene).contains("Problem"), "{}", status(&scene));

    // As wg-quick does.
    let said = FromNowOn::of(&agent);
    well(node.ns.set("net/ipv4/conf/all/src_valid_mark", "1"));
    said.wait_for(&["WARN", "reverse path", "drops every captured packet", "src_valid_mark=0"]);
    until("it is shown", || {
        status(&scene).contains("reverse path: is looked up with the packet's mark on all")
    });

    well(node.ns.nft_file(
        "table inet firewall { chain input { type filter hook input priority 0; policy drop; iif lo accept; }; }",
    ));
    said.wait_for(&["WARN", "firewall", "inet firewall input", "meta mark & 0x30 == 0x10 accept"]);
    until("both are shown", || {
        let status = status(&scene);
        status.contains("reverse path: ") && status.contains("firewall: ")
    });

    let said = FromNowOn::of(&agent);
    well(node.ns.set("net/ipv4/conf/all/src_valid_mark", "0"));
    said.wait_for(&["INFO", "reverse path: this is over"]);
    well(node.ns.nft("delete table inet firewall"));
    said.wait_for(&["INFO", "firewall: this is over"]);
    until("nothing is shown any more", || !status(&scene).contains("Problem"));

    well(node.ns.nft("add table ip kube-proxy"));
    said.wait_for(&["WARN", "rules of kube-proxy", "go on catching packets"]);
    until("it is shown", || status(&scene).contains("rules of kube-proxy: "));
    let lines = agent.lines();
    let warnings = |about: &str| lines.iter().filter(|l| l.contains("WARN") && l.contains(about)).count();
    assert_eq!((warnings("reverse path: "), warnings("firewall: ")), (1, 1), "{lines:#?}");
    scene.assert_served(1);
}
