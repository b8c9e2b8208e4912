//! Addresses as Kubernetes objects spell them.

use std::error::Error;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

/// A string that is no IP address or CIDR.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidIp {
    text: String,
    wanted: &'static str,
}

impl fmt::Display for InvalidIp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not {}", self.text, self.wanted)
    }
}

impl Error for InvalidIp {}

/// Parses an address. Leading zeros in an IPv4 octet are decimal, never octal
/// (k8s.io/utils/net `ParseIPSloppy`, which kube-proxy uses for addresses in API objects).
///
/// # Errors
/// The text is not an IP address.
pub fn parse_ip(text: &str) -> Result<IpAddr, InvalidIp> {
    text.parse()
        .ok()
        .or_else(|| sloppy_v4(text).map(IpAddr::V4))
        .ok_or_else(|| InvalidIp { text: text.to_owned(), wanted: "an IP address" })
}

/// Parses a CIDR such as `10.0.0.0/8`, with the same tolerance for leading zeros; host bits are
/// cleared (k8s.io/utils/net `ParseCIDRSloppy`).
///
/// # Errors
/// The text is not an address and a prefix length joined by a slash.
pub fn parse_cidr(text: &str) -> Result<IpNet, InvalidIp> {
    let invalid = || InvalidIp { text: text.to_owned(), wanted: "a CIDR such as 10.0.0.0/8" };
    let (address, prefix) = text.split_once('/').ok_or_else(invalid)?;
    let address = parse_ip(address).map_err(|_| invalid())?;
    if prefix.is_empty() || !prefix.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(invalid());
    }
    let prefix = prefix.parse().map_err(|_| invalid())?;
    Ok(IpNet::new(address, prefix).map_err(|_| invalid())?.trunc())
}

/// Four decimal octets, each with any number of leading zeros.
fn sloppy_v4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        if part.is_empty() || !part.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let digits = part.trim_start_matches('0');
        *octet = if digits.is_empty() { 0 } else { digits.parse().ok()? };
    }
    parts.next().is_none().then(|| Ipv4Addr::from(octets))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leading_zeros_are_decimal_never_octal() {
        assert_eq!(parse_ip("010.096.000.010").unwrap(), "10.96.0.10".parse::<IpAddr>().unwrap());
        assert_eq!(parse_ip("127.0.0.08").unwrap(), "127.0.0.8".parse::<IpAddr>().unwrap());
        assert_eq!(parse_cidr("010.0.0.0/8").unwrap(), "10.0.0.0/8".parse().unwrap());
    }

    #[test]
    fn broken_addresses_are_named_in_the_error() {
        for text in ["", "10.0.0", "10.0.0.256", "10.0.0.1.2", "10.0.0.+1", "a.b.c.d", "::g", "10.0.0.1 "] {
            assert_eq!(parse_ip(text).unwrap_err().to_string(), format!("{text:?} is not an IP address"));
        }
        for text in ["10.0.0.0", "10.0.0.0/", "10.0.0.0/33", "10.0.0.0/-1", "10.0.0.0/+8", "/8", "::/129"] {
            assert!(parse_cidr(text).is_err(), "{text}");
        }
    }

    #[test]
    fn host_bits_of_a_cidr_are_cleared() {
        assert_eq!(parse_cidr("192.168.1.7/24").unwrap().to_string(), "192.168.1.0/24");
        assert_eq!(parse_cidr("2001:db8::1/32").unwrap().to_string(), "2001:db8::/32");
    }
}
