//! What is said about one thing, and how it is written.

use std::fmt::Write;

use serde_json::{Value, json};

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// As it should be.
    Ok,
    /// All works, and there is something that would make it better.
    Note,
    /// Something does not work, or not well, for somebody.
    Warning,
    /// Services do not work.
    Problem,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
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
    pub fix: String,
}

impl Finding {
    pub(super) fn ok(about: &'static str, what: impl Into<String>) -> Self {
        Self { level: Level::Ok, about, what: what.into(), fix: String::new() }
    }

    /// `ok` if there is nothing to be done.
    pub(super) fn note(about: &'static str, what: impl Into<String>, fix: String) -> Self {
        let level = if fix.is_empty() { Level::Ok } else { Level::Note };
        Self { level, about, what: what.into(), fix }
    }

    pub(super) fn warning(about: &'static str, what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { level: Level::Warning, about, what: what.into(), fix: fix.into() }
    }

    pub(super) fn problem(about: &'static str, what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { level: Level::Problem, about, what: what.into(), fix: fix.into() }
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
    for Finding { level, about, what, fix } in findings {
        // Writing to a string does not fail.
        let _ = write!(text, "{:<7}  {about:<width$}  {what}", level.name());
        if !fix.is_empty() {
            let _ = write!(text, ". Fix: {fix}");
        }
        text.push('\n');
    }
    text
}

/// One object.
pub(super) fn json(findings: &[Finding]) -> String {
    let list: Vec<Value> = findings
        .iter()
        .map(|Finding { level, about, what, fix }| {
            json!({ "level": level.name(), "about": about, "what": what, "fix": fix })
        })
        .collect();
    let mut text = format!("{:#}", json!({ "ready": is_ready(findings), "findings": list }));
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings() -> [Finding; 4] {
        [
            Finding::ok("nft", "version 1.0.6"),
            Finding::note("socket mode", "none", "mount it".to_owned()),
            Finding::warning("descriptors", "few", "raise the limit"),
            Finding::problem("kube-proxy", "it runs", "stop it"),
        ]
    }

    #[test]
    fn only_problems_are_in_the_way() {
        assert!(is_ready(&findings()[..3]));
        assert!(!is_ready(&findings()));
        assert!(is_ready(&[]));
    }

    #[test]
    fn a_line_for_each() {
        let wanted = "\
ok       nft          version 1.0.6
note     socket mode  none. Fix: mount it
warning  descriptors  few. Fix: raise the limit
problem  kube-proxy   it runs. Fix: stop it
";
        assert_eq!(text(&findings()), wanted);
    }

    #[test]
    fn json_says_the_same() {
        let value: Value = serde_json::from_str(&json(&findings())).unwrap();
        assert_eq!(value["ready"], false);
        let third =
            json!({"level": "warning", "about": "descriptors", "what": "few", "fix": "raise the limit"});
        assert_eq!(value["findings"][2], third);
    }
}
