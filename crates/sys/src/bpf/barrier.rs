//! Waits for running programs.

use std::io;
use std::os::fd::AsFd;

use super::map::{Element, MapSpec, create};
use super::{Command, address, bpf, number};

/// Returns once all programs that were running when this was called have ended (except sleepable ones).
/// Programs that start later see what was written to mapped memory before.
///
/// The kernel waits for RCU readers after it has replaced an element of a map of maps
/// (`maybe_wait_bpf_programs` in kernel/bpf/syscall.c). `membarrier(MEMBARRIER_CMD_GLOBAL)` would be simpler,
/// but it does not wait if only one processor is online, although programs can be preempted there, and it
/// fails with nohz_full.
///
/// # Errors
/// Those of creating two small maps: `EPERM` without CAP_BPF, `ENOMEM`, `EMFILE`.
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
    // SAFETY: the kernel reads a key and a value of four bytes each, which are the sizes of the map.
    unsafe { bpf(Command::MapUpdate, &mut element) }.map(drop)
}
