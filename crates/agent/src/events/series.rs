//! Which Events are written: the first of its kind about an object as one, repetitions as its count. Pure: the clock and
//! the requests are the caller's. (client-go: `tools/events`, `eventRecorder` and `eventBroadcasterImpl`.)

use std::collections::HashMap;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::{Value, json};
use sluice_model::ObjectName;

use super::{About, Happening, Kind};

/// For so long after the last one a repetition is one of the same series (`finishTime`).
const SERIES: Duration = Duration::from_secs(360);

/// Series at a time: so many objects may be told of within [`SERIES`].
const SERIES_MAX: usize = 256;

/// So many are written at once, and then one each [`REFILL`]: what a node may ask of an apiserver that a thousand nodes
/// ask at the same time.
const BURST: u32 = 25;
const REFILL: Duration = Duration::from_secs(5);

/// What a note may have (`NoteLengthLimit`).
const NOTE_BYTES: usize = 1_024;

/// Whose Events these are.
const CONTROLLER: &str = "sluice";

/// Too many are told of, or too fast.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooMany;

/// What is to be asked of the apiserver.
#[derive(Debug)]
pub(super) enum Request {
    /// Create this.
    Create { event: Value, key: Key },
    /// Change this part of it.
    Patch { name: ObjectName, part: Value, key: Key },
}

impl Request {
    /// Where the Event is.
    pub(super) fn namespace(&self) -> &str {
        let (Self::Create { key: (about, ..), .. } | Self::Patch { key: (about, ..), .. }) = self;
        about.namespace()
    }
}

/// What happens again: about what, how bad, reason, action.
type Key = (About, Kind, &'static str, &'static str);

#[derive(Debug)]
struct Series {
    name: ObjectName,
    count: u64,
    last: (Instant, Timestamp),
    /// How many the apiserver has been told of.
    told: u64,
}

/// Decides.
#[derive(Debug)]
pub(super) struct Recorder {
    node: String,
    instance: String,
    series: HashMap<Key, Series>,
    tokens: u32,
    refilled: Option<Instant>,
}

impl Recorder {
    /// For the agent of this node.
    pub(super) fn new(node: &str) -> Self {
        // What a name of an instance may have (`ReportingInstanceLengthLimit`); a node's is 253 at the most.
        let instance: String = format!("{CONTROLLER}-{node}").chars().take(128).collect();
        Self { node: node.to_owned(), instance, series: HashMap::new(), tokens: BURST, refilled: None }
    }

    /// What is to be done about something that happened: nothing for now where it only repeats itself.
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
        // Each node's are told apart by their time, as client-go's are; two nodes may have the same.
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

    /// What is to be told of repetitions, as far as that may be told now.
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

    /// A request was in vain: the next one of its kind is the first.
    pub(super) fn forget(&mut self, request: Request) {
        let (Request::Create { key, .. } | Request::Patch { key, .. }) = request;
        self.series.remove(&key);
    }

    /// Ends series that are over. What they still have to tell waits for its turn.
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

/// A number that nodes differ in.
fn rand_of(node: &str) -> u16 {
    node.bytes().fold(0, |sum: u16, byte| sum.wrapping_mul(31).wrapping_add(byte.into()))
}

/// A MicroTime.
fn micro(time: Timestamp) -> String {
    format!("{time:.6}")
}

/// As long as a note may be.
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
        // However long it goes on, only so much is remembered.
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
