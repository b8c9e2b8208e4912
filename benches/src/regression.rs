//! Whether a change has made a benchmark slower: compares criterion's measurements of two trees on one
//! machine, taken in turns.
//!
//! If a benchmark has a direct connection as baseline (`GROUP/direct`), the multiple of that in the same
//! round counts, so times when the machine is slower affect both. Rounds of one tree vary. A loss counts if
//! it is large and no round of the new tree is as good as any of the old one.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::table::figure;

/// The baseline of a group of benchmarks.
const DIRECT: &str = "direct";

/// One round: each benchmark's median, in nanoseconds.
pub type Round = BTreeMap<String, f64>;

/// One benchmark in both trees.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Its name in criterion: `GROUP/FUNCTION/PARAMETER`.
    pub name: String,
    /// The rounds of the old tree, in nanoseconds or as multiples of a direct connection.
    pub base: Vec<f64>,
    /// The rounds of the new tree.
    pub head: Vec<f64>,
    /// Whether the values are multiples.
    pub is_multiple: bool,
}

impl Row {
    /// The relative loss: 0.1 for a tenth.
    pub fn loss(&self) -> f64 {
        median(&self.head) / median(&self.base) - 1.0
    }

    /// Whether the loss exceeds `limit`, and the variation of rounds does not explain it.
    pub fn is_lost(&self, limit: f64) -> bool {
        let best = self.head.iter().copied().fold(f64::INFINITY, f64::min);
        let worst = self.base.iter().copied().fold(0.0, f64::max);
        self.loss() > limit && best > worst
    }
}

/// Reads the rounds of a tree: directories that were criterion's `CRITERION_HOME`.
///
/// # Errors
/// There are none, or a file is not criterion's; the error names it.
pub fn read(directory: &Path) -> Result<Vec<Round>> {
    let here = || directory.display().to_string();
    let mut rounds = Vec::new();
    for entry in fs::read_dir(directory).with_context(here)? {
        let mut round = Round::new();
        collect(&entry?.path(), &mut round)?;
        rounds.push(round);
    }
    if rounds.iter().all(Round::is_empty) {
        bail!("{}: nothing has been measured", here());
    }
    Ok(rounds)
}

/// Reads everything below a directory.
fn collect(directory: &Path, round: &mut Round) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        let path = entry?.path();
        if path.ends_with("new") {
            let name = json(&path.join("benchmark.json"))?["full_id"].as_str().map(str::to_owned);
            let median = json(&path.join("estimates.json"))?["median"]["point_estimate"].as_f64();
            let (name, median) = name.zip(median).with_context(|| path.display().to_string())?;
            round.insert(name, median);
        } else if path.is_dir() {
            collect(&path, round)?;
        }
    }
    Ok(())
}

fn json(path: &Path) -> Result<Value> {
    let text = fs::read(path).with_context(|| path.display().to_string())?;
    serde_json::from_slice(&text).with_context(|| path.display().to_string())
}

/// The benchmarks that both trees have, without direct connections.
pub fn rows(base: &[Round], head: &[Round]) -> Vec<Row> {
    let names = head.first().into_iter().flat_map(Round::keys);
    let row = |name: &String| {
        let direct = name.rsplit_once('/').map(|(group, _)| format!("{group}/{DIRECT}"));
        let is_multiple =
            direct.as_ref().is_some_and(|direct| head.iter().all(|round| round.contains_key(direct)));
        let of = |rounds: &[Round]| -> Vec<f64> {
            let value = |round: &Round| {
                let value = *round.get(name)?;
                let unit = if is_multiple { *round.get(direct.as_ref()?)? } else { 1.0 };
                Some(value / unit)
            };
            rounds.iter().filter_map(value).collect()
        };
        let (base, head) = (of(base), of(head));
        (!base.is_empty() && direct.as_ref() != Some(name)).then(|| Row {
            name: name.clone(),
            base,
            head,
            is_multiple,
        })
    };
    names.filter_map(row).collect()
}

/// A table in Markdown.
pub fn table(rows: &[Row], limit: f64) -> String {
    let mut text = String::from("| | before | now | |\n|---|---|---|---|\n");
    for row in rows {
        let of = |values: &[f64]| match row.is_multiple {
            true => format!("{:.2} x direct", median(values)),
            false => time(median(values)),
        };
        let verdict = if row.is_lost(limit) { " **slower**" } else { "" };
        let (name, loss) = (&row.name, row.loss() * 100.0);
        // Writing to a string cannot fail.
        let _ = writeln!(text, "| {name} | {} | {} | {loss:+.0} %{verdict} |", of(&row.base), of(&row.head));
    }
    text
}

fn time(nanoseconds: f64) -> String {
    match nanoseconds {
        ns if ns < 1e3 => format!("{} ns", figure(ns)),
        ns if ns < 1e6 => format!("{} us", figure(ns / 1e3)),
        ns => format!("{} ms", figure(ns / 1e6)),
    }
}

/// The median of a few values; the lower one of the two in the middle.
fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len().saturating_sub(1) / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;
    use tempfile::TempDir;

    use super::*;

    fn round(medians: &[(&str, f64)]) -> Round {
        medians.iter().map(|(name, median)| ((*name).to_owned(), *median)).collect()
    }

    fn row(base: &[f64], head: &[f64]) -> Row {
        Row { name: "a".to_owned(), base: base.to_vec(), head: head.to_vec(), is_multiple: false }
    }

    #[test]
    fn a_loss_is_large_and_in_all_rounds() {
        #[rustfmt::skip]
        let cases: [(&str, &[f64], &[f64], bool); 6] = [
            ("the same",           &[100.0, 101.0, 102.0], &[101.0, 100.0, 102.0], false),
            ("faster",             &[100.0, 101.0, 102.0], &[50.0, 51.0, 52.0],    false),
            ("slower",             &[100.0, 101.0, 102.0], &[131.0, 130.0, 132.0], true),
            ("a little slower",    &[100.0, 101.0, 102.0], &[111.0, 110.0, 112.0], false),
            ("one round as good",  &[100.0, 101.0, 102.0], &[102.0, 130.0, 150.0], false),
            ("one round was bad",  &[100.0, 101.0, 140.0], &[131.0, 130.0, 132.0], false),
        ];
        for (name, base, head, wanted) in cases {
            assert_eq!(row(base, head).is_lost(0.25), wanted, "{name}");
        }
    }

    #[test]
    fn beside_a_direct_connection_its_multiple_counts() {
        // The machine is half as fast the second time, for both.
        let base = [round(&[("tcp/direct", 10.0), ("tcp/sluice", 15.0), ("pick", 5.0), ("gone", 1.0)])];
        let head = [round(&[("tcp/direct", 20.0), ("tcp/sluice", 30.0), ("pick", 10.0), ("new", 1.0)])];
        let rows = rows(&base, &head);
        let found: Vec<_> = rows.iter().map(|row| (row.name.as_str(), row.is_lost(0.25))).collect();
        assert_eq!(found, [("pick", true), ("tcp/sluice", false)]);
        let table = table(&rows, 0.25);
        assert!(table.contains("| pick | 5.00 ns | 10.0 ns | +100 % **slower** |"), "{table}");
        assert!(table.contains("| tcp/sluice | 1.50 x direct | 1.50 x direct | +0 % |"), "{table}");
    }

    #[test]
    fn what_criterion_has_written_is_read() {
        let directory = TempDir::new().unwrap();
        assert!(read(directory.path()).is_err(), "nothing");
        for (number, median) in [("1", 3.0), ("2", 4.0)] {
            let path = directory.path().join(number).join("table_pick_10000/hot/2_readers/new");
            fs::create_dir_all(&path).unwrap();
            fs::write(
                path.join("benchmark.json"),
                json!({ "full_id": "table_pick/10000/hot/2_readers" }).to_string(),
            )
            .unwrap();
            let estimates =
                json!({ "mean": { "point_estimate": 9.0 }, "median": { "point_estimate": median } });
            fs::write(path.join("estimates.json"), estimates.to_string()).unwrap();
        }
        let mut rounds = read(directory.path()).unwrap();
        rounds.sort_by(|a, b| a.values().partial_cmp(b.values()).unwrap());
        let name = "table_pick/10000/hot/2_readers";
        assert_eq!(rounds, [round(&[(name, 3.0)]), round(&[(name, 4.0)])]);
        fs::write(directory.path().join("1/table_pick_10000/hot/2_readers/new/estimates.json"), "{}")
            .unwrap();
        assert!(read(directory.path()).is_err(), "something else");
    }
}
