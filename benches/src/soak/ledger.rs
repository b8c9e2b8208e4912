//! Records requests, errors, and what happened to the cluster meanwhile, in order to tell which errors a
//! client has to expect. Pure, except for the lock.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Kind;

/// How long an endpoint's answer may be on its way: until then it is lost with the endpoint.
const UNDER_WAY: Duration = Duration::from_millis(100);

/// How long it may take until an agent knows a change in the apiserver, on a busy machine.
const KNOWN: Duration = Duration::from_millis(100);

/// How long it may take until an agent has destroyed a socket whose endpoint does not serve any more: it
/// checks once per second.
const ENDED: Duration = Duration::from_secs(3);

/// How long after the end of a datagram flood there may still be datagrams in queues.
const QUEUES: Duration = Duration::from_millis(200);

/// Maximum number of errors that are kept with details: in ten minutes of socket mode, clients send some
/// 20,000 datagrams to dead endpoints. Further errors count as unexplained.
const KEPT: usize = 200_000;

/// Something that is done to the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// An endpoint of the mortal Service is dead or silent.
    Death,
    /// The endpoints of the changing Service change.
    Change,
    /// A flood of datagrams.
    Datagrams,
    /// A flood of connections.
    Connects,
    /// One agent takes over from another one.
    HandOver,
}

impl Cause {
    /// The causes that may explain errors.
    pub(super) const EXPLAINING: [Self; 3] = [Self::Death, Self::Change, Self::Datagrams];

    /// Its name in the report of an error.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Death => "endpoint died",
            Self::Change => "endpoint taken away",
            Self::Datagrams => "flood of datagrams",
            Self::Connects => "flood of connections",
            Self::HandOver => "hand-over",
        }
    }
}

/// The Service that a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Service {
    /// Nothing happens to its endpoints.
    Steady,
    /// Its endpoints die, one at a time.
    Mortal,
    /// Its endpoints change; the previous ones continue to run.
    Changing,
    /// It was just created, or is deleted.
    Temporary,
}

/// A period in which a cause was active.
#[derive(Debug, Clone, Copy)]
struct Span {
    cause: Cause,
    begin: Instant,
    /// `None` while it is active.
    end: Option<Instant>,
}

impl Span {
    fn overlaps(&self, begin: Instant, end: Instant) -> bool {
        self.begin <= end && self.end.is_none_or(|its_end| its_end >= begin)
    }
}

/// A request without an answer.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    /// The kind of the request.
    pub(super) kind: Kind,
    /// Its Service.
    pub(super) service: Service,
    /// The last time when all was well.
    pub(super) begin: Instant,
    /// When the failure was noticed.
    pub(super) end: Instant,
    /// Whether the socket was destroyed.
    pub(super) is_ended: bool,
    /// The error.
    pub(super) what: String,
}

#[derive(Debug, Default)]
struct Pages {
    spans: Vec<Span>,
    failures: Vec<Failure>,
    /// Number of failures that were not kept.
    more: u64,
    done: [u64; Kind::ALL.len()],
}

/// All records. Many threads add to them.
#[derive(Debug)]
pub(super) struct Ledger {
    began: Instant,
    pages: Mutex<Pages>,
}

/// A cause that is active until this is dropped.
#[derive(Debug)]
#[must_use]
pub(super) struct Ongoing<'a> {
    ledger: &'a Ledger,
    index: usize,
}

impl Drop for Ongoing<'_> {
    fn drop(&mut self) {
        if let Some(span) = self.ledger.pages().spans.get_mut(self.index) {
            span.end = Some(Instant::now());
        }
    }
}

impl Ledger {
    /// An empty ledger.
    pub(super) fn new() -> Self {
        Self { began: Instant::now(), pages: Mutex::default() }
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records the begin of a cause.
    pub(super) fn begin(&self, cause: Cause) -> Ongoing<'_> {
        let mut pages = self.pages();
        pages.spans.push(Span { cause, begin: Instant::now(), end: None });
        Ongoing { ledger: self, index: pages.spans.len() - 1 }
    }

    /// How often a cause has begun.
    pub(super) fn count(&self, cause: Cause) -> usize {
        self.pages().spans.iter().filter(|span| span.cause == cause).count()
    }

    /// Records an answered request.
    pub(super) fn done(&self, kind: Kind) {
        self.pages().done[kind as usize] += 1;
    }

    /// Records a failed request.
    pub(super) fn failed(&self, failure: Failure) {
        let mut pages = self.pages();
        if pages.failures.len() < KEPT {
            pages.failures.push(failure);
        } else {
            pages.more += 1;
        }
    }

    /// The summary of all records.
    pub(super) fn account(&self) -> Account {
        let pages = self.pages();
        let mut account = Account { rows: Vec::new(), unexplained: Vec::new(), more: pages.more };
        for kind in Kind::ALL {
            let mut row = Row {
                kind,
                done: pages.done[kind as usize],
                explained: [0; Cause::EXPLAINING.len()],
                unexplained: 0,
            };
            for failure in pages.failures.iter().filter(|failure| failure.kind == kind) {
                let why = Cause::EXPLAINING.iter().position(|cause| explains(*cause, failure, &pages.spans));
                match why {
                    Some(index) => row.explained[index] += 1,
                    None => {
                        row.unexplained += 1;
                        account.unexplained.push(self.line(failure, &pages.spans));
                    }
                }
            }
            account.rows.push(row);
        }
        account
    }

    fn line(&self, failure: &Failure, spans: &[Span]) -> String {
        let Failure { kind, service, begin, end, what, .. } = failure;
        let mut meanwhile: Vec<&str> = Vec::new();
        for span in spans.iter().filter(|span| span.overlaps(*begin, *end)) {
            if !meanwhile.contains(&span.cause.name()) {
                meanwhile.push(span.cause.name());
            }
        }
        format!(
            "after {:.3} s: {} of {service:?}: {what}, {:.3} s since all was well; meanwhile: {}",
            end.saturating_duration_since(self.began).as_secs_f64(),
            kind.name(),
            end.saturating_duration_since(*begin).as_secs_f64(),
            if meanwhile.is_empty() { "nothing".to_owned() } else { meanwhile.join(", ") },
        )
    }
}

/// Whether a client has to expect a failure because of these causes.
fn explains(cause: Cause, failure: &Failure, spans: &[Span]) -> bool {
    let Failure { begin, end, .. } = *failure;
    let (from, to) = match cause {
        // Everything in progress, including open connections.
        Cause::Death if failure.service == Service::Mortal => (begin, end),
        // Socket mode destroys the socket so that the client chooses anew.
        Cause::Change if failure.service == Service::Changing && failure.is_ended => {
            (end.checked_sub(ENDED).unwrap_or(end), end)
        }
        // TCP connections continue. A UDP flow ends once the agent knows, and the answer in flight is lost.
        Cause::Change if failure.service == Service::Changing && failure.kind.is_udp() => {
            (begin.checked_sub(KNOWN).unwrap_or(begin), end.min(begin + UNDER_WAY))
        }
        // They share queues with all others.
        Cause::Datagrams if failure.kind.is_udp() => (begin.checked_sub(QUEUES).unwrap_or(begin), end),
        _ => return false,
    };
    spans.iter().any(|span| span.cause == cause && span.overlaps(from, to))
}

/// The summary of one kind of request.
#[derive(Debug, Clone)]
pub(super) struct Row {
    /// The kind.
    pub(super) kind: Kind,
    /// Answered requests.
    pub(super) done: u64,
    /// Failed requests that a cause explains, by [`Cause::EXPLAINING`].
    pub(super) explained: [u64; Cause::EXPLAINING.len()],
    /// Other failed requests.
    pub(super) unexplained: u64,
}

/// The summary of all requests.
#[derive(Debug, Clone)]
pub(super) struct Account {
    /// By kind.
    pub(super) rows: Vec<Row>,
    /// Details of unexplained failures.
    pub(super) unexplained: Vec<String>,
    /// Failures without details, because there were too many.
    pub(super) more: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(kind: Kind, service: Service, begin: Instant, took: u64) -> Failure {
        let end = begin + Duration::from_millis(took);
        Failure { kind, service, begin, end, is_ended: false, what: "reset".into() }
    }

    #[test]
    fn only_what_a_client_has_to_expect_is_explained() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let span = |cause, begin, end| Span { cause, begin: at(begin), end: Some(at(end)) };
        let spans = [
            span(Cause::Death, 1_000, 1_500),
            span(Cause::Change, 3_000, 3_010),
            span(Cause::Datagrams, 5_000, 6_000),
            span(Cause::HandOver, 8_000, 9_000),
        ];
        let is_explained =
            |failure: &Failure| Cause::EXPLAINING.iter().any(|cause| explains(*cause, failure, &spans));
        let cases = [
            (Kind::Short, Service::Mortal, 900, 200, true),
            (Kind::Short, Service::Mortal, 1_600, 200, false),
            (Kind::Short, Service::Steady, 900, 200, false),
            (Kind::Question, Service::Changing, 2_950, 1_000, true),
            (Kind::Question, Service::Changing, 3_050, 1_000, true),
            (Kind::Question, Service::Changing, 2_800, 1_000, false),
            (Kind::Question, Service::Changing, 3_200, 1_000, false),
            (Kind::Short, Service::Changing, 2_950, 1_000, false),
            (Kind::Question, Service::Steady, 5_500, 1_000, true),
            (Kind::Question, Service::Steady, 6_100, 1_000, true),
            (Kind::Question, Service::Steady, 6_300, 1_000, false),
            (Kind::Bulk, Service::Steady, 5_500, 1_000, false),
            (Kind::Short, Service::Steady, 8_500, 10, false),
        ];
        for (kind, service, begin, took, wanted) in cases {
            let failure = failure(kind, service, at(begin), took);
            assert_eq!(is_explained(&failure), wanted, "{failure:?}");
        }
        for (service, begin, wanted) in [
            (Service::Changing, 5_900, true),
            (Service::Changing, 6_100, false),
            (Service::Steady, 4_000, false),
        ] {
            let failure = Failure { is_ended: true, ..failure(Kind::Conversation, service, at(begin), 100) };
            let spans = &spans[1..2];
            assert_eq!(explains(Cause::Change, &failure, spans), wanted, "{failure:?}");
        }
    }

    #[test]
    fn an_account_has_every_failure_once_and_says_what_was_done_meanwhile() {
        let ledger = Ledger::new();
        ledger.done(Kind::Short);
        let death = ledger.begin(Cause::Death);
        let hand_over = ledger.begin(Cause::HandOver);
        for service in [Service::Mortal, Service::Steady] {
            ledger.failed(failure(Kind::Short, service, Instant::now(), 0));
        }
        drop((death, hand_over));
        let account = ledger.account();
        let row = &account.rows[Kind::Short as usize];
        assert_eq!((row.done, row.explained, row.unexplained), (1, [1, 0, 0], 1));
        assert_eq!(account.unexplained.len(), 1);
        assert!(account.unexplained[0].ends_with("meanwhile: endpoint died, hand-over"), "{account:?}");
    }
}
