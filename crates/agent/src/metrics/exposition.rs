//! The two formats of metrics: OpenMetrics, in which they are written, and Prometheus' own text, for clients
//! that do not ask for OpenMetrics.

use hyper::HeaderMap;
use hyper::header::{ACCEPT, HeaderValue};

/// OpenMetrics.
pub(super) const OPENMETRICS: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");

/// Prometheus' text.
pub(super) const CLASSIC: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

/// Whether the client accepts OpenMetrics.
pub(super) fn takes_openmetrics(headers: &HeaderMap) -> bool {
    let mut accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepted.any(|value| value.contains("application/openmetrics-text"))
}

/// Converts OpenMetrics to Prometheus' text. There, a counter's name ends in `_total` in its description too;
/// an info is a gauge whose name ends in `_info`; there are no units and no end mark.
pub(super) fn classic(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len() + openmetrics.len() / 64);
    let mut help = "";
    for line in openmetrics.lines() {
        if let Some(described) = line.strip_prefix("# HELP ") {
            help = described;
            continue;
        }
        let Some(described) = line.strip_prefix("# TYPE ") else {
            if !line.starts_with("# ") {
                text.push_str(line);
                text.push('\n');
            }
            continue;
        };
        let (name, kind) = described.split_once(' ').unwrap_or((described, "untyped"));
        let (suffix, kind) = match kind {
            "counter" => ("_total", kind),
            "info" => ("_info", "gauge"),
            "unknown" => ("", "untyped"),
            _ => ("", kind),
        };
        let said = help.strip_prefix(name).unwrap_or_default();
        for part in ["# HELP ", name, suffix, said, "\n# TYPE ", name, suffix, " ", kind, "\n"] {
            text.push_str(part);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_described_under_their_whole_name() {
        let openmetrics = "# HELP i Is.\n# TYPE i info\ni_info{c=\"d\"} 1\n\
                           # HELP a Said.\n# TYPE a counter\na_total{b=\"# c\"} 1\n# HELP d Now.\n# TYPE d gauge\n\
                           # UNIT d seconds\nd 2.5\n# EOF\n";
        let wanted = "# HELP i_info Is.\n# TYPE i_info gauge\ni_info{c=\"d\"} 1\n\
                      # HELP a_total Said.\n# TYPE a_total counter\na_total{b=\"# c\"} 1\n# HELP d Now.\n\
                      # TYPE d gauge\nd 2.5\n";
        assert_eq!(classic(openmetrics), wanted);
    }

    #[test]
    fn who_asks_for_openmetrics_gets_it() {
        let takes = |accept: &'static str| {
            takes_openmetrics(&[(ACCEPT, HeaderValue::from_static(accept))].into_iter().collect())
        };
        assert!(takes(
            "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1"
        ));
        assert!(!takes("text/plain") && !takes_openmetrics(&HeaderMap::new()));
    }
}
