//! Looking up a frontend and picking an endpoint while a writer makes 1,000 endpoint changes per second: the
//! cost of each new connection before its first system call.
//!
//! * `hot`: 64 Services get all connections. All data is in the cache, so this is the work itself.
//! * `zipf`: some Services are more popular than others, as in practice (the n-th most popular one gets 1/n
//!   of the connections of the first). Part of the data is in the cache.
//! * `uniform`: all Services are equally likely, so the data is hardly ever in the cache: the worst case.
//!
//! Times are per pick and reader, with all readers running.
//!
//! `in_doubt`: one Service in socket mode with 1,000 endpoints, of which some are and stay unverified: the
//! cost of a connection that was left to the relay.

#![expect(clippy::expect_used, reason = "a benchmark that cannot run has failed")]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use sluice_benches::cluster::{self, Cluster};
use sluice_model::Protocol;
use sluice_table::{Client, FrontendKey, Origin, SetName, SharedHealth, SocketHealth, SocketNumber, Table};

/// Endpoint changes per second while the readers run.
const CHANGES_PER_SECOND: u32 = 1_000;

/// The length of a reader's sequence of frontends, which it repeats.
const SEQUENCE: usize = 1 << 14;

/// A repeatable sequence of numbers between 0 and 1 (SplitMix64).
fn fractions() -> impl Iterator<Item = f64> {
    (1_u64..).map(|n| {
        let bits = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        f64::from(u32::try_from((bits ^ (bits >> 31)) >> 32).unwrap_or(0)) / f64::from(u32::MAX)
    })
}

/// The distribution of clients' requests over Services.
#[derive(Debug, Clone, Copy)]
enum Demand {
    Hot,
    Zipf,
    Uniform,
}

/// Services in the order of clients' requests.
fn sequence(services: u32, demand: Demand) -> Vec<u32> {
    // Spreads popular Services over the table, with a step that is coprime to their number.
    let place = |rank: u32| u32::try_from(u64::from(rank) * 7_919 % u64::from(services)).unwrap_or(0);
    let highest = f64::from(services);
    let rank = |fraction: f64| {
        let rank = match demand {
            Demand::Hot => 64.0 * fraction,
            // The inverse of the distribution: P(rank < x) = ln(x + 1) / ln(n + 1).
            Demand::Zipf => (highest + 1.0).powf(fraction) - 1.0,
            Demand::Uniform => highest * fraction,
        };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to `services`")]
        let rank = rank as u32;
        rank.min(services - 1)
    };
    fractions().take(SEQUENCE).map(|fraction| place(rank(fraction))).collect()
}

/// Number of picks between two readings of the clock.
const CHUNK: usize = 256;

/// The time that `readers` readers take for `picks` picks each, from the median of short stretches: a stretch
/// in which the scheduler gave the core to another thread says nothing about a pick.
fn measure(table: &Table, sequence: &[u32], readers: u32, picks: u64) -> Duration {
    let now = Instant::now();
    let chunks = usize::try_from(picks).unwrap_or(usize::MAX).div_ceil(CHUNK);
    let read = || {
        let mut reader = table.reader();
        let client = Client { ip: IpAddr::V4(Ipv4Addr::new(10, 1, 0, 1)), origin: Origin::LocalPod };
        let mut stretch = |services: &[u32]| {
            let start = Instant::now();
            for service in services {
                let key = FrontendKey::new(cluster::cluster_ip(*service), cluster::PORT, Protocol::Tcp);
                let route = reader.lookup(key).expect("every Service is served");
                let mut selection = route.select(client, now).expect("it has endpoints");
                black_box(selection.next(now));
            }
            start.elapsed()
        };
        sequence.chunks_exact(CHUNK).cycle().take(chunks).map(&mut stretch).collect::<Vec<_>>()
    };
    let mut stretches: Vec<Duration> = thread::scope(|scope| {
        let threads: Vec<_> = (0..readers).map(|_| scope.spawn(read)).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("it reads")).collect()
    });
    stretches.sort_unstable();
    let median = stretches.get(stretches.len() / 2).copied().unwrap_or_default();
    median.mul_f64(f64::from(u32::try_from(picks).unwrap_or(u32::MAX)) / CHUNK as f64)
}

fn picks(criterion: &mut Criterion) {
    for services in [10_000, 100_000] {
        let mut group = criterion.benchmark_group(format!("table_pick/{services}"));
        let mut cluster = Cluster::new(services, 10);
        let table = cluster.writer.table().clone();
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                let start = Instant::now();
                for change in 0.. {
                    if is_over.load(Ordering::Relaxed) {
                        break;
                    }
                    cluster.change_an_endpoint(change);
                    let due = start + Duration::from_secs(1) / CHANGES_PER_SECOND * (change + 1);
                    thread::sleep(due.saturating_duration_since(Instant::now()));
                }
            });
            for (name, demand) in [("hot", Demand::Hot), ("zipf", Demand::Zipf), ("uniform", Demand::Uniform)]
            {
                let sequence = sequence(services, demand);
                for readers in [1, 2] {
                    let id = BenchmarkId::new(name, format!("{readers}_readers"));
                    group.bench_function(id, |bencher| {
                        bencher.iter_custom(|picks| measure(&table, &sequence, readers, picks));
                    });
                }
            }
            is_over.store(true, Ordering::Relaxed);
        });
    }
}

/// The unverified endpoints, by id.
#[derive(Debug)]
struct Doubts(Vec<AtomicBool>);

impl SocketHealth for Doubts {
    fn is_in_doubt(&self, number: SocketNumber) -> bool {
        let doubt = usize::try_from(number.id).ok().and_then(|id| self.0.get(id));
        doubt.is_some_and(|doubt| doubt.load(Ordering::Relaxed))
    }
    fn has_served(&self, _: SocketNumber) {}
    fn has_failed(&self, _: SocketNumber) {}
}

fn in_doubt(criterion: &mut Criterion) {
    const ENDPOINTS: u32 = 1_000;
    let mut group = criterion.benchmark_group(format!("table_pick/in_doubt_of_{ENDPOINTS}"));
    for doubts in [None, Some(0), Some(1), Some(100)] {
        let cluster = Cluster::new(1, ENDPOINTS);
        let table = cluster.writer.table();
        let key = FrontendKey::new(cluster::cluster_ip(0), cluster::PORT, Protocol::Tcp);
        let mut reader = table.reader();
        if let Some(doubts) = doubts {
            let port = Arc::clone(reader.lookup(key).expect("it is served").service_port());
            // Spread over all endpoints.
            let is_in_doubt = |id| doubts > 0 && id % (ENDPOINTS / doubts) == 0;
            let health = Doubts((0..ENDPOINTS).map(|id| AtomicBool::new(is_in_doubt(id))).collect());
            let health: SharedHealth = Arc::new(Box::new(health));
            port.share_health(&health);
            // Only afterwards, because sharing clears earlier ids.
            for (id, upstream) in (0..).zip(port.endpoints()) {
                upstream.set_socket_number(SetName::Cluster, Some(SocketNumber { id, incarnation: 1 }));
            }
        }
        let id = doubts.map_or("tproxy_alone".to_owned(), |doubts| doubts.to_string());
        group.bench_function(id, |bencher| {
            let client = Client { ip: IpAddr::V4(Ipv4Addr::new(10, 1, 0, 1)), origin: Origin::LocalPod };
            bencher.iter_custom(|picks| {
                let start = Instant::now();
                for pick in (0..picks).step_by(CHUNK) {
                    // As recent as a worker's time.
                    let now = Instant::now();
                    for _ in pick..picks.min(pick + CHUNK as u64) {
                        let route = reader.lookup(key).expect("it is served");
                        let mut selection = route.select(client, now).expect("it has endpoints");
                        black_box(selection.next(now));
                    }
                }
                start.elapsed()
            });
        });
    }
}

criterion_group!(benches, picks, in_doubt);
criterion_main!(benches);
