//! Runs a capture on a thread of its own, so that nobody with changes waits for the kernel.
//!
//! One step is under way at a time. The caller collects the changes that come meanwhile into the next step, so
//! slow work makes steps larger, not more numerous.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use sluice_table::{ClusterAddressChange, FrontendState};

use crate::{Capture, Change};

/// How often to check that the rules are still in place: somebody may have removed them.
const TICK: Duration = Duration::from_millis(250);

/// The changes of one step; see [`Change`].
#[derive(Debug, Default)]
pub struct Step {
    /// Frontends to remove.
    pub withdraw: Vec<FrontendState>,
    /// Frontends that are new, or whose verdicts changed.
    pub offer: Vec<FrontendState>,
    /// Cluster IPs that were added or removed, and the ranges that they come from.
    pub cluster_addresses: ClusterAddressChange,
}

/// A capture and its thread. Dropping it ends the thread, but waits for nothing that takes long.
#[derive(Debug)]
pub struct Background {
    commands: Option<Sender<Command>>,
    /// A mutex makes it `Sync`; it is never locked.
    done: Mutex<Receiver<Done>>,
    /// A step has been begun and not been taken back yet.
    is_busy: bool,
    /// Whether the thread is working rather than waiting.
    works: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
enum Command {
    Step(Step),
    NodePodCidrs(Vec<IpNet>),
    Keep,
}

#[derive(Debug)]
enum Done {
    Step(Step),
    Kept,
}

impl Background {
    /// Starts the thread, in the calling thread's network namespace.
    ///
    /// # Errors
    /// The system cannot start a thread.
    pub fn start(capture: Box<dyn Capture + Send>) -> io::Result<Self> {
        let (commands, receiver) = mpsc::channel();
        let (sender, done) = mpsc::channel();
        let works = Arc::new(AtomicBool::new(false));
        let at_work = Arc::clone(&works);
        let builder = std::thread::Builder::new().name("capture".to_owned());
        let thread = builder.spawn(move || work(capture, &receiver, &sender, &at_work))?;
        Ok(Self {
            commands: Some(commands),
            done: Mutex::new(done),
            is_busy: false,
            works,
            thread: Some(thread),
        })
    }

    /// Whether a step is under way.
    pub fn is_busy(&self) -> bool {
        self.is_busy
    }

    /// Begins a step. No other may begin until [`Background::take_done`] has returned this one.
    pub fn begin(&mut self, step: Step) {
        debug_assert!(!self.is_busy, "one at a time");
        self.is_busy = true;
        self.send(Command::Step(step));
    }

    /// Sets this node's pod networks; see [`Capture::set_node_pod_cidrs`].
    pub fn set_node_pod_cidrs(&self, cidrs: &[IpNet]) {
        self.send(Command::NodePodCidrs(cidrs.to_vec()));
    }

    /// Returns the finished step, once. Does not wait.
    pub fn take_done(&mut self) -> Option<Step> {
        let done = std::iter::from_fn(|| self.done().try_recv().ok()).find_map(step)?;
        self.is_busy = false;
        Some(done)
    }

    /// Waits for the step that is under way, if there is one, and returns it.
    pub fn wait(&mut self) -> Option<Step> {
        if !std::mem::take(&mut self.is_busy) {
            return None;
        }
        std::iter::from_fn(|| self.done().recv().ok()).find_map(step)
    }

    /// Makes the capture check its state now, and waits for that. Only while no step is under way.
    pub fn keep(&mut self) {
        self.send(Command::Keep);
        let _ = self.done().recv();
    }

    fn done(&mut self) -> &mut Receiver<Done> {
        self.done.get_mut().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, command: Command) {
        // If the thread has panicked it takes nothing; then the agent has ended too.
        let _ = self.commands.as_ref().map(|commands| commands.send(command));
    }
}

fn step(done: Done) -> Option<Step> {
    match done {
        Done::Step(step) => Some(step),
        Done::Kept => None,
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.commands = None;
        // A program that the thread waits for may take half a minute.
        if !self.works.load(Ordering::Acquire) {
            let _ = self.thread.take().map(JoinHandle::join);
        }
    }
}

fn work(
    mut capture: Box<dyn Capture + Send>,
    commands: &Receiver<Command>,
    done: &Sender<Done>,
    works: &AtomicBool,
) {
    // Before the first step it is not known which rules there should be.
    let mut has_begun = false;
    loop {
        let command = match commands.recv_timeout(TICK) {
            Ok(command) => Some(command),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        works.store(true, Ordering::Release);
        let answer = match command {
            Some(Command::Step(step)) => {
                has_begun = true;
                let Step { withdraw, offer, cluster_addresses } = &step;
                capture.change(Change { withdraw, offer, cluster_addresses }, Instant::now());
                Some(Done::Step(step))
            }
            Some(Command::NodePodCidrs(cidrs)) => {
                capture.set_node_pod_cidrs(&cidrs);
                None
            }
            Some(Command::Keep) => {
                capture.keep(Instant::now());
                Some(Done::Kept)
            }
            None if has_begun => {
                capture.keep(Instant::now());
                None
            }
            None => None,
        };
        works.store(false, Ordering::Release);
        // The receiver may be gone.
        let _ = answer.map(|answer| done.send(answer));
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    /// A capture that takes as long as the test wants.
    struct Slow {
        begun: Sender<usize>,
        may_go_on: Receiver<()>,
    }

    impl Capture for Slow {
        fn change(&mut self, change: Change<'_>, _: Instant) {
            self.begun.send(change.cluster_addresses.added.len()).unwrap();
            // It ends with the test at the latest.
            let _ = self.may_go_on.recv();
        }

        fn keep(&mut self, _: Instant) {}
    }

    fn step(ips: &[&str]) -> Step {
        let added: Vec<IpAddr> = ips.iter().map(|ip| ip.parse().unwrap()).collect();
        let cluster_addresses = ClusterAddressChange { added, ..ClusterAddressChange::default() };
        Step { cluster_addresses, ..Step::default() }
    }

    #[test]
    fn nobody_waits_for_a_step_who_does_not_want_to() {
        let (begun, begins) = mpsc::channel();
        let (go_on, may_go_on) = mpsc::channel();
        let mut background = Background::start(Box::new(Slow { begun, may_go_on })).unwrap();
        background.begin(step(&["10.0.0.1"]));
        assert_eq!(begins.recv(), Ok(1));
        assert!(background.is_busy() && background.take_done().is_none());
        go_on.send(()).unwrap();
        assert_eq!(background.wait().unwrap().cluster_addresses.added.len(), 1);
        assert!(!background.is_busy() && background.wait().is_none());

        // Dropping it does not wait either.
        background.begin(step(&["10.0.0.1", "10.0.0.2"]));
        assert_eq!(begins.recv(), Ok(2));
        drop(background);
        drop(go_on);
    }
}
