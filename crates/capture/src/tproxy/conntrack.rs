//! Whether the kernel tracks connections in this network namespace.

use std::fs;
use std::time::{Duration, Instant};

use super::nft;
use super::ruleset::TABLE;

/// The number of tracked connections. The file exists only while a module tracks any.
const COUNT: &str = "/proc/sys/net/netfilter/nf_conntrack_count";

/// The interval of checks.
const PERIOD: Duration = Duration::from_secs(5);

/// Detects connection tracking. The first rule that needs it (for NAT, say) enables it, and it stays enabled
/// while there is such a rule.
#[derive(Debug, Default)]
pub(super) struct Conntrack {
    looked: Option<Instant>,
}

/// A chain that exists if the rules use connection tracking.
const CHAIN: &str = "tracked";

impl Conntrack {
    /// Whether an earlier agent's rules use connection tracking, which enables it.
    pub(super) fn was_asked() -> bool {
        nft::run(&["list", "chain", "inet", TABLE, CHAIN], "").is_ok()
    }

    /// Whether tracked connections have been found, if a check is due.
    pub(super) fn is_on(&mut self, now: Instant) -> bool {
        if self.looked.is_some_and(|looked| now.saturating_duration_since(looked) < PERIOD) {
            return false;
        }
        self.looked = Some(now);
        // If it is enabled, it tracks this agent's own connection to the apiserver, too.
        fs::read_to_string(COUNT).is_ok_and(|count| is_positive(&count))
    }
}

fn is_positive(count: &str) -> bool {
    count.trim().parse::<u64>().is_ok_and(|count| count > 0)
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::super::ruleset::Ruleset;
    use super::super::ruleset::tests::config;
    use super::*;

    #[test]
    fn only_rules_that_ask_have_the_chain() {
        for asks_conntrack in [false, true] {
            let ruleset = Ruleset::inet(&Config { asks_conntrack, ..config() });
            assert_eq!(ruleset.shape().chains.contains_key(CHAIN), asks_conntrack);
        }
    }

    #[test]
    fn only_a_number_that_is_not_zero_says_that_it_is_on() {
        assert_eq!(["0\n", "7\n", "", "x"].map(is_positive), [false, true, false, false]);
    }
}
