//! Finds problems that appear while an agent runs: the cheap part of `check`, repeated on a thread of its own.
//!
//! It changes nothing. Interface settings are files, which are read every few seconds. Listing chains of
//! nftables takes other programs, which run after nftables has changed, and once a minute otherwise.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use sluice_capture::tproxy::NftablesWatch;
use tracing::{info, warn};

use super::facts::Facts;
use super::finding::{Finding, Level};
use super::{findings, gather, judge};
use crate::proxy::Observer;

/// How often to check settings, and whether nftables has changed.
const PAUSE: Duration = Duration::from_secs(5);

/// How often to check everything, whether or not it has changed.
const INTERVAL: Duration = Duration::from_secs(60);

/// Checks take at most one part in this many of the time.
const SHARE: u32 = 50;

/// How many findings are kept.
const KEPT: usize = 16;

/// The most lines that are logged in an [`INTERVAL`]: a problem may come and go all the time.
const LINES: u32 = 10;

/// The present obstacles. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct InTheWay(Arc<ArcSwap<Vec<Finding>>>);

impl InTheWay {
    /// All findings, at most 16.
    pub(crate) fn all(&self) -> Arc<Vec<Finding>> {
        self.0.load_full()
    }
}

/// Watches for obstacles and warns of them, as long as this agent captures.
pub(crate) fn follow(observer: Observer) -> InTheWay {
    let in_the_way = InTheWay::default();
    let shared = in_the_way.clone();
    let run = move || run(&shared, || observer.is_replaced());
    if let Err(error) = std::thread::Builder::new().name("check".to_owned()).spawn(run) {
        warn!("this node was not checked, and is not: {error}");
    }
    in_the_way
}

fn run(shared: &InTheWay, is_replaced: impl Fn() -> bool) {
    let at_first = findings(None);
    // Problems that are not checked again are logged once.
    for finding in at_first.iter().filter(|f| f.level == Level::Problem && !is_followed(f)) {
        warn_of(finding);
    }
    let mut known = Known::default();
    known.update(at_first.into_iter().filter(is_in_the_way).collect(), Instant::now());
    shared.0.store(Arc::new(known.findings.clone()));
    let mut nftables = NftablesWatch::open().ok();
    let mut facts: Option<Facts> = None;
    let (mut due, mut pause) = (Instant::now(), PAUSE);
    loop {
        std::thread::sleep(pause);
        if is_replaced() {
            // The other agent reports it.
            known = Known::default();
            shared.0.store(Arc::default());
            continue;
        }
        let start = Instant::now();
        let has_changed = nftables.as_mut().is_some_and(NftablesWatch::has_changed);
        match &mut facts {
            Some(facts) if start < due && !has_changed => facts.interfaces = gather::interfaces(),
            _ => {
                due = start + INTERVAL;
                // What cannot be checked now keeps its last state.
                if let Some(seen) = gather::again() {
                    facts = Some(seen);
                }
            }
        }
        if let Some(facts) = &facts {
            known.update(judge::again(facts).into_iter().filter(is_in_the_way).collect(), start);
            if **shared.0.load() != known.findings {
                shared.0.store(Arc::new(known.findings.clone()));
            }
        }
        pause = PAUSE.max(start.elapsed() * SHARE);
    }
}

/// Whether the finding is checked again.
fn is_followed(finding: &Finding) -> bool {
    judge::FOLLOWED.contains(&finding.about)
}

/// Whether a finding deserves a line in the agent's log: a problem, or a firewall that refuses captured
/// packets, although whom that concerns depends on the rest of its rules.
fn is_in_the_way(finding: &Finding) -> bool {
    let is_firewall = finding.about == judge::FIREWALL && finding.level == Level::Warning;
    is_followed(finding) && (finding.level == Level::Problem || is_firewall)
}

fn warn_of(Finding { about, what, fix, .. }: &Finding) {
    warn!("{about}: {what}. Fix: {fix}");
}

/// The known obstacles.
#[derive(Debug, Default)]
struct Known {
    findings: Vec<Finding>,
    /// When the interval began in which `lines` are counted.
    since: Option<Instant>,
    lines: u32,
}

impl Known {
    /// Logs new obstacles, and those that are gone.
    fn update(&mut self, mut now: Vec<Finding>, at: Instant) {
        now.truncate(KEPT);
        let before = std::mem::take(&mut self.findings);
        for finding in now.iter().filter(|finding| !before.iter().any(|old| is_same(old, finding))) {
            if self.may_say(at) {
                warn_of(finding);
            }
        }
        for Finding { about, what, .. } in before.iter().filter(|old| !now.iter().any(|f| is_same(old, f))) {
            if self.may_say(at) {
                info!("{about}: this is over: {what}");
            }
        }
        self.findings = now;
    }

    fn may_say(&mut self, at: Instant) -> bool {
        if self.since.is_none_or(|since| at.saturating_duration_since(since) >= INTERVAL) {
            (self.since, self.lines) = (Some(at), 0);
        }
        self.lines += 1;
        self.lines <= LINES
    }
}

/// Whether two findings are the same. The reverse path finding names interfaces, which come and go with pods.
fn is_same(one: &Finding, other: &Finding) -> bool {
    one.about == other.about && (one.what == other.what || one.about == judge::REVERSE_PATH)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(about: &'static str, what: &str) -> Finding {
        Finding::problem(about, what, "do so")
    }

    #[test]
    fn each_change_is_said_once_and_no_more_than_can_be_read() {
        let (start, mut known) = (Instant::now(), Known::default());
        known.update(vec![finding(judge::REVERSE_PATH, "on all"), finding("firewall", "a")], start);
        assert_eq!(known.lines, 2);
        known.update(vec![finding(judge::REVERSE_PATH, "on all, veth1"), finding("firewall", "a")], start);
        assert_eq!(known.lines, 2, "the same, though other pods are there");
        assert_eq!(known.findings[0].what, "on all, veth1");
        known.update(vec![finding("firewall", "b")], start);
        assert_eq!(known.lines, 5, "one is new, two have gone");
        for number in 0..100 {
            known.update((0..100).map(|n| finding("firewall", &format!("{number} {n}"))).collect(), start);
            assert_eq!(known.findings.len(), KEPT);
        }
        assert!(!known.may_say(start) && known.may_say(start + INTERVAL));
    }

    #[test]
    fn only_what_is_looked_at_again_is_kept() {
        assert!(is_in_the_way(&finding(judge::REVERSE_PATH, "")));
        assert!(is_in_the_way(&Finding::warning(judge::FIREWALL, "", "")));
        assert!(!is_in_the_way(&Finding::warning(judge::REVERSE_PATH, "", "")));
        assert!(!is_in_the_way(&Finding::ok(judge::FIREWALL, "")));
        assert!(!is_in_the_way(&finding("kernel", "")));
    }
}
