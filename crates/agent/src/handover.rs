//! How long an agent in TPROXY mode goes on serving after SIGTERM.
//!
//! The kernel hands connections to the agent that has the listeners. While they are closed, a SYN is lost
//! without an answer. So an agent that is to end keeps them open until a successor has taken its place, or
//! until its end cuts off nobody.

use std::fmt;
use std::time::{Duration, Instant};

use crate::proxy::Observer;

/// How often to check.
const LOOK: Duration = Duration::from_millis(100);

/// How long the last connections may take if there were none a moment ago. Longer than endpoints have to answer
/// the last datagrams.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// Why an agent need not serve any longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Another agent has taken this one's place.
    Successor,
    /// No TCP session is left.
    Idle,
    /// The grace period is over.
    Late,
    /// The data plane has broken down.
    Broken,
}

/// The state at one time.
#[derive(Debug, Clone, Copy)]
struct Sight {
    is_alive: bool,
    has_successor: bool,
    sessions: u64,
    left: Duration,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Successor => "another agent takes new connections",
            Self::Idle => "no connection is open",
            Self::Late => "the grace period is over",
            Self::Broken => "the data plane has broken down",
        })
    }
}

impl End {
    /// How long connections may still take to finish, given what is left of the grace period.
    pub(crate) fn grace(self, left: Duration) -> Duration {
        match self {
            Self::Successor => left,
            Self::Idle => left.min(LAST_ANSWERS),
            Self::Late | Self::Broken => Duration::ZERO,
        }
    }
}

/// Returns when there is a reason to end, at the deadline at the latest.
pub(crate) async fn wait(observer: &Observer, deadline: Instant) -> End {
    let mut look = tokio::time::interval(LOOK);
    loop {
        look.tick().await;
        let sight = Sight {
            is_alive: observer.is_alive(),
            // Until the successor asks for socket mode, this agent keeps it up to date.
            has_successor: observer.is_replaced() && observer.at_socket().looks().is_none(),
            sessions: observer.stats().tcp_active,
            left: deadline.saturating_duration_since(Instant::now()),
        };
        if let Some(end) = decide(sight) {
            return end;
        }
    }
}

fn decide(sight: Sight) -> Option<End> {
    if !sight.is_alive {
        Some(End::Broken)
    } else if sight.has_successor {
        Some(End::Successor)
    } else if sight.sessions == 0 {
        Some(End::Idle)
    } else if sight.left.is_zero() {
        Some(End::Late)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn when_and_why_it_ends() {
        #[rustfmt::skip]
        let cases = [
            ("connections are open",         false, 3, 20, None),
            ("a successor is here",          true,  3, 20, Some((End::Successor, 20 * SECOND))),
            ("a successor, and nobody left", true,  0, 20, Some((End::Successor, 20 * SECOND))),
            ("nobody is left",               false, 0, 20, Some((End::Idle, LAST_ANSWERS))),
            ("it is late",                   false, 3, 0,  Some((End::Late, Duration::ZERO))),
            ("no grace, nobody there",       false, 0, 0,  Some((End::Idle, Duration::ZERO))),
        ];
        for (name, has_successor, sessions, left, wanted) in cases {
            let left = left * SECOND;
            let sight = Sight { is_alive: true, has_successor, sessions, left };
            let end = decide(sight);
            assert_eq!(end.map(|end| (end, end.grace(left))), wanted, "{name}");
            assert_eq!(decide(Sight { is_alive: false, ..sight }), Some(End::Broken), "{name}");
        }
    }
}
