//! Ctrl-C and SIGTERM: they end a measurement by an error, so that everything that it made is taken down on the
//! way out. A second one ends the program at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::signal::unix::{SignalKind, signal};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// How often what waits looks whether it is to end.
pub const POLL: Duration = Duration::from_millis(20);

/// What a shell says of a program that was ended by Ctrl-C.
const STATUS: i32 = 130;

/// Takes care of the signals from now on, on a thread of its own.
///
/// # Errors
/// The system refuses a thread or the handlers.
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

/// Whether it is time to end.
pub fn is_interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Goes on, or not.
///
/// # Errors
/// Somebody wants this to end.
pub fn check() -> Result<()> {
    if is_interrupted() {
        bail!("interrupted");
    }
    Ok(())
}

/// Waits for this long.
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
