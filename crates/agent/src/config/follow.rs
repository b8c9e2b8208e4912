//! Follows the configuration file while the agent runs. A change is evaluated as at the start, with the same
//! command line; an error anywhere in the file leaves everything as it was. A thread of its own reads the file,
//! and nobody waits for it, because a volume may hang.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::mpsc as blocking;
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use tokio::sync::mpsc;
use tracing::{error, info, warn};

use super::Effective;
use crate::cli::{self, AgentArgs, Cli, Command, Complaint, Said};

/// Flags that take effect while the agent runs.
const LIVE: [&str; 3] = ["v", "nodeport-addresses", "grace-period"];

/// A look that takes longer is logged.
const LONG: Duration = Duration::from_secs(10);

/// Follows a file.
#[derive(Debug)]
pub(crate) struct Follower {
    path: PathBuf,
    /// The settings in effect.
    running: Effective,
    /// Remarks about settings that have no effect, or another one than in kube-proxy.
    notes: Vec<String>,
    /// The thread that reads the file.
    reader: blocking::Sender<()>,
    looks: mpsc::UnboundedReceiver<Look>,
    /// When the look under way began, and whether the log has said that it takes long.
    under_way: Option<(Instant, bool)>,
}

/// The result of a look at the file.
#[derive(Debug)]
enum Look {
    Same,
    Unreadable(io::Error),
    Read(Box<Result<Cli, Complaint>>),
}

/// Reads the file.
struct Reader {
    path: PathBuf,
    arguments: Vec<OsString>,
    /// The file's contents at the last look; `None` if it could not be read.
    seen: Option<Vec<u8>>,
}

/// A change of the settings.
#[derive(Debug)]
pub(crate) struct Change {
    /// The present command line, including the file.
    pub cli: Cli,
    /// The flags that have changed: those in [`LIVE`], and others.
    live: Vec<String>,
    others: Vec<String>,
}

impl Change {
    /// The agent's arguments.
    pub(crate) fn args(&self) -> Option<&AgentArgs> {
        match &self.cli.command {
            Command::Agent(args) => Some(args),
            _ => None,
        }
    }

    /// Whether this flag has changed, which takes effect while the agent runs.
    pub(crate) fn has(&self, flag: &str) -> bool {
        self.live.iter().any(|live| live == flag)
    }
}

impl Follower {
    /// Starts from the settings with which the agent was started.
    pub(crate) fn new(args: &AgentArgs) -> Option<Self> {
        let path = args.config.config.clone()?;
        let Said { arguments, effective, notes } = args.said.clone();
        let mut file = Reader { seen: read(&path).ok(), path: path.clone(), arguments };
        let (reader, asked) = blocking::channel();
        let (seen, looks) = mpsc::unbounded_channel();
        let follow = move || while asked.recv().is_ok() && seen.send(file.look()).is_ok() {};
        if let Err(reason) = thread::Builder::new().name("config".to_owned()).spawn(follow) {
            warn!("changes of the configuration {} take effect at the next start: {reason}", path.display());
            return None;
        }
        Some(Self { path, running: effective, notes, reader, looks, under_way: None })
    }

    /// The settings in effect.
    pub(crate) fn running(&self) -> &Effective {
        &self.running
    }

    /// Starts a look at the file, unless one is under way; [`Follower::seen`] returns the result.
    pub(crate) fn look(&mut self) {
        match &mut self.under_way {
            None if self.reader.send(()).is_ok() => self.under_way = Some((Instant::now(), false)),
            Some((since, is_told)) if !*is_told && since.elapsed() >= LONG => {
                *is_told = true;
                let file = self.path.display();
                warn!("the configuration {file} takes long to read; what was read before stays in force");
            }
            _ => {}
        }
    }

    /// Waits for the result of a look: the change, if there is one. The caller confirms it by
    /// [`Follower::adopt`] once it is made. Logs errors. Safe to drop at any time.
    pub(crate) async fn seen(&mut self) -> Option<Change> {
        let look = self.looks.recv().await?;
        self.under_way = None;
        let cli = match look {
            Look::Same => return None,
            Look::Unreadable(reason) => {
                let file = self.path.display();
                warn!(
                    "the configuration {file} cannot be read: {reason}; what was read before stays in force"
                );
                return None;
            }
            Look::Read(read) => match *read {
                Ok(cli) => cli,
                Err(complaint) => {
                    error!("the new configuration is not used, the old one stays in force: {complaint}");
                    return None;
                }
            },
        };
        let Command::Agent(args) = &cli.command else { return None };
        let changed = self.running.difference(&args.said.effective);
        let (live, others) = changed.into_iter().partition(|flag| LIVE.contains(&flag.as_str()));
        Some(Change { live, others, cli })
    }

    /// Records that a change was made: its live flags are in effect from now on.
    pub(crate) fn adopt(&mut self, change: &Change) {
        let Some(Said { effective, notes, .. }) = change.args().map(|args| &args.said) else { return };
        notes.iter().filter(|note| !self.notes.contains(note)).for_each(|note| warn!("{note}"));
        self.notes.clone_from(notes);
        change.live.iter().for_each(|flag| self.running.adopt(flag, effective));
        let file = self.path.display();
        let listed =
            |flags: &[String]| flags.iter().map(|flag| format!("--{flag}")).collect::<Vec<_>>().join(", ");
        if !change.others.is_empty() {
            warn!(
                "{file} has changed, and these take effect only when the agent is started again: {}",
                listed(&change.others)
            );
        }
        if !change.live.is_empty() {
            info!("{file} has changed, and these take effect: {}", listed(&change.live));
        }
    }
}

impl Reader {
    fn look(&mut self) -> Look {
        let now = read(&self.path);
        let seen = now.as_ref().ok().cloned();
        if seen == self.seen {
            return Look::Same;
        }
        self.seen = seen;
        match now {
            Ok(_) => Look::Read(Box::new(cli::try_parse(&self.arguments))),
            Err(reason) => Look::Unreadable(reason),
        }
    }
}

/// Reads a regular file: opening anything else may block for ever.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    fs::read(path)
}
