//! Packet marks: the two bits by which the kernel's rules tell packets apart.
//!
//! Only two of 32 bits, because others use marks as well: kube-proxy and kubelet 0x4000 and 0x8000, Calico
//! 0xffff0000, Cilium 0xf00. Rules only ever set these two.

/// The bits that are ours.
pub const MASK: u32 = 0x30;

/// The bits that show whether a packet is ours: it is if, of these bits, only bits of [`MASK`] are set. Not all
/// 32, because our packets may have a CNI's bits as well (Calico's, from its rules in the table `raw`). Marks of
/// other programs may have our bits by chance: wg-quick's is 0xca6c, `fwmark 100` is 0x64.
pub const WHOSE: u32 = 0xffff;

/// On a packet: deliver it on this node, whatever its destination.
pub const CAPTURED: u32 = 0x10;

/// On a socket (SO_MARK): it faces clients. Accepted sockets inherit it from their listener.
pub const DOWNSTREAM: u32 = 0x20;

/// On a socket (SO_MARK): it faces an endpoint.
pub const UPSTREAM: u32 = 0x30;

/// Whether packets of others with this mark are mistaken for ours. If their bits in our mask equal [`CAPTURED`],
/// they are delivered on this node; otherwise they differ from ours if they have more than these bits.
pub fn is_taken_for_ours(mark: u32) -> bool {
    mark & MASK == CAPTURED || matches!(mark & WHOSE, DOWNSTREAM | UPSTREAM)
}
