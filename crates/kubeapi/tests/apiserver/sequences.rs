//! Any sequence of faults and changes: afterwards this side holds what the server holds.

use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use sluice_kubeapi::apiserver::{Config, Health, Resource as Watched, Timing};
use sluice_testbed::apiserver::{Apiserver, Expiry, Failure, Resource, Target, Verb};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::cluster::{Followed, NODE, config, service, start, timing};

const SEQUENCES: u64 = 240;
/// At a time: most of each is waiting.
const CONCURRENCY: usize = 12;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_any_sequence_of_faults_the_state_is_the_servers() {
    // One sequence alone: SLUICE_SEED=17 cargo test -p sluice-kubeapi --test apiserver sequence
    let seeds = match std::env::var("SLUICE_SEED") {
        Ok(seed) => {
            let seed = seed.parse().expect("a number");
            seed..seed + 1
        }
        Err(_) => 0..SEQUENCES,
    };
    let slots = Arc::new(Semaphore::new(CONCURRENCY));
    let mut sequences = JoinSet::new();
    let is_whole = seeds.end - seeds.start == SEQUENCES;
    for seed in seeds {
        let slot = Arc::clone(&slots).acquire_owned().await.unwrap();
        sequences.spawn(async move {
            let done = tokio::spawn(sequence(seed)).await;
            drop(slot);
            done.unwrap_or_else(|_| panic!("sequence {seed} failed: see above"))
        });
    }
    let mut totals = Totals::default();
    while let Some(done) = sequences.join_next().await {
        totals.add(&done.expect("a sequence"));
    }
    eprintln!("{totals:?}");
    if is_whole {
        // The faults did reach their target.
        assert!(totals.errors > 5 * SEQUENCES && totals.relists > SEQUENCES, "{totals:?}");
        assert!(totals.restarts > 5 * SEQUENCES && totals.skipped > 0, "{totals:?}");
    }
}

/// What the sequences have been through.
#[derive(Debug, Default)]
struct Totals {
    errors: u64,
    relists: u64,
    restarts: u64,
    skipped: u64,
}

impl Totals {
    fn add(&mut self, health: &Health) {
        for one in Watched::ALWAYS.map(|resource| health.of(resource)) {
            self.errors += one.errors();
            self.relists += one.lists().saturating_sub(1);
            self.restarts += one.watch_restarts();
            self.skipped += one.skipped();
        }
    }
}

async fn sequence(seed: u64) -> Arc<Health> {
    let mut random = StdRng::seed_from_u64(seed);
    let builder = Apiserver::builder().history(random.random_range(20..200));
    let builder = builder.bookmark_interval(Duration::from_millis(50));
    let server = match seed % 6 {
        0 => start(builder).await,
        1 => start(builder.http1_only()).await,
        _ => start(builder.plain_http()).await,
    };
    let timing = Timing {
        keep_alive: Duration::from_millis(200),
        answer: Duration::from_millis(500),
        watch: Duration::from_secs(random.random_range(1..20)),
        page: random.random_range(1..8),
        ..timing()
    };
    for _ in 0..random.random_range(0..12) {
        change(&server, &mut random);
    }
    let kubeconfig = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(kubeconfig.path(), server.kubeconfig().unwrap()).unwrap();
    let kubeconfig = Some(kubeconfig.path().to_owned()).filter(|_| seed % 6 < 2);
    let masters = if kubeconfig.is_some() { Vec::new() } else { vec![server.url()] };
    let mut followed = Followed::new(Config { timing, kubeconfig, masters, ..config(&server) });
    let health = Arc::clone(followed.health());
    for _ in 0..random.random_range(20..50) {
        if random.random_bool(0.5) {
            change(&server, &mut random);
        } else {
            fault(&server, &mut random).await;
        }
        followed.drain();
        if followed.count > 0 {
            assert!(health.of(Watched::Services).is_listed());
            assert!(health.of(Watched::EndpointSlices).is_listed());
        }
        let pause = Duration::from_millis(random.random_range(0..30));
        let requests = random.random_range(1..6);
        some_requests(&health, requests, pause, &mut followed).await;
    }
    server.start_again().unwrap();
    server.faults().clear();
    followed.until_like(&server).await;
    // And it goes on.
    server.create(Resource::Services, service("last")).unwrap();
    followed.until_like(&server).await;
    health
}

/// Goes on when so many requests have been made, or some time is over in which there were not: the next
/// fault is to come at any moment of a follower's life.
async fn some_requests(health: &Health, more: u64, pause: Duration, followed: &mut Followed) {
    let count = || Watched::ALWAYS.map(|resource| health.of(resource).requests()).iter().sum::<u64>();
    let enough = count() + more;
    let mut tick = tokio::time::interval(Duration::from_millis(1));
    let waited = async {
        while count() < enough {
            tick.tick().await;
            followed.drain();
        }
    };
    let _ = tokio::time::timeout(pause, waited).await;
}

fn change(server: &Apiserver, random: &mut StdRng) {
    let name = format!("s{}", random.random_range(0..6));
    let namespace = ["default", "other"][random.random_range(0..2)];
    let metadata = json!({ "name": name, "namespace": namespace });
    match random.random_range(0..10) {
        0..3 => {
            let mut spec = json!({
                "clusterIP": format!("10.96.0.{}", random.random_range(1..200)),
                "ports": [{ "port": random.random_range(1..9000) }],
            });
            let mut metadata = metadata;
            match random.random_range(0..8) {
                0 => spec["clusterIP"] = "None".into(),
                1 => spec["type"] = "ExternalName".into(),
                2 => {
                    metadata["labels"] = json!({ "service.kubernetes.io/service-proxy-name": "other" });
                }
                _ => {}
            }
            server.load([(Resource::Services, json!({ "metadata": metadata, "spec": spec }))]);
        }
        3..7 => server.load([(Resource::EndpointSlices, random_slice(&metadata, random))]),
        7 => {
            let metadata = json!({ "name": NODE, "labels": {
                "topology.kubernetes.io/zone": format!("z{}", random.random_range(0..9)) } });
            server.load([(Resource::Nodes, json!({ "metadata": metadata }))]);
        }
        8 => {
            let broken = json!({ "metadata": { "name": "broken", "namespace": namespace }, "spec": 7 });
            server.load([(Resource::Services, broken)]);
        }
        _ => {
            let _ = server.delete(Resource::Services, namespace, &name);
            let _ = server.delete(Resource::EndpointSlices, namespace, &name);
            if random.random_bool(0.2) {
                let _ = server.delete(Resource::Nodes, "", NODE);
            }
        }
    }
}

fn random_slice(metadata: &Value, random: &mut StdRng) -> Value {
    let mut metadata = metadata.clone();
    metadata["labels"] = json!({ "kubernetes.io/service-name": metadata["name"] });
    if random.random_bool(0.1) {
        metadata["labels"]["service.kubernetes.io/headless"] = "".into();
    }
    let endpoints: Vec<_> = (0..random.random_range(0..40))
        .map(|_| {
            let address = format!("10.1.{}.{}", random.random_range(0..9), random.random_range(1..250));
            json!({ "addresses": [address], "conditions": { "ready": random.random_bool(0.8) } })
        })
        .collect();
    json!({
        "metadata": metadata, "addressType": "IPv4", "endpoints": endpoints,
        "ports": [{ "name": "", "port": 8080, "protocol": "TCP" }],
    })
}

async fn fault(server: &Apiserver, random: &mut StdRng) {
    let faults = server.faults();
    let resource = [Resource::Services, Resource::EndpointSlices, Resource::Nodes, Resource::ServiceCidrs]
        [random.random_range(0..4)];
    let target = match random.random_range(0..4) {
        0 => Target::ANY,
        1 => Target::verb(Verb::List),
        2 => Target::verb(Verb::Watch),
        _ => Target::resource(resource),
    };
    match random.random_range(0..16) {
        0 => faults.cut_watches(),
        1 => faults.close_watches(),
        2 => faults.cut_next_event(target, random.random_range(0..400)),
        3 => faults.expire_next_watches(random.random_range(1..4)),
        4 => faults.expire_as(if random.random_bool(0.5) { Expiry::Status } else { Expiry::Event }),
        5 => faults.silence_watches(),
        6 => faults.end_silence(),
        7 => faults.throttle(random.random_range(50..2000), Duration::from_millis(1)),
        8 => faults.end_throttle(),
        9 | 10 => {
            let failure = [
                Failure::Unauthorized,
                Failure::Forbidden,
                Failure::TooManyRequests { retry_after: 0 },
                Failure::InternalError,
                Failure::Unavailable,
                Failure::Garbage,
                Failure::Disconnect,
                Failure::Hang,
            ][random.random_range(0..8)];
            faults.fail(target, failure, random.random_range(1..5));
        }
        11 => server.hold(resource),
        12 => faults.release(resource),
        13 => server.compact(),
        14 => server.drop_connections(),
        _ => {
            if random.random_bool(0.5) {
                server.stop().await.unwrap();
            } else {
                server.start_again().unwrap();
            }
        }
    }
}
