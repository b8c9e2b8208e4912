//! The elements of an array mapped into this process's memory: programs read what is written there.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64};

use super::map::map_info;

/// A mapped array (`BPF_F_MMAPABLE`). Programs and other processes read and write it at any time, so it
/// consists of atomics.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    /// Size of all elements in bytes, a multiple of 8.
    length: usize,
}

// SAFETY: the memory is accessed only by atomic operations, from whichever thread.
unsafe impl Send for Mapping {}
// SAFETY: the same.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps an array.
    ///
    /// # Errors
    /// It is not an array, or lacks the flag.
    pub fn new(map: BorrowedFd<'_>) -> io::Result<Self> {
        /// `BPF_MAP_TYPE_ARRAY`.
        const ARRAY: u32 = 2;
        let info = map_info(map)?;
        if info.kind != ARRAY {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let size = (info.value_size as usize).next_multiple_of(8);
        let length = size.checked_mul(info.max_entries as usize).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a new mapping, at an address that the kernel chooses. The kernel refuses a length beyond
        // the array, except for the rest of a page.
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

    /// The memory as words of 8 bytes.
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: it is mapped for as long as `self` lives and starts at a page, so it is aligned. The bytes
        // are initialised, every value is a valid number, and this process accesses them only by atomics.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast(), self.length / 8) }
    }

    /// The memory as words of 4 bytes.
    pub fn halves(&self) -> &[AtomicU32] {
        // SAFETY: like `words`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast(), self.length / 4) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it was mapped with this address and length, and nothing borrows it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}
