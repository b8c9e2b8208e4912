//! What processes and the machine have used, from /proc.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use sluice_testbed::lab::Process;

/// The kernel counts a process's time in hundredths of a second, whatever its own clock: USER_HZ.
const TICK: Duration = Duration::from_millis(10);

/// Processor time of processes and of all that they have started in their groups: user and system.
///
/// # Errors
/// /proc cannot be read.
pub fn cpu_of(processes: &[Process]) -> Result<Duration> {
    let mut ticks = 0;
    for entry in fs::read_dir("/proc").context("/proc")? {
        let path = entry.context("/proc")?.path();
        // A process that has just ended is none of these, which run until they are stopped.
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
    // The name is in parentheses and may have anything in it.
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u32>().ok();
    Some((number(2)?, number(11)? + number(12)?))
}

/// Time that all processors together have been busy: for processes, interrupts, and the kernel's own work.
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

/// What a process holds, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    /// Memory that is there, the program's text included (VmRSS).
    pub resident: u64,
    /// The part of it that the process itself has filled (RssAnon).
    pub anonymous: u64,
    /// Open descriptors: a number.
    pub descriptors: u64,
    /// Threads: a number.
    pub threads: u64,
}

impl Held {
    /// By a process now.
    ///
    /// # Errors
    /// It is not there, or not ours.
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

/// The kernel's own objects on this machine, in bytes: sockets, inodes, files, connections that it tracks.
///
/// # Errors
/// /proc cannot be read.
pub fn slabs() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
    kilobytes(&text, "Slab").context("no Slab in /proc/meminfo")
}

/// `NAME:  123 kB`, in bytes.
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
