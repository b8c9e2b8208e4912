//! The allocator.

/// Makes the allocator return unused memory to the kernel (`malloc_trim(3)`), which glibc otherwise keeps if
/// it lies between pieces that are in use. Returns whether there was any. It takes milliseconds for each ten
/// megabytes, during which threads that allocate may wait. With another C library it does nothing.
pub fn give_back() -> bool {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: it takes no pointer, does not change memory in use, and may be called by any thread at any
        // time.
        unsafe { libc::malloc_trim(0) != 0 }
    }
    #[cfg(not(target_env = "gnu"))]
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The resident memory in bytes.
    fn resident() -> usize {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() << 10
    }

    #[test]
    fn what_lies_between_pieces_that_are_in_use_goes_back() {
        const PIECES: usize = 64 << 10;
        let mut pieces: Vec<_> = (0..PIECES).map(|_| Some(vec![1_u8; 1_000].into_boxed_slice())).collect();
        // One of a hundred stays, so the heap has no free end that could be returned without trimming.
        pieces.iter_mut().enumerate().filter(|(at, _)| at % 100 != 0).for_each(|(_, piece)| *piece = None);
        let before = resident();
        give_back();
        let after = resident();
        assert!(after + PIECES * 1_000 / 2 < before, "{before} {after}");
        drop(pieces);
    }
}
