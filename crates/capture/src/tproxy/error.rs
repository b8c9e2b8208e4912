//! Errors of the access to the kernel.

use std::io;

use rustix::io::Errno;
use thiserror::Error;

use crate::program;

/// An error, with advice.
#[derive(Debug, Error)]
pub enum Error {
    /// nft failed.
    #[error(transparent)]
    Nft(#[from] program::Error),
    /// The output of nft is not understood.
    #[error("what nft lists is not understood: {0}; try another version of it")]
    Listing(#[from] serde_json::Error),
    /// Another agent has become the owner of nftables.
    #[error("another agent has taken this one's place")]
    Replaced,
    /// A query about nftables failed.
    #[error("cannot ask the kernel about nftables: {0}; {mend}", mend = mend(*.0))]
    Generation(Errno),
    /// A netlink socket cannot be opened.
    #[error("cannot open a netlink socket: {0}")]
    Netlink(io::Error),
    /// A query about the node's addresses failed.
    #[error("cannot get this node's addresses: {0}")]
    Addresses(Errno),
    /// A query about policy rules failed.
    #[error("cannot get this node's policy rules: {0}")]
    Rules(Errno),
    /// A query about sockets failed, or one cannot be destroyed.
    #[error(
        "cannot ask the kernel about sockets: {0}; it takes CAP_NET_ADMIN, INET_DIAG and INET_DIAG_DESTROY"
    )]
    Sockets(Errno),
    /// A policy rule or route cannot be changed.
    #[error("cannot change the {item} for captured packets: {error}; {mend}", mend = mend(*.error))]
    Routing {
        /// The rule or route.
        item: String,
        /// The kernel's error.
        error: Errno,
    },
    /// A setting of the kernel cannot be restored.
    #[error(
        "cannot set {name} back to {value}: {error}; do it on the node (sysctl -w {name}={value}), and run this again"
    )]
    Setting {
        /// The setting.
        name: String,
        /// Its value before an agent changed it.
        value: u64,
        /// The system's error.
        error: io::Error,
    },
    /// A pattern for interfaces that cannot be written in a rule.
    #[error("{0:?} cannot be part of an interface's name")]
    Interface(String),
}

fn mend(error: Errno) -> &'static str {
    match error {
        Errno::PERM => "run with CAP_NET_ADMIN",
        Errno::NETDOWN => "set the loopback interface up (ip link set lo up)",
        Errno::INVAL | Errno::OPNOTSUPP | Errno::PROTONOSUPPORT => {
            "the kernel lacks a feature: it needs nf_tables, policy routing and marks"
        }
        _ => "it is tried again",
    }
}
