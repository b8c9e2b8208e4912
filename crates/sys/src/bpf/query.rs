//! What is attached to a cgroup.

use std::io;
use std::os::fd::BorrowedFd;

use super::{Command, address, bpf, length, number};

/// Most programs that a cgroup has for one attach type: `BPF_CGROUP_MAX_PROGS`.
const MOST: usize = 64;
/// Of linux/bpf.h.
const ALLOW_OVERRIDE: u32 = 1;
const ALLOW_MULTI: u32 = 2;

/// What the programs of a cgroup leave to others: the flags that all of one attach type have been attached with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// No flags: nothing else is attached there or below.
    Exclusive,
    /// `BPF_F_ALLOW_OVERRIDE`: nothing else is attached there; what is attached below runs in its place.
    Overridable,
    /// `BPF_F_ALLOW_MULTI`, as all links: others are attached beside it and below.
    Shared,
}

/// The programs that are attached to a cgroup itself, for one attach type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupPrograms {
    /// Without programs it means nothing.
    pub sharing: Sharing,
    /// Their ids, in the order in which they run.
    pub ids: Vec<u32>,
}

/// Which programs are attached to a cgroup, not to those above it, for an `enum bpf_attach_type`.
///
/// # Errors
/// `EPERM` without CAP_NET_ADMIN. `EINVAL`: the kernel does not know this attach type. `EBADF`: not a cgroup of version 2.
pub fn query_cgroup(cgroup: BorrowedFd<'_>, attach: u32) -> io::Result<CgroupPrograms> {
    /// All of `query` of `union bpf_attr`: newer kernels write `revision` whatever the length of what they were given.
    #[repr(C)]
    struct Attributes {
        target: u32,
        attach: u32,
        query_flags: u32,
        attach_flags: u32,
        ids: u64,
        count: u32,
        pad: u32,
        program_flags: u64,
        link_ids: u64,
        link_flags: u64,
        revision: u64,
    }
    let mut ids = [0_u32; MOST];
    let mut attributes = Attributes {
        target: number(cgroup),
        attach,
        query_flags: 0,
        attach_flags: 0,
        ids: address(ids.as_mut_ptr()),
        count: length(MOST)?,
        pad: 0,
        program_flags: 0,
        link_ids: 0,
        link_flags: 0,
        revision: 0,
    };
    // SAFETY: the kernel writes at most `count` ids; it follows no other address, as these are zero.
    unsafe { bpf(Command::Query, &mut attributes)? };
    let sharing = match attributes.attach_flags {
        flags if flags & ALLOW_MULTI != 0 => Sharing::Shared,
        flags if flags & ALLOW_OVERRIDE != 0 => Sharing::Overridable,
        _ => Sharing::Exclusive,
    };
    let ids = ids.get(..attributes.count as usize).unwrap_or(&ids).to_vec();
    Ok(CgroupPrograms { sharing, ids })
}
