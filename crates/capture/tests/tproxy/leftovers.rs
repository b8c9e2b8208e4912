//! What an earlier agent has left about addresses that an agent has to reach before it knows anything.

use std::net::SocketAddr;

use sluice_capture::tproxy::{Leftovers, Released};
use sluice_model::FrontendKind;
use sluice_table::Verdict;

use crate::namespace::{Monitor, in_namespace, run, table};
use crate::services::{config, offer, serving, state};

const OUTSIDE: &str = "203.0.113.5:6443";
const OUTSIDE_V6: &str = "[2001:db8::5]:6443";
/// Service 0's nodePort, and its cluster IP.
const NODE_PORT: &str = "192.0.2.1:30000";
const CLUSTER_IP: &str = "10.96.0.0:443";

fn parse(addresses: &[&str]) -> Vec<SocketAddr> {
    addresses.iter().map(|address| address.parse().unwrap()).collect()
}

#[test]
fn what_leads_connections_away_goes_and_all_else_stays() {
    in_namespace(|| {
        let mut tproxy = serving(config(), 2);
        for address in parse(&[OUTSIDE, OUTSIDE_V6]) {
            let at = |port| state(FrontendKind::ExternalIp, address.ip(), port, Verdict::Relay);
            offer(&mut tproxy, &[at(address.port()), at(80)]);
        }
        drop(tproxy);
        let mut leftovers = Leftovers::open().unwrap();
        let mut monitor = Monitor::new();
        let addresses = parse(&[OUTSIDE, OUTSIDE_V6, NODE_PORT, CLUSTER_IP, "203.0.113.5:443"]);
        let external: Vec<SocketAddr> =
            addresses.iter().copied().filter(|address| *address != parse(&[CLUSTER_IP])[0]).collect();
        let released = Released { released: addresses[..3].to_vec(), external: external.clone() };
        assert_eq!(leftovers.release(&addresses).unwrap(), Some(released));
        let gone: Vec<String> = monitor.transactions().concat();
        let wanted = [
            "delete element inet sluice frontends4 { 203.0.113.5 . tcp . 6443 : goto relay }",
            "delete element inet sluice frontends6 { 2001:db8::5 . tcp . 6443 : goto relay }",
            "delete element inet sluice node_ports4 { tcp . 30000 : goto relay }",
        ];
        assert_eq!(gone, wanted);
        assert_eq!(leftovers.release(&addresses).unwrap(), Some(Released { released: vec![], external }));
        assert_eq!(leftovers.release(&addresses).unwrap(), None, "nothing has changed");

        // Another agent puts it back.
        run("nft add element inet sluice frontends4 { 203.0.113.5 . tcp . 6443 : goto relay }");
        let released = leftovers.release(&addresses).unwrap().unwrap().released;
        assert_eq!(released, parse(&[OUTSIDE]));

        // Whoever begins next makes all as it is to be.
        drop(serving(config(), 2));
        let mended = table();
        run("nft delete table inet sluice");
        drop(serving(config(), 2));
        assert_eq!(mended, table());
    });
}

#[test]
fn where_no_agent_has_been_there_is_nothing_to_release() {
    in_namespace(|| {
        let mut leftovers = Leftovers::open().unwrap();
        assert_eq!(leftovers.release(&parse(&[OUTSIDE])).unwrap(), Some(Released::default()));
        assert_eq!(run("nft list ruleset"), "");
    });
}
