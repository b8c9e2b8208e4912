//! Following the configuration file while the agent runs. What changes is decided as at the start, from the same command
//! line; what is bad changes nothing.

use std::path::PathBuf;

use tokio::fs;
use tracing::{error, info, warn};

use super::Effective;
use crate::cli::{self, AgentArgs, Cli, Command};

/// Flags that take effect while the agent runs.
const LIVE: [&str; 3] = ["v", "nodeport-addresses", "grace-period"];

/// Follows a file.
#[derive(Debug)]
pub(crate) struct Follower {
    path: PathBuf,
    arguments: Vec<std::ffi::OsString>,
    running: Effective,
    /// What the file had when it was last looked at; none where it could not be read.
    seen: Option<Vec<u8>>,
}

/// What is to be done.
#[derive(Debug)]
pub(crate) struct Change {
    /// Everything that the command line and the file say now.
    pub cli: Cli,
    /// Which of [`LIVE`] have changed.
    pub flags: Vec<String>,
}

impl Change {
    /// The agent's arguments.
    pub(crate) fn args(&self) -> Option<&AgentArgs> {
        match &self.cli.command {
            Command::Agent(args) => Some(args),
            _ => None,
        }
    }
}

impl Follower {
    /// From the state that the agent was started with.
    pub(crate) async fn new(args: &AgentArgs) -> Option<Self> {
        let path = args.config.config.clone()?;
        let seen = fs::read(&path).await.ok();
        let (arguments, running) = (args.said.arguments.clone(), args.said.effective.clone());
        Some(Self { path, arguments, running, seen })
    }

    /// Looks at the file: what is to change, if anything. Says what cannot.
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
        let (live, others): (Vec<_>, Vec<_>) =
            changed.into_iter().partition(|flag| LIVE.contains(&flag.as_str()));
        live.iter().for_each(|flag| self.running.adopt(flag, &args.said.effective));
        let listed =
            |flags: &[String]| flags.iter().map(|flag| format!("--{flag}")).collect::<Vec<_>>().join(", ");
        if !others.is_empty() {
            warn!(
                "{file} has changed, and these take effect only when the agent is started again: {}",
                listed(&others)
            );
        }
        if live.is_empty() {
            return None;
        }
        info!("{file} has changed, and these take effect: {}", listed(&live));
        Some(Change { flags: live, cli })
    }
}
