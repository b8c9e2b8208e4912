//! An agent's resources over time, and whether they grow.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, Result};
use serde_json::Value;
use sluice_testbed::lab::{Host, Process};

use crate::agent::{metrics, value};
use crate::compare::median;
use crate::table::figure;
use crate::usage::Held;

/// A sampled quantity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Series {
    /// Resident memory, in kB.
    Resident,
    /// The anonymous part of it, in kB.
    Anonymous,
    /// Open descriptors.
    Descriptors,
    /// Threads.
    Threads,
    /// Pending deadlines of workers.
    Deadlines,
    /// TCP sessions.
    Sessions,
    /// UDP flows.
    Flows,
    /// Services and endpoints in the kernel's sets.
    Elements,
    /// Connections that packets have added to the kernel's sets.
    Remembered,
}

impl Series {
    /// All quantities, in the order of the report.
    pub(super) const ALL: [Self; 9] = [
        Self::Resident,
        Self::Anonymous,
        Self::Descriptors,
        Self::Threads,
        Self::Deadlines,
        Self::Sessions,
        Self::Flows,
        Self::Elements,
        Self::Remembered,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Resident => "resident memory, kB",
            Self::Anonymous => "anonymous memory, kB",
            Self::Descriptors => "descriptors",
            Self::Threads => "threads",
            Self::Deadlines => "deadlines",
            Self::Sessions => "TCP sessions",
            Self::Flows => "UDP flows",
            Self::Elements => "nftables elements",
            Self::Remembered => "connections in nftables sets",
        }
    }

    /// How much it may vary under the same load: a relative and an absolute amount.
    fn leeway(self) -> (f64, f64) {
        match self {
            // An allocator's size settles soon, but fragments vary.
            Self::Resident | Self::Anonymous => (0.10, 1_024.0),
            Self::Threads => (0.0, 0.0),
            // A temporary Service may exist or not.
            Self::Elements => (0.0, 12.0),
            Self::Descriptors | Self::Deadlines | Self::Sessions | Self::Flows | Self::Remembered => {
                (0.25, 40.0)
            }
        }
    }

    fn grows(self, before: f64, after: f64) -> bool {
        let (share, number) = self.leeway();
        after > before * (1.0 + share) + number
    }
}

/// An agent's quantities at one time.
pub(super) type Sample = BTreeMap<Series, f64>;

/// Takes a sample.
///
/// # Errors
/// The agent has ended, or does not answer.
pub(super) fn sample(agent: &Process, node: &Host) -> Result<Sample> {
    let held = Held::by(agent)?;
    let metrics = metrics(node)?;
    let of = |name| value(&metrics, name);
    Ok(Sample::from([
        (Series::Resident, held.resident as f64 / 1024.0),
        (Series::Anonymous, held.anonymous as f64 / 1024.0),
        (Series::Descriptors, held.descriptors as f64),
        (Series::Threads, held.threads as f64),
        (Series::Deadlines, of("sluice_deadlines")),
        (Series::Sessions, of("sluice_tcp_active")),
        (Series::Flows, of("sluice_udp_flows_active")),
        (Series::Elements, of("sluice_nftables_elements")),
        (Series::Remembered, remembered(node)?),
    ]))
}

fn remembered(node: &Host) -> Result<f64> {
    let listing = node.ns.output("nft", &["--json", "list", "table", "inet", "sluice"])?;
    let listing: Value = serde_json::from_str(&listing).context("nft's listing")?;
    Ok(count_flows(&listing) as f64)
}

/// The elements of the sets that packets fill. These are recognized by name, because not every nft version
/// lists the flag `dynamic`.
fn count_flows(listing: &Value) -> usize {
    let objects = listing.get("nftables").and_then(Value::as_array).into_iter().flatten();
    let sets = objects.filter_map(|object| object.get("set"));
    sets.filter(|set| set.get("name").and_then(Value::as_str).is_some_and(|name| name.contains("_flows")))
        .filter_map(|set| set.get("elem")?.as_array())
        .map(Vec::len)
        .sum()
}

/// The course of a quantity: the median of each part.
#[derive(Debug, Clone)]
pub(super) struct Course {
    series: Series,
    medians: Vec<Option<f64>>,
    /// Whether it has grown from the second part to the last one.
    pub(super) grows: bool,
}

impl Course {
    /// The course of the samples of each part.
    pub(super) fn of(series: Series, fifths: &[Vec<Sample>]) -> Self {
        let medians: Vec<Option<f64>> = fifths
            .iter()
            .map(|samples| median(samples.iter().filter_map(|sample| sample.get(&series).copied()).collect()))
            .collect();
        let second = medians.get(1).copied().flatten();
        let last = medians.last().copied().flatten();
        let grows = second.zip(last).is_some_and(|(second, last)| series.grows(second, last));
        Self { series, medians, grows }
    }
}

impl fmt::Display for Course {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let medians: Vec<String> =
            self.medians.iter().map(|median| median.map_or("-".into(), figure)).collect();
        let verdict = if self.grows { "**grows**" } else { "flat" };
        write!(f, "| {} | {} | {verdict} |", self.series.name(), medians.join(" | "))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_last_fifth_is_compared_with_the_second() {
        let fifths = |values: [f64; 5]| {
            values.map(|value| vec![Sample::from([(Series::Descriptors, value), (Series::Threads, value)])])
        };
        let grows = |series, values| Course::of(series, &fifths(values)).grows;
        assert!(!grows(Series::Descriptors, [10.0, 100.0, 500.0, 500.0, 160.0]));
        assert!(grows(Series::Descriptors, [900.0, 100.0, 110.0, 120.0, 170.0]));
        assert!(grows(Series::Threads, [8.0, 8.0, 8.0, 8.0, 9.0]));
        assert!(!Course::of(Series::Descriptors, &[]).grows);
    }

    #[test]
    fn elements_are_counted_where_packets_put_them() {
        let listing = json!({ "nftables": [
            { "metainfo": {} },
            { "set": { "name": "node_flows4", "flags": ["timeout"], "elem": [1, 2, 3] } },
            { "set": { "name": "node_flows6", "flags": ["timeout"] } },
            { "set": { "name": "cluster_ips4", "elem": [1] } },
        ] });
        assert_eq!(count_flows(&listing), 3);
    }
}
