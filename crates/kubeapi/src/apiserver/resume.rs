//! What a watch or a list that has failed goes on with.

use super::reason::Reason;

/// What becomes of a version that a watch, or the next page of a list, could not go on from, or could not go on from yet.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Resume {
    /// It goes on from there.
    Watch,
    /// Everything is listed.
    List,
}

/// Whether it may go on from the same version after this.
pub(super) fn resume(reason: &Reason) -> Resume {
    match reason {
        Reason::Status(502 | 503, _) => Resume::Watch,
        // The version is too old (410), or of another time (400, 504), or what happened just after it cannot
        // be read (500): only a list goes past that.
        Reason::Expired | Reason::Status(..) => Resume::List,
        // Lists may be allowed where watches are not: then each of them says what there is.
        Reason::Forbidden(_) => Resume::List,
        // An event that is no event: the same again is as likely as not.
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
