//! How to continue after a watch or a list has failed.

use super::reason::Reason;

/// How to continue after a watch, or the next page of a list, has failed at some version.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Resume {
    /// Continues from that version.
    Watch,
    /// Lists everything.
    List,
}

/// Whether a request may continue from the same version after this failure.
pub(super) fn resume(reason: &Reason) -> Resume {
    match reason {
        Reason::Status(502 | 503, _) => Resume::Watch,
        // The version is too old (410) or of another history (400, 504), or the event after it cannot be read
        // (500): only a list gets past that.
        Reason::Expired | Reason::Status(..) => Resume::List,
        // Lists may be allowed where watches are not. Then lists alone give the state.
        Reason::Forbidden(_) => Resume::List,
        // Invalid event: a watch from the same version would probably receive it again.
        Reason::NotUnderstood(_) => Resume::List,
        _ => Resume::Watch,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::resource::Resource;
    use super::*;

    #[test]
    fn what_goes_on_and_what_starts_over() {
        for reason in [
            Reason::Unreachable(String::new()),
            Reason::Silent(Duration::ZERO),
            Reason::Unauthorized,
            Reason::Busy,
            Reason::Status(503, String::new()),
        ] {
            assert_eq!(resume(&reason), Resume::Watch, "{reason}");
        }
        for reason in [
            Reason::Expired,
            Reason::Forbidden(Resource::Services),
            Reason::Status(504, String::new()),
            Reason::Status(500, String::new()),
            Reason::NotUnderstood(String::new()),
        ] {
            assert_eq!(resume(&reason), Resume::List, "{reason}");
        }
    }
}
