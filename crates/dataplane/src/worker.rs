//! One worker: a thread with one event loop, and everything that lives and dies on it.
//!
//! A turn of the loop: wait (not at all while somebody has more to do), events, turns of those with
//! more to do, deadlines, commands.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::Instant;

use mio::{Events, Poll, Registry};
use sluice_table::Reader;

use crate::descriptors::Descriptors;
use crate::stats::WorkerStats;
use crate::tcp::relay::TcpRelay;
use crate::tcp::session::Side;
use crate::timers::Timers;
use crate::token::{SlotId, Source};

/// Events taken from the kernel at a time.
const EVENTS: usize = 1024;

/// What the rest of the program asks of a worker.
#[derive(Debug)]
pub(crate) enum Command {
    /// Accept connections on a socket.
    ListenTcp(TcpListener),
    /// Stop accepting on an address, and say so when it is done.
    CloseTcp(SocketAddr, Sender<()>),
    /// Accept nothing new; end when the last session has.
    Drain,
    /// End now.
    Stop,
}

/// Whose deadline it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum TimerOwner {
    Session(SlotId),
    AcceptRetry,
}

/// What every part of a worker uses.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) registry: Registry,
    pub(crate) timers: Timers<TimerOwner>,
    pub(crate) reader: Reader,
    pub(crate) stats: Arc<WorkerStats>,
    pub(crate) descriptors: Arc<Descriptors>,
    /// The time at which the current turn of the loop began.
    pub(crate) now: Instant,
}

/// A worker before and while it runs.
#[derive(Debug)]
pub(crate) struct Worker {
    poll: Poll,
    core: Core,
    tcp: TcpRelay,
    commands: Receiver<Command>,
    is_draining: bool,
}

impl Worker {
    /// `poll` has the waker registered already.
    pub(crate) fn new(
        poll: Poll,
        reader: Reader,
        stats: Arc<WorkerStats>,
        descriptors: Arc<Descriptors>,
        commands: Receiver<Command>,
    ) -> io::Result<Self> {
        let registry = poll.registry().try_clone()?;
        let core =
            Core { registry, timers: Timers::default(), reader, stats, descriptors, now: Instant::now() };
        Ok(Self { poll, tcp: TcpRelay::new(&core), core, commands, is_draining: false })
    }

    /// Runs until it is told to stop, or was told to drain and is done.
    pub(crate) fn run(mut self) {
        let mut events = Events::with_capacity(EVENTS);
        loop {
            let wait = if self.tcp.has_ready() {
                Some(std::time::Duration::ZERO)
            } else {
                self.core.timers.wait(self.core.now)
            };
            if let Err(error) = self.poll.poll(&mut events, wait)
                && error.kind() != io::ErrorKind::Interrupted
            {
                // epoll_wait(2) has no other error for a valid descriptor and buffer.
                tracing::error!(%error, "a worker cannot wait for events and ends");
                return;
            }
            self.core.now = Instant::now();
            let mut is_woken = false;
            for event in &events {
                match Source::of(event.token()) {
                    Some(Source::Waker) => is_woken = true,
                    Some(Source::Listener(id)) => self.tcp.on_listener(id, &mut self.core),
                    Some(Source::Downstream(id)) => {
                        self.tcp.on_session(id, Side::Downstream, event, &mut self.core);
                    }
                    Some(Source::Upstream(id)) => {
                        self.tcp.on_session(id, Side::Upstream, event, &mut self.core);
                    }
                    Some(Source::UdpSocket(_) | Source::Flow(_)) | None => {}
                }
            }
            self.tcp.run_ready(&mut self.core);
            self.run_timers();
            if is_woken && self.obey().is_break() {
                return;
            }
            if self.is_draining && self.tcp.sessions() == 0 {
                return;
            }
        }
    }

    fn run_timers(&mut self) {
        while let Some((at, owner)) = self.core.timers.pop_due(self.core.now) {
            match owner {
                TimerOwner::Session(id) => self.tcp.on_session_timer(id, at, &mut self.core),
                TimerOwner::AcceptRetry => self.tcp.resume_accepting(),
            }
        }
    }

    /// Carries out the commands that wait.
    fn obey(&mut self) -> std::ops::ControlFlow<()> {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::ListenTcp(socket) => {
                    if let Err(error) = self.tcp.listen(socket, &mut self.core) {
                        tracing::error!(%error, "a worker cannot listen; its share of connections is refused");
                    }
                }
                Command::CloseTcp(address, done) => {
                    self.tcp.close_listener(address);
                    // Nobody waiting any more is fine.
                    let _ = done.send(());
                }
                Command::Drain => {
                    self.tcp.close_all_listeners(&mut self.core);
                    self.is_draining = true;
                }
                Command::Stop => return std::ops::ControlFlow::Break(()),
            }
        }
        std::ops::ControlFlow::Continue(())
    }
}
