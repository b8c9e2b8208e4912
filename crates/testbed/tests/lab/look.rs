//! Inspecting a namespace.

use sluice_model::Protocol;
use sluice_testbed::lab::PATIENCE;

use super::{PORT, lab, well};

#[test]
fn rules_and_tracked_connections_are_counted() {
    let lab = lab();
    let node = &lab.node().ns;
    let _server = well(lab.pod(0).serve(PORT));
    let ask = || {
        let outcome = lab.outside().ask(Protocol::Udp, (lab.pod(0).v4, PORT).into(), PATIENCE);
        assert_eq!(outcome.by(), Some("pod-0"));
    };
    assert_eq!(well(node.rules()), 0);
    ask();
    assert_eq!(well(node.conntrack_entries()), 0, "nothing asks for tracking");

    well(node.nft_file(
        "table inet test {
           set unused { type ipv4_addr; elements = { 1.1.1.1, 2.2.2.2 }; }
           chain forward { type filter hook forward priority 0; ct state invalid drop; ct state new accept; }
         }",
    ));
    assert_eq!(well(node.rules()), 2);
    assert_eq!(well(lab.other().ns.rules()), 0);
    ask();
    assert_eq!(well(node.conntrack_entries()), 1);
    assert!(well(node.nft("list tables")).contains("table inet test"));
    well(node.nft("flush ruleset"));
    assert_eq!(well(node.rules()), 0);
}

#[test]
fn settings_are_those_of_the_namespace() {
    let lab = lab();
    let setting = "net/ipv4/ip_local_port_range";
    well(lab.pod(0).ns.set(setting, "2000\t3000"));
    let read = |host: &sluice_testbed::lab::Host| host.ns.read(&format!("/proc/sys/{setting}")).unwrap();
    assert_eq!(read(lab.pod(0)), "2000\t3000");
    assert_ne!(read(lab.pod(1)), "2000\t3000");
    assert!(lab.pod(0).ns.set("net/ipv4/nosuch", "1").is_err());
    assert!(lab.node().ns.read("/proc/net/dev").unwrap().contains("veth1:"));
}
