//! Has the programs know which network namespaces are pods', as these come and go, so that sockets in others are left alone: in
//! those of containers within pods, whose clusters may have Services of their own at the same addresses.
//!
//! On a thread of its own, which moves from one namespace to the next to get to know them.

use std::io::{self, PipeReader, PipeWriter};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use sluice_socket::{Attached, Judge, Known, Namespaces};
use tracing::{info, warn};

use super::AtSocketConfig;
use super::pods::Pods;

/// How often it looks, whatever it is told: not all that changes is.
const PERIOD: Duration = Duration::from_secs(60);

/// How long it rests after a look, for what comes by the dozen.
const PAUSE: Duration = Duration::from_millis(10);

/// What has failed is tried again after this.
const RETRY: Duration = Duration::from_secs(1);

/// What is known, for others to see.
#[derive(Debug)]
pub(crate) struct Names(Mutex<Told>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Told {
    /// Nothing so far.
    Nothing,
    /// Of the node's sockets alone is anything decided.
    Node,
    /// The same, as pods that are to be left alone cannot be told from others.
    NodeAlone(String),
    /// Of all, as was asked for.
    Every,
    /// Of all, as those of pods cannot be told from others.
    All(String),
    /// In so many.
    Some { known: usize, left_out: usize, kept_out: usize },
    /// Of those that were known before nothing else can be told.
    Failed(String),
}

impl Names {
    fn get(&self) -> Told {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What was told before.
    fn set(&self, told: Told) -> Told {
        std::mem::replace(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), told)
    }

    /// How many are known to be pods'; 0 where all are taken for that.
    pub(crate) fn known(&self) -> usize {
        if let Told::Some { known, .. } = self.get() { known } else { 0 }
    }

    /// How many are left to the relay by their pods' wish, or as nobody knows it.
    pub(crate) fn kept_out(&self) -> usize {
        if let Told::Some { kept_out, .. } = self.get() { kept_out } else { 0 }
    }

    /// Whose sockets are decided about, in words.
    pub(crate) fn words(&self) -> String {
        match self.get() {
            Told::Nothing => "in the network namespaces of the node and of pods".to_owned(),
            Told::Node => "in the node's network namespace alone (--socket-host-only)".to_owned(),
            Told::NodeAlone(why) => format!("in the node's network namespace alone, as {why}"),
            Told::Every => "in all network namespaces".to_owned(),
            Told::All(why) => format!("in all network namespaces, as {why}"),
            Told::Some { known, left_out, kept_out } => {
                let others = [(left_out, "have no room"), (kept_out, "are left to the relay")];
                let others = others.into_iter().filter(|(number, _)| *number > 0);
                let others: String = others.map(|(number, why)| format!("; {number} more {why}")).collect();
                format!("in the network namespaces of the node and of {known} pods{others}")
            }
            Told::Failed(why) => format!("in network namespaces that were known before, as {why}"),
        }
    }
}

/// The thread, for as long as this is held.
#[derive(Debug)]
pub(super) struct Watcher {
    names: Arc<Names>,
    stop: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Starts it, and waits until those that are there are known. Where these cannot be had, all namespaces' sockets are decided about.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(super) fn start(programs: &Attached, config: &AtSocketConfig) -> io::Result<Self> {
        let names = Arc::new(Names(Mutex::new(Told::Nothing)));
        // Of pods' sockets nothing is decided anyway.
        let directories: &[_] = if config.host_only { &[] } else { &config.namespaces };
        let namespaces = programs.namespaces(directories);
        let pods = config.pods.clone();
        let (stop, thread) = match namespaces {
            Ok(namespaces) => {
                let (stopped, stop) = io::pipe()?;
                let (begun, has_begun) = sync_channel(1);
                let names = Arc::clone(&names);
                let builder = std::thread::Builder::new().name("socket-names".to_owned());
                let thread =
                    builder.spawn(move || follow(namespaces, &stopped, &begun, &names, pods.as_deref()))?;
                // It cannot end before but by a fault of ours, which it has said.
                let _ = has_begun.recv();
                (Some(stop), Some(thread))
            }
            Err(why) => {
                tell(
                    &names,
                    match directories {
                        _ if config.host_only => Told::Node,
                        _ if config.pods.is_some() => Told::NodeAlone(why.to_string()),
                        [] => Told::Every,
                        _ => Told::All(why.to_string()),
                    },
                );
                (None, None)
            }
        };
        Ok(Self { names, stop, thread })
    }

    /// What is known.
    pub(super) fn names(&self) -> &Arc<Names> {
        &self.names
    }

    /// Whether only the node's own sockets are decided about.
    pub(super) fn is_node_alone(&self) -> bool {
        matches!(self.names.get(), Told::Node | Told::NodeAlone(_))
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stop = None;
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Looks whenever there may be something new, until nobody holds the other end of `stopped` any more.
fn follow(
    mut namespaces: Namespaces,
    stopped: &PipeReader,
    begun: &SyncSender<()>,
    names: &Names,
    pods: Option<&Pods>,
) {
    let judge = pods.map(|pods| |addresses: &[IpAddr]| pods.fate(addresses));
    loop {
        if let Some(pods) = pods {
            pods.begin_look();
        }
        let looked = namespaces.look(judge.as_ref().map(|judge| judge as Judge<'_>));
        let longest = if looked.is_ok() { PERIOD } else { RETRY };
        tell(
            names,
            match looked {
                Ok(Known::Some { known, left_out, kept_out }) => Told::Some { known, left_out, kept_out },
                Ok(Known::All) => Told::All(
                    "none has a name where those of pods should have one (--socket-namespaces)".to_owned(),
                ),
                Err(error) => Told::Failed(error.to_string()),
            },
        );
        // The first look alone is waited for.
        let _ = begun.try_send(());
        std::thread::sleep(PAUSE);
        // What cannot be waited for is looked at.
        if namespaces.wait(stopped.as_fd(), pods.map(Pods::news), longest).unwrap_or(false) {
            return;
        }
    }
}

/// Lets others see it, and says what is new.
fn tell(names: &Names, told: Told) {
    let before = names.set(told.clone());
    let words = names.words();
    match (before, told) {
        // It is as somebody wants it, or nothing new.
        (_, Told::Nothing | Told::Node | Told::Every)
        | (Told::All(_), Told::All(_))
        | (Told::NodeAlone(_), Told::NodeAlone(_))
        | (Told::Failed(_), Told::Failed(_))
        | (Told::Some { left_out: 0, .. }, Told::Some { left_out: 0, .. })
        | (Told::Some { left_out: 1.., .. }, Told::Some { left_out: 1.., .. }) => {}
        (_, Told::Some { left_out: 0, .. }) => info!("connections are decided at sockets {words}"),
        (_, Told::Some { .. }) => warn!(
            "connections are decided at sockets {words}, and are relayed: name the directory of those of pods alone \
             (--socket-namespaces)"
        ),
        (_, Told::All(_)) => warn!(
            "connections are decided at sockets {words}: those of clusters within pods, too, whatever they have at these \
             addresses"
        ),
        (_, Told::NodeAlone(_)) => warn!(
            "connections are decided at sockets {words}: without that it cannot be told which pods are annotated to be left \
             alone (--socket-pod-annotations)"
        ),
        (_, Told::Failed(_)) => warn!("connections are decided at sockets {words}; this is tried again"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whose_sockets_are_decided_about_is_told_in_words_and_as_a_number() {
        let cases = [
            (Told::Node, "in the node's network namespace alone (--socket-host-only)", 0),
            (Told::Every, "in all network namespaces", 0),
            (Told::All("it takes a right".into()), "all network namespaces, as it takes a right", 0),
            (
                Told::Some { known: 3, left_out: 0, kept_out: 0 },
                "the network namespaces of the node and of 3 pods",
                3,
            ),
            (
                Told::Some { known: 8, left_out: 2, kept_out: 1 },
                "of the node and of 8 pods; 2 more have no room; 1 more are left to the relay",
                8,
            ),
            (Told::NodeAlone("no right".into()), "in the node's network namespace alone, as no right", 0),
            (Told::Failed("no memory".into()), "network namespaces that were known before, as no memory", 0),
        ];
        let names = Names(Mutex::new(Told::Nothing));
        for (told, words, known) in cases {
            tell(&names, told);
            assert!(names.words().ends_with(words), "{}", names.words());
            assert_eq!(names.known(), known);
        }
    }
}
