//! Two agents at the same time, as while an update is rolled out: one of them keeps the tables.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sluice_capture::tproxy::{Config, Tproxy};
use sluice_capture::{Capture, Change};
use sluice_model::FrontendKind;
use sluice_table::{ClusterAddressChange, FrontendState, Verdict};

use crate::namespace::{Monitor, in_namespace, run, table};
use crate::services::{config, offer, serving, state, withdraw};

/// A frontend that only one of them knows.
fn only(of: &str) -> FrontendState {
    let ip: IpAddr = match of {
        "old" => "203.0.113.1".parse().unwrap(),
        _ => "198.51.100.1".parse().unwrap(),
    };
    state(FrontendKind::ExternalIp, ip, 80, Verdict::Relay)
}

/// Starts an agent that knows nothing but this.
fn knowing(config: Config, states: &[FrontendState]) -> Tproxy {
    let mut tproxy = Tproxy::start(config).unwrap();
    let cluster_addresses = &ClusterAddressChange::default();
    tproxy.change(Change { withdraw: &[], offer: states, cluster_addresses }, Instant::now());
    tproxy
}

/// What is in the place of its listeners: closes them when it is to.
fn close_doors(tproxy: &Tproxy) {
    let tenure = tproxy.tenure();
    if tenure.is_replaced() {
        tenure.release();
    }
}

/// Looks until the other one's end has been noticed: programs that other tests start keep its socket open for a moment.
fn keep_until_owner(tproxy: &mut Tproxy) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while tproxy.tenure().is_replaced() && Instant::now() < deadline {
        tproxy.keep(Instant::now());
    }
    assert!(!tproxy.tenure().is_replaced());
}

/// Tells that something is over when it is dropped.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn the_one_that_began_last_keeps_the_tables_and_the_other_one_writes_nothing() {
    const ROUNDS: usize = 20;
    in_namespace(|| {
        for track in [false, true] {
            let mut old = knowing(Config { track, ..config() }, &[only("old")]);
            let is_over = AtomicBool::new(false);
            let (mut monitor, new) = std::thread::scope(|scope| {
                let busy = scope.spawn(|| {
                    while !is_over.load(Ordering::Relaxed) {
                        withdraw(&mut old, &[only("old")]);
                        offer(&mut old, &[only("old")]);
                        old.keep(Instant::now());
                        close_doors(&old);
                    }
                    old.stats()
                });
                // However this ends: a panic would wait for that thread for ever.
                let over = Over(&is_over);
                // The other one lets go of it, however busy it is.
                let mut new = knowing(config(), &[only("new")]);
                let its_own = table();
                assert!(its_own.contains("198.51.100.1") && !its_own.contains("203.0.113.1"));
                let mut monitor = Monitor::new();
                for _ in 0..ROUNDS {
                    withdraw(&mut new, &[only("new")]);
                    offer(&mut new, &[only("new")]);
                    new.keep(Instant::now());
                }
                let transactions = monitor.transactions();
                assert_eq!(transactions.len(), 2 * ROUNDS, "{transactions:#?}");
                assert!(transactions.iter().flatten().all(|line| line.contains("198.51.100.1")));
                assert_eq!(table(), its_own);
                assert_eq!((new.stats().repairs, new.stats().failures), (0, 0));
                drop(over);
                let stats = busy.join().unwrap();
                assert_eq!((stats.repairs, stats.failures), (0, 0));
                (monitor, new)
            });
            assert!(old.tenure().is_replaced() && !new.tenure().is_replaced());

            // Nor has it forgotten anything.
            drop(new);
            keep_until_owner(&mut old);
            assert!(table().contains("203.0.113.1") && !table().contains("198.51.100.1"));
            assert_eq!(table().contains("notrack"), !track);
            assert!(!monitor.transactions().is_empty());
            assert_eq!(old.stats().failures, 0);
        }
    });
}

#[test]
fn damage_is_undone_by_the_owner_alone() {
    in_namespace(|| {
        let mut old = serving(config(), 3);
        let mut new = knowing(config(), &[only("new")]);
        let its_own = table();
        old.keep(Instant::now());
        run("nft flush ruleset");
        old.keep(Instant::now());
        assert!(!run("nft list ruleset").contains("sluice"), "it is the other one's");
        new.keep(Instant::now());
        assert_eq!(table(), its_own);
        old.keep(Instant::now());
        assert_eq!(table(), its_own);
        assert_eq!((old.stats().repairs, new.stats().repairs), (0, 1));

        // Also where that one does not live to do it.
        run("nft flush ruleset");
        drop(new);
        keep_until_owner(&mut old);
        assert!(table().contains("10.96.0.2"));
    });
}

#[test]
fn one_that_hangs_is_not_waited_for_for_ever() {
    in_namespace(|| {
        let mut old = knowing(config(), &[only("old")]);
        let new = knowing(config(), &[only("new")]);
        offer(&mut old, &[only("old")]);
        assert!(table().contains("198.51.100.1") && !table().contains("203.0.113.1"));
        assert_eq!((old.stats().failures, new.stats().failures), (0, 0));
    });
}
