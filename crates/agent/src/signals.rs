//! The signals that the program handles.

use std::fmt;

use anyhow::{Context, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Receives the signals that ask a process to end. Without it, each of them ends the process at once.
#[derive(Debug)]
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

/// A received signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    /// SIGTERM: from whoever started the process.
    Terminate,
    /// SIGINT: from a person at a terminal.
    Interrupt,
    /// SIGHUP: the terminal is gone, or somebody takes it for "read your configuration again".
    HangUp,
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Terminate => "SIGTERM",
            Self::Interrupt => "SIGINT",
            Self::HangUp => "SIGHUP",
        })
    }
}

impl Signals {
    /// Handles the signals from now on.
    ///
    /// # Errors
    /// The system has no room for handlers.
    pub(crate) fn new() -> Result<Self> {
        let on = |kind, told: Told| signal(kind).with_context(|| format!("cannot wait for {told}"));
        Ok(Self {
            terminate: on(SignalKind::terminate(), Told::Terminate)?,
            interrupt: on(SignalKind::interrupt(), Told::Interrupt)?,
            hangup: on(SignalKind::hangup(), Told::HangUp)?,
        })
    }

    /// Waits for the next signal.
    pub(crate) async fn next(&mut self) -> Told {
        // These streams never end.
        tokio::select! {
            _ = self.terminate.recv() => Told::Terminate,
            _ = self.interrupt.recv() => Told::Interrupt,
            _ = self.hangup.recv() => Told::HangUp,
        }
    }
}
