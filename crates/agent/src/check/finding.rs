//! What is said about one thing, and how it is written.

use std::fmt::Write;

use serde_json::{Value, json};

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// As it should be.
    Ok,
    /// Something does not work, or not well, for somebody.
    Warning,
    /// Services do not work.
    Problem,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Problem => "problem",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// The thing; stays the same over versions.
    pub about: &'static str,
    /// How it is, and why that matters.
    pub what: String,
    /// What a person can do about it; empty where nothing need be done.
    pub mend: String,
}

impl Finding {
    pub(super) fn ok(about: &'static str, what: impl Into<String>) -> Self {
        Self { level: Level::Ok, about, what: what.into(), mend: String::new() }
    }

    pub(super) fn warning(about: &'static str, what: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { level: Level::Warning, about, what: what.into(), mend: mend.into() }
    }

    pub(super) fn problem(about: &'static str, what: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { level: Level::Problem, about, what: what.into(), mend: mend.into() }
    }
}

/// Whether nothing is in the way.
pub(super) fn is_ready(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| finding.level < Level::Problem)
}

/// A line for each.
pub(super) fn text(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.about.len()).max().unwrap_or(0);
    let mut text = String::new();
    for Finding { level, about, what, mend } in findings {
        // Writing to a string does not fail.
        let _ = write!(text, "{:<7}  {about:<width$}  {what}", level.name());
        if !mend.is_empty() {
            let _ = write!(text, ". To mend it: {mend}");
        }
        text.push('\n');
    }
    text
}

/// One object.
pub(super) fn json(findings: &[Finding]) -> String {
    let list: Vec<Value> = findings
        .iter()
        .map(|Finding { level, about, what, mend }| {
            json!({ "level": level.name(), "about": about, "what": what, "mend": mend })
        })
        .collect();
    let mut text = format!("{:#}", json!({ "ready": is_ready(findings), "findings": list }));
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings() -> [Finding; 3] {
        [
            Finding::ok("nft", "version 1.0.6"),
            Finding::warning("descriptors", "few", "raise the limit"),
            Finding::problem("kube-proxy", "it runs", "stop it"),
        ]
    }

    #[test]
    fn only_problems_are_in_the_way() {
        assert!(is_ready(&findings()[..2]));
        assert!(!is_ready(&findings()));
        assert!(is_ready(&[]));
    }

    #[test]
    fn a_line_for_each() {
        let wanted = "\
ok       nft          version 1.0.6
warning  descriptors  few. To mend it: raise the limit
problem  kube-proxy   it runs. To mend it: stop it
";
        assert_eq!(text(&findings()), wanted);
    }

    #[test]
    fn json_says_the_same() {
        let value: Value = serde_json::from_str(&json(&findings())).unwrap();
        assert_eq!(value["ready"], false);
        let second =
            json!({"level": "warning", "about": "descriptors", "what": "few", "mend": "raise the limit"});
        assert_eq!(value["findings"][1], second);
    }
}
