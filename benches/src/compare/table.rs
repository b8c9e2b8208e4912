//! Results as Markdown.

use std::fmt::Write as _;

use super::{Column, Results, Sample};
use crate::table::figure;

/// Losses below this share are not mentioned: one query that was in flight at the end.
const LOSS_WORTH_SAYING: f64 = 0.000_05;

/// All tables, with explanations.
pub fn tables(results: &Results) -> String {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "Medians of {} measurements of {} s each; in parentheses beside the direct connection of the same run: a share of its rate, \
         or a multiple of its time.\n",
        results.plan.rounds, results.plan.seconds
    );
    grid(&mut text, results, |column| format!("{}, {}", column.title(), column.unit()), value);
    text.push_str("\nProcessor time of the contender's own processes:\n\n");
    grid(&mut text, results, work, |results, column, contender| {
        if !results.plan.contenders[contender].is_relay() {
            return None;
        }
        cpu(results, column, contender, |sample| sample.own_cpu.as_secs_f64())
    });
    text.push_str(
        "\nProcessor time of the whole machine: client, contender, server, and the kernel's part of all:\n\n",
    );
    grid(&mut text, results, work, |results, column, contender| {
        cpu(results, column, contender, |sample| sample.all_cpu.as_secs_f64())
    });
    text.push_str("\nThe lowest and the highest round:\n\n");
    grid(&mut text, results, |column| format!("{}, {}", column.title(), column.unit()), spread);
    if !results.notes.is_empty() {
        text.push('\n');
        results.notes.iter().for_each(|note| text.push_str(&format!("* {note}\n")));
    }
    text
}

/// A row for each contender, a column for each column.
fn grid(
    text: &mut String,
    results: &Results,
    title: impl Fn(Column) -> String,
    cell: impl Fn(&Results, usize, usize) -> Option<String>,
) {
    text.push('|');
    results.plan.columns.iter().for_each(|column| text.push_str(&format!(" | {}", title(*column))));
    text.push_str(" |\n|---");
    results.plan.columns.iter().for_each(|_| text.push_str("|---"));
    text.push_str("|\n");
    for (contender, of) in results.plan.contenders.iter().enumerate() {
        let cells: Vec<String> = (0..results.plan.columns.len())
            .map(|column| cell(results, column, contender).unwrap_or_else(|| "-".into()))
            .collect();
        if cells.iter().any(|cell| cell != "-") {
            let _ = writeln!(text, "| {} | {} |", of.name, cells.join(" | "));
        }
    }
}

fn value(results: &Results, column: usize, contender: usize) -> Option<String> {
    let mut text = figure(results.median(column, contender, |sample| sample.value)?);
    if results.direct() != Some(contender)
        && let Some(ratio) = results.ratio(column, contender)
    {
        let times = if results.plan.columns[column].is_time() { "x" } else { "" };
        let _ = write!(text, " ({ratio:.2}{times})");
    }
    let lost = results.median(column, contender, |sample| sample.lost)?;
    if lost > LOSS_WORTH_SAYING {
        let _ = write!(text, ", {:.2} % lost", 100.0 * lost);
    }
    Some(text)
}

/// The unit of CPU time per unit of work.
fn work(column: Column) -> String {
    let unit = if column.work() == "GB" { "ms" } else { "us" };
    format!("{}, {unit} a {}", column.title(), column.work())
}

fn cpu(results: &Results, column: usize, contender: usize, of: impl Fn(&Sample) -> f64) -> Option<String> {
    let scale = if results.plan.columns[column].work() == "GB" { 1e3 } else { 1e6 };
    results.median(column, contender, |sample| scale * of(sample) / sample.work.max(1e-9)).map(figure)
}

fn spread(results: &Results, column: usize, contender: usize) -> Option<String> {
    let values = results.of(column, contender).iter().map(|sample| sample.value);
    let lowest = values.clone().min_by(f64::total_cmp)?;
    let highest = values.max_by(f64::total_cmp)?;
    Some(format!("{} to {}", figure(lowest), figure(highest)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::Plan;
    use super::*;
    use crate::contender::Contender;

    fn sample(value: f64, lost: f64) -> Sample {
        Sample {
            value,
            lost,
            work: 1_000.0,
            own_cpu: Duration::from_millis(20),
            all_cpu: Duration::from_millis(50),
        }
    }

    #[test]
    fn contenders_are_beside_the_direct_connection() {
        let contenders = ["direct", "sluice-tproxy"].map(|name| Contender::parse(name).unwrap()).into();
        let plan = Plan { contenders, columns: vec![Column::Dns, Column::Exchange], rounds: 3, seconds: 1 };
        let samples = vec![
            vec![vec![sample(100.0, 0.0)], vec![sample(80.0, 0.01)]],
            vec![vec![sample(50.0, 0.0)], vec![sample(75.0, 0.0)]],
        ];
        let text = tables(&Results { plan, samples, notes: vec!["haproxy was left out.".into()] });
        assert!(text.contains("| direct | 100 | 50.0 |"), "{text}");
        assert!(text.contains("| sluice-tproxy | 80.0 (0.80), 1.00 % lost | 75.0 (1.50x) |"), "{text}");
        assert!(text.contains("| sluice-tproxy | 20.0 | 20.0 |"), "{text}");
        assert!(text.contains("* haproxy was left out."), "{text}");
    }
}
