//! The elements of an array as memory of this process: what is written is what programs read.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64};

use super::map::map_info;

/// A mapped array (`BPF_F_MMAPABLE`). Everybody reads and writes it at any time, so it consists of atomics.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    /// Bytes of all elements, a multiple of 8.
    length: usize,
}

// SAFETY: it is memory that only atomic operations reach, whichever thread they are on.
unsafe impl Send for Mapping {}
// SAFETY: the same.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps an array.
    ///
    /// # Errors
    /// It is no array, or has not the flag.
    pub fn new(map: BorrowedFd<'_>) -> io::Result<Self> {
        /// `BPF_MAP_TYPE_ARRAY`.
        const ARRAY: u32 = 2;
        let info = map_info(map)?;
        if info.kind != ARRAY {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let size = (info.value_size as usize).next_multiple_of(8);
        let length = size.checked_mul(info.max_entries as usize).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a new mapping, at an address of the kernel's choice; the kernel refuses more than there is, but for
        // the rest of a page.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, length })
    }

    /// All of it as words of 8 bytes.
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: it is mapped for as long as `self` lives, at a page's start, so aligned; the bytes are initialised,
        // any are a number, and nobody in this process reaches them but by atomics.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast(), self.length / 8) }
    }

    /// All of it as words of 4 bytes.
    pub fn halves(&self) -> &[AtomicU32] {
        // SAFETY: like `words`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast(), self.length / 4) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: that is what was mapped, and nobody borrows it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}
