//! What balancers and proxies make of an apiserver.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use serde_json::{Value, json};
use sluice_kubeapi::apiserver::{Config, Resource as Watched, Timing};
use sluice_testbed::apiserver::{Failure, Resource, Target, Verb};
use tokio::time::advance;

use crate::canned::{Canned, EMPTY, QUIET};
use crate::cluster::{Followed, config, held, plain, service, slice, timing};
use crate::still::still;

/// As one that leaves no connection open for longer than some seconds.
#[tokio::test(start_paused = true)]
async fn watches_that_are_cut_after_they_have_worked_begin_again_at_once_and_are_one_trouble() {
    let server = plain().await;
    let timing =
        Timing { backoff_min: Duration::from_millis(800), backoff_max: Duration::from_secs(30), ..timing() };
    let followed = Followed::new(Config { timing: timing.clone(), ..config(&server) });
    let services = followed.health().of(Watched::Services);
    // A page, the list, and that the watch is open.
    still(|| services.contacts() == 3).await;
    let is_troubled = || followed.health().reasons().iter().any(|(of, _)| *of == Watched::Services);
    for cut in 1..10 {
        let contacts = services.contacts();
        advance(timing.backoff_max / 2).await;
        still(|| services.contacts() > contacts).await;
        assert_eq!(is_troubled(), cut > 1, "of {cut} watches that did not last");
        server.faults().cut_watches();
        still(|| services.watch_restarts() == cut && is_troubled()).await;
        let contacts = services.contacts();
        advance(2 * timing.backoff_min).await;
        still(|| services.contacts() > contacts).await;
    }
    advance(timing.backoff_max).await;
    still(|| !is_troubled()).await;
}

#[tokio::test]
async fn an_apiserver_whose_lists_break_off_is_left_for_the_next_one() {
    let cut = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1000\r\n\r\n{\"metadata\":";
    for list in [cut, "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n{\"a\":1}"] {
        let sick = Canned::start(move |_| list.to_owned()).await;
        let server = plain().await;
        server.create(Resource::Services, service("a")).unwrap();
        let masters = vec![format!("http://{}", sick.address), server.url()];
        let mut followed = Followed::new(Config { masters, ..config(&server) });
        followed.until_like(&server).await;
    }
}

#[tokio::test]
async fn where_lists_are_allowed_and_watches_are_not_it_lists() {
    let server = plain().await;
    let watches = Target::verb(Verb::Watch).of(Resource::Services);
    server.faults().fail(watches, Failure::Forbidden, usize::MAX);
    let mut followed = Followed::synced(&server).await;
    for name in ["a", "b"] {
        server.create(Resource::Services, service(name)).unwrap();
        followed.until(|objects| *objects == held(&server)).await;
    }
}

/// An endpoint that moves from one slice to another is never missing, however late the second page comes.
#[tokio::test]
async fn a_list_that_is_not_the_first_one_takes_effect_as_a_whole() {
    // The last one ends the list: the next one asks for everything at once.
    for failure in ["503 Service Unavailable", "500 Internal Server Error", "504 Gateway Timeout", "410 Gone"]
    {
        let (lists, pages) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let status = |line: &str| format!("HTTP/1.1 {line}\r\nContent-Length: 0\r\n\r\n");
        let canned = Canned::start(move |request| {
            if !request.contains("/endpointslices?") {
                return if request.contains("watch=true") { QUIET.to_owned() } else { EMPTY.to_owned() };
            } else if request.contains("watch=true") {
                return if lists.load(Relaxed) == 1 { status("410 Gone") } else { QUIET.to_owned() };
            }
            let (of, is_second) = match request.contains("continue=") {
                false => (lists.fetch_add(1, Relaxed), false),
                // The second page of the second list fails at first.
                true if pages.fetch_add(1, Relaxed) == 1 => return status(failure),
                true => (lists.load(Relaxed) - 1, true),
            };
            let here = |is_here: bool| -> &[&str] { if is_here { &["10.0.0.1"] } else { &[] } };
            let (a, b) = (slice("web", "a", here(of == 0)), slice("web", "b", here(of != 0)));
            match (is_second, request.contains("limit=")) {
                (true, _) => list(&[b], ""),
                (false, true) => list(&[a], "more"),
                (false, false) => list(&[a, b], ""),
            }
        })
        .await;
        let mut followed = Followed::canned(&canned, Timing { page: 1, ..timing() });
        assert_eq!(followed.next().await.len(), 2);
        let changes = followed.next().await;
        assert_eq!(changes, ["+EndpointSlice default/a", "+EndpointSlice default/b"], "{failure}");
    }
}

fn list(items: &[Value], more: &str) -> String {
    let body =
        json!({ "metadata": { "resourceVersion": "1", "continue": more }, "items": items }).to_string();
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}
