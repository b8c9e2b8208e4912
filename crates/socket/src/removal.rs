//! Removes what is pinned: first programs; then connected UDP sockets, which nobody could end later when their
//! endpoints go; then maps.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use sluice_sys::bpf;

use crate::attach::datagram_lister;
use crate::ending::end_listed;
use crate::error::{Error, passes};
use crate::namespaces::NAMED;
use crate::pins::{Pins, is_link, lock};
use crate::shape::CONNS;

/// The result of a removal.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// Whether anything was there.
    pub was_there: bool,
    /// Why connected UDP sockets may be left, for people. Such sockets wait for their endpoints for ever once
    /// these go.
    pub left: Option<String>,
}

impl Pins {
    /// Removes what versions with another layout have pinned, and ends their connected UDP sockets. Returns why
    /// some may be left.
    pub(crate) fn remove_others(&self) -> io::Result<Option<String>> {
        remove_all(&self.root, |path| path != self.directory)
    }
}

/// Detaches all programs pinned below `pins`, ends the UDP sockets that they had connected to endpoints
/// (`ECONNABORTED`), because nobody would do so when these go, and removes all maps. Other translated connections
/// go on. If there are sockets to end, every process is looked at.
///
/// # Errors
/// An agent holds the pins ([`io::ErrorKind::ResourceBusy`]), or something cannot be removed.
pub fn remove(pins: &Path) -> io::Result<Removed> {
    // Somebody else may be doing the same: then there is nothing left, or a new directory.
    while is_ours(pins)? {
        let lock = lock(pins).map_err(|error| match error {
            Error::System { source, .. } => source,
            busy => io::Error::new(io::ErrorKind::ResourceBusy, busy.to_string()),
        })?;
        if lock.is_some() {
            return remove_root(pins);
        }
    }
    Ok(Removed::default())
}

/// The same even if an agent holds the pins. That agent goes on without socket mode: all connections are left
/// to the relay.
///
/// # Errors
/// Something cannot be removed.
pub fn remove_held(pins: &Path) -> io::Result<Removed> {
    if is_ours(pins)? { remove_root(pins) } else { Ok(Removed::default()) }
}

/// Whether the directory exists and is in a bpffs.
pub(crate) fn is_ours(pins: &Path) -> io::Result<bool> {
    if !pins.exists() {
        return Ok(false);
    }
    if !bpf::is_bpffs(pins)? {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{} is in no bpffs, so nothing there is ours", pins.display()),
        ));
    }
    Ok(true)
}

fn remove_root(pins: &Path) -> io::Result<Removed> {
    let left = remove_all(pins, |_| true)?;
    if fs::read_dir(pins)?.next().is_none() {
        fs::remove_dir(pins)?;
    }
    Ok(Removed { was_there: true, left })
}

/// Removes what is in the directory of all pins, layout by layout. Returns why connected UDP sockets may be
/// left.
fn remove_all(root: &Path, is_to_go: impl Fn(&Path) -> bool) -> io::Result<Option<String>> {
    let mut left = Vec::new();
    for entry in fs::read_dir(root)? {
        let path = entry?.path();
        if !is_to_go(&path) {
            continue;
        }
        let connected = if path.is_dir() { end_connected(&path)? } else { Connected::None };
        match connected {
            Connected::None => remove_tree(&path)?,
            Connected::Left(why) => {
                left.push(why);
                remove_tree(&path)?;
            }
            // The next one to try finds the map, and by it the sockets.
            Connected::Unlisted(why) => {
                left.push(format!(
                    "{why}; they are known as long as {} is there",
                    path.join(CONNS).display()
                ));
                remove_but_conns(&path)?;
            }
        }
    }
    Ok((!left.is_empty()).then(|| left.join("; ")))
}

/// What became of connected UDP sockets.
enum Connected {
    /// None are left.
    None,
    /// Some may be left for good.
    Left(String),
    /// They could not be listed, for want of something that may be available soon.
    Unlisted(String),
}

impl Connected {
    fn unlisted(error: &(dyn std::error::Error + 'static)) -> Self {
        let why = format!("sockets cannot be listed: {error}");
        if passes(error) { Self::Unlisted(why) } else { Self::Left(why) }
    }
}

/// Ends the UDP sockets that a layout's programs have connected, after detaching these programs.
fn end_connected(directory: &Path) -> io::Result<Connected> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        // A program that cannot be detached here is detached a moment later, when its pin is removed.
        if is_link(&path)
            && let Ok(link) = bpf::get(&path)
        {
            let _ = bpf::detach(link.as_fd());
        }
    }
    let conns = match bpf::get(&directory.join(CONNS)) {
        Ok(conns) => conns,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Connected::None),
        Err(error) => return Ok(Connected::unlisted(&error)),
    };
    let program = match datagram_lister() {
        Ok(program) => program,
        Err(error) => return Ok(Connected::unlisted(&error)),
    };
    // The kernel refuses a map whose elements are smaller than the program expects.
    Ok(match end_listed(program.as_fd(), conns.as_fd(), &NAMED.map(PathBuf::from), |_| true) {
        Ok(ended) => ended.trouble().map_or(Connected::None, Connected::Left),
        Err(error) => Connected::unlisted(&error),
    })
}

/// Removes what is pinned for a layout, except the map of what sockets are connected to.
fn remove_but_conns(directory: &Path) -> io::Result<()> {
    let inside = fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    let (links, maps): (Vec<_>, Vec<_>) = inside.into_iter().partition(|path| is_link(path));
    let maps = maps.iter().filter(|path| !path.ends_with(CONNS));
    links.iter().chain(maps).try_for_each(|path| remove_tree(path))
}

/// Removes a tree of pins, links first: attached programs keep their maps until the end.
pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    if !path.is_dir() {
        return fs::remove_file(path);
    }
    let mut inside = fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    inside.sort_by_key(|path| !is_link(path));
    inside.iter().try_for_each(|path| remove_tree(path))?;
    fs::remove_dir(path)
}
