//! How long what packets put into sets lives, and how much of that one client may leave behind. `ruleset.nft` says why. Pure.

use std::time::Duration;

use super::FlowIdle;

/// What does not depend on the configuration, in seconds.
const FIXED: [(&str, u64); 4] = [("$t_syn", 15), ("$t_open", OPEN), ("$t_end", 10), ("$t_young", 1)];

/// How long an open connection of TCP is remembered after a packet of it, in seconds.
const OPEN: u64 = 180;

/// How much longer flows are remembered than a worker keeps them, in seconds. What an endpoint answers while its flow is young
/// does not count here, and a worker may be late.
const MARGIN: u64 = 5;

/// Longer than anybody waits, in seconds, and shorter than what the kernel refuses.
const LONGEST: u64 = 365 * 86_400;

/// How many connections and flows a second one client address may make that have to be remembered because their endpoint
/// is in the node's own network. A connection is remembered for 10 s after its end and a datagram for 35 s, so that is a
/// sixth and half of what the set has room for. Under kube-proxy, nf_conntrack's default gives 2,200 connections and
/// 8,700 datagrams a second to all clients together.
pub(super) const FLOW_RATE: u64 = 4_000;

/// How many datagrams of one client address are remembered at the most: where they are for longer there may be fewer a second.
const DATAGRAMS: u64 = 140_000;

/// What the names in a template stand for.
pub(super) fn values(idle: FlowIdle) -> Vec<(&'static str, String)> {
    let (asked, stream) = (remembered(idle.any), remembered(idle.conversation));
    let by_flow = [("$t_asked", asked), ("$t_stream", stream), ("$t_longest", stream.max(OPEN))];
    let datagram_rate = (DATAGRAMS / asked).clamp(1, FLOW_RATE);
    let rates = [("$flow_rate", FLOW_RATE), ("$datagram_rate", datagram_rate)];
    let lifetimes = FIXED.into_iter().chain(by_flow).map(|(name, seconds)| (name, format!("{seconds}s")));
    lifetimes.chain(rates.map(|(name, rate)| (name, rate.to_string()))).collect()
}

/// For how many seconds a flow is remembered that a worker keeps for so long.
fn remembered(idle: Duration) -> u64 {
    let seconds = u64::try_from(idle.as_millis().div_ceil(1_000)).unwrap_or(LONGEST);
    seconds.min(LONGEST) + MARGIN
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_are_remembered_for_longer_than_workers_keep_them_and_one_client_fills_no_set_with_that() {
        #[rustfmt::skip]
        let cases = [
            (Duration::from_secs(30), "35s", "125s", "180s", "4000"),
            (Duration::from_secs(180), "185s", "725s", "725s", "756"),
            (Duration::from_millis(1_300), "7s", "11s", "180s", "4000"),
            (Duration::MAX, "31536005s", "31536005s", "31536005s", "1"),
        ];
        for (any, asked, stream, longest, rate) in cases {
            let values = values(FlowIdle { any, conversation: any.saturating_mul(4) });
            let value =
                |wanted| values.iter().find(|(name, _)| *name == wanted).map(|(_, value)| value.as_str());
            let found = ["$t_asked", "$t_stream", "$t_longest", "$datagram_rate"].map(value);
            assert_eq!(found, [asked, stream, longest, rate].map(Some), "{any:?}");
        }
    }
}
