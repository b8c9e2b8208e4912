//! How socket mode passes from an agent to the one that has replaced it. The new agent asks for it once its
//! table is complete and it is able to take over. Until then, the old one keeps the programs in line with
//! changes. Time is an argument.

use std::path::Path;
use std::time::{Duration, Instant};

use super::Place;

/// How long the new agent may take to ask; an agent of an older version never asks. Less than
/// [`HAND_OVER`](super::HAND_OVER), after which the programs are taken away from the old agent.
const UNASKED: Duration = Duration::from_secs(30);

/// An agent that is to get what another one holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Heir {
    /// It is not, or does not know it yet.
    #[default]
    No,
    /// It asks as soon as it may.
    Ready,
    /// It has asked.
    Asked,
}

impl Heir {
    /// Asks the holder to let go.
    pub(super) fn ask(place: &mut dyn Place, pins: &Path) -> Self {
        if place.ask_for(pins).is_ok() { Self::Asked } else { Self::No }
    }

    /// Whether to try at once to take over. If the request is gone, the holder has let go.
    pub(super) fn is_due(self, is_asked_for: impl FnOnce() -> bool) -> bool {
        match self {
            Self::No => false,
            Self::Ready => true,
            Self::Asked => !is_asked_for(),
        }
    }
}

/// An agent that holds socket mode.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Holder {
    /// No other agent has replaced it.
    #[default]
    Keeps,
    /// Another agent has replaced it, since this time.
    Waits(Instant),
    /// It has let go.
    Gone,
}

impl Holder {
    /// Whether to let go now, which is true only once. To be called while another agent has replaced this one.
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
