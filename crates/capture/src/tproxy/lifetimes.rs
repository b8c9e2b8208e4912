//! Lifetimes of the entries that packets add to sets, and how many of them one client may leave behind.
//! `ruleset.nft` gives the reasons. Pure.

use std::time::Duration;

use super::FlowIdle;

/// The lifetimes that do not depend on the configuration, in seconds.
const FIXED: [(&str, u64); 4] = [("$t_syn", 15), ("$t_open", OPEN), ("$t_end", 10), ("$t_young", 1)];

/// How long an open TCP connection is remembered after its last packet, in seconds.
const OPEN: u64 = 180;

/// How much longer the rules remember flows than a worker keeps them, in seconds. An endpoint's answers to a
/// young flow do not extend its entry, and a worker may be late.
const MARGIN: u64 = 5;

/// Longer than any real timeout, and shorter than what the kernel rejects, in seconds.
const LONGEST: u64 = 365 * 86_400;

/// How many connections and flows per second one client address may make that have to be remembered because
/// their endpoint is in the node's own network. A connection is remembered for 10 s after its end and a datagram
/// for 35 s, so one client takes a sixth or half of the set's room. Under kube-proxy, nf_conntrack's default
/// allows 2,200 connections and 8,700 datagrams per second of all clients together.
pub(super) const FLOW_RATE: u64 = 4_000;

/// The maximum number of remembered datagrams of one client address. Where they are remembered for longer, fewer
/// per second are allowed.
const DATAGRAMS: u64 = 140_000;

/// The values of the names in a template.
pub(super) fn values(idle: FlowIdle) -> Vec<(&'static str, String)> {
    let (asked, stream) = (remembered(idle.any), remembered(idle.conversation));
    let by_flow = [("$t_asked", asked), ("$t_stream", stream), ("$t_longest", stream.max(OPEN))];
    let datagram_rate = (DATAGRAMS / asked).clamp(1, FLOW_RATE);
    let rates = [("$flow_rate", FLOW_RATE), ("$datagram_rate", datagram_rate)];
    let lifetimes = FIXED.into_iter().chain(by_flow).map(|(name, seconds)| (name, format!("{seconds}s")));
    lifetimes.chain(rates.map(|(name, rate)| (name, rate.to_string()))).collect()
}

/// How long, in seconds, to remember a flow that a worker keeps for this long.
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
