//! bpf(2): maps, programs, links and pins, as far as socket mode needs them. Results are plain data;
//! descriptors close themselves.

mod barrier;
mod elements;
mod link;
mod map;
mod mapping;
mod pin;
mod program;
mod query;

use std::ffi::c_long;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

pub use barrier::wait_for_programs;
pub use elements::{HashMap, Part};
pub use link::{LinkInfo, create_link, detach, iterate_storage, link_info, replace_program, run_iterator};
pub use map::{MapInfo, MapSpec, create_map, delete_batch, lookup, lookup_all, map_info, update_batch};
pub use mapping::Mapping;
pub use pin::{get, is_bpffs, mount_bpffs, pin};
pub use program::{ProgramSpec, Rejected, load_btf, load_program};
pub use query::{CgroupPrograms, Sharing, query_cgroup};

/// Commands of linux/bpf.h.
#[derive(Debug, Clone, Copy)]
#[repr(i32)]
enum Command {
    MapCreate = 0,
    MapLookup = 1,
    MapUpdate = 2,
    MapDelete = 3,
    ProgramLoad = 5,
    Pin = 6,
    Get = 7,
    Info = 15,
    Query = 16,
    BtfLoad = 18,
    LookupBatch = 24,
    UpdateBatch = 26,
    DeleteBatch = 27,
    LinkCreate = 28,
    LinkUpdate = 29,
    IteratorCreate = 33,
    LinkDetach = 34,
}

/// The system call. The kernel treats a `bpf_attr` that is shorter than its own as padded with zeros.
///
/// # Safety
/// `A` is the part of `union bpf_attr` that `command` reads and writes, without padding, and every address in
/// it is valid for what the command does with it.
unsafe fn bpf<A>(command: Command, attributes: &mut A) -> io::Result<c_long> {
    // SAFETY: the kernel reads and writes at most `size_of::<A>()` bytes of `attributes`, which is borrowed
    // for the call. The caller guarantees that the addresses in it are valid.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command as i32, std::ptr::from_mut(attributes), size_of::<A>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Like [`bpf`], for commands whose result is a descriptor.
///
/// # Safety
/// That of [`bpf`], and the command returns a new descriptor.
unsafe fn bpf_fd<A>(command: Command, attributes: &mut A) -> io::Result<OwnedFd> {
    // SAFETY: guaranteed by the caller.
    let result = unsafe { bpf(command, attributes)? };
    let fd = i32::try_from(result).map_err(io::Error::other)?;
    // SAFETY: the kernel has just created it, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A descriptor in the form of `bpf_attr`.
fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// An address in the form of `bpf_attr`.
fn address<T>(of: *const T) -> u64 {
    of.addr() as u64
}

/// A length in the form of `bpf_attr`.
fn length(of: usize) -> io::Result<u32> {
    u32::try_from(of).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

/// A name in the kernel's form: 15 of the characters that it allows.
fn name(of: &str) -> [u8; 16] {
    let mut name = [0; 16];
    for (to, from) in name[..15].iter_mut().zip(of.bytes()) {
        *to = if from.is_ascii_alphanumeric() || from == b'.' { from } else { b'_' };
    }
    name
}

/// The inverse of [`name`].
fn text(name: &[u8; 16]) -> String {
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    String::from_utf8_lossy(name.get(..end).unwrap_or_default()).into_owned()
}

/// `BPF_OBJ_GET_INFO_BY_FD` into `I`: the first bytes of the info structure.
///
/// # Safety
/// `I` is the beginning of the info structure of this kind of object, without padding, made of integers only.
unsafe fn info<I: Default>(fd: BorrowedFd<'_>) -> io::Result<I> {
    #[repr(C)]
    struct Attributes {
        fd: u32,
        length: u32,
        info: u64,
    }
    let mut info = I::default();
    let mut attributes =
        Attributes { fd: number(fd), length: length(size_of::<I>())?, info: address(&raw mut info) };
    // SAFETY: the kernel writes at most `length` bytes to `info`, which consists of integers.
    unsafe { bpf(Command::Info, &mut attributes)? };
    Ok(info)
}

/// The network namespace of a socket (`SO_NETNS_COOKIE`), as the number that programs see.
///
/// # Errors
/// The descriptor is not a socket, or the kernel is older than 5.14.
pub fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = 0u64;
    #[expect(clippy::cast_possible_truncation, reason = "the size of a u64")]
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `cookie`, which is that large.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}
