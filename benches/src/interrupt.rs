//! Ctrl-C and SIGTERM. They end a measurement with an error, so that everything it has created is removed. A
//! second signal ends the program at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::signal::unix::{SignalKind, signal};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// The interval at which waits check for an interrupt.
pub const POLL: Duration = Duration::from_millis(20);

/// The exit status that shells use for Ctrl-C.
const STATUS: i32 = 130;

/// Handles the signals from now on, on a thread of its own.
///
/// # Errors
/// The thread or the handlers cannot be set up.
pub fn watch() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    let wait = move || {
        runtime.block_on(async {
            for _ in 0..2 {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                if INTERRUPTED.swap(true, Ordering::Relaxed) {
                    std::process::exit(STATUS);
                }
            }
        });
    };
    std::thread::Builder::new().name("signals".into()).spawn(wait).context("a thread for signals")?;
    Ok(())
}

/// Whether there was an interrupt.
pub fn is_interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Fails after an interrupt.
///
/// # Errors
/// There was an interrupt.
pub fn check() -> Result<()> {
    if is_interrupted() {
        bail!("interrupted");
    }
    Ok(())
}

/// Sleeps for this long.
///
/// # Errors
/// Like [`check`].
pub fn rest(time: Duration) -> Result<()> {
    let end = Instant::now() + time;
    loop {
        check()?;
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(POLL));
    }
}
