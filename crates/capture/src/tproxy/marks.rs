//! Packet marks: the two bits by which the kernel's rules tell packets apart.
//!
//! Two bits of 32, since others use marks as well: kube-proxy and kubelet 0x4000 and 0x8000, Calico
//! 0xffff0000, Cilium 0xf00. Rules only ever set these two.

/// The bits that are ours.
pub const MASK: u32 = 0x30;

/// The bits that tell whose a packet is: it is ours where there are no others of these than those of [`MASK`]. Not all 32, since on
/// packets of ours as well there may be bits of a CNI (Calico's, from its rules in the table `raw`). Marks of other programs have
/// bits of ours by chance: wg-quick's is 0xca6c, `fwmark 100` is 0x64.
pub const WHOSE: u32 = 0xffff;

/// On a packet: to be delivered on this node, whatever its destination.
pub const CAPTURED: u32 = 0x10;

/// On a socket (SO_MARK): it faces clients. Accepted sockets inherit it from the one that listens.
pub const DOWNSTREAM: u32 = 0x20;

/// On a socket (SO_MARK): it faces an endpoint.
pub const UPSTREAM: u32 = 0x30;

/// Whether packets with such a mark of somebody else's are taken for ours. Those whose bits of ours come to [`CAPTURED`] are delivered
/// on this node; others are told from ours where they have more than these bits.
pub fn is_taken_for_ours(mark: u32) -> bool {
    mark & MASK == CAPTURED || matches!(mark & WHOSE, DOWNSTREAM | UPSTREAM)
}
