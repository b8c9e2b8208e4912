//! Allocates Service addresses and node ports.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;
use serde_json::Value;

use super::object::{list, texts};

/// The addresses and node ports of all Services.
#[derive(Debug)]
pub(crate) struct Allocator {
    node_port_range: RangeInclusive<u16>,
    addresses: Uses<IpAddr>,
    node_ports: Uses<u16>,
}

/// The number of Services that use each: loaded objects may share them.
#[derive(Debug)]
struct Uses<T>(HashMap<T, u32>);

impl<T: Eq + Hash> Uses<T> {
    fn claim(&mut self, one: T) {
        *self.0.entry(one).or_default() += 1;
    }

    fn release(&mut self, one: &T) {
        if let Some(count) = self.0.get_mut(one) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(one);
            }
        }
    }
}

impl Allocator {
    pub(crate) fn new(node_port_range: RangeInclusive<u16>) -> Self {
        Self { node_port_range, addresses: Uses(HashMap::new()), node_ports: Uses(HashMap::new()) }
    }

    /// Records what a Service uses.
    pub(crate) fn claim(&mut self, service: &Value) {
        addresses_of(service).for_each(|address| self.addresses.claim(address));
        node_ports_of(service).into_iter().for_each(|port| self.node_ports.claim(port));
    }

    /// Releases what a deleted or replaced Service used.
    pub(crate) fn release(&mut self, service: &Value) {
        addresses_of(service).for_each(|address| self.addresses.release(&address));
        node_ports_of(service).iter().for_each(|port| self.node_ports.release(port));
    }

    pub(crate) fn is_address_taken(&self, address: IpAddr) -> bool {
        self.addresses.0.contains_key(&address)
    }

    pub(crate) fn is_node_port_taken(&self, port: u16) -> bool {
        self.node_ports.0.contains_key(&port)
    }

    pub(crate) fn node_port_range(&self) -> &RangeInclusive<u16> {
        &self.node_port_range
    }

    /// The lowest free address of a range, after the one that the `kubernetes` Service would have.
    pub(crate) fn free_address(&self, range: IpNet) -> Option<IpAddr> {
        let mut addresses = range.hosts().filter(|address| *address != range.network()).skip(1);
        addresses.find(|address| !self.is_address_taken(*address))
    }

    /// The lowest free node port that is not among `others`.
    pub(crate) fn free_node_port(&self, others: &[u16]) -> Option<u16> {
        self.node_port_range.clone().find(|port| !self.is_node_port_taken(*port) && !others.contains(port))
    }
}

fn addresses_of(service: &Value) -> impl Iterator<Item = IpAddr> {
    texts(service, "/spec/clusterIPs").into_iter().filter_map(|address| address.parse().ok())
}

/// Each node port once, because several protocols may share one.
fn node_ports_of(service: &Value) -> Vec<u16> {
    let ports = list(service, "/spec/ports").iter().filter_map(|port| port["nodePort"].as_u64());
    let health = service.pointer("/spec/healthCheckNodePort").and_then(Value::as_u64);
    let mut ports: Vec<u16> = ports.chain(health).filter_map(|port| u16::try_from(port).ok()).collect();
    ports.retain(|port| *port != 0);
    ports.sort_unstable();
    ports.dedup();
    ports
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_taken_is_not_given_again_until_it_is_free() {
        let mut allocator = Allocator::new(30000..=30002);
        let range = "10.96.0.0/30".parse().unwrap();
        let service = json!({ "spec": {
            "clusterIPs": ["10.96.0.2"],
            "ports": [{ "nodePort": 30000 }, { "nodePort": 30000, "protocol": "UDP" }],
            "healthCheckNodePort": 30001,
        } });
        assert_eq!(allocator.free_address(range), Some("10.96.0.2".parse().unwrap()));
        allocator.claim(&service);
        assert_eq!(allocator.free_address(range), None);
        assert_eq!(allocator.free_node_port(&[]), Some(30002));
        assert_eq!(allocator.free_node_port(&[30002]), None);
        allocator.release(&service);
        assert_eq!(allocator.free_node_port(&[]), Some(30000));
        assert!(allocator.addresses.0.is_empty() && allocator.node_ports.0.is_empty());
    }
}
