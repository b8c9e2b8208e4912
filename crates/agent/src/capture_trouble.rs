//! Reports at the Node that the capture fails, for people who look at the cluster and not at the log. Pure; the
//! agent's loop calls it and sends the Event.

use std::time::Duration;

use crate::events::{About, Happening, Kind};

/// How long the capture may fail before that is news: others change the kernel's rules too, and a step that met
/// such a change is tried again.
const SHORT: Duration = Duration::from_secs(5);

/// What has been reported.
#[derive(Debug, Default)]
pub(crate) struct CaptureTrouble {
    /// Failures that were reported, or that were over before they had to be.
    failures: u64,
}

impl CaptureTrouble {
    /// What to report, by how long every attempt has failed and how many failed so far. Each further failure is
    /// a repetition.
    pub(crate) fn look(&mut self, failing_for: Option<Duration>, failures: u64) -> Option<Happening> {
        let is_news = match failing_for {
            Some(time) if time >= SHORT => std::mem::replace(&mut self.failures, failures) < failures,
            Some(_) => false,
            None => {
                self.failures = failures;
                false
            }
        };
        is_news.then(|| Happening {
            about: About::Node,
            kind: Kind::Warning,
            reason: "FailedToCapture",
            action: "Capture",
            note: "the kernel's rules and routes cannot be brought up to date, so changes of Services have no effect: the \
                   agent's log says why, and `sluice check` what is in the way"
                .to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lasts_is_told_and_each_further_failure_with_it() {
        let mut trouble = CaptureTrouble::default();
        let seconds = |n| Some(Duration::from_secs(n));
        let mut look = |failing_for, failures| trouble.look(failing_for, failures).is_some();
        assert!(!look(None, 0));
        assert!(!look(seconds(1), 1), "not yet");
        assert!(look(seconds(5), 2));
        assert!(!look(seconds(6), 2), "nothing new");
        assert!(look(seconds(7), 3));
        assert!(!look(None, 3), "it is over");
        assert!(!look(seconds(0), 4));
        assert!(!look(None, 4), "and was tried again in time");
        assert!(look(seconds(6), 5), "once more");
    }
}
