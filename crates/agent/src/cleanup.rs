//! `sluice cleanup`: removes from this node what an agent has made in the kernel, or what kube-proxy has.

use std::collections::BTreeSet;
use std::fmt::{Display, Write};
use std::path::PathBuf;

use anyhow::{Context, Error, Result, bail};
use clap::Args;
use sluice_capture::{kube_proxy, tproxy};

use crate::errors;
use crate::running::{self, Sign};

/// Arguments of `sluice cleanup`.
#[derive(Debug, Args)]
pub struct CleanupArgs {
    /// Remove what kube-proxy has left, of all of its modes, instead of what an agent has. Stop kube-proxy
    /// before.
    #[arg(long)]
    pub kube_proxy: bool,
    /// Remove programs that decide at sockets (of --capture auto and socket) that are pinned below this directory, and
    /// none elsewhere [default: wherever there are any].
    #[arg(long, value_name = "PATH", conflicts_with = "kube_proxy")]
    pub socket_pins: Option<PathBuf>,
    /// Remove it although its owner runs and may make all of it again.
    #[arg(long)]
    pub force: bool,
}

/// Removes what it finds, and prints what that was. Finding nothing is no error.
///
/// # Errors
/// The owner runs, something could not be removed, or the result cannot be printed.
pub fn run(args: &CleanupArgs) -> Result<()> {
    // Printed at the end: a full disk, or a reader that has gone, must not stop the work.
    let mut said = String::new();
    let done =
        if args.kube_proxy { remove_kube_proxy(args.force, &mut said) } else { remove_own(args, &mut said) };
    let written = errors::print(said.as_bytes());
    done?;
    written?;
    Ok(())
}

fn remove_kube_proxy(force: bool, out: &mut String) -> Result<()> {
    let signs = running::kube_proxy(&running::processes());
    let (certain, possible): (Vec<&Sign>, Vec<&Sign>) = signs.iter().partition(|sign| sign.is_certain());
    if !certain.is_empty() && !force {
        bail!(
            "kube-proxy runs here ({}) and would make all of it again: stop it first ({}), or give --force",
            listed(&signs),
            if possible.is_empty() { running::STOP } else { running::DISABLE },
        );
    }
    for sign in possible {
        writeln!(
            out,
            "note: a kube-proxy that runs makes all of it again: {sign}; {} unless it is off",
            running::DISABLE
        )?;
    }
    let kube_proxy::Removed { removed, kept, failed } = kube_proxy::remove()
        .context("cannot look at what kube-proxy has left, which needs root, or CAP_NET_ADMIN")?;
    say(out, "removed", &removed);
    say(out, "kept", &kept);
    if !failed.is_empty() {
        bail!("not all could be removed:\n{}", failed.join("\n"));
    }
    if removed.is_empty() && kept.is_empty() {
        writeln!(out, "nothing of kube-proxy's is here")?;
    }
    Ok(())
}

fn remove_own(args: &CleanupArgs, out: &mut String) -> Result<()> {
    let agents = running::agents(&running::processes());
    if !agents.is_empty() && !args.force {
        bail!(
            "an agent runs here (process {}) and makes all of it again, unless its mode is bind: stop it first, or give \
             --force",
            listed(&agents)
        );
    }
    // A failure of one part must not keep the others: rules whose agent has gone redirect connections to
    // nobody.
    let mut failed = Vec::new();
    let was_pinned = remove_pinned(args, out, &mut failed)?;
    let cleaned = match tproxy::cleanup() {
        Ok(cleaned) => Some(cleaned),
        Err(error) => {
            failed.push(errors::reasons(&Error::new(error).context("cannot remove all rules and settings")));
            None
        }
    };
    let had_rules = cleaned.as_ref().is_some_and(|cleaned| !cleaned.removed.is_empty());
    if let Some(tproxy::Cleaned { removed, restored, kept }) = cleaned {
        say(out, "removed", &removed);
        say(out, "set back", &restored);
        say(out, "kept", &kept);
    }
    if !failed.is_empty() {
        bail!("not all could be removed: {}", failed.join("\n"));
    }
    if !had_rules && !was_pinned {
        writeln!(out, "nothing of an agent's is here")?;
    }
    Ok(())
}

/// Removes socket mode's programs from each directory that has them. Returns whether there were any.
/// Directories whose programs cannot be removed are added to `failed`, with the reason.
fn remove_pinned(args: &CleanupArgs, out: &mut String, failed: &mut Vec<String>) -> Result<bool> {
    let pins = match &args.socket_pins {
        Some(pins) => [pins.clone()].into(),
        None => {
            let mut pins = sluice_socket::pinned().unwrap_or_else(|error| {
                failed.push(format!("cannot look for programs that decide at sockets: {error}"));
                BTreeSet::new()
            });
            // An unfinished directory has no program.
            pins.insert(sluice_socket::PINS.into());
            pins
        }
    };
    let mut was_pinned = false;
    for pins in pins {
        let remove = if args.force { sluice_socket::remove_held } else { sluice_socket::remove };
        let removed = match remove(&pins) {
            Ok(removed) => removed,
            Err(error) => {
                failed.push(format!(
                    "cannot remove the programs that decide at sockets, at {}: {error}",
                    pins.display()
                ));
                continue;
            }
        };
        if removed.was_there {
            writeln!(out, "removed: programs and maps at {}", pins.display())?;
        }
        if let Some(left) = removed.left {
            writeln!(out, "left: connected UDP sockets may wait for their endpoints once these go: {left}")?;
        }
        was_pinned |= removed.was_there;
    }
    Ok(was_pinned)
}

fn listed<T: Display>(things: impl IntoIterator<Item = T>) -> String {
    things.into_iter().map(|thing| thing.to_string()).collect::<Vec<_>>().join(", ")
}

fn say<T: Display>(out: &mut String, what: &str, things: &[T]) {
    things.iter().for_each(|thing| out.push_str(&format!("{what}: {thing}\n")));
}
