//! Pins: files in a bpffs that keep maps, programs and links alive after their creator has ended.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::{Command, address, bpf, bpf_fd, number};

#[repr(C)]
struct Attributes {
    path: u64,
    fd: u32,
    flags: u32,
}

fn terminated(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// Pins an object at a path in a bpffs.
///
/// # Errors
/// `EEXIST`: the path exists. `EPERM`: the path is not in a bpffs, or CAP_BPF is missing.
pub fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = terminated(path)?;
    let mut attributes = Attributes { path: address(path.as_ptr()), fd: number(object), flags: 0 };
    // SAFETY: the kernel reads the path up to its terminating zero.
    unsafe { bpf(Command::Pin, &mut attributes) }.map(drop)
}

/// Opens a pinned object.
///
/// # Errors
/// `ENOENT`: the path does not exist. `EACCES`: the file is not in a bpffs.
pub fn get(path: &Path) -> io::Result<OwnedFd> {
    let path = terminated(path)?;
    let mut attributes = Attributes { path: address(path.as_ptr()), fd: 0, flags: 0 };
    // SAFETY: the kernel reads the path up to its terminating zero.
    unsafe { bpf_fd(Command::Get, &mut attributes) }
}

/// Whether a path is in a bpffs.
///
/// # Errors
/// The path does not exist.
pub fn is_bpffs(path: &Path) -> io::Result<bool> {
    /// `BPF_FS_MAGIC` of linux/magic.h.
    const MAGIC: u64 = 0xcafe_4a11;
    let found = rustix::fs::statfs(path)?.f_type;
    #[allow(clippy::unnecessary_cast, reason = "the type is another one on other targets")]
    Ok(found as u64 & 0xffff_ffff == MAGIC)
}

/// Mounts a bpffs that only its owner may access.
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN, `ENOENT` if the directory does not exist.
pub fn mount_bpffs(on: &Path) -> io::Result<()> {
    const BPF: &CStr = c"bpf";
    let on = terminated(on)?;
    // SAFETY: all of them are strings that end in a zero and live longer than the call.
    let result = unsafe {
        libc::mount(
            BPF.as_ptr(),
            on.as_ptr(),
            BPF.as_ptr(),
            libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC,
            c"mode=0700".as_ptr().cast(),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
