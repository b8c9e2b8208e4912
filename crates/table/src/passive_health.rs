//! Passive health (outlier ejection): an endpoint that keeps failing gets no new connections for a while.
//!
//! There are no probes; only the outcomes of real connections count. After enough consecutive failures the
//! endpoint is ejected for [`FIRST`]. If it goes on failing, it is ejected for twice as long each time, up to
//! [`LONGEST`]. One success ends this. If all endpoints are ejected, picks fall back to them, so an ejection
//! never refuses a connection.
//!
//! What a failure means depends on the client that the endpoint saw. A network policy may deny one pod what
//! it grants to all others, by silence or by a refusal, and that pod must not eject the endpoint for the
//! others. So connections with a client's own address and those with the node's are judged separately, and in
//! the former case several clients have to fail: three that were refused, four if the last one got no answer.
//!
//! For a client that got no answer, the endpoint is skipped at once, for [`UNHEARD`] and for this client
//! only, because each attempt costs it a timeout. A few such clients are remembered for each endpoint; one
//! more ejects it for all. An answer to this very client ends it.

use std::net::IpAddr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::SourceAddress;
use crate::balance::mix;

/// Consecutive failures with the node's address before an endpoint is ejected.
pub const FAILURES: u32 = 3;

/// The number of clients that an endpoint refuses, without a success in between, before it is ejected.
pub const REFUSED_CLIENTS: usize = 3;

/// The number of clients that fail, the last one without an answer, before an endpoint is ejected. More than
/// [`REFUSED_CLIENTS`], because most network policies deny by silence.
pub const UNHEARD_CLIENTS: usize = 4;

/// How long an endpoint is skipped for a client that got no answer from it. Long enough that one timeout in
/// this period matters little to a client that a policy denies the endpoint; short enough for a client whose
/// SYN was only lost.
pub const UNHEARD: Duration = Duration::from_secs(10);

/// How long an endpoint is ejected the first time.
pub const FIRST: Duration = Duration::from_secs(1);

/// The longest time that an endpoint is ejected.
pub const LONGEST: Duration = Duration::from_secs(30);

/// How a connect failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Heard {
    /// It was refused, or the endpoint is unreachable.
    Refusal,
    /// No answer in time.
    Nothing,
}

/// The client that an endpoint saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seen {
    /// The client itself.
    Client(IpAddr),
    /// The node.
    Node,
}

impl Seen {
    pub(crate) fn new(source: SourceAddress, client: IpAddr) -> Self {
        match source {
            SourceAddress::Client => Self::Client(client),
            SourceAddress::Node => Self::Node,
        }
    }

    pub(crate) fn source(self) -> SourceAddress {
        match self {
            Self::Client(_) => SourceAddress::Client,
            Self::Node => SourceAddress::Node,
        }
    }
}

/// The state of one endpoint. All zero while it answers.
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct PassiveHealth {
    // First, because every pick reads them.
    to_clients: Record,
    to_node: Record,
    unheard: Unheard,
    failed_clients: FewClients,
    /// The time of the first failure.
    epoch: OnceLock<Instant>,
}

/// How an endpoint treats connections with one kind of source address.
#[derive(Debug, Default)]
#[repr(C)]
struct Record {
    /// When it is tried again, in nanoseconds after the epoch; 0 if it is not ejected.
    until: AtomicU64,
    /// Failures since the last success.
    failures: AtomicU32,
    /// The number of consecutive ejections.
    rounds: AtomicU32,
}

/// A few clients that got no answer, and until when that counts.
#[derive(Debug, Default)]
#[repr(C)]
struct Unheard {
    /// Until when it counts for any of them, as in a [`Record`].
    until: AtomicU64,
    /// For each client 31 bits of its hash, and in the lower 33 bits the time, in units of 2^27 ns (134 ms)
    /// after the epoch, which is enough for 36 years; 0 if the entry is free.
    clients: [AtomicU64; UNHEARD_CLIENTS],
}

/// The hashes (never 0) of as many clients as have to fail.
#[derive(Debug, Default)]
struct FewClients([AtomicU32; UNHEARD_CLIENTS]);

impl PassiveHealth {
    /// Records a failed connect. Returns whether this ejected the endpoint.
    pub(crate) fn failed(&self, seen: Seen, heard: Heard, now: Instant) -> bool {
        let record = self.record(seen.source());
        let failures = record.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        let now = nanoseconds(now.saturating_duration_since(*self.epoch.get_or_init(|| now)));
        if let (Seen::Client(ip), Heard::Nothing) = (seen, heard) {
            self.unheard.add(ip, now);
        }
        let until = record.until.load(Ordering::Relaxed);
        // Connects that were under way when the ejection began are no news.
        if now < until {
            return false;
        }
        let is_enough = match (seen, heard) {
            (Seen::Node, _) => failures >= FAILURES,
            (Seen::Client(ip), Heard::Refusal) => self.failed_clients.count_with(ip) >= REFUSED_CLIENTS,
            (Seen::Client(ip), Heard::Nothing) => self.failed_clients.count_with(ip) >= UNHEARD_CLIENTS,
        };
        if !is_enough {
            return false;
        }
        let pause = pause(record.rounds.load(Ordering::Relaxed));
        let began = record
            .until
            .compare_exchange(until, now + nanoseconds(pause), Ordering::Relaxed, Ordering::Relaxed)
            .is_ok();
        if began {
            record.rounds.fetch_add(1, Ordering::Relaxed);
            // As many clients have to fail again after the ejection: the first one to try then may be one
            // that is denied, and never stops trying.
            if seen.source() == SourceAddress::Client {
                self.failed_clients.clear();
            }
        }
        began
    }

    /// Records an answer.
    pub(crate) fn succeeded(&self, seen: Seen) {
        let source = seen.source();
        if let Seen::Client(ip) = seen {
            self.unheard.remove(ip);
        }
        let record = self.record(source);
        if record.failures.load(Ordering::Relaxed) != 0 {
            record.failures.store(0, Ordering::Relaxed);
            record.rounds.store(0, Ordering::Relaxed);
            record.until.store(0, Ordering::Relaxed);
            if source == SourceAddress::Client {
                self.failed_clients.clear();
            }
        }
    }

    /// Whether it was skipped for any client since the last success. Needs no clock.
    #[inline]
    pub(crate) fn was_passed_over(&self) -> bool {
        let untils = [&self.to_clients.until, &self.to_node.until, &self.unheard.until];
        untils.iter().any(|until| until.load(Ordering::Relaxed) != 0)
    }

    /// Whether this client recently got no answer from it.
    pub(crate) fn is_unheard(&self, seen: Seen, now: Instant) -> bool {
        match (seen, self.epoch.get()) {
            (Seen::Client(ip), Some(epoch)) => {
                self.unheard.contains(ip, nanoseconds(now.saturating_duration_since(*epoch)))
            }
            _ => false,
        }
    }

    /// How long it is still ejected.
    pub(crate) fn remaining(&self, source: SourceAddress, now: Instant) -> Option<Duration> {
        let until = self.record(source).until.load(Ordering::Relaxed);
        if until == 0 {
            return None;
        }
        let now = nanoseconds(now.saturating_duration_since(*self.epoch.get()?));
        until.checked_sub(now).filter(|left| *left > 0).map(Duration::from_nanos)
    }

    /// Failures since the last success.
    pub(crate) fn failures(&self, source: SourceAddress) -> u32 {
        self.record(source).failures.load(Ordering::Relaxed)
    }

    #[inline]
    fn record(&self, source: SourceAddress) -> &Record {
        match source {
            SourceAddress::Client => &self.to_clients,
            SourceAddress::Node => &self.to_node,
        }
    }
}

impl Unheard {
    const TIME_BITS: u32 = 33;
    const UNIT_BITS: u32 = 27;

    /// Remembers a client. Replaces the entry that expires first if all are taken.
    fn add(&self, client: IpAddr, now: u64) {
        let until = now.saturating_add(nanoseconds(UNHEARD));
        let hash = Self::hash(client);
        let entry = hash << Self::TIME_BITS | Self::time(until);
        let slots = self.clients.iter().map(|slot| (slot, slot.load(Ordering::Relaxed)));
        let rank = |there: u64| if there >> Self::TIME_BITS == hash { 0 } else { 1 + Self::time_of(there) };
        if let Some((slot, there)) = slots.min_by_key(|(_, there)| rank(*there)) {
            // If another thread was faster, one of the two clients is not remembered.
            let _ = slot.compare_exchange(there, entry, Ordering::Relaxed, Ordering::Relaxed);
            self.until.fetch_max(until, Ordering::Relaxed);
        }
    }

    fn contains(&self, client: IpAddr, now: u64) -> bool {
        let until = self.until.load(Ordering::Relaxed);
        if now >= until {
            // All entries have expired, so picks need not check any more. The exchange fails if a client has
            // just been added.
            let _ = self.until.compare_exchange(until, 0, Ordering::Relaxed, Ordering::Relaxed);
            return false;
        }
        let (hash, now) = (Self::hash(client), Self::time(now));
        let is_it = |there: u64| there >> Self::TIME_BITS == hash && now < Self::time_of(there);
        self.clients.iter().any(|slot| is_it(slot.load(Ordering::Relaxed)))
    }

    /// Forgets a client.
    fn remove(&self, client: IpAddr) {
        if self.until.load(Ordering::Relaxed) == 0 {
            return;
        }
        let hash = Self::hash(client);
        for slot in &self.clients {
            let there = slot.load(Ordering::Relaxed);
            if there >> Self::TIME_BITS == hash {
                let _ = slot.compare_exchange(there, 0, Ordering::Relaxed, Ordering::Relaxed);
            }
        }
        if self.clients.iter().all(|slot| slot.load(Ordering::Relaxed) == 0) {
            self.until.store(0, Ordering::Relaxed);
        }
    }

    /// Not 0.
    fn hash(client: IpAddr) -> u64 {
        (mix::hash_ip(client) >> Self::TIME_BITS).max(1)
    }

    fn time(nanoseconds: u64) -> u64 {
        (nanoseconds >> Self::UNIT_BITS).min((1 << Self::TIME_BITS) - 1)
    }

    fn time_of(entry: u64) -> u64 {
        entry & ((1 << Self::TIME_BITS) - 1)
    }
}

impl FewClients {
    /// Adds a client. Returns how many there are.
    fn count_with(&self, client: IpAddr) -> usize {
        let bytes = mix::hash_ip(client).to_le_bytes();
        let [a, b, c, d, ..] = bytes;
        let hash = u32::from_le_bytes([a, b, c, d]).max(1);
        for (before, slot) in self.0.iter().enumerate() {
            let found = slot.compare_exchange(0, hash, Ordering::Relaxed, Ordering::Relaxed);
            match found {
                Ok(_) => return before + 1,
                Err(there) if there == hash => {
                    let after = self.0.iter().skip(before + 1);
                    let is_there = |slot: &&AtomicU32| slot.load(Ordering::Relaxed) != 0;
                    return before + 1 + after.take_while(is_there).count();
                }
                Err(_) => {}
            }
        }
        self.0.len()
    }

    fn clear(&self) {
        self.0.iter().for_each(|slot| slot.store(0, Ordering::Relaxed));
    }
}

/// How long to eject an endpoint that was ejected `rounds` times in a row before.
fn pause(rounds: u32) -> Duration {
    FIRST.saturating_mul(1_u32.checked_shl(rounds).unwrap_or(u32::MAX)).min(LONGEST)
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Events, at seconds: `fail@0.5` and `ok@2` with the node's address, `refused:1@0` and `unheard:1@0`
    /// with that of client 1, `well:1@0` a success with that of client 1. Questions: `over@1` (ejected for
    /// the node's address), `free@2.5` (not ejected), `OVER@1` and `FREE@1` the same for clients' addresses,
    /// `passed:1@0` and `asked:1@0` whether it is skipped for client 1 alone.
    type Case = (&'static str, &'static str);

    #[rustfmt::skip]
    const CASES: &[Case] = &[
        ("an endpoint that never failed is free", "free@0 FREE@0"),
        ("two failures in a row are not enough", "fail@0 fail@0 free@0"),
        ("three are", "fail@0 fail@0 fail@0 over@0 over@0.9 free@1.1"),
        ("a success in between starts anew", "fail@0 fail@0 ok@0 fail@0 fail@0 free@0"),
        ("failures may be far apart", "fail@0 fail@100 fail@200 over@200.9 free@201.1"),
        ("failures under way when it began add nothing", "fail@0 fail@0 fail@0 fail@0.5 fail@0.9 free@1.1"),
        ("one more failure after the pause doubles it", "fail@0 fail@0 fail@0 fail@1 over@2.9 free@3.1"),
        (
            "the pause grows up to 30 seconds",
            "fail@0 fail@0 fail@0 fail@1 fail@3 fail@7 over@14.9 fail@15 over@30.9 fail@31 over@60.9 \
             free@61.1 fail@62 over@91.9 free@92.1 fail@93 over@122.9 free@123.1",
        ),
        ("a success ends the pause", "fail@0 fail@0 fail@0 over@0.5 ok@0.5 free@0.5"),
        (
            "after a success the first pause is short again",
            "fail@0 fail@0 fail@0 fail@1 ok@1 fail@9 fail@9 fail@9 over@9.9 free@10.1",
        ),
        ("what the node meets is not what clients meet", "fail@0 fail@0 fail@0 over@0 FREE@0"),
        ("nor the other way round", "refused:1@0 refused:2@0 refused:3@0 free@0 OVER@0"),
        (
            "one client that is refused takes it from nobody",
            "refused:1@0 refused:1@0 refused:1@0 refused:1@0 refused:1@0 FREE@0",
        ),
        ("nor do two", "refused:1@0 refused:2@0 refused:1@0 refused:2@0 refused:1@0 FREE@0"),
        ("three do", "refused:1@0 refused:2@0 FREE@0 refused:3@0 OVER@0.9 FREE@1.1"),
        ("whoever of them comes first again", "refused:1@0 refused:2@0 refused:1@0 refused:3@0 OVER@0"),
        ("unless another one gets through", "refused:1@0 refused:2@0 well:3@0 refused:3@0 refused:1@0 FREE@0"),
        ("three that hear nothing are not enough", "unheard:1@0 unheard:2@0 unheard:3@0 unheard:1@0 FREE@0"),
        ("four are", "unheard:1@0 unheard:2@0 unheard:3@0 unheard:4@0 OVER@0"),
        ("a client that is unheard counts where it is refused, too", "unheard:1@0 refused:2@0 refused:3@0 OVER@0"),
        (
            "after the pause several have to fail again",
            "refused:1@0 refused:2@0 refused:3@0 refused:1@1 refused:1@1 FREE@1 refused:2@1 refused:3@1 OVER@2.9 FREE@3.1",
        ),
        ("a client that is unheard asks others for a while", "unheard:1@0 passed:1@0 passed:1@9.9 asked:1@10.1 FREE@0"),
        ("and nobody else does", "unheard:1@0 asked:2@0"),
        ("nor one that is refused, which costs no wait", "refused:1@0 asked:1@0"),
        ("each time anew", "unheard:1@0 unheard:1@9 passed:1@18 asked:1@19.1"),
        ("until it is heard", "unheard:1@0 unheard:2@0 well:1@1 asked:1@1 passed:2@1"),
        ("others that are heard make no difference to it", "unheard:1@0 well:2@1 passed:1@1"),
        (
            "of a few clients, the last ones",
            "unheard:1@0 unheard:2@1 unheard:3@2 unheard:4@3 unheard:5@4 asked:1@5 passed:2@5 passed:5@5",
        ),
        ("with the node's address it is nobody's", "fail@0 asked:1@0"),
        ("a success with the node's address does not clear clients' records", "refused:1@0 refused:2@0 refused:3@0 ok@0 OVER@0"),
    ];

    #[test]
    fn a_client_that_was_unheard_costs_picks_nothing_once_that_is_over() {
        let (health, start) = (PassiveHealth::default(), Instant::now());
        let client = Seen::Client(IpAddr::from([10, 0, 0, 1]));
        health.failed(client, Heard::Nothing, start);
        assert!(health.was_passed_over());
        assert!(!health.is_unheard(client, start + UNHEARD));
        assert!(!health.was_passed_over(), "nobody needs to look any more");
        health.failed(client, Heard::Nothing, start + UNHEARD);
        assert!(health.is_unheard(client, start + UNHEARD), "it counts again");
    }

    #[test]
    fn cases() {
        use SourceAddress::{Client, Node};
        for (name, events) in CASES {
            let start = Instant::now();
            let health = PassiveHealth::default();
            for event in events.split_whitespace() {
                let (what, at) = event.split_once('@').unwrap();
                let now = start + Duration::from_secs_f64(at.parse().unwrap());
                let client = |n: &str| Seen::Client([10, 1, 0, n.parse().unwrap()].into());
                match what.split_once(':').unwrap_or((what, "")) {
                    ("fail", _) => _ = health.failed(Seen::Node, Heard::Nothing, now),
                    ("refused", n) => _ = health.failed(client(n), Heard::Refusal, now),
                    ("unheard", n) => _ = health.failed(client(n), Heard::Nothing, now),
                    ("ok", _) => health.succeeded(Seen::Node),
                    ("well", n) => health.succeeded(client(n)),
                    ("passed", n) => assert!(health.is_unheard(client(n), now), "{name}: {event}"),
                    ("asked", n) => assert!(!health.is_unheard(client(n), now), "{name}: {event}"),
                    ("over", _) => assert!(health.remaining(Node, now).is_some(), "{name}: {event}"),
                    ("free", _) => assert!(health.remaining(Node, now).is_none(), "{name}: {event}"),
                    ("OVER", _) => assert!(health.remaining(Client, now).is_some(), "{name}: {event}"),
                    _ => assert!(health.remaining(Client, now).is_none(), "{name}: {event}"),
                }
            }
        }
    }

    #[test]
    fn a_pause_is_reported_once() {
        let (health, now) = (PassiveHealth::default(), Instant::now());
        let failed = [0; 5].map(|_| health.failed(Seen::Node, Heard::Refusal, now));
        assert_eq!(failed, [false, false, true, false, false]);
        assert_eq!(health.failures(SourceAddress::Node), 5);
        assert_eq!(health.remaining(SourceAddress::Node, now), Some(FIRST));
    }

    #[test]
    fn a_clock_that_jumps_back_does_no_harm() {
        let (health, now) = (PassiveHealth::default(), Instant::now() + Duration::from_secs(60));
        (0..3).for_each(|_| _ = health.failed(Seen::Node, Heard::Refusal, now));
        let earlier = now - Duration::from_secs(30);
        assert!(health.remaining(SourceAddress::Node, earlier).is_some());
        assert!(!health.failed(Seen::Node, Heard::Refusal, earlier));
    }
}
