//! Measures contenders side by side. Each round measures each contender once for each column, directly one
//! after the other, and starts with another one, so that other activity of the machine affects all alike.

mod column;
mod plot;
mod table;

use std::time::Instant;

use anyhow::Result;

pub use column::{Column, Sample};
pub use plot::plot;
pub use table::tables;

use crate::contender::{Contender, Running};
use crate::interrupt;
use crate::site::Site;
use crate::tool::is_installed;

/// What to measure.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The contenders. The first one named `direct` is the baseline.
    pub contenders: Vec<Contender>,
    /// The columns.
    pub columns: Vec<Column>,
    /// The number of rounds.
    pub rounds: usize,
    /// How long each measurement takes.
    pub seconds: u64,
}

/// The results of a run.
#[derive(Debug, Clone)]
pub struct Results {
    /// The plan, without what could not be measured.
    pub plan: Plan,
    /// By column, by contender: one sample for each round.
    samples: Vec<Vec<Vec<Sample>>>,
    /// What could not be measured, and why.
    pub notes: Vec<String>,
}

impl Results {
    /// The samples of a contender, by the indices of both in the plan.
    pub fn of(&self, column: usize, contender: usize) -> &[Sample] {
        self.samples.get(column).and_then(|column| column.get(contender)).map_or(&[], Vec::as_slice)
    }

    /// The median of a value of the samples; `None` if there are no samples.
    pub fn median(&self, column: usize, contender: usize, of: impl Fn(&Sample) -> f64) -> Option<f64> {
        median(self.of(column, contender).iter().map(of).collect())
    }

    /// The index of the baseline.
    pub fn direct(&self) -> Option<usize> {
        self.plan.contenders.iter().position(|contender| contender.name == "direct")
    }

    /// The ratio of a contender's median to the baseline's.
    pub fn ratio(&self, column: usize, contender: usize) -> Option<f64> {
        let direct = self.median(column, self.direct()?, |sample| sample.value)?;
        Some(self.median(column, contender, |sample| sample.value)? / direct)
    }
}

/// The median; the mean of the two middle values if their number is even.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    let lower = *values.get(values.len().checked_sub(1)? / 2)?;
    Some(f64::midpoint(lower, upper))
}

/// Runs the measurements. Calls `say` to report progress.
///
/// # Errors
/// A lab or a contender does not start, or the run was interrupted. A measurement that fails becomes a note.
pub fn run(mut plan: Plan, mut say: impl FnMut(&str)) -> Result<Results> {
    let mut notes = Vec::new();
    plan.contenders.retain(|contender| match contender.missing() {
        Some(reason) => {
            notes.push(format!("{} was left out: {reason}.", contender.name));
            false
        }
        None => true,
    });
    plan.columns.retain(|column| match column.programs().iter().find(|program| !is_installed(program)) {
        Some(program) => {
            notes.push(format!("{:?} was left out: {program} is not installed.", column.title()));
            false
        }
        None => true,
    });
    notes.iter().for_each(|note| say(note));
    let started = plan.contenders.iter().map(|contender| {
        interrupt::check()?;
        say(&format!("starting {}", contender.name));
        contender.start(Site::new()?)
    });
    let running: Vec<Running> = started.collect::<Result<_>>()?;

    let mut results =
        Results { samples: vec![vec![Vec::new(); running.len()]; plan.columns.len()], plan, notes };
    let begin = Instant::now();
    for round in 0..results.plan.rounds {
        for (number, column) in results.plan.columns.clone().into_iter().enumerate() {
            for step in 0..running.len() {
                interrupt::check()?;
                let who = (round + step) % running.len();
                let contender = &results.plan.contenders[who];
                if !contender.carries(column.protocol()) {
                    continue;
                }
                let at = format!("round {}: {}, {}", round + 1, column.title(), contender.name);
                match column.measure(&running[who], results.plan.seconds) {
                    Ok(sample) => {
                        let (value, unit) = (crate::table::figure(sample.value), column.unit());
                        say(&format!("{:>5} s  {at}: {value} {unit}", begin.elapsed().as_secs()));
                        results.samples[number][who].push(sample);
                    }
                    Err(error) => {
                        interrupt::check()?;
                        say(&format!("{at}: {error:#}"));
                        let reason = error.to_string();
                        results
                            .notes
                            .push(format!("{at} failed: {}", reason.lines().next().unwrap_or_default()));
                    }
                }
            }
        }
    }
    Ok(results)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_in_the_middle() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }
}
