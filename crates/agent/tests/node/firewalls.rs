//! Next to rules of others: a firewall that lets in what it must, and a CNI's masquerading.

use sluice_model::Protocol;
use sluice_testbed::lab::{Host, Outcome, PATIENCE, SILENCE};

use crate::manifests::{BACKEND, FAMILIES, Service, cluster_ip};
use crate::scene::{Scene, sluice, well};

const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

/// As administrators write them, with the rule that the documentation asks for.
const FIREWALL: &str = r#"
table inet firewall {
    chain input {
        type filter hook input priority 0; policy drop;
        ct state established,related accept
        iif lo accept
        meta l4proto { icmp, icmpv6 } accept
        tcp dport 22 accept
        meta mark & 0x30 == 0x10 accept
    }
    # As firewalld and Calico have it: no packet whose answer would take another way.
    chain reverse_path {
        type filter hook prerouting priority -299;
        meta l4proto { icmp, icmpv6 } accept
        fib saddr . mark . iif oif missing drop
    }
    chain reverse_path_later {
        type filter hook prerouting priority 10;
        meta l4proto { icmp, icmpv6 } accept
        fib saddr . mark . iif oif missing drop
    }
}
"#;

/// As `ufw default deny outgoing` has it.
const OUTGOING: &str = "
table inet outgoing {
    chain output {
        type filter hook output priority 0; policy drop;
        oif lo accept
        ct state established,related accept
        meta l4proto { icmp, icmpv6 } accept
    }
}
";

/// As CNI plugins write it: what pods send to others leaves with the node's address.
const MASQUERADE: &str = "
table inet cni {
    chain postrouting {
        type nat hook postrouting priority 100;
        ip saddr 10.244.0.0/16 ip daddr != 10.244.0.0/16 masquerade
        ip6 saddr fd00:244::/32 ip6 daddr != fd00:244::/32 masquerade
    }
}
";

/// As Calico's iptables have it: a policy by which this pod may send to nobody.
const POLICY: &str = "
table ip filter {
    chain cali-po-nobody {
        counter drop
    }
    chain cali-FORWARD {
        ip saddr 10.244.1.2 jump cali-po-nobody
    }
    chain FORWARD {
        type filter hook forward priority 0; policy accept;
        jump cali-FORWARD
    }
}
";

/// It is no good, so it is said: by `check`, and in the log of an agent that nobody has checked for.
#[test]
fn policies_where_packets_are_forwarded_do_not_see_services_which_is_said() {
    let scene = Scene::new();
    let (node, pod) = (scene.lab.node(), scene.lab.pod(0));
    let address = pod.ip(FAMILIES[0]).to_string();
    well(node.ns.nft_file(&POLICY.replace("10.244.1.2", &address)));
    let direct = (scene.lab.pod(1).ip(FAMILIES[0]), BACKEND).into();
    assert_eq!(pod.ask(Protocol::Tcp, direct, SILENCE), Outcome::Silent, "the policy holds");

    let said = "network policies: Calico enforces some for pods of this node (ip filter cali-FORWARD)";
    let mut check = well(node.spawn(&sluice(["check"])));
    assert!(!well(check.wait(PATIENCE)).success(), "{:?}", check.lines());
    well(check.wait_for("Calico enforces some for pods of this node (ip filter cali-FORWARD)", PATIENCE));
    let agent = scene.start();
    well(agent.wait_for(said, PATIENCE));
    scene.assert_served(1);
}

#[test]
fn a_firewall_lets_services_in_and_nothing_else() {
    let scene = Scene::new();
    let (node, pod, outside) = (scene.lab.node(), scene.lab.pod(0), scene.lab.outside());
    let _servers = [22, 9999].map(|port| well(node.serve(port)));
    well(node.ns.nft_file(FIREWALL));
    let _agent = scene.start();
    for _ in 0..2 {
        // Both endpoints have their turn.
        scene.assert_served(1);
    }
    for family in FAMILIES {
        let ask = |host: &Host, protocol, port, patience| {
            host.ask(protocol, (node.ip(family), port).into(), patience)
        };
        for host in [pod, outside] {
            assert_eq!(ask(host, Protocol::Tcp, 22, PATIENCE).by(), Some("node"), "{family} {}", host.name);
            for protocol in PROTOCOLS {
                assert_eq!(ask(host, protocol, 9999, SILENCE), Outcome::Silent, "{family} {}", host.name);
            }
            assert_eq!(ask(host, Protocol::Udp, 22, SILENCE), Outcome::Silent, "{family} {}", host.name);
        }
    }
}

/// Under kube-proxy what pods send to Services is forwarded; here the relay sends it, and no connection of it is tracked.
#[test]
fn a_firewall_for_what_leaves_has_to_know_what_is_relayed_which_is_said() {
    let scene = Scene::new();
    let (node, pod) = (scene.lab.node(), scene.lab.pod(0));
    well(node.ns.nft_file(OUTGOING));
    let _agent = scene.start();
    let check = || {
        let mut check = well(node.spawn(&sluice(["check"])));
        well(check.wait(PATIENCE));
        check.lines().join("\n")
    };
    let said = "refused by inet outgoing output; what is relayed is among them";
    assert!(check().contains(said), "{}", check());
    assert_eq!(pod.ask(Protocol::Tcp, cluster_ip(1, FAMILIES[0]), SILENCE), Outcome::Silent);
    well(node.ns.nft("insert rule inet outgoing output meta mark & 0xffef == 0x20 accept"));
    assert!(!check().contains(said), "{}", check());
    for family in FAMILIES {
        for protocol in PROTOCOLS {
            let outcome = pod.ask(protocol, cluster_ip(1, family), PATIENCE);
            assert!(outcome.by().is_some(), "{protocol} {family}: {outcome:?}");
        }
    }
}

#[test]
fn a_firewall_lets_clients_addresses_through_to_endpoints_and_back() {
    let scene = Scene::new();
    well(scene.lab.node().ns.nft_file(FIREWALL));
    let local = Service { policy: "Local", ..Service::new(1).here(scene.lab.pod(1)) };
    scene.apply(&local);
    let _agent = scene.start();
    for (host, to) in scene.questions(1) {
        for protocol in PROTOCOLS {
            let outcome = host.ask(protocol, to, PATIENCE);
            assert_eq!(outcome.by(), Some("pod-1"), "{protocol} {to} from {}: {outcome:?}", host.name);
            let family = if to.is_ipv4() { FAMILIES[0] } else { FAMILIES[1] };
            if host.name != "node" {
                assert_eq!(outcome.source(), Some(host.ip(family)), "{protocol} {to} from {}", host.name);
            }
        }
    }
}

/// The endpoint knows no way to pods: only where the CNI's rule gives packets the node's address, and gets its
/// answers their destination back, there is an answer.
#[test]
fn an_endpoint_outside_of_the_cluster_is_reached_through_the_cnis_masquerading() {
    let scene = Scene::new();
    let outside = scene.lab.outside();
    let _server = well(outside.serve(BACKEND));
    scene.apply(&Service::new(1).there(outside));
    for route in ["route delete 10.244.1.0/24", "-6 route delete fd00:244:1::/64"] {
        well(scene.lab.router().ns.ip(route));
    }
    let _agent = scene.start();
    let pod = scene.lab.pod(0);
    for family in FAMILIES {
        let outcome = pod.ask(Protocol::Udp, cluster_ip(1, family), SILENCE);
        assert_eq!(outcome.by(), None, "without masquerading there is no way back");
    }
    well(scene.lab.node().ns.nft_file(MASQUERADE));
    for family in FAMILIES {
        for protocol in PROTOCOLS {
            let to = cluster_ip(1, family);
            for _ in 0..2 {
                let outcome = pod.ask(protocol, to, PATIENCE);
                assert_eq!(outcome.by(), Some("outside"), "{protocol} {to}: {outcome:?}");
                assert_eq!(outcome.source(), Some(scene.lab.node().ip(family)), "{protocol} {to}");
            }
        }
        assert_eq!(pod.echo_tcp(cluster_ip(1, family), 1 << 20, PATIENCE).map_err(|e| e.to_string()), Ok(()));
    }
}
