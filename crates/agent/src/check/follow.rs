//! Problems that appear while an agent runs: the cheap part of `check`, repeated on a thread of its own.
//!
//! It changes nothing. Settings of interfaces are files, which are read every few seconds; to list chains of nftables takes other
//! programs, which are run after nftables has changed, and once a minute otherwise.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use sluice_capture::tproxy::NftablesWatch;
use tracing::{info, warn};

use super::facts::Facts;
use super::finding::{Finding, Level};
use super::{findings, gather, judge};
use crate::proxy::Observer;

/// How often it is looked at settings, and whether nftables has changed.
const PAUSE: Duration = Duration::from_secs(5);

/// How often at everything, whether or not it has.
const INTERVAL: Duration = Duration::from_secs(60);

/// Looks take no more of the time than one part in so many.
const SHARE: u32 = 50;

/// How many findings are kept.
const KEPT: usize = 16;

/// How many lines are logged in an [`INTERVAL`]: something may come and go all the time.
const LINES: u32 = 10;

/// What is in the way now. Cloning it shares it.
#[derive(Debug, Clone, Default)]
pub(crate) struct InTheWay(Arc<ArcSwap<Vec<Finding>>>);

impl InTheWay {
    /// All findings, at most 16.
    pub(crate) fn all(&self) -> Arc<Vec<Finding>> {
        self.0.load_full()
    }
}

/// Warns of what is in the way now, and of what will be, as long as this agent captures.
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
    // What is looked at once is logged once.
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
            // The other agent says it.
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
                // What could not be looked at is as it was, as far as is known.
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

/// Whether it is looked at again.
fn is_followed(finding: &Finding) -> bool {
    judge::FOLLOWED.contains(&finding.about)
}

/// A firewall that refuses captured packets is worth a line in an agent's log, though whom it concerns depends on the rest of
/// its rules.
fn is_in_the_way(finding: &Finding) -> bool {
    let is_firewall = finding.about == judge::FIREWALL && finding.level == Level::Warning;
    is_followed(finding) && (finding.level == Level::Problem || is_firewall)
}

fn warn_of(Finding { about, what, fix, .. }: &Finding) {
    warn!("{about}: {what}. Fix: {fix}");
}

/// What is known to be in the way.
#[derive(Debug, Default)]
struct Known {
    findings: Vec<Finding>,
    /// When the lines that are counted began.
    since: Option<Instant>,
    lines: u32,
}

impl Known {
    /// Says what is new, and what has gone.
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

/// Interfaces that a setting is about come and go with pods.
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
