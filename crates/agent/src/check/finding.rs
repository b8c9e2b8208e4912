//! A finding of `sluice check`, and its formats.

use std::fmt::Write;

use serde_json::{Value, json};

/// The severity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Nothing is wrong.
    Ok,
    /// Everything works, but could be improved.
    Note,
    /// Something does not work, or not well, for some clients.
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

/// A finding about one subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The severity.
    pub level: Level,
    /// The subject; it stays the same over versions.
    pub about: &'static str,
    /// What was found, and why it matters.
    pub what: String,
    /// What a person can do about it; empty if nothing has to be done.
    pub fix: String,
}

impl Finding {
    pub(super) fn ok(about: &'static str, what: impl Into<String>) -> Self {
        Self { level: Level::Ok, about, what: what.into(), fix: String::new() }
    }

    /// A note, or `ok` if there is nothing to be done.
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

/// Whether no finding is a problem.
pub(super) fn is_ready(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| finding.level < Level::Problem)
}

/// One line for each finding.
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

/// All findings as one object.
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
