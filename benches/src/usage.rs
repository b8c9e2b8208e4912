//! Resource usage of processes and of the machine, from /proc.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use sluice_testbed::lab::Process;

/// The unit of processes' CPU times, regardless of the kernel's own clock: USER_HZ.
const TICK: Duration = Duration::from_millis(10);

/// CPU time (user and system) of processes and of everything in their process groups.
///
/// # Errors
/// /proc cannot be read.
pub fn cpu_of(processes: &[Process]) -> Result<Duration> {
    let mut ticks = 0;
    for entry in fs::read_dir("/proc").context("/proc")? {
        let path = entry.context("/proc")?.path();
        // A process that has just ended is not one of these, which run until they are stopped.
        let Ok(stat) = fs::read_to_string(path.join("stat")) else { continue };
        if let Some((group, used)) = group_and_ticks(&stat)
            && processes.iter().any(|process| process.id() == group)
        {
            ticks += used;
        }
    }
    Ok(TICK * ticks)
}

/// The process group, and user and system time, of a line of /proc/PID/stat.
fn group_and_ticks(stat: &str) -> Option<(u32, u32)> {
    // The name is in parentheses and may contain anything.
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u32>().ok();
    Some((number(2)?, number(11)? + number(12)?))
}

/// Busy time of all CPUs: processes, interrupts, and the kernel's own work.
///
/// # Errors
/// /proc cannot be read.
pub fn cpu_of_machine() -> Result<Duration> {
    let stat = fs::read_to_string("/proc/stat").context("/proc/stat")?;
    busy_ticks(&stat).map(|ticks| TICK * ticks).context("/proc/stat has no line of all processors")
}

fn busy_ticks(stat: &str) -> Option<u32> {
    let numbers: Vec<u32> =
        stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace().map_while(|n| n.parse().ok()).collect();
    // user nice system idle iowait irq softirq
    let [user, nice, system, _, _, irq, softirq, ..] = numbers[..] else { return None };
    Some(user + nice + system + irq + softirq)
}

/// The resources of a process, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    /// Resident memory, including the program's text (VmRSS).
    pub resident: u64,
    /// The anonymous part of it (RssAnon).
    pub anonymous: u64,
    /// Number of open descriptors.
    pub descriptors: u64,
    /// Number of threads.
    pub threads: u64,
}

impl Held {
    /// The current resources of a process.
    ///
    /// # Errors
    /// It does not exist, or is not ours.
    pub fn by(process: &Process) -> Result<Self> {
        let directory = format!("/proc/{}", process.id());
        let status = fs::read_to_string(format!("{directory}/status")).context("the process has ended")?;
        let descriptors = fs::read_dir(format!("{directory}/fd")).context("its descriptors")?.count() as u64;
        let kilobytes = |name| kilobytes(&status, name).with_context(|| format!("no {name} in its status"));
        let threads = status.lines().find_map(|line| line.strip_prefix("Threads:")?.trim().parse().ok());
        Ok(Self {
            resident: kilobytes("VmRSS")?,
            anonymous: kilobytes("RssAnon")?,
            descriptors,
            threads: threads.context("no Threads in its status")?,
        })
    }
}

/// The kernel's own objects (slabs) on this machine, in bytes: sockets, inodes, files, tracked connections.
///
/// # Errors
/// /proc cannot be read.
pub fn slabs() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
    kilobytes(&text, "Slab").context("no Slab in /proc/meminfo")
}

/// The value of a line `NAME:  123 kB`, in bytes.
fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_an_odd_name_is_read() {
        let stat = "71 (a) b (c) S 1 70 70 0 -1 4194304 1 0 0 0 12 30 0 0 20 0 1 0 5 1 2";
        assert_eq!(group_and_ticks(stat), Some((70, 42)));
    }

    #[test]
    fn idle_time_and_waiting_are_not_work() {
        assert_eq!(busy_ticks("cpu  1 2 4 100 200 8 16 0 0 0\ncpu0 1 1 1 1 1 1 1 0 0 0\n"), Some(31));
    }

    #[test]
    fn kilobytes_are_told_by_the_whole_name() {
        let text = "MemTotal:       1 kB\nSlab:      2 kB\nSlabs:      3 kB\n";
        assert_eq!(kilobytes(text, "Slab"), Some(2048));
        assert_eq!(kilobytes(text, "Mem"), None);
    }
}
