//! Links: each attaches a program to a hook. A link ends with its last descriptor and pin.

use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use super::map::is;
use super::{Command, address, bpf, bpf_fd, length, number};

/// `BPF_LINK_TYPE_CGROUP`.
const CGROUP: u32 = 3;
/// `BPF_TRACE_ITER` of `enum bpf_attach_type`.
const ITERATOR: u32 = 28;

/// Attaches a program to a cgroup, beside those of others.
///
/// # Errors
/// `EPERM`: a program is attached there that allows no others.
pub fn create_link(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>, attach: u32) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attributes {
        program: u32,
        target: u32,
        attach: u32,
        flags: u32,
    }
    let mut attributes = Attributes { program: number(program), target: number(cgroup), attach, flags: 0 };
    // SAFETY: the attributes contain no addresses.
    unsafe { bpf_fd(Command::LinkCreate, &mut attributes) }
}

/// Replaces a link's program atomically: no event is missed.
///
/// # Errors
/// The new program is of another type (`EINVAL`), or the cgroup is gone (`ENOLINK`).
pub fn replace_program(link: BorrowedFd<'_>, new: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Attributes {
        link: u32,
        new: u32,
        flags: u32,
        old: u32,
    }
    // Naming the program to be replaced would take its descriptor, which only CAP_SYS_ADMIN can get.
    let mut attributes = Attributes { link: number(link), new: number(new), flags: 0, old: 0 };
    // SAFETY: the attributes contain no addresses.
    unsafe { bpf(Command::LinkUpdate, &mut attributes) }.map(drop)
}

/// Detaches a link's program at once. (Removing the last pin does so only a moment later.)
///
/// # Errors
/// It is not a link, or one of another type.
pub fn detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes = number(link);
    // SAFETY: the command reads nothing else.
    unsafe { bpf(Command::LinkDetach, &mut attributes) }.map(drop)
}

/// The kernel's information about a link to a cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkInfo {
    /// The link's id.
    pub id: u32,
    /// The program's id.
    pub program: u32,
    /// The cgroup's id, which is its directory's inode number; 0 once it is gone.
    pub cgroup: u64,
    /// `enum bpf_attach_type`.
    pub attach: u32,
}

/// Returns the information about a link to a cgroup.
///
/// # Errors
/// The descriptor is not such a link's (`EINVAL`).
pub fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    #[derive(Default)]
    #[repr(C)]
    struct Info {
        kind: u32,
        id: u32,
        program: u32,
        pad: u32,
        cgroup: u64,
        attach: u32,
        pad2: u32,
    }
    let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
    if !is(link, "link") {
        return Err(invalid());
    }
    // SAFETY: that is the beginning of `bpf_link_info`. It is zeroed, so the kernel follows no addresses.
    let info: Info = unsafe { super::info(link)? };
    if info.kind != CGROUP {
        return Err(invalid());
    }
    Ok(LinkInfo { id: info.id, program: info.program, cgroup: info.cgroup, attach: info.attach })
}

/// Prepares a run of an iterator over the sockets that have storage in `map`.
///
/// # Errors
/// The program is not such an iterator.
pub fn iterate_storage(program: BorrowedFd<'_>, map: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attributes {
        program: u32,
        target: u32,
        attach: u32,
        flags: u32,
        info: u64,
        info_length: u32,
        pad: u32,
    }
    let info = number(map);
    let mut attributes = Attributes {
        program: number(program),
        target: 0,
        attach: ITERATOR,
        flags: 0,
        info: address(&raw const info),
        info_length: length(size_of_val(&info))?,
        pad: 0,
    };
    // SAFETY: the kernel reads `info_length` bytes, the map's descriptor.
    unsafe { bpf_fd(Command::LinkCreate, &mut attributes) }
}

/// Runs an iterator. What is read from the returned file is what its program writes. A read that has passed
/// very many sockets without output ends with [`io::ErrorKind::WouldBlock`], and the next read continues
/// there.
///
/// # Errors
/// The descriptor is not an iterator link's.
pub fn run_iterator(link: BorrowedFd<'_>) -> io::Result<File> {
    #[repr(C)]
    struct Attributes {
        link: u32,
        flags: u32,
    }
    let mut attributes = Attributes { link: number(link), flags: 0 };
    // SAFETY: the attributes contain no addresses.
    unsafe { bpf_fd(Command::IteratorCreate, &mut attributes) }.map(File::from)
}
