//! A watch that is cut over and over: what is said of it, and how often it is started. Alone in its process: where another
//! thread, of which no log is kept, comes by a line first, tracing may take it that nobody wants it.

// All of it is test code, helpers too, where clippy does not see that by itself.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

#[path = "apiserver/canned.rs"]
mod canned;
#[path = "apiserver/still.rs"]
mod still;

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use serde_json::json;
use sluice_kubeapi::apiserver::{ApiserverSource, Config, Environment, Resource, Timing};
use tokio::time::{Instant, advance};
use tracing::subscriber::DefaultGuard;

use canned::{Canned, EMPTY, QUIET};
use still::still;

/// Writes what this thread logs to a file, until what is returned is dropped.
fn log_to(path: &Path) -> DefaultGuard {
    let file = Arc::new(File::create(path).unwrap());
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::INFO)
        .with_ansi(false)
        .without_time()
        .with_writer(file);
    tracing::subscriber::set_default(subscriber.finish())
}

/// A watch that is opened, has one event, and is cut.
fn cut() -> String {
    let service = json!({ "metadata": { "name": "a" }, "spec": { "ports": [{ "port": 80 }] } });
    let event = json!({ "type": "ADDED", "object": service });
    format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 100000\r\n\r\n{event}\n")
}

/// The clock stands still while anything is sent, so that no watch lives for any time before it is cut.
#[tokio::test(start_paused = true)]
async fn a_watch_that_is_cut_after_each_event_is_one_trouble_until_one_lives() {
    let log = tempfile::NamedTempFile::new().unwrap();
    let _guard = log_to(log.path());
    let lives = Arc::new(AtomicBool::new(false));
    let may_live = Arc::clone(&lives);
    let canned = Canned::start(move |request| match request.contains("watch=true") {
        true if request.contains("/services?") && !may_live.load(Relaxed) => cut(),
        true => QUIET.to_owned(),
        false => EMPTY.to_owned(),
    })
    .await;
    let timing = Timing {
        backoff_min: Duration::from_millis(10),
        backoff_max: Duration::from_millis(80),
        ..Timing::default()
    };
    let masters = vec![format!("http://{}", canned.address)];
    let config = Config { masters, timing: timing.clone(), ..Config::new("node-1", Environment::default()) };
    let (source, _batches) = ApiserverSource::start(config).unwrap();
    let services = source.health().of(Resource::Services);
    still(|| canned.requests().len() >= 8 && services.watch_restarts() == 1).await;

    let began = Instant::now();
    while services.watch_restarts() < 20 {
        // One list, and a watch for each that is over: the next one is waited for.
        still(|| services.requests() == 1 + services.watch_restarts()).await;
        advance(Duration::from_millis(1)).await;
    }
    let (took, attempts) = (began.elapsed(), services.watch_restarts());
    // 10, 20 and 40 ms, and then the longest delay each time.
    assert!(took >= 16 * timing.backoff_max, "{attempts} attempts in {took:?}");
    assert_eq!((services.errors(), services.lists()), (attempts, 1));

    // Those of Services, by their level.
    let said = || {
        let log = fs::read_to_string(log.path()).unwrap();
        let of = log.lines().filter(|line| line.contains("resource=services"));
        of.map(|line| line.trim().to_owned()).collect::<Vec<_>>()
    };
    let lines = said();
    assert!(lines.len() == 1 && lines[0].starts_with("WARN"), "{lines:#?}");

    lives.store(true, Relaxed);
    let restarts = services.watch_restarts();
    advance(2 * timing.backoff_max).await;
    let contacts = services.contacts();
    still(|| services.requests() == 2 + restarts && services.contacts() > contacts).await;
    assert_eq!(said().len(), 1, "it is no more than open");
    advance(timing.backoff_min).await;
    still(|| source.health().reasons().is_empty()).await;
    let lines = said();
    assert!(lines.len() == 2 && lines[1].contains("followed again"), "{lines:#?}");
}
