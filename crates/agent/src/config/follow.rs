//! Following the configuration file while the agent runs. What changes is decided as at the start, from the same command
//! line; what is bad changes nothing, not even what else is in it.

use std::path::PathBuf;

use tokio::fs;
use tracing::{error, info, warn};

use super::Effective;
use crate::cli::{self, AgentArgs, Cli, Command, Said};

/// Flags that take effect while the agent runs.
const LIVE: [&str; 3] = ["v", "nodeport-addresses", "grace-period"];

/// Follows a file.
#[derive(Debug)]
pub(crate) struct Follower {
    path: PathBuf,
    arguments: Vec<std::ffi::OsString>,
    /// What is in effect.
    running: Effective,
    /// What was said of settings without effect, or with another one than with kube-proxy.
    notes: Vec<String>,
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
    pub(crate) async fn new(args: &AgentArgs) -> Option<Self> {
        let path = args.config.config.clone()?;
        let seen = fs::read(&path).await.ok();
        let Said { arguments, effective, notes } = args.said.clone();
        Some(Self { path, arguments, running: effective, notes, seen })
    }

    /// What is in effect.
    pub(crate) fn running(&self) -> &Effective {
        &self.running
    }

    /// Looks at the file: what is to change, if anything; [`Follower::adopt`] says so once it has. Says what is bad.
    pub(crate) async fn look(&mut self) -> Option<Change> {
        let now = fs::read(&self.path).await;
        let file = self.path.display();
        let seen = now.as_ref().ok().cloned();
        if seen == self.seen {
            return None;
        }
        self.seen = seen;
        if let Err(reason) = now {
            warn!("the configuration {file} cannot be read: {reason}; what was read before stays in force");
            return None;
        }
        let cli = match cli::try_parse(&self.arguments) {
            Ok(cli) => cli,
            Err(complaint) => {
                error!("the new configuration is not used, the old one stays in force: {complaint}");
                return None;
            }
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
