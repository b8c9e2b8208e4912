//! Queries the programs that are attached to a cgroup.

use std::io;
use std::os::fd::BorrowedFd;

use super::{Command, address, bpf, length, number};

/// The maximum number of programs of a cgroup for one attach type: `BPF_CGROUP_MAX_PROGS`.
const MOST: usize = 64;
/// Flags of linux/bpf.h.
const ALLOW_OVERRIDE: u32 = 1;
const ALLOW_MULTI: u32 = 2;

/// Whether other programs can be attached besides: the flags with which all programs of one attach type were
/// attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// No flags: no other program can be attached there or below.
    Exclusive,
    /// `BPF_F_ALLOW_OVERRIDE`: no other program can be attached there; a program attached below runs in its
    /// place.
    Overridable,
    /// `BPF_F_ALLOW_MULTI`, as for all links: others can be attached beside it and below.
    Shared,
}

/// The programs that are attached to a cgroup itself, for one attach type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupPrograms {
    /// Meaningless without programs.
    pub sharing: Sharing,
    /// Their ids, in the order in which they run.
    pub ids: Vec<u32>,
}

/// Returns the programs of an `enum bpf_attach_type` that are attached to a cgroup itself, without those of
/// its ancestors.
///
/// # Errors
/// `EPERM` without CAP_NET_ADMIN. `EINVAL`: the kernel does not know this attach type. `EBADF`: not a cgroup2
/// directory.
pub fn query_cgroup(cgroup: BorrowedFd<'_>, attach: u32) -> io::Result<CgroupPrograms> {
    /// The complete `query` of `union bpf_attr`: newer kernels write `revision` regardless of the given
    /// length.
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
    // SAFETY: the kernel writes at most `count` ids. The other addresses are zero, so it does not follow
    // them.
    unsafe { bpf(Command::Query, &mut attributes)? };
    let sharing = match attributes.attach_flags {
        flags if flags & ALLOW_MULTI != 0 => Sharing::Shared,
        flags if flags & ALLOW_OVERRIDE != 0 => Sharing::Overridable,
        _ => Sharing::Exclusive,
    };
    let ids = ids.get(..attributes.count as usize).unwrap_or(&ids).to_vec();
    Ok(CgroupPrograms { sharing, ids })
}
