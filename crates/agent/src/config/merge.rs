//! Merges the command line and the configuration file. Pure, except for reading the file.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use clap::{ArgMatches, Command};

use super::document::{self, Field};
use super::named::{self, Named};
use super::table::{self, Kind, Meaning};
use super::value::{self, Words};
use super::{is_given, own_flags};

/// The largest file, more than any configuration has. A ConfigMap may be as large.
const SIZE_MAX: u64 = 1 << 20;

/// The merged command line.
#[derive(Debug)]
pub(crate) struct Merged {
    pub arguments: Vec<OsString>,
    /// A remark on settings that have no effect.
    pub named: Option<String>,
    /// A remark on other contents of the file.
    pub ignored: Option<String>,
    /// A remark, for captured packets, on nodePorts that kube-proxy would serve and this agent serves only on
    /// request.
    pub node_ports: Option<String>,
}

/// The source of a setting.
#[derive(Debug)]
struct Origin {
    name: String,
    line: Option<u64>,
}

/// Flags that exclude manifests as the source.
const APISERVER: [&str; 3] = ["kubeconfig", "context", "master"];

/// kube-proxy's modes on Linux.
const MODES: [&str; 3] = ["iptables", "ipvs", "nftables"];

struct Merging<'a> {
    command: &'a Command,
    file: Option<PathBuf>,
    /// The agent's flags that have a value.
    taken: BTreeSet<String>,
    words: Vec<OsString>,
    named: Vec<Named>,
    /// The errors so far.
    flaws: Vec<String>,
    /// Whether kube-proxy's `bindAddress` is IPv6.
    is_v6: bool,
    /// kube-proxy's mode.
    mode: Option<String>,
}

/// Puts the settings of kube-proxy's flags and of the file after `agent` in the command line. `command` is the
/// whole program's; `given` has what the command line gave for `agent`.
///
/// # Errors
/// The errors, one line each.
pub(crate) fn merge(command: &Command, given: &ArgMatches, arguments: &[OsString]) -> Result<Merged, String> {
    let agent = command.find_subcommand("agent");
    let taken = agent.into_iter().flat_map(own_flags).filter(|(_, id)| is_given(given, id));
    let taken = taken.map(|(flag, _)| flag.to_owned()).collect();
    let file = given.get_one::<PathBuf>("config").cloned();
    let (words, named, flaws) = Default::default();
    let mut merging = Merging { command, file, taken, words, named, flaws, is_v6: false, mode: None };
    merging.flags(given);
    let mut ignored = None;
    if let Some(file) = merging.file.clone() {
        let document = read(&file).and_then(|text| {
            document::read(&text).map_err(|flaws| {
                let said = flaws.iter().map(|flaw| format!("{}: {flaw}", file.display()));
                said.collect::<Vec<_>>().join("\n")
            })
        })?;
        merging.fields(&document.fields);
        ignored = (!document.ignored.is_empty()).then(|| {
            let what = document.ignored.join(", ");
            format!(
                "{} has other documents beside the configuration, which are ignored: {what}",
                file.display()
            )
        });
        // A user with a configuration of kube-proxy has a node.
        merging.add("capture", &vec!["auto".to_owned()], &Origin { name: String::new(), line: None });
    }
    if merging.is_v6 {
        let origin = Origin { name: "bindAddress".to_owned(), line: None };
        merging.add("metrics-bind-address", &vec!["::1".to_owned()], &origin);
    }
    if !merging.flaws.is_empty() {
        return Err(merging.flaws.join("\n"));
    }
    let mut merged = arguments.to_vec();
    let behind = arguments.iter().position(|word| word == "agent").map_or(merged.len(), |at| at + 1);
    merged.splice(behind..behind, merging.words);
    let has_addresses = merging.taken.contains("nodeport-addresses");
    let mode = merging.mode.or(merging.file.map(|_| String::new())).filter(|_| !has_addresses);
    let node_ports = mode.and_then(|mode| named::node_ports(&mode));
    Ok(Merged { arguments: merged, named: named::line(&merging.named), ignored, node_ports })
}

fn read(path: &Path) -> Result<String, String> {
    let said = |error: io::Error| {
        let mend = match error.kind() {
            io::ErrorKind::NotFound => "see that it is there, and mounted where the agent runs",
            io::ErrorKind::PermissionDenied => "let this user read it, or run this as root",
            io::ErrorKind::IsADirectory => "name the file in it, such as config.conf",
            io::ErrorKind::InvalidData => "write it as UTF-8: it is to be YAML or JSON",
            _ => "see to the disk that it is on",
        };
        format!("cannot read the configuration {}: {error}; {mend}", path.display())
    };
    let mut text = String::new();
    let file = File::open(path).map_err(said)?;
    file.take(SIZE_MAX + 1).read_to_string(&mut text).map_err(said)?;
    if text.len() as u64 > SIZE_MAX {
        return Err(format!("the configuration {} has more than {SIZE_MAX} bytes", path.display()));
    }
    Ok(text)
}

impl Merging<'_> {
    fn flags(&mut self, given: &ArgMatches) {
        for row in table::foreign_flags().filter(|row| is_given(given, row.flag)) {
            let Some(word) = given.get_one::<String>(row.flag) else { continue };
            let words = vec![word.clone()];
            let origin = Origin { name: format!("--{}", row.flag), line: None };
            if !value::is_nothing(row.kind, &words) {
                self.take(row.kind, row.defaults, row.meaning, &words, &origin);
            }
        }
    }

    fn fields(&mut self, fields: &[Field]) {
        let mode = fields.iter().find(|field| field.meaning == Meaning::Mode);
        let is_nftables = mode.is_some_and(|mode| mode.words == ["nftables"]);
        // Settings of another mode than kube-proxy's would have no effect there either.
        let other = if is_nftables { "iptables." } else { "nftables." };
        let (own, theirs): (Vec<_>, Vec<_>) =
            fields.iter().filter(|field| !field.path.starts_with(other)).partition(|field| field.is_own);
        for field in own.into_iter().chain(theirs) {
            let origin = Origin { name: field.path.clone(), line: Some(field.line) };
            let defaults = table::by_field(&field.path).map_or(&[][..], |row| row.defaults);
            self.take(field.kind, defaults, field.meaning, &field.words, &origin);
        }
    }

    fn take(&mut self, kind: Kind, defaults: &[&str], meaning: Meaning, words: &Words, origin: &Origin) {
        let is_default = |word: &String| defaults.iter().any(|default| value::is_same(kind, word, default));
        let first = words.first().map(String::as_str).unwrap_or_default();
        match meaning {
            Meaning::As(flag) => self.add(flag, words, origin),
            Meaning::Mode if MODES.contains(&first) => {
                self.mode.get_or_insert_with(|| first.to_owned());
                self.add("capture", &vec!["auto".to_owned()], origin);
            }
            Meaning::Mode => {
                let what = format!("{first:?} is to be one of {}", MODES.join(", "));
                self.flaw(origin, &what);
            }
            Meaning::BindAddress => match first.parse::<IpAddr>() {
                Err(_) => self.flaw(origin, &format!("{first:?} is to be an IP address")),
                Ok(ip) => {
                    self.is_v6 |= ip.is_ipv6();
                    if !ip.is_unspecified() {
                        let why = "the node's addresses are those of its Node object";
                        self.name(origin, Meaning::NotOffered(why));
                    }
                }
            },
            _ if words.iter().all(is_default) && !words.is_empty() => {}
            _ => self.name(origin, meaning),
        }
    }

    fn name(&mut self, origin: &Origin, meaning: Meaning) {
        self.named.push(Named { name: origin.name.clone(), meaning });
    }

    fn flaw(&mut self, origin: &Origin, what: &str) {
        let file = self.file.as_ref().filter(|_| origin.line.is_some());
        let file = file.map(|file| format!("{}: ", file.display())).unwrap_or_default();
        let line = origin.line.map(|line| format!("line {line}: ")).unwrap_or_default();
        self.flaws.push(format!("{file}{line}{}: {what}", origin.name));
    }

    /// Sets a flag, unless it is set already or conflicts with one that is.
    fn add(&mut self, flag: &'static str, words: &Words, origin: &Origin) {
        let is_against = |taken: &String| {
            let (flag, taken) = (flag, taken.as_str());
            (flag == "manifests" && APISERVER.contains(&taken))
                || (taken == "manifests" && APISERVER.contains(&flag))
        };
        if self.taken.contains(flag) || self.taken.iter().any(is_against) {
            return;
        }
        let words: Vec<OsString> = words.iter().map(|word| format!("--{flag}={word}").into()).collect();
        let alone = ["sluice".into(), "agent".into()].into_iter().chain(words.iter().cloned());
        if let Err(error) = self.command.clone().try_get_matches_from(alone) {
            let said = error.to_string();
            let said: Vec<_> = said.lines().map(str::trim).take_while(|line| !line.is_empty()).collect();
            let said = said.join(" ");
            return self.flaw(origin, said.strip_prefix("error: ").unwrap_or(&said));
        }
        self.taken.insert(flag.to_owned());
        self.words.extend(words);
    }
}
