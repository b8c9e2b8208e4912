//! `--nodeport-addresses`, with the keywords of kube-proxy 1.37.

use std::str::FromStr;

use ipnet::IpNet;
use sluice_table::NodePortAddresses;

use crate::values::{self, Listed};

/// One element of the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodePortAddress {
    /// The first addresses of the Node object.
    Primary,
    /// The loopback addresses.
    Localhost,
    /// All addresses of the node.
    All,
    /// Those inside a CIDR.
    Inside(IpNet),
}

impl FromStr for NodePortAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "primary" => Ok(Self::Primary),
            "localhost" => Ok(Self::Localhost),
            "all" => Ok(Self::All),
            cidr => values::cidr(cidr, "primary, all, localhost, or CIDRs").map(Self::Inside),
        }
    }
}

impl NodePortAddress {
    /// The CIDRs that kube-proxy takes it for; empty for `primary`.
    fn cidrs(self) -> Vec<IpNet> {
        let texts: &[&str] = match self {
            Self::Primary => &[],
            Self::Localhost => &["127.0.0.0/8", "::1/128"],
            Self::All => &["0.0.0.0/0", "::/0"],
            Self::Inside(cidr) => return vec![cidr],
        };
        texts.iter().filter_map(|text| text.parse().ok()).collect()
    }

    /// Whether it has only loopback addresses.
    fn is_loopback(self) -> bool {
        let cidrs = self.cidrs();
        !cidrs.is_empty()
            && cidrs.iter().all(|cidr| cidr.network().is_loopback() && cidr.broadcast().is_loopback())
    }
}

/// The addresses on which nodePorts are served.
pub(crate) fn addresses(list: &[Listed<NodePortAddress>]) -> NodePortAddresses {
    let given = || list.iter().filter_map(|listed| listed.0);
    let cidrs: Vec<IpNet> = given().flat_map(NodePortAddress::cidrs).collect();
    // An empty list means the default, as in kube-proxy's nftables mode.
    match (cidrs.is_empty(), given().any(|address| address == NodePortAddress::Primary)) {
        (true, _) => NodePortAddresses::Primary,
        (false, true) => NodePortAddresses::PrimaryAnd(cidrs),
        (false, false) => NodePortAddresses::Inside(cidrs),
    }
}

/// A remark if loopback addresses are asked for by name.
pub(crate) fn note(list: &[Listed<NodePortAddress>]) -> Option<String> {
    let is_loopback = |listed: &Listed<NodePortAddress>| listed.0.is_some_and(NodePortAddress::is_loopback);
    let rest = match list.iter().all(|listed| listed.0.is_none() || is_loopback(listed)) {
        true => "so there are no nodePorts: add primary or all",
        false => "on the other addresses they are",
    };
    list.iter().any(is_loopback).then(|| {
        format!(
            "--nodeport-addresses: nodePorts are not served on loopback addresses (localhost), {rest}; ask the node's own \
             address, or the Service's"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> Vec<Listed<NodePortAddress>> {
        text.split(',').map(|word| word.parse().unwrap()).collect()
    }

    #[test]
    fn words_and_cidrs_go_together_and_mean_what_kube_proxy_takes_them_for() {
        let cidrs = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpNet>>();
        let (inside, primary_and) = (NodePortAddresses::Inside, NodePortAddresses::PrimaryAnd);
        #[rustfmt::skip]
        let cases = [
            ("",                         NodePortAddresses::Primary),
            ("primary",                  NodePortAddresses::Primary),
            ("primary,primary",          NodePortAddresses::Primary),
            ("all",                      inside(cidrs(&["0.0.0.0/0", "::/0"]))),
            ("localhost",                inside(cidrs(&["127.0.0.0/8", "::1/128"]))),
            ("192.0.2.0/24,",            inside(cidrs(&["192.0.2.0/24"]))),
            ("192.0.2.0/24,primary",     primary_and(cidrs(&["192.0.2.0/24"]))),
            ("localhost,all,primary",    primary_and(cidrs(&["127.0.0.0/8", "::1/128", "0.0.0.0/0", "::/0"]))),
        ];
        for (text, wanted) in cases {
            assert_eq!(addresses(&list(text)), wanted, "{text}");
        }
    }

    #[test]
    fn what_is_written_wrong_is_said_with_the_mend() {
        #[rustfmt::skip]
        let cases = [
            ("10.0.0.1",     "a single address is written 10.0.0.1/32"),
            ("fe80::1",      "a single address is written fe80::1/128"),
            ("fe80::/129",   "a number from 0 to 128"),
            ("10.0.0.0/33",  "as 10.0.0.0/32 it is this address alone"),
            ("everywhere",   "write primary, all, localhost, or CIDRs"),
            ("here/8",       "write primary, all, localhost, or CIDRs"),
        ];
        for (text, wanted) in cases {
            let said = text.parse::<NodePortAddress>().unwrap_err();
            assert!(said.contains(wanted), "{text}: {said}");
        }
    }

    #[test]
    fn what_is_not_served_is_said() {
        for text in ["", "primary", "all", "10.0.0.0/8,::/0", "0.0.0.0/0"] {
            assert_eq!(note(&list(text)), None, "{text}");
        }
        for text in ["localhost", "127.0.0.1/32", "::1/128,"] {
            assert!(note(&list(text)).unwrap().contains("there are no nodePorts"), "{text}");
        }
        for text in ["localhost,primary", "all,127.0.0.0/8"] {
            assert!(note(&list(text)).unwrap().contains("on the other addresses"), "{text}");
        }
    }
}
