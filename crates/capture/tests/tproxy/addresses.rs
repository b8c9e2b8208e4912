//! The node's addresses, for nodePorts.

use std::net::IpAddr;

use sluice_capture::tproxy::NodeAddresses;

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
