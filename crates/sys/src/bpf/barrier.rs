//! Waiting for programs that run.

use std::io;
use std::os::fd::AsFd;

use super::map::{Element, MapSpec, create};
use super::{Command, address, bpf, number};

/// Returns once no program runs any more that ran when this was called (those that may sleep excepted). What was written to
/// mapped memory before, those that start later see.
///
/// The kernel waits for readers under RCU after it has replaced an element of a map of maps (`maybe_wait_bpf_programs` of
/// kernel/bpf/syscall.c). `membarrier(MEMBARRIER_CMD_GLOBAL)` would be simpler, but does not wait where one processor is
/// online, on which programs can be preempted all the same, and fails with nohz_full.
///
/// # Errors
/// That of making two small maps: `EPERM` without CAP_BPF, `ENOMEM`, `EMFILE`.
pub fn wait_for_programs() -> io::Result<()> {
    /// Of `enum bpf_map_type`.
    const ARRAY: u32 = 2;
    const ARRAY_OF_MAPS: u32 = 12;
    let one = |kind| MapSpec {
        name: "barrier",
        kind,
        key_size: 4,
        value_size: 4,
        max_entries: 1,
        flags: 0,
        btf: None,
    };
    let inner = create(&one(ARRAY), None)?;
    let outer = create(&one(ARRAY_OF_MAPS), Some(inner.as_fd()))?;
    let (key, value) = (0u32, number(inner.as_fd()));
    let mut element = Element {
        map: number(outer.as_fd()),
        pad: 0,
        key: address(&raw const key),
        value: address(&raw const value),
        flags: 0,
    };
    // SAFETY: the kernel reads a key and a value of four bytes each, as the map says.
    unsafe { bpf(Command::MapUpdate, &mut element) }.map(drop)
}
