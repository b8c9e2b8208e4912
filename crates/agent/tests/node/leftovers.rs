//! What is left in the kernel when an agent has ended, and when `sluice cleanup` has run.

use std::net::UdpSocket;

use rustix::process::Signal;
use sluice_testbed::lab::PATIENCE;

use crate::scene::{CLEANUP, Scene, sluice, well};
use crate::settings;

/// Rules of others: Docker's as its iptables has them, a firewall's, a CNI's, and a policy rule and table.
const OTHERS: &str = r#"
table ip nat {
    chain DOCKER {
        iifname "docker0" return
    }
    chain PREROUTING {
        type nat hook prerouting priority -100; policy accept;
        fib daddr type local jump DOCKER
    }
    chain POSTROUTING {
        type nat hook postrouting priority 100; policy accept;
        ip saddr 172.17.0.0/16 oifname != "docker0" masquerade
    }
}
table ip filter {
    chain DOCKER-USER {
        return
    }
    chain FORWARD {
        type filter hook forward priority 0; policy accept;
        jump DOCKER-USER
    }
}
table inet firewalld {
    comment "somebody's"
    set addresses {
        type ipv4_addr; flags interval; elements = { 192.0.2.0/24 }
    }
    chain input {
        type filter hook input priority 10; policy accept;
        ip saddr @addresses drop
    }
}
"#;

const OTHERS_ROUTING: &str = "rule add fwmark 0x200/0xf00 lookup 2004 priority 9\n\
                              rule add from 192.0.2.7 lookup 100\n\
                              -6 rule add fwmark 0x200/0xf00 lookup 2004 priority 9\n";

/// Everything about packets that the kernel has on the node.
fn kernel(scene: &Scene) -> Vec<String> {
    let ns = &scene.lab.node().ns;
    let ip = ["rule", "-6 rule", "route show table all", "-6 route show table all"];
    let mut listings = vec![scene.nft("ruleset")];
    listings.extend(ip.map(|what| well(ns.ip(what))));
    listings.push(format!("{:?}", settings::values(&scene.lab)));
    listings
}

#[test]
fn cleanup_leaves_everything_as_it_was_before_the_first_agent() {
    let scene = Scene::new();
    let node = scene.lab.node();
    well(node.ns.nft_file(OTHERS));
    for command in OTHERS_ROUTING.lines() {
        well(node.ns.ip(command));
    }
    // Connection tracking knows something, so that the rules of all agents are to be the same.
    let socket = node.ns.run(|| UdpSocket::bind((node.v4, 0))).unwrap();
    socket.send_to(b"known", socket.local_addr().unwrap()).unwrap();
    let before = kernel(&scene);

    let mut agent = scene.start();
    scene.assert_served(1);
    let refused = well(node.spawn(&sluice(CLEANUP))).wait(PATIENCE);
    assert!(!well(refused).success(), "an agent runs");
    agent.kill();
    let agents = kernel(&scene);
    assert!(before.iter().zip(&agents).all(|(before, after)| before != after), "it was there: {agents:#?}");

    let clean_up = || {
        let mut cleanup = well(node.spawn(&sluice(CLEANUP)));
        assert!(well(cleanup.wait(PATIENCE)).success(), "{:?}", cleanup.lines());
        cleanup
    };
    let removed = clean_up();
    assert_eq!(kernel(&scene), before);
    for part in
        ["table inet sluice", "IPv4 policy rule", "IPv6 policy rule", "IPv4 route", "IPv6 route", "set back"]
    {
        well(removed.wait_for(part, PATIENCE));
    }
    well(clean_up().wait_for("nothing of an agent's is here", PATIENCE));
    assert_eq!(kernel(&scene), before);

    // Once more, with an agent that ends well.
    let mut agent = scene.start();
    scene.assert_served(1);
    agent.signal(Signal::TERM).unwrap();
    assert!(well(agent.wait(PATIENCE)).success());
    assert_eq!(kernel(&scene), agents, "an end by SIGTERM leaves the same as one by SIGKILL");
    clean_up();
    assert_eq!(kernel(&scene), before);
}
