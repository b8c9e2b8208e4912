//! nodePorts on addresses that only a route makes the node's, as the agent of Google's machines has load balancers'.

use std::net::SocketAddr;

use sluice_model::{Family, Protocol};
use sluice_testbed::lab::{PATIENCE, SILENCE};

use crate::manifests::{FAMILIES, external_ip, node_port};
use crate::scene::{READY, Scene, until, well};

#[test]
fn with_all_addresses_node_ports_are_served_where_only_a_route_leads_to_the_node() {
    let scene = Scene::new();
    let (node, outside) = (scene.lab.node(), scene.lab.outside());
    let mut command = scene.command();
    command.args(["--nodeport-addresses", "all"]);
    let agent = well(node.spawn(&command));
    well(agent.wait_for(READY, PATIENCE));
    scene.assert_served(1);
    for (family, whole) in FAMILIES.into_iter().zip(["-4 route ADD local IP/32", "-6 route ADD local IP/128"])
    {
        // No Service's address.
        let ip = external_ip(77, family).ip();
        let to = SocketAddr::new(ip, node_port(1, family).port());
        let is_served = |protocol| outside.ask(protocol, to, SILENCE).by().is_some();
        let route = |what: &str| {
            let words = whole.replace("ADD", what).replace("IP", &ip.to_string());
            well(node.ns.ip(&format!("{words} dev lo")));
        };
        assert!(!is_served(Protocol::Tcp), "{to} leads nowhere so far");
        route("add");
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            until(&format!("{protocol} {to} is served"), || is_served(protocol));
        }
        route("del");
        let set =
            if family == Family::V4 { "set inet sluice node_ips4" } else { "set inet sluice node_ips6" };
        until(&format!("{ip} is not the node's any more"), || !scene.nft(set).contains(&ip.to_string()));
    }
    scene.assert_served(1);
}
