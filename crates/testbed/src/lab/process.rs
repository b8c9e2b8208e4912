//! A program that runs in a namespace: its output, signals to it, and its end together with this process.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use super::{Host, LabError, Namespace, cgroup};

/// Starts programs. The kernel kills a program when the thread that started it ends, so this thread lives as
/// long as the process.
static STARTER: LazyLock<Sender<Order>> = LazyLock::new(|| {
    let (sender, orders) = mpsc::channel::<Order>();
    // If the thread cannot be started, orders fail, which reports it.
    let _ = thread::Builder::new().name("lab-starter".into()).spawn(move || {
        // The first caller may be in a cgroup that is removed before this process ends.
        cgroup::leave_all();
        let home = Namespace::current();
        for Order { mut command, namespace, result } in orders {
            let started = home.as_ref().map_err(|error| error.kind().into()).and_then(|home| {
                namespace.enter()?;
                let started = command.spawn();
                // A thread that stays in a namespace would keep it alive.
                home.enter().and(started)
            });
            let _ = result.send(started);
        }
    });
    sender
});

struct Order {
    command: Command,
    namespace: Namespace,
    result: Sender<std::io::Result<Child>>,
}

/// A program that runs on a host. It is killed, with everything that it has started, when this is dropped and
/// when this process ends in any way.
#[derive(Debug)]
pub struct Process {
    child: Child,
    /// Its process id may have been reused since then.
    waited_for: bool,
    log: Arc<Log>,
}

/// The output of a process so far.
#[derive(Debug, Default)]
struct Log {
    lines: Mutex<Vec<String>>,
    more: Condvar,
}

impl Log {
    fn lines(&self) -> MutexGuard<'_, Vec<String>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads a stream to its end, on a thread of its own.
    fn read(self: &Arc<Self>, stream: impl Read + Send + 'static) {
        let log = Arc::clone(self);
        thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                log.lines().push(line);
                log.more.notify_all();
            }
        });
    }
}

impl Host {
    /// Starts a program. Its standard input is empty, and its output on the other two streams is kept. Its
    /// arguments, environment and directory are those of `command`, but not its streams.
    ///
    /// # Errors
    /// `setpriv`, which makes the program end with this process, cannot be started. If the program itself
    /// cannot be started, it ends at once with status 127.
    pub fn spawn(&self, command: &Command) -> Result<Process, LabError> {
        let mut start = Command::new("setpriv");
        start.args(["--pdeathsig", "KILL", "--"]).arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => start.env(name, value),
                None => start.env_remove(name),
            };
        }
        if let Some(directory) = command.get_current_dir() {
            start.current_dir(directory);
        }
        // A process group of its own, so that what it starts can be found.
        start.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());

        let (result, answer) = mpsc::channel();
        let failed = |source| LabError::Program { program: "setpriv".into(), source };
        STARTER
            .send(Order { command: start, namespace: self.ns.clone(), result })
            .map_err(|_| failed(std::io::Error::other("there is no thread to start it")))?;
        let mut child =
            answer.recv().map_err(|error| failed(std::io::Error::other(error)))?.map_err(failed)?;

        let log = Arc::new(Log::default());
        let (out, err) = (child.stdout.take(), child.stderr.take());
        if let Some(out) = out {
            log.read(out);
        }
        if let Some(err) = err {
            log.read(err);
        }
        Ok(Process { child, waited_for: false, log })
    }
}

impl Process {
    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its output so far, of both streams.
    pub fn lines(&self) -> Vec<String> {
        self.log.lines().clone()
    }

    /// Waits for a line that contains `text`, which may have been written already, and returns it.
    ///
    /// # Errors
    /// There was none in time.
    pub fn wait_for(&self, text: &str, patience: Duration) -> Result<String, LabError> {
        let deadline = Instant::now() + patience;
        let mut lines = self.log.lines();
        loop {
            if let Some(line) = lines.iter().find(|line| line.contains(text)) {
                return Ok(line.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                drop(lines);
                return Err(self.waited(format!("said {text:?}"), patience));
            }
            lines = self.log.more.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// It has ended and been waited for.
    pub fn signal(&self, signal: Signal) -> Result<(), LabError> {
        kill_process(Pid::from_child(&self.child), signal)
            .map_err(|error| LabError::io(format!("signalling process {}", self.id()))(error.into()))
    }

    /// Kills it (SIGKILL), and waits until it is gone. What it has started continues.
    pub fn kill(&mut self) {
        // Both fail only if it is already gone.
        let _ = self.child.kill();
        self.waited_for |= self.child.wait().is_ok();
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// It did not end in time.
    pub fn wait(&mut self, patience: Duration) -> Result<ExitStatus, LabError> {
        let deadline = Instant::now() + patience;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => {
                    self.waited_for = true;
                    return Ok(status);
                }
                Err(source) => return Err(LabError::io("waiting for a process")(source)),
                Ok(None) if Instant::now() > deadline => return Err(self.waited("ended".into(), patience)),
                Ok(None) => thread::sleep(Duration::from_millis(2)),
            }
        }
    }

    fn waited(&self, what: String, patience: Duration) -> LabError {
        LabError::Waited { id: self.id(), what, patience, log: self.lines().join("\n") }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.waited_for {
            let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
            self.kill();
        }
    }
}
