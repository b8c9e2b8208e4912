//! How what is attached passes from an agent to the one that has its place: that one asks for it when it knows all and is able to
//! have it, and until then the other one keeps it in line with what changes. Time is an argument.

use std::path::Path;
use std::time::{Duration, Instant};

use super::Place;

/// How long an agent that has another one's place may take to ask for what is attached; one of an older version does not. Less than
/// [`HAND_OVER`](super::HAND_OVER), after which that is taken away.
const UNASKED: Duration = Duration::from_secs(30);

/// An agent that is to have what another one holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Heir {
    /// It is not, or does not know that it is.
    #[default]
    No,
    /// It asks for it as soon as it may.
    Ready,
    /// It has.
    Asked,
}

impl Heir {
    /// Asks whoever holds it to let go.
    pub(super) fn ask(place: &mut dyn Place, pins: &Path) -> Self {
        if place.ask_for(pins).is_ok() { Self::Asked } else { Self::No }
    }

    /// Whether it is to try at once to have it. What was asked for and is not any more was let go of.
    pub(super) fn is_due(self, is_asked_for: impl FnOnce() -> bool) -> bool {
        match self {
            Self::No => false,
            Self::Ready => true,
            Self::Asked => !is_asked_for(),
        }
    }
}

/// An agent that holds it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Holder {
    /// Nobody has its place.
    #[default]
    Keeps,
    /// Somebody has, since then.
    Waits(Instant),
    /// It has let go.
    Gone,
}

impl Holder {
    /// Whether it is to let go now, which is so once; somebody has its place.
    pub(super) fn is_to_let_go(&mut self, now: Instant, holds: bool, is_asked_for: bool) -> bool {
        let since = match self {
            Self::Gone => return false,
            Self::Keeps => now,
            Self::Waits(since) => *since,
        };
        let is_to = !holds || is_asked_for || now >= since + UNASKED;
        *self = if is_to { Self::Gone } else { Self::Waits(since) };
        is_to
    }

    /// Whether it waits to be asked.
    pub(super) fn is_waiting(self) -> bool {
        matches!(self, Self::Waits(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_holds_it_keeps_it_until_it_is_asked_for_or_was_not_for_long() {
        let start = Instant::now();
        let mut holder = Holder::default();
        assert!(!holder.is_to_let_go(start, true, false) && holder.is_waiting());
        let later = start + UNASKED - Duration::from_millis(1);
        assert!(!holder.is_to_let_go(later, true, false));
        let mut asked = holder;
        assert!(asked.is_to_let_go(later, true, true) && !asked.is_waiting());
        assert!(!asked.is_to_let_go(later, false, true), "once");
        assert!(holder.is_to_let_go(start + UNASKED, true, false));
        assert!(Holder::default().is_to_let_go(start, false, false), "it has nothing");
    }

    #[test]
    fn who_is_to_have_it_tries_when_it_is_able_to_and_when_it_was_let_go_of() {
        assert!(!Heir::No.is_due(|| false));
        assert!(Heir::Ready.is_due(|| true));
        assert!(!Heir::Asked.is_due(|| true) && Heir::Asked.is_due(|| false));
    }
}
