//! Following the configuration file while the agent runs. What changes is decided as at the start, from the same command
//! line; what is bad changes nothing, not even what else is in it. A thread of its own reads it, for which nobody waits: a
//! volume may hang.

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

/// A look that takes longer is told of.
const LONG: Duration = Duration::from_secs(10);

/// Follows a file.
#[derive(Debug)]
pub(crate) struct Follower {
    path: PathBuf,
    /// What is in effect.
    running: Effective,
    /// What was said of settings without effect, or with another one than with kube-proxy.
    notes: Vec<String>,
    /// The thread that looks at it.
    reader: blocking::Sender<()>,
    looks: mpsc::UnboundedReceiver<Look>,
    /// When the look under way began, and whether it was said that it takes long.
    under_way: Option<(Instant, bool)>,
}

/// What a look at the file shows.
#[derive(Debug)]
enum Look {
    Same,
    Unreadable(io::Error),
    Read(Box<Result<Cli, Complaint>>),
}

/// Looks at the file.
struct Reader {
    path: PathBuf,
    arguments: Vec<OsString>,
    /// What the file had when it was last looked at; none where it could not be read.
    seen: Option<Vec<u8>>,
}

/// What is to be done.
#[derive(Debug)]
pub(crate) struct Change {
    /// Everything that the command line and the file say now.
    pub cli: Cli,
    /// Which flags have changed: of [`LIVE`], and others.
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

    /// Whether a flag has changed that takes effect while the agent runs.
    pub(crate) fn has(&self, flag: &str) -> bool {
        self.live.iter().any(|live| live == flag)
    }
}

impl Follower {
    /// From the state that the agent was started with.
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

    /// What is in effect.
    pub(crate) fn running(&self) -> &Effective {
        &self.running
    }

    /// Has the file looked at, unless it still is; [`Follower::seen`] has what comes of it.
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

    /// Waits for what a look brings: what is to change, if anything; [`Follower::adopt`] says so once it has. Says what is
    /// bad. Nothing is lost if it is dropped.
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

    /// A change has been made: what of it takes effect is so from now on.
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

/// Reads a regular file: to open something else may take for ever.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    fs::read(path)
}
