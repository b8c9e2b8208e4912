//! Decides which Events are written: the first of its kind about an object as an Event, repetitions as its
//! count. Pure: clock and requests are the caller's. (client-go: `tools/events`, `eventRecorder` and
//! `eventBroadcasterImpl`.)

use std::collections::HashMap;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::{Value, json};
use sluice_model::ObjectName;

use super::{About, Happening, Kind};

/// How long after the last one a repetition belongs to the same series (`finishTime`).
const SERIES: Duration = Duration::from_secs(360);

/// The most series at a time, and so the most objects that Events can name within [`SERIES`].
const SERIES_MAX: usize = 256;

/// This many Events are written at once, then one each [`REFILL`]: a rate that an apiserver can take from a
/// thousand nodes at the same time.
const BURST: u32 = 25;
const REFILL: Duration = Duration::from_secs(5);

/// The longest note (`NoteLengthLimit`).
const NOTE_BYTES: usize = 1_024;

/// The controller that reports the Events.
const CONTROLLER: &str = "sluice";

/// There are too many Events, or they come too fast.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooMany;

/// A request to the apiserver.
#[derive(Debug)]
pub(super) enum Request {
    /// Create this Event.
    Create { event: Value, key: Key },
    /// Change this part of an Event.
    Patch { name: ObjectName, part: Value, key: Key },
}

impl Request {
    /// The Event's namespace.
    pub(super) fn namespace(&self) -> &str {
        let (Self::Create { key: (about, ..), .. } | Self::Patch { key: (about, ..), .. }) = self;
        about.namespace()
    }
}

/// What makes a repetition: the same object, severity, reason and action.
type Key = (About, Kind, &'static str, &'static str);

#[derive(Debug)]
struct Series {
    name: ObjectName,
    count: u64,
    last: (Instant, Timestamp),
    /// How many the apiserver knows of.
    told: u64,
}

/// Decides which Events are written.
#[derive(Debug)]
pub(super) struct Recorder {
    node: String,
    instance: String,
    series: HashMap<Key, Series>,
    tokens: u32,
    refilled: Option<Instant>,
}

impl Recorder {
    /// A recorder for the agent of this node.
    pub(super) fn new(node: &str) -> Self {
        // The limit for an instance's name is 128 (`ReportingInstanceLengthLimit`); a node's name has up to 253
        // bytes.
        let instance: String = format!("{CONTROLLER}-{node}").chars().take(128).collect();
        Self { node: node.to_owned(), instance, series: HashMap::new(), tokens: BURST, refilled: None }
    }

    /// The request for something that happened; none for now if it only repeats.
    pub(super) fn take(
        &mut self,
        happening: &Happening,
        now: Instant,
        time: Timestamp,
    ) -> Result<Option<Request>, TooMany> {
        self.tidy(now);
        let Happening { about, kind, reason, action, note } = happening;
        let key = (about.clone(), *kind, *reason, *action);
        if let Some(series) = self.series.get_mut(&key) {
            series.count += 1;
            series.last = (now, time);
            return Ok(None);
        }
        if self.series.len() >= SERIES_MAX || !self.may_write(now) {
            return Err(TooMany);
        }
        let regarding = match about {
            About::Node => json!({ "kind": "Node", "name": self.node, "uid": self.node, "apiVersion": "v1" }),
            About::Service(service) => json!({
                "kind": "Service", "namespace": &*service.namespace, "name": &*service.name, "apiVersion": "v1",
            }),
        };
        let namespace = about.namespace();
        let of = match about {
            About::Node => self.node.as_str(),
            About::Service(service) => &service.name,
        };
        // Names differ by time, as client-go's do. A hash of the node is added because two nodes may have the
        // same time.
        let name = format!("{of}.{:x}{:04x}", time.as_nanosecond(), rand_of(&self.node));
        let event = json!({
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": { "namespace": namespace, "name": name },
            "eventTime": micro(time),
            "reportingController": CONTROLLER,
            "reportingInstance": self.instance,
            "type": match kind { Kind::Normal => "Normal", Kind::Warning => "Warning" },
            "reason": reason,
            "action": action,
            "note": shortened(note),
            "regarding": regarding,
        });
        let name = ObjectName::new(namespace, name);
        self.series.insert(key.clone(), Series { name, count: 1, last: (now, time), told: 1 });
        Ok(Some(Request::Create { event, key }))
    }

    /// Requests for repetitions that the apiserver does not know of yet, as far as the rate allows now.
    pub(super) fn repeated(&mut self, now: Instant) -> Vec<Request> {
        let untold: Vec<Key> = self
            .series
            .iter()
            .filter(|(_, series)| series.count > series.told)
            .map(|(key, _)| key.clone())
            .collect();
        let mut requests = Vec::new();
        for key in untold {
            if !self.may_write(now) {
                break;
            }
            let Some(series) = self.series.get_mut(&key) else { continue };
            series.told = series.count;
            let part =
                json!({ "series": { "count": series.count, "lastObservedTime": micro(series.last.1) } });
            requests.push(Request::Patch { name: series.name.clone(), part, key });
        }
        self.tidy(now);
        requests
    }

    /// Forgets a request that failed: the next Event of its kind counts as the first.
    pub(super) fn forget(&mut self, request: Request) {
        let (Request::Create { key, .. } | Request::Patch { key, .. }) = request;
        self.series.remove(&key);
    }

    /// Removes series that are over, except those that still have repetitions to write.
    fn tidy(&mut self, now: Instant) {
        self.series.retain(|_, series| {
            series.count > series.told || now.saturating_duration_since(series.last.0) < SERIES
        });
    }

    fn may_write(&mut self, now: Instant) -> bool {
        let refilled = *self.refilled.get_or_insert(now);
        let intervals = now.saturating_duration_since(refilled).as_secs() / REFILL.as_secs();
        if let Ok(intervals @ 1..) = u32::try_from(intervals) {
            self.tokens = self.tokens.saturating_add(intervals).min(BURST);
            self.refilled = Some(refilled + REFILL * intervals);
        }
        let may = self.tokens > 0;
        self.tokens = self.tokens.saturating_sub(1);
        may
    }
}

/// A hash of the node's name.
fn rand_of(node: &str) -> u16 {
    node.bytes().fold(0, |sum: u16, byte| sum.wrapping_mul(31).wrapping_add(byte.into()))
}

/// The time as a MicroTime.
fn micro(time: Timestamp) -> String {
    format!("{time:.6}")
}

/// The note, shortened to the longest that is allowed.
fn shortened(note: &str) -> &str {
    let end = (0..=note.len().min(NOTE_BYTES)).rev().find(|end| note.is_char_boundary(*end));
    note.get(..end.unwrap_or_default()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about(service: &str) -> Happening {
        Happening {
            about: About::Service(ObjectName::new("shop", service)),
            kind: Kind::Warning,
            reason: "FrontendConflict",
            action: "Claim",
            note: "ü".repeat(1_000),
        }
    }

    fn at(seconds: u64) -> (Instant, Timestamp) {
        static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
        let time = Timestamp::from_second(1_800_000_000 + seconds as i64).unwrap();
        (*START + Duration::from_secs(seconds), time)
    }

    fn take(recorder: &mut Recorder, service: &str, seconds: u64) -> Result<Option<Request>, TooMany> {
        let (now, time) = at(seconds);
        recorder.take(&about(service), now, time)
    }

    #[test]
    fn the_first_is_an_event_and_repetitions_are_its_count_until_the_series_is_over() {
        let mut recorder = Recorder::new("node-1");
        let Ok(Some(Request::Create { event, .. })) = take(&mut recorder, "web", 0) else {
            panic!("the first")
        };
        assert_eq!(event["metadata"]["namespace"], "shop");
        assert_eq!(event["eventTime"], "2027-01-15T08:00:00.000000Z");
        assert_eq!(event["reportingInstance"], "sluice-node-1");
        assert_eq!(event["note"].as_str().unwrap().len(), 1_024);
        assert!(recorder.repeated(at(1).0).is_empty());
        for seconds in 1..=10 {
            assert!(matches!(take(&mut recorder, "web", seconds), Ok(None)));
        }
        let requests = recorder.repeated(at(20).0);
        let [Request::Patch { name, part, .. }] = &requests[..] else { panic!("{requests:?}") };
        assert_eq!(event["metadata"]["name"], *name.name);
        let wanted = json!({ "count": 11, "lastObservedTime": "2027-01-15T08:00:10.000000Z" });
        assert_eq!(part["series"], wanted);
        assert!(recorder.repeated(at(30).0).is_empty());
        assert!(matches!(take(&mut recorder, "web", 369), Ok(None)));
        recorder.repeated(at(370).0);
        assert!(matches!(take(&mut recorder, "web", 800), Ok(Some(Request::Create { .. }))));
    }

    #[test]
    fn many_objects_at_once_are_too_many_and_later_ones_are_written_again() {
        let mut recorder = Recorder::new("node-1");
        let written = |recorder: &mut Recorder, seconds| {
            (0..1_000).filter(|n| take(recorder, &format!("{seconds}-{n}"), seconds).is_ok()).count()
        };
        assert_eq!(written(&mut recorder, 0), 25);
        assert_eq!(written(&mut recorder, 4), 0);
        assert_eq!(written(&mut recorder, 10), 2);
        assert_eq!(written(&mut recorder, 100_000), 25);
        // However long it goes on, the memory is bounded.
        for seconds in (200_000..203_000).step_by(5) {
            written(&mut recorder, seconds);
            assert!(recorder.series.len() <= SERIES_MAX);
        }
    }

    #[test]
    fn what_was_in_vain_begins_anew() {
        let mut recorder = Recorder::new("node-1");
        let Ok(Some(request)) = take(&mut recorder, "web", 0) else { panic!("the first") };
        recorder.forget(request);
        assert!(matches!(take(&mut recorder, "web", 1), Ok(Some(Request::Create { .. }))));
    }
}
