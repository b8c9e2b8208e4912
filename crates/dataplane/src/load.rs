//! The load of each worker, computed only when it is requested: workers do no extra counting.

use std::fs;
use std::time::Duration;

/// The load of a worker at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WorkerLoad {
    /// CPU time, in units of 10 ms.
    pub cpu: Duration,
    /// Number of TCP sessions.
    pub tcp_sessions: u64,
    /// Number of UDP flows.
    pub udp_flows: u64,
}

/// The unit in which the kernel reports CPU times (`USER_HZ`): the same on all machines that this runs on.
const TICK: Duration = Duration::from_millis(10);

/// CPU time of a thread of this process; zero if it does not exist.
pub(crate) fn cpu_time(thread: i32) -> Duration {
    let said = fs::read_to_string(format!("/proc/self/task/{thread}/stat")).unwrap_or_default();
    ticks(&said).and_then(|ticks| TICK.checked_mul(ticks)).unwrap_or_default()
}

/// The sum of `utime` and `stime` of proc_pid_stat(5). The name, in parentheses, may contain any character.
fn ticks(stat: &str) -> Option<u32> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u32>().ok();
    next()?.checked_add(next()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_works_has_had_time() {
        let own = rustix::thread::gettid().as_raw_nonzero().get();
        let before = cpu_time(own);
        let mut n = 0_u64;
        while cpu_time(own) == before {
            n = std::hint::black_box(n + 1);
        }
        assert_eq!(cpu_time(-1), Duration::ZERO);
        assert_eq!(ticks("7 (a) b) R 1 1 1 0 -1 4194304 90 0 0 0 12 30 0 0 20"), Some(42));
        assert_eq!(ticks(""), None);
    }
}
