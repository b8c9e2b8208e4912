//! An apiserver whose packets are lost without a word, over HTTP/1.1, where there are no pings: TCP has to find out.
//!
//! Needs root, or a kernel that lets users have namespaces of their own.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

use std::time::{Duration, Instant};

use sluice_kubeapi::apiserver::{ApiserverSource, Config, Environment, Resource as Watched, Timing};
use sluice_testbed::apiserver::{Apiserver, Resource};
use sluice_testbed::lab::{Lab, PATIENCE};
use tokio::runtime::Runtime;

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

#[test]
fn a_watch_over_http_1_is_given_up_when_its_packets_are_lost() {
    let lab = Lab::builder().pods(0).other_pods(0).build().unwrap_or_else(|error| panic!("{error}"));
    let address = (lab.outside().v4, 6443).into();
    // The threads of a runtime are in the namespace that it is made in.
    let servers = lab.outside().ns.run(runtime);
    let server = lab.outside().ns.run(|| {
        servers.block_on(Apiserver::builder().bind(address).plain_http().start()).expect("an apiserver")
    });
    let timing = Timing {
        keep_alive: Duration::from_secs(1),
        keep_alive_answer: Duration::from_secs(3),
        // Nothing else is to find out.
        answer: Duration::from_secs(600),
        ..Timing::default()
    };
    let config = Config {
        masters: vec![server.url()],
        timing: timing.clone(),
        ..Config::new("node-1", Environment::default())
    };
    let clients = lab.node().ns.run(runtime);
    let (source, _batches) = lab.node().ns.run(|| {
        clients.block_on(async {
            let (source, mut batches) = ApiserverSource::start(config).expect("a configuration");
            tokio::time::timeout(PATIENCE, batches.recv()).await.expect("it is followed").expect("it runs");
            let mut counters = server.counters();
            let open = counters.wait_for(|counters| counters.open_watches(Resource::Services) == 1);
            tokio::time::timeout(PATIENCE, open).await.expect("it is watched").expect("the server runs");
            (source, batches)
        })
    });
    let lost = "add table ip hole; add chain ip hole in { type filter hook input priority 0; policy drop; }";
    lab.node().ns.nft(lost).unwrap_or_else(|error| panic!("{error}"));
    let began = Instant::now();
    let errors = || source.health().of(Watched::Services).errors();
    while errors() == 0 {
        assert!(began.elapsed() < PATIENCE, "never noticed: {:?}", source.health());
        std::thread::sleep(Duration::from_millis(20));
    }
    let took = began.elapsed();
    let limit = timing.keep_alive + timing.keep_alive_answer;
    // Probes are due in whole seconds, and the machine may be busy.
    assert!(took <= limit + Duration::from_secs(2), "{took:?}, and {limit:?} are promised");
    assert!(
        source
            .health()
            .last_contact()
            .is_some_and(|age| age >= took.saturating_sub(Duration::from_secs(1)).min(limit))
    );
}
