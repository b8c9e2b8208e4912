//! The allocator.

/// Has the allocator give back to the kernel what it holds and nobody uses (`malloc_trim(3)`): glibc's keeps what lies between
/// pieces that are in use. Whether there was any. It takes milliseconds for each ten megabytes, for which threads that allocate may
/// wait. With another C library it does nothing.
pub fn give_back() -> bool {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: it takes no pointer, changes no memory that is in use, and may be called by any thread at any time.
        unsafe { libc::malloc_trim(0) != 0 }
    }
    #[cfg(not(target_env = "gnu"))]
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In bytes.
    fn resident() -> usize {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() << 10
    }

    #[test]
    fn what_lies_between_pieces_that_are_in_use_goes_back() {
        const PIECES: usize = 64 << 10;
        let mut pieces: Vec<_> = (0..PIECES).map(|_| Some(vec![1_u8; 1_000].into_boxed_slice())).collect();
        // One of a hundred stays: there is no end of the heap that could go by itself.
        pieces.iter_mut().enumerate().filter(|(at, _)| at % 100 != 0).for_each(|(_, piece)| *piece = None);
        let before = resident();
        give_back();
        let after = resident();
        assert!(after + PIECES * 1_000 / 2 < before, "{before} {after}");
        drop(pieces);
    }
}
