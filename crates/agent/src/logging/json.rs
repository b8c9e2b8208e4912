//! An event as a JSON object, in the form of Kubernetes' components (`component-base/logs/json`): `ts` in
//! milliseconds since 1970, `msg`, `v` except for warnings and errors, `err`, and the event's fields. `level`
//! is ours.

use std::fmt;

use jiff::Timestamp;
use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::{Event, Level};

/// The object, without a line feed.
pub(super) fn line(event: &Event<'_>, now: Timestamp) -> String {
    let metadata = event.metadata();
    let (level, verbosity) = match *metadata.level() {
        Level::ERROR => ("error", None),
        Level::WARN => ("warn", None),
        Level::INFO => ("info", Some(0)),
        Level::DEBUG => ("debug", Some(4)),
        Level::TRACE => ("trace", Some(6)),
    };
    let mut members = Members::default();
    event.record(&mut members);
    let micros = now.as_microsecond();
    let mut line = format!("{{\"ts\":{}.{:03},\"level\":\"{level}\"", micros / 1_000, micros % 1_000);
    if let Some(verbosity) = verbosity {
        line += &format!(",\"v\":{verbosity}");
    }
    line += &format!(",\"msg\":{}{}}}", Value::from(members.message), members.others);
    line
}

/// An event's fields, written.
#[derive(Default)]
struct Members {
    message: String,
    /// Each preceded by a comma.
    others: String,
}

impl Members {
    fn add(&mut self, field: &Field, value: Value) {
        let name = match field.name() {
            "error" => "err",
            name => name,
        };
        // A name as a string, and a value as it is, are JSON.
        self.others += &format!(",{}:{value}", Value::from(name));
    }
}

impl Visit for Members {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        match field.name() {
            "message" => self.message = text,
            _ => self.add(field, text.into()),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => value.clone_into(&mut self.message),
            _ => self.add(field, value.into()),
        }
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, value.into());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
    use tracing_subscriber::registry::Registry;

    use super::*;

    /// Keeps the lines.
    #[derive(Default, Clone)]
    struct Kept(Arc<Mutex<Vec<String>>>);

    impl<S: tracing::Subscriber> Layer<S> for Kept {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            let now = Timestamp::from_microsecond(1_700_000_000_123_045).unwrap();
            self.0.lock().unwrap().push(line(event, now));
        }
    }

    #[test]
    fn an_event_is_an_object_with_its_fields() {
        let kept = Kept::default();
        tracing::subscriber::with_default(Registry::default().with(kept.clone()), || {
            let error = std::io::Error::other("no \"way\"\n");
            tracing::warn!(client = %"10.0.0.1:5", %error, left_out = 3_u64, ok = true, "said {}", "so");
            tracing::debug!(seconds = 0.5, none = None::<u64>, "more");
        });
        let kept = kept.0.lock().unwrap();
        assert_eq!(
            kept[0],
            r#"{"ts":1700000000123.045,"level":"warn","msg":"said so","client":"10.0.0.1:5","err":"no \"way\"\n","left_out":3,"ok":true}"#
        );
        assert_eq!(kept[1], r#"{"ts":1700000000123.045,"level":"debug","v":4,"msg":"more","seconds":0.5}"#);
    }
}
