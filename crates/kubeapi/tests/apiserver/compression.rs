//! Long lists come compressed, as client-go asks for them.

use sluice_kubeapi::apiserver::{Config, Resource as Watched, Timing};
use sluice_testbed::apiserver::{Apiserver, Builder, Failure, Resource, Target, Verb};

use crate::canned::{Canned, EMPTY, QUIET};
use crate::cluster::{Followed, by_kubeconfig, config, plain, service, soon, start, timing};

/// So many that an apiserver compresses their list.
const MANY: usize = 500;

async fn large(builder: Builder) -> Apiserver {
    let server = start(builder).await;
    for i in 0..MANY {
        let mut service = service(&format!("s{i}"));
        service["metadata"]["annotations"] = [("note", "long ".repeat(100))].into_iter().collect();
        server.create(Resource::Services, service).unwrap();
    }
    server
}

#[tokio::test]
async fn a_long_list_comes_compressed_by_either_http() {
    let server = large(Apiserver::builder().plain_http()).await;
    let mut followed = Followed::new(config(&server));
    followed.until_like(&server).await;
    assert_eq!(server.counters().borrow().compressed, 1, "short ones are not");

    let server = large(Apiserver::builder()).await;
    let (_kubeconfig, config) = by_kubeconfig(&server);
    let mut followed = Followed::new(config);
    followed.until_like(&server).await;
    assert_eq!(server.counters().borrow().compressed, 1);
}

/// What is in between an apiserver and its client may compress what the apiserver does not, and wait for more of it.
#[tokio::test]
async fn watches_are_not_to_be_compressed() {
    let answer = |request: &str| if request.contains("watch=true") { QUIET } else { EMPTY }.to_owned();
    let canned = Canned::start(answer).await;
    let _followed = Followed::canned(&canned, timing());
    soon(async {
        while canned.heads().len() < 8 {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    })
    .await;
    for head in canned.heads() {
        let wanted = if head.contains("watch=true") { "identity" } else { "gzip" };
        assert!(head.contains(&format!("accept-encoding: {wanted}\r\n")), "{head}");
    }
}

/// A few kB can be gigabytes.
#[tokio::test]
async fn what_is_too_large_is_so_after_it_was_compressed() {
    let server = large(Apiserver::builder().plain_http()).await;
    let whole: usize = server.list(Resource::Services).iter().map(|object| object.to_string().len()).sum();
    let timing = Timing { page_bytes: whole / 2, ..timing() };
    let mut followed = Followed::new(Config { timing, ..config(&server) });
    followed.until_like(&server).await;
    let lists = server.counters().borrow().requests(Verb::List, Resource::Services);
    assert!(lists > 2, "half of the page that was too large: {lists} requests");
}

#[tokio::test]
async fn what_says_to_be_compressed_and_is_not_is_tried_again_and_told_of() {
    let server = plain().await;
    let garbled = "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 9\r\n\r\nno gzip\r\n";
    let sick = Canned::start(move |_| garbled.to_owned()).await;
    let followed = Followed::canned(&sick, timing());
    let reason = soon(async {
        loop {
            let reasons = followed.health().reasons();
            if let Some((_, reason)) = reasons.into_iter().find(|(of, _)| *of == Watched::Services) {
                break reason;
            }
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    })
    .await;
    assert!(reason.contains("gzip"), "{reason}");
    // Another apiserver is asked then, and one failure more of the first is nothing.
    server.faults().fail(Target::verb(Verb::List), Failure::Unavailable, 1);
    let masters = vec![format!("http://{}", sick.address), server.url()];
    let mut followed = Followed::new(Config { masters, ..config(&server) });
    followed.until_like(&server).await;
}
