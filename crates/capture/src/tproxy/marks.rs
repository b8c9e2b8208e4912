//! Packet marks: the two bits by which the kernel's rules tell packets apart.
//!
//! Two bits of 32, since others use marks as well: kube-proxy and kubelet 0x4000 and 0x8000, Calico
//! 0xffff0000, Cilium 0xf00. Rules only ever look at and set these two.

/// The bits that are ours.
pub const MASK: u32 = 0x30;

/// On a packet: to be delivered on this node, whatever its destination.
pub const CAPTURED: u32 = 0x10;

/// On a socket (SO_MARK): it faces clients. Accepted sockets inherit it from the one that listens.
pub const DOWNSTREAM: u32 = 0x20;

/// On a socket (SO_MARK): it faces an endpoint.
pub const UPSTREAM: u32 = 0x30;
