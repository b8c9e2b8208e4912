//! `--watch`: asks repeatedly, and writes what has changed, as `kubectl get --watch` does.

use std::collections::HashSet;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use tracing::warn;

use super::output::{self, Output};
use crate::values;

/// The shortest interval between two questions.
const SHORTEST: Duration = Duration::from_millis(100);

/// Whether to ask once, or on and on.
#[derive(Debug, Args)]
pub struct WatchArgs {
    /// Go on: write what has changed, until you end it.
    #[arg(short, long)]
    pub watch: bool,
    /// How often to look with --watch. Seconds, or with a unit, as 1m30s.
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = values::duration)]
    pub interval: Duration,
}

/// How to show an answer.
pub(super) struct Show<T> {
    /// Its text, more or less detailed.
    pub text: fn(&T, is_wide: bool) -> String,
    /// Clears what changes with time alone, so that it does not count as a change.
    pub still: fn(&mut T),
    /// Notes in an answer what became of the rows of the answer before.
    pub since: fn(before: &T, now: &mut T),
    /// Whether only changed lines are written again; otherwise all of the text is, after an empty line.
    pub is_list: bool,
}

impl<T: Serialize + Clone> Show<T> {
    fn written(&self, answer: &T, output: Option<Output>) -> Result<String> {
        output::said(answer, output, |is_wide| (self.text)(answer, is_wide))
    }
}

/// Asks and writes, once or until nobody reads any more. Waits for an agent that goes away.
///
/// # Errors
/// There is no first answer, or it cannot be written.
pub(super) async fn show<T: Serialize + Clone>(
    ask: impl AsyncFn() -> Result<T>,
    watch: &WatchArgs,
    output: Option<Output>,
    show: Show<T>,
) -> Result<()> {
    let mut answer = ask().await?;
    let mut written = Written::new(output, show.is_list);
    let mut has_complained = false;
    loop {
        let mut stilled = answer.clone();
        (show.still)(&mut stilled);
        let said = written.changes(&show.written(&answer, output)?, &show.written(&stilled, output)?);
        if !output::print(&said)? || !watch.watch {
            return Ok(());
        }
        let mut next = loop {
            tokio::time::sleep(watch.interval.max(SHORTEST)).await;
            match ask().await {
                Ok(next) => break next,
                Err(error) if !std::mem::replace(&mut has_complained, true) => {
                    warn!("{error:#}; it is asked again");
                }
                Err(_) => {}
            }
        };
        has_complained = false;
        (show.since)(&answer, &mut next);
        answer = next;
    }
}

/// The last text that was written.
#[derive(Debug)]
struct Written {
    output: Option<Output>,
    is_list: bool,
    last: Option<String>,
}

impl Written {
    fn new(output: Option<Output>, is_list: bool) -> Self {
        Self { output, is_list, last: None }
    }

    /// The part of a text to write. Changes are found in `stilled`, which is the text without what changes with
    /// time alone.
    fn changes(&mut self, said: &str, stilled: &str) -> String {
        let Some(last) = self.last.replace(stilled.to_owned()) else { return said.to_owned() };
        if last == stilled {
            return String::new();
        }
        let is_text = matches!(self.output, None | Some(Output::Wide));
        if is_text && self.is_list {
            // Columns may have become wider.
            let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
            let before: HashSet<String> = last.lines().map(words).collect();
            let lines = said.lines().zip(stilled.lines());
            let changed = lines.filter(|(_, stilled)| !before.contains(&words(stilled)));
            return changed.map(|(line, _)| format!("{line}\n")).collect();
        }
        match self.output {
            Some(Output::Json) => said.to_owned(),
            Some(Output::Yaml) => format!("---\n{said}"),
            None | Some(Output::Wide) => format!("\n{said}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_list_the_lines_that_changed_and_otherwise_all_of_it() {
        let mut list = Written::new(None, true);
        assert_eq!(
            list.changes("NAME  AGE\na  1\nb  1\n", "NAME  AGE\na  0\nb  0\n"),
            "NAME  AGE\na  1\nb  1\n"
        );
        assert_eq!(list.changes("NAME  AGE\na  2\nb  2\n", "NAME  AGE\na  0\nb  0\n"), "");
        let wider = (
            "NAME     AGE\na        3\nb        3\nlonger   0\n",
            "NAME     AGE\na        0\nb        0\nlonger   0\n",
        );
        assert_eq!(list.changes(wider.0, wider.1), "longer   0\n");
        let mut yaml = Written::new(Some(Output::Yaml), true);
        assert_eq!(yaml.changes("a: 1\n", "a: 1\n"), "a: 1\n");
        assert_eq!(yaml.changes("a: 2\n", "a: 2\n"), "---\na: 2\n");
        let mut whole = Written::new(None, false);
        whole.changes("one\ntwo\n", "one\ntwo\n");
        assert_eq!(whole.changes("one\n2\n", "one\n2\n"), "\none\n2\n");
    }
}
