//! Conversions between addresses and their form in the maps, in which an IPv4 address is v4-mapped.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use sluice_model::{Frontend, Protocol};

use crate::failures::Failures;
use crate::layout::{Endpoint, FrontendKey, endpoint_flags, protocol};

fn mapped(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

impl From<Frontend> for FrontendKey {
    fn from(frontend: Frontend) -> Self {
        Self {
            addr: mapped(frontend.address.ip()),
            port: frontend.address.port().to_be_bytes(),
            protocol: match frontend.protocol {
                Protocol::Tcp => protocol::TCP,
                Protocol::Udp => protocol::UDP,
            },
            pad: 0,
        }
    }
}

impl Endpoint {
    /// An endpoint with no failures.
    pub fn new(address: SocketAddr, incarnation: u32) -> Self {
        let flags = if address.ip().to_canonical().is_ipv4() { endpoint_flags::V4 } else { 0 };
        Self {
            addr: mapped(address.ip()),
            port: address.port().to_be_bytes(),
            flags,
            incarnation,
            ..Self::default()
        }
    }

    /// The same endpoint, not yet verified, for connections: whether it answers is not known before the first
    /// one.
    pub fn unproven(self) -> Self {
        Self { flags: self.flags | endpoint_flags::UNPROVEN, ..self }
    }

    /// The same endpoint, for datagrams to the service port with this number.
    pub fn with_flows(self, service: u32) -> Self {
        let owner = owner(service) << endpoint_flags::OWNER_SHIFT;
        Self { flags: self.flags | endpoint_flags::FLOWS | owner, ..self }
    }

    /// Whether UDP flows may stay with it.
    pub fn has_flows(&self) -> bool {
        self.flags & endpoint_flags::FLOWS != 0
    }

    /// The owner that its flags name.
    pub(crate) fn owner(&self) -> u16 {
        self.flags >> endpoint_flags::OWNER_SHIFT
    }

    /// Whether it is unverified.
    pub fn is_in_doubt(&self) -> bool {
        self.flags & endpoint_flags::UNPROVEN != 0 || self.failures != 0
    }

    /// Failures since the last success.
    pub fn failures(&self) -> Failures {
        Failures::unpack(self.failures)
    }

    /// Address and port.
    pub fn address(&self) -> SocketAddr {
        let ip = IpAddr::V6(Ipv6Addr::from(self.addr)).to_canonical();
        SocketAddr::new(ip, u16::from_be_bytes(self.port))
    }
}

/// A service port's number reduced to the bits that an endpoint's flags have for it. Never 0. Several service
/// ports may share a value.
pub(crate) fn owner(service: u32) -> u16 {
    const BOUND: u32 = (1 << (u16::BITS - endpoint_flags::OWNER_SHIFT)) - 1;
    // It never exceeds the bound.
    u16::try_from(service % BOUND + 1).unwrap_or(0)
}

/// The addresses of a set in round-robin order, each once.
pub(crate) fn in_order(addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let canonical = |address: &SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let mut addresses: Vec<SocketAddr> = addresses.iter().map(canonical).collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whose_an_endpoint_is_leaves_all_else_as_it_was() {
        let endpoint = Endpoint::new(([10, 0, 0, 1], 80).into(), 3);
        for (service, owner) in [(1, 2), (8_190, 8_191), (8_191, 1), (u32::MAX, 64)] {
            let with_flows = endpoint.with_flows(service);
            assert_eq!((with_flows.owner(), with_flows.has_flows()), (owner, true), "{service}");
            assert_eq!(with_flows.flags & 7, endpoint.flags | endpoint_flags::FLOWS);
        }
    }

    #[test]
    fn there_and_back() {
        for (text, flags) in [("10.0.0.1:80", endpoint_flags::V4), ("[fd00::1]:8080", 0)] {
            let address: SocketAddr = text.parse().unwrap();
            let endpoint = Endpoint::new(address, 3);
            assert_eq!((endpoint.address(), endpoint.flags, endpoint.incarnation), (address, flags, 3));
        }
        let key = FrontendKey::from(Frontend::new([10, 96, 0, 1].into(), 0x1234, Protocol::Udp));
        assert_eq!(
            (&key.addr[10..], key.port, key.protocol),
            (&[255, 255, 10, 96, 0, 1][..], [0x12, 0x34], 17)
        );
    }
}
