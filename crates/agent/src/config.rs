//! Reads kube-proxy's configuration as it is: its flags and the `KubeProxyConfiguration` of `--config` become
//! flags of the agent, or are reported. The result is then checked in one place, wherever a setting came from.
//!
//! If a setting is given more than once, the first of these counts: the agent's flag, kube-proxy's flag, the
//! field below `sluice`, kube-proxy's field.

mod document;
mod follow;
mod merge;
mod named;
mod table;
mod value;
mod write;

use std::collections::BTreeMap;
use std::ffi::OsString;

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};

use table::{Kind, Row};

use crate::cli::AgentArgs;
use crate::listen::Place;

pub(crate) use follow::{Change, Follower};
pub(crate) use merge::merge;
pub(crate) use write::{configz, write};

/// The settings in effect.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Effective {
    /// Flags without dashes, and their values as written.
    flags: BTreeMap<String, Vec<String>>,
    /// The addresses for health and metrics, which more than one flag sets.
    ports: Ports,
}

/// The addresses on which the agent answers over HTTP, if any.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Ports {
    healthz: Option<Place>,
    metrics: Option<Place>,
}

/// The agent's command, which also accepts kube-proxy's flags; they are hidden.
pub(crate) fn with_foreign_flags(agent: Command) -> Command {
    table::foreign_flags().fold(agent, |agent, row| agent.arg(foreign(row)))
}

fn foreign(row: &'static Row) -> Arg {
    let kind = row.kind;
    let check = move |word: &str| value::check(kind, word).map(|()| word.to_owned());
    // As in kube-proxy, the last one counts.
    let arg = Arg::new(row.flag).long(row.flag).hide(true).action(ArgAction::Set).value_parser(check);
    let arg = arg.overrides_with(row.flag);
    match kind {
        Kind::Bool => arg.num_args(0..=1).require_equals(true).default_missing_value("true"),
        _ => arg.allow_hyphen_values(true),
    }
}

/// The command line with kube-proxy's spellings replaced by ours: `--log_dir` becomes `--log-dir`; `-v=4`,
/// `-v4` and `-v 4` become `--v=4`.
pub(crate) fn spelled(arguments: &[OsString]) -> Vec<OsString> {
    let is_number = |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
    let mut words = arguments.iter().peekable();
    let mut joined: Vec<OsString> = Vec::new();
    while let Some(word) = words.next() {
        let level = words.peek().filter(|_| word == "-v").and_then(|next| next.to_str());
        match level.filter(|level| is_number(level)) {
            Some(level) => {
                joined.push(format!("--v={level}").into());
                words.next();
            }
            None => joined.push(word.clone()),
        }
    }
    let spell = |argument: &OsString| {
        let word = argument.to_str()?;
        let level = word.strip_prefix("-v");
        if let Some(level) =
            level.and_then(|level| level.strip_prefix('=').or(Some(level).filter(|l| is_number(l))))
        {
            return Some(format!("--v={level}"));
        }
        let (name, value) =
            word.strip_prefix("--")?.split_once('=').map_or((&word[2..], None), |(n, v)| (n, Some(v)));
        let name = name.replace('_', "-");
        Some(value.map_or_else(|| format!("--{name}"), |value| format!("--{name}={value}")))
    };
    joined.iter().map(|argument| spell(argument).map_or_else(|| argument.clone(), Into::into)).collect()
}

fn is_given(matches: &ArgMatches, id: &str) -> bool {
    matches.value_source(id) == Some(ValueSource::CommandLine)
}

/// The agent's own flags in a command, with clap's ids.
fn own_flags(agent: &Command) -> impl Iterator<Item = (&str, &str)> {
    let is_own = |flag: &str| table::foreign_flags().all(|row| row.flag != flag);
    let flags = agent.get_arguments().filter_map(|arg| Some((arg.get_long()?, arg.get_id().as_str())));
    flags.filter(move |(flag, _)| is_own(flag) && !matches!(*flag, "help" | "version" | "verbose"))
}

impl Effective {
    /// The settings of a command line with all defaults, and the agent's own ports that follow from them.
    pub(crate) fn of(agent: &Command, matches: &ArgMatches, args: &AgentArgs) -> Self {
        let values = own_flags(agent).filter_map(|(flag, id)| {
            let raw = matches.try_get_raw(id).ok()??;
            Some((flag.to_owned(), raw.map(|value| value.to_string_lossy().into_owned()).collect()))
        });
        let ports = Ports { healthz: args.ports.healthz(args.capture.mode()), metrics: args.ports.metrics() };
        Self { flags: values.collect(), ports }
    }

    /// Flags whose values differ.
    pub(crate) fn difference(&self, other: &Self) -> Vec<String> {
        let all = self.flags.keys().chain(other.flags.keys());
        let flags = all.filter(|flag| self.flags.get(*flag) != other.flags.get(*flag));
        let flags: std::collections::BTreeSet<_> = flags.cloned().collect();
        flags.into_iter().collect()
    }

    /// Takes over the value of a flag.
    pub(crate) fn adopt(&mut self, flag: &str, other: &Self) {
        match other.flags.get(flag) {
            Some(values) => self.flags.insert(flag.to_owned(), values.clone()),
            None => self.flags.remove(flag),
        };
    }
}

#[cfg(test)]
mod tests;
