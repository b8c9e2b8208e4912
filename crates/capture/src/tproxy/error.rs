//! What goes wrong on the way to the kernel.

use std::io;

use rustix::io::Errno;
use thiserror::Error;

use crate::program;

/// What went wrong, with the mend.
#[derive(Debug, Error)]
pub enum Error {
    /// nft did not do what it was to do.
    #[error(transparent)]
    Nft(#[from] program::Error),
    /// What nft prints is not understood.
    #[error("what nft lists is not understood: {0}; try another version of it")]
    Listing(#[from] serde_json::Error),
    /// It is not this agent's to change nftables any more.
    #[error("another agent has taken this one's place")]
    Replaced,
    /// The kernel does not answer about nftables.
    #[error("cannot ask the kernel about nftables: {0}; {mend}", mend = mend(*.0))]
    Generation(Errno),
    /// No netlink socket.
    #[error("cannot open a netlink socket: {0}")]
    Netlink(io::Error),
    /// The kernel does not answer about the node's addresses.
    #[error("cannot get this node's addresses: {0}")]
    Addresses(Errno),
    /// The kernel does not answer about policy rules.
    #[error("cannot get this node's policy rules: {0}")]
    Rules(Errno),
    /// The kernel does not answer about sockets, or does not destroy one.
    #[error(
        "cannot ask the kernel about sockets: {0}; it takes CAP_NET_ADMIN, INET_DIAG and INET_DIAG_DESTROY"
    )]
    Sockets(Errno),
    /// A policy rule or route cannot be changed.
    #[error("cannot change the {item} for captured packets: {error}; {mend}", mend = mend(*.error))]
    Routing {
        /// Which.
        item: String,
        /// What the kernel says.
        error: Errno,
    },
    /// A setting of the kernel cannot be set back.
    #[error(
        "cannot set {name} back to {value}: {error}; do it on the node (sysctl -w {name}={value}), and run this again"
    )]
    Setting {
        /// Which.
        name: String,
        /// What it was before an agent changed it.
        value: u64,
        /// What the system says.
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
