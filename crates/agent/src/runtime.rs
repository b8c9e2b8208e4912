//! The tokio runtime: threads for tasks, and threads for blocking work.

use std::io;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

/// How long idle threads for blocking work (files, names, large answers) are kept: a hundred years, that is,
/// for good.
const KEPT: Duration = Duration::from_secs(100 * 365 * 24 * 3_600);

/// The most threads for blocking work; further work waits.
const MOST: usize = 32;

/// How long to wait for blocking work at the end: a volume that hangs may block it for ever.
const LAST: Duration = Duration::from_secs(1);

/// Starts the runtime, with one thread for blocking work. If there were none and the system refused one, a
/// request for it would panic and so end the agent and everything that it relays. If there is one, work waits
/// for it.
///
/// # Errors
/// The system refuses an epoll instance.
///
/// # Panics
/// The system refuses threads. Nothing has begun then.
pub fn start() -> io::Result<Runtime> {
    let runtime = Builder::new_multi_thread()
        .enable_all()
        .thread_keep_alive(KEPT)
        .max_blocking_threads(MOST)
        .build()?;
    // The closure is empty, so it cannot have panicked.
    let _ = runtime.block_on(runtime.spawn_blocking(|| ()));
    Ok(runtime)
}

/// Runs `work` and ends the runtime, even if its threads are still blocked.
pub fn finish<T>(runtime: Runtime, work: impl Future<Output = T>) -> T {
    let done = runtime.block_on(work);
    runtime.shutdown_timeout(LAST);
    done
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::sync::mpsc;
    use std::{fs, thread};

    use rustix::process::{Resource, Rlimit, setrlimit};
    use tokio::task::spawn_blocking;

    use super::*;

    #[test]
    fn where_the_system_gives_no_more_threads_work_waits_for_the_one_that_there_is() {
        let mut other = Command::new(std::env::current_exe().unwrap());
        other.args(["--ignored", "--exact", "runtime::tests::works_without_more_threads"]);
        let output = other.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"), "{output:?}");
    }

    #[test]
    fn a_file_that_hangs_does_not_keep_the_process_from_ending() {
        let runtime = start().unwrap();
        let (_answer, hangs) = mpsc::channel::<()>();
        let (begin, begun) = mpsc::channel();
        runtime.spawn_blocking(move || {
            begin.send(()).unwrap();
            hangs.recv()
        });
        begun.recv().unwrap();
        let (end, ended) = mpsc::channel();
        thread::spawn(move || end.send(finish(runtime, async { 7 })));
        assert_eq!(ended.recv_timeout(LAST * 20), Ok(7));
    }

    #[test]
    #[ignore = "the process of another test"]
    fn works_without_more_threads() {
        let runtime = start().unwrap();
        // Some memory, but none for a thread's stack: creating a thread then fails as if there were too many.
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")?.strip_suffix("kB")).unwrap();
        let most = (size.trim().parse::<u64>().unwrap() + 1_024) * 1_024;
        setrlimit(Resource::As, Rlimit { current: Some(most), maximum: Some(most) }).unwrap();
        assert_eq!(thread::Builder::new().spawn(|| ()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        runtime.block_on(async {
            let (first, second) = (spawn_blocking(|| 1), spawn_blocking(|| 2));
            assert_eq!((first.await.unwrap(), second.await.unwrap()), (1, 2));
        });
    }
}
