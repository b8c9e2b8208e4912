//! The threads that tasks run on, and those for what would keep these waiting.

use std::io;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

/// Threads for what keeps a thread waiting (files, names, large answers) stay once they are there: a hundred years.
const KEPT: Duration = Duration::from_secs(100 * 365 * 24 * 3_600);

/// So no more than this many, however much is asked at a time. The rest waits for its turn.
const MOST: usize = 32;

/// How long what keeps a thread waiting is waited for in the end: a volume that hangs may keep it for ever.
const LAST: Duration = Duration::from_secs(1);

/// Starts it, with one thread for what keeps a thread waiting. Where there is none, and the system gives none, to ask for one is a
/// panic, which ends the agent and all that it relays. Where there is one, work waits for it.
///
/// # Errors
/// The system gives no epoll instance.
///
/// # Panics
/// It gives no threads. Nothing has begun.
pub fn start() -> io::Result<Runtime> {
    let runtime = Builder::new_multi_thread()
        .enable_all()
        .thread_keep_alive(KEPT)
        .max_blocking_threads(MOST)
        .build()?;
    // It has nothing to say, so it has not panicked.
    let _ = runtime.block_on(runtime.spawn_blocking(|| ()));
    Ok(runtime)
}

/// Does this work, and ends the runtime, whatever still keeps its threads waiting.
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
        // Some memory, and none for the stack of a thread: to whoever asks for one that is as if there were too many.
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
