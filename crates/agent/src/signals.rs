//! What the program is told by signals.

use std::fmt;

use anyhow::{Context, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that ask a process to end, from now on; without this, each of them ends it on the spot.
#[derive(Debug)]
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

/// One that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    /// SIGTERM: by whoever has started it.
    Terminate,
    /// SIGINT: by a person at a terminal.
    Interrupt,
    /// SIGHUP: the terminal is gone; or somebody takes it for "read your configuration again".
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
    /// Takes them from here on.
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

    /// The next one.
    pub(crate) async fn next(&mut self) -> Told {
        // They have no end.
        tokio::select! {
            _ = self.terminate.recv() => Told::Terminate,
            _ = self.interrupt.recv() => Told::Interrupt,
            _ = self.hangup.recv() => Told::HangUp,
        }
    }
}
