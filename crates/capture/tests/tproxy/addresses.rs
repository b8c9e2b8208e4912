//! The node's addresses, for nodePorts.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use sluice_capture::tproxy::{LocalRoutes, NodeAddresses};

use crate::namespace::{in_namespace, run};

fn ips(text: &str) -> Option<Vec<IpAddr>> {
    Some(text.split(' ').map(|ip| ip.parse().unwrap()).collect())
}

#[test]
fn addresses_are_told_when_they_change() {
    in_namespace(|| {
        let mut addresses = NodeAddresses::watch().unwrap();
        assert_eq!(addresses.changed(), ips("127.0.0.1 ::1"));
        assert_eq!(addresses.changed(), None);

        run("ip link add eth0 type veth peer name eth1");
        run("ip address add 192.0.2.1/24 dev eth0");
        run("ip address add 198.51.100.1 peer 198.51.100.2 dev eth1");
        run("ip address add 2001:db8::1/64 dev eth0 nodad");
        run("ip address add fe80::1/64 dev eth0 nodad");
        let with_links = ips("127.0.0.1 192.0.2.1 198.51.100.1 ::1 2001:db8::1");
        assert_eq!(addresses.changed(), with_links, "its own address of a pair, and no link-local ones");
        assert_eq!(addresses.changed(), None);

        run("ip address add 192.0.2.1/24 dev eth1");
        assert_eq!(addresses.changed(), None, "the same address on another interface");
        run("ip link set eth0 up");
        run("ip link set eth1 up");
        assert_eq!(addresses.changed(), None, "link-local addresses come");
        run("ip address del 192.0.2.1/24 dev eth0");
        assert_eq!(addresses.changed(), None, "and it is still on the other");
        run("ip link del eth0");
        assert_eq!(addresses.changed(), ips("127.0.0.1 ::1"));
    });
}

#[test]
fn more_changes_than_a_socket_holds_are_not_lost() {
    in_namespace(|| {
        let mut addresses = NodeAddresses::watch().unwrap();
        assert!(addresses.changed().is_some());
        let mut batch = String::new();
        for number in 0..4_000u32 {
            let [_, _, high, low] = number.to_be_bytes();
            batch += &format!("address add 10.7.{high}.{low}/32 dev lo\n");
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("batch");
        std::fs::write(&path, batch).unwrap();
        run(&format!("ip -batch {}", path.display()));
        assert_eq!(addresses.changed().unwrap().len(), 2 + 4_000);
    });
}

#[test]
fn addresses_that_only_a_route_makes_the_nodes_are_told_when_they_change() {
    in_namespace(|| {
        let mut routes = LocalRoutes::watch().unwrap();
        let (mut now, second) = (Instant::now(), Duration::from_secs(1));
        assert_eq!(routes.changed(now), ips("127.0.0.1 ::1"));
        assert_eq!(routes.changed(now), None);

        run("ip route add local 203.0.113.1/32 dev lo");
        run("ip -6 route add local 2001:db8::1/128 dev lo");
        let there = ips("127.0.0.1 203.0.113.1 ::1 2001:db8::1");
        assert_eq!(routes.changed(now), there, "at once");

        // As a pod brings along, and none of which is an address by itself.
        run("ip link add eth0 type veth peer name eth1");
        run("ip link set eth0 up");
        run("ip link set eth1 up");
        run("ip route add 10.244.1.10/32 dev eth0");
        run("ip route add local 10.7.0.0/24 dev lo");
        run("ip route add local 10.8.0.1/32 dev lo table 100");
        run("ip route add blackhole 10.9.0.1/32");
        now += second;
        assert_eq!(routes.changed(now), None);

        run("ip address add 192.0.2.1/32 dev eth0");
        assert_eq!(routes.changed(now), ips("127.0.0.1 192.0.2.1 203.0.113.1 ::1 2001:db8::1"));
        run("ip route add local 203.0.113.1/32 dev eth0 metric 7");
        run("ip route del local 203.0.113.1/32 dev lo metric 0");
        now += second;
        assert_eq!(routes.changed(now), None, "another one leads there");
        run("ip route del local 203.0.113.1/32 dev eth0");
        assert_eq!(routes.changed(now), None, "it was listed just now");
        now += second;
        assert_eq!(routes.changed(now), ips("127.0.0.1 192.0.2.1 ::1 2001:db8::1"));
        run("ip link del eth0");
        now += second;
        assert_eq!(routes.changed(now), ips("127.0.0.1 ::1 2001:db8::1"));

        // The kernel removes IPv4 routes with their device, and gives no notice of that.
        run("ip link add eth0 type veth peer name eth1");
        run("ip link set eth0 up");
        run("ip route add local 203.0.113.2/32 dev eth0");
        assert_eq!(routes.changed(now), ips("127.0.0.1 203.0.113.2 ::1 2001:db8::1"));
        run("ip link set eth0 down");
        now += second;
        assert_eq!(routes.changed(now), None, "such a route stays while its device is down");
        run("ip link del eth0");
        now += second;
        assert_eq!(routes.changed(now), ips("127.0.0.1 ::1 2001:db8::1"));
    });
}
