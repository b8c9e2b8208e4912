//! The results as a picture: a panel for each column, with a bar for each contender. A bar's length is the
//! result relative to the direct connection. Longer is better in all panels.

use std::fmt::Write as _;

use super::Results;

const WIDTH: usize = 880;
const COLUMNS: usize = 2;
const MARGIN: usize = 16;
const TITLE: usize = 26;
const BAR: usize = 14;
const STEP: usize = 20;
const NAMES: usize = 110;
/// Room for a figure behind the longest bar.
const FIGURES: usize = 96;

const SLUICE: &str = "#1f6feb";
const OTHERS: &str = "#9aa4af";
const DIRECT: &str = "#d0d7de";
const TEXT: &str = "#24292f";

/// The results as SVG.
pub fn plot(results: &Results) -> String {
    let contenders = results.plan.contenders.len();
    let panel_width = (WIDTH - MARGIN * (COLUMNS + 1)) / COLUMNS;
    let panel_height = TITLE + STEP * contenders + MARGIN;
    let rows = results.plan.columns.len().div_ceil(COLUMNS);
    let height = MARGIN + rows * (panel_height + MARGIN);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\" fill=\"{TEXT}\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
    );
    for column in 0..results.plan.columns.len() {
        let x = MARGIN + column % COLUMNS * (panel_width + MARGIN);
        let y = MARGIN + column / COLUMNS * (panel_height + MARGIN);
        panel(&mut svg, results, column, (x, y), panel_width);
    }
    svg.push_str("</svg>\n");
    svg
}

fn panel(svg: &mut String, results: &Results, column: usize, (x, y): (usize, usize), width: usize) {
    let of = results.plan.columns[column];
    let better = if of.is_time() { "direct / time" } else { "rate / direct" };
    let _ = writeln!(
        svg,
        "<text x=\"{x}\" y=\"{}\" font-weight=\"bold\">{} <tspan font-weight=\"normal\" fill=\"#57606a\">({better})</tspan></text>",
        y + 14,
        escaped(of.title()),
    );
    let score = |contender| {
        let ratio = results.ratio(column, contender)?;
        Some(if of.is_time() { 1.0 / ratio } else { ratio })
    };
    let scores: Vec<Option<f64>> = (0..results.plan.contenders.len()).map(score).collect();
    let longest = scores.iter().flatten().copied().fold(1.0, f64::max);
    let room = (width - NAMES - FIGURES) as f64;
    for (contender, score) in scores.iter().enumerate() {
        let name = &results.plan.contenders[contender].name;
        let top = y + TITLE + STEP * contender;
        let baseline = top + 11;
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{baseline}\" text-anchor=\"end\">{}</text>",
            x + NAMES - 8,
            escaped(name)
        );
        let Some(score) = score else {
            let _ = writeln!(svg, "<text x=\"{}\" y=\"{baseline}\" fill=\"#57606a\">-</text>", x + NAMES);
            continue;
        };
        let colour = match name.as_str() {
            "direct" => DIRECT,
            name if name.starts_with("sluice") => SLUICE,
            _ => OTHERS,
        };
        let length = room * score / longest;
        let value = results.median(column, contender, |sample| sample.value).unwrap_or(0.0);
        let _ = writeln!(
            svg,
            "<rect x=\"{}\" y=\"{top}\" width=\"{length:.1}\" height=\"{BAR}\" fill=\"{colour}\"/>\
             <text x=\"{:.1}\" y=\"{baseline}\">{score:.2} <tspan fill=\"#57606a\">{} {}</tspan></text>",
            x + NAMES,
            (x + NAMES) as f64 + length + 5.0,
            crate::table::figure(value),
            of.unit(),
        );
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{Column, Plan, Sample};
    use super::*;
    use crate::contender::Contender;

    #[test]
    fn a_bar_is_as_long_as_its_share() {
        let sample = |value| {
            vec![Sample { value, lost: 0.0, work: 1.0, own_cpu: Duration::ZERO, all_cpu: Duration::ZERO }]
        };
        let contenders = ["direct", "haproxy"].map(|name| Contender::parse(name).unwrap()).into();
        let plan = Plan { contenders, columns: vec![Column::Exchange], rounds: 1, seconds: 1 };
        let svg = plot(&Results { plan, samples: vec![vec![sample(10.0), sample(20.0)]], notes: vec![] });
        let widths: Vec<f64> = svg
            .split("<rect x=")
            .skip(1)
            .filter_map(|rest| rest.split("width=\"").nth(1)?.split('"').next()?.parse().ok())
            .collect();
        assert_eq!(widths.len(), 2, "{svg}");
        assert!((widths[0] - 2.0 * widths[1]).abs() < 0.2, "{widths:?}");
        assert!(svg.contains("haproxy") && svg.ends_with("</svg>\n"), "{svg}");
    }
}
