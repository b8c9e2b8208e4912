//! What goes wrong on the way to the kernel.

use std::io;
use std::time::Duration;

use rustix::io::Errno;
use thiserror::Error;

/// What went wrong, with the mend.
#[derive(Debug, Error)]
pub enum Error {
    /// There is no program nft.
    #[error("the program nft is not here; install it (on most systems the package nftables)")]
    NftMissing,
    /// It cannot be run.
    #[error("cannot run nft: {0}")]
    NftUnusable(io::Error),
    /// It refused.
    #[error("nft failed: {0}")]
    NftFailed(String),
    /// It did not end.
    #[error("nft did not end in {} s and was ended; is another program changing nftables all the time?", .0.as_secs())]
    NftStuck(Duration),
    /// What it prints is not understood.
    #[error("what nft lists is not understood: {0}; try another version of it")]
    Listing(#[from] serde_json::Error),
    /// The kernel does not answer about nftables.
    #[error("cannot ask the kernel about nftables: {0}; {mend}", mend = mend(*.0))]
    Generation(Errno),
    /// No netlink socket.
    #[error("cannot open a netlink socket: {0}")]
    Netlink(io::Error),
    /// The kernel does not answer about the node's addresses.
    #[error("cannot get this node's addresses: {0}")]
    Addresses(Errno),
    /// A policy rule or route cannot be changed.
    #[error("cannot change the {item} for captured packets: {error}; {mend}", mend = mend(*.error))]
    Routing {
        /// Which.
        item: String,
        /// What the kernel says.
        error: Errno,
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
