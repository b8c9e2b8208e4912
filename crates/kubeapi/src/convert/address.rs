//! Addresses and CIDRs of API objects, with advice on wrong ones.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};
use sluice_model::{Family, parse_cidr, parse_ip};

use super::Problems;

/// An IPv4-mapped prefix (`::ffff:0:0/96`, RFC 4291) has this many bits before the IPv4 address.
const MAPPED_PREFIX: u8 = 96;

impl Problems {
    /// A unicast address. An IPv4-mapped IPv6 address counts as the IPv4 address, as in kube-proxy (Go's
    /// `net.IP.To4`) and on the wire.
    pub(super) fn address(&mut self, field: impl Into<String>, text: &str) -> Option<IpAddr> {
        let address = match parse_ip(text) {
            Ok(address) => address.to_canonical(),
            Err(error) => {
                let mend = if text.contains('%') {
                    "write the address without its zone: interface names mean nothing outside one host"
                } else if text.contains('/') {
                    "write one address, without a prefix length"
                } else if text.is_empty() {
                    "write the address"
                } else {
                    "write an IPv4 or IPv6 address such as 10.96.0.10 or fd00::10"
                };
                self.note(field, error.to_string(), mend);
                return None;
            }
        };
        let is_broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
        if address.is_unspecified() || address.is_multicast() || is_broadcast {
            let what = format!("{address} does not name one machine");
            self.note(field, what, "write the address itself: wildcard and multicast addresses do not count");
            return None;
        }
        Some(address)
    }

    /// An address of a certain family.
    pub(super) fn address_of(
        &mut self,
        field: impl Into<String>,
        text: &str,
        family: Family,
        because: &str,
    ) -> Option<IpAddr> {
        let field = field.into();
        let address = self.address(field.clone(), text)?;
        if Family::of(address) == family {
            return Some(address);
        }
        let what = format!("{text} is an {} address, but {because} {family}", Family::of(address));
        self.note(field, what, format!("write an {family} address here"));
        None
    }

    /// A CIDR. Surrounding blanks are allowed: the apiserver lets them through in source ranges.
    pub(super) fn cidr(&mut self, field: impl Into<String>, text: &str) -> Option<IpNet> {
        match parse_cidr(text.trim()) {
            Ok(cidr) => Some(canonical(cidr)),
            Err(error) => {
                let mend = if parse_ip(text.trim()).is_ok() {
                    "add the prefix length: /32 for one IPv4 address, /128 for one IPv6 address"
                } else {
                    "write an address and a prefix length"
                };
                self.note(field, error.to_string(), mend);
                None
            }
        }
    }
}

/// A range of IPv4-mapped addresses is a range of IPv4 addresses.
fn canonical(cidr: IpNet) -> IpNet {
    let IpNet::V6(v6) = cidr else { return cidr };
    let v4 = v6.addr().to_ipv4_mapped().zip(v6.prefix_len().checked_sub(MAPPED_PREFIX));
    v4.and_then(|(address, prefix)| Ipv4Net::new(address, prefix).ok()).map_or(cidr, IpNet::V4)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Result<String, String> {
        let mut problems = Problems::default();
        let address = problems.address("f", text);
        assert_eq!(address.is_none(), problems.0.len() == 1, "{text}");
        address.map(|a| a.to_string()).ok_or_else(|| problems.0[0].to_string())
    }

    #[test]
    fn addresses() {
        for (text, expected) in [
            ("10.96.0.10", "10.96.0.10"),
            ("010.096.000.010", "10.96.0.10"),
            ("127.0.0.1", "127.0.0.1"),
            ("169.254.20.10", "169.254.20.10"),
            ("fd00::10", "fd00::10"),
            ("FD00:0:0::10", "fd00::10"),
            ("::ffff:10.0.0.1", "10.0.0.1"),
            ("::ffff:a00:1", "10.0.0.1"),
        ] {
            assert_eq!(address(text).as_deref(), Ok(expected));
        }
        for (text, hint) in [
            ("", "write the address"),
            ("10.0.0", "write an IPv4 or IPv6 address"),
            ("10.0.0.1 ", "write an IPv4 or IPv6 address"),
            ("localhost", "write an IPv4 or IPv6 address"),
            ("10.0.0.1/32", "without a prefix length"),
            ("fe80::1%eth0", "without its zone"),
            ("0.0.0.0", "wildcard"),
            ("::", "wildcard"),
            ("224.0.0.1", "multicast"),
            ("ff02::1", "multicast"),
            ("255.255.255.255", "does not name one machine"),
        ] {
            let problem = address(text).unwrap_err();
            assert!(problem.starts_with("f: ") && problem.contains(hint), "{text}: {problem}");
        }
    }

    #[test]
    fn cidrs() {
        let mut problems = Problems::default();
        for (text, expected) in [
            (" 10.0.0.0/8 ", "10.0.0.0/8"),
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("::/0", "::/0"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::ffff:0:0/96", "0.0.0.0/0"),
            ("::fffe:0:0/95", "::fffe:0:0/95"),
        ] {
            assert_eq!(problems.cidr("f", text).map(|cidr| cidr.to_string()).as_deref(), Some(expected));
        }
        assert_eq!(problems.0, []);
        for (text, hint) in
            [("10.0.0.1", "/32"), ("fd00::1", "/128"), ("10.0.0.0/33", "prefix"), ("", "prefix")]
        {
            assert_eq!(problems.cidr("f", text), None);
            assert!(problems.0.pop().unwrap().mend.contains(hint), "{text}");
        }
    }
}
