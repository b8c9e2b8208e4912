//! Removing what is pinned: programs first, then connected UDP sockets, which nobody could end any more once their endpoint
//! goes, then maps.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use sluice_sys::bpf;

use crate::attach::datagram_lister;
use crate::ending::end_listed;
use crate::error::Error;
use crate::pins::{Pins, is_link, lock};
use crate::shape::CONNS;

/// What came of removing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// Whether there was anything.
    pub was_there: bool,
    /// Why connected UDP sockets may be left, for people: they wait for their endpoints for ever once these go.
    pub left: Option<String>,
}

impl Pins {
    /// Removes what versions with another layout have pinned, and ends their connected UDP sockets. Which are left.
    pub(crate) fn remove_others(&self) -> io::Result<Option<String>> {
        remove_all(&self.root, |path| path != self.directory)
    }
}

/// Detaches all programs, ends the UDP sockets that they had connected to endpoints (`ECONNABORTED`), as nobody would do it
/// when these go, and removes all maps that are pinned below `pins`. What else is translated stays so: open connections go
/// on. Where sockets are to be ended it takes a look at every process.
///
/// # Errors
/// An agent holds it ([`io::ErrorKind::ResourceBusy`]), or something cannot be removed.
pub fn remove(pins: &Path) -> io::Result<Removed> {
    if !is_ours(pins)? {
        return Ok(Removed::default());
    }
    let _lock = lock(pins).map_err(|error| match error {
        Error::System { source, .. } => source,
        busy => io::Error::new(io::ErrorKind::ResourceBusy, busy.to_string()),
    })?;
    remove_root(pins)
}

/// The same although an agent may hold it, which goes on without: no connection is decided at its socket any more, and
/// whatever else it has for them has all.
///
/// # Errors
/// Something cannot be removed.
pub fn remove_held(pins: &Path) -> io::Result<Removed> {
    if is_ours(pins)? { remove_root(pins) } else { Ok(Removed::default()) }
}

/// Whether there is anything, and it is in a bpffs.
fn is_ours(pins: &Path) -> io::Result<bool> {
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
    fs::remove_dir(pins)?;
    Ok(Removed { was_there: true, left })
}

/// Removes what is in the directory of all pins, layout by layout.
fn remove_all(root: &Path, is_to_go: impl Fn(&Path) -> bool) -> io::Result<Option<String>> {
    let mut left = Vec::new();
    for entry in fs::read_dir(root)? {
        let path = entry?.path();
        if is_to_go(&path) {
            if path.is_dir() {
                left.extend(end_connected(&path)?);
            }
            remove_tree(&path)?;
        }
    }
    Ok((!left.is_empty()).then(|| left.join("; ")))
}

/// Ends the UDP sockets that the programs of a layout have connected, once these do not connect any more. Why some may be
/// left.
fn end_connected(directory: &Path) -> io::Result<Option<String>> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        // What cannot be detached is once its pin is gone, which is a moment later.
        if is_link(&path)
            && let Ok(link) = bpf::get(&path)
        {
            let _ = bpf::detach(link.as_fd());
        }
    }
    let unlisted = |error: &dyn std::fmt::Display| Some(format!("sockets cannot be listed: {error}"));
    let conns = match bpf::get(&directory.join(CONNS)) {
        Ok(conns) => conns,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Ok(unlisted(&error)),
    };
    let program = match datagram_lister() {
        Ok(program) => program,
        Err(error) => return Ok(unlisted(&error)),
    };
    // The kernel refuses a map whose elements are smaller than the program takes them for.
    match end_listed(program.as_fd(), conns.as_fd(), |_| true) {
        Ok(ended) => Ok(ended.trouble()),
        Err(error) => Ok(unlisted(&error)),
    }
}

/// Links first: what is attached has its maps until the end.
pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    if !path.is_dir() {
        return fs::remove_file(path);
    }
    let mut inside = fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    inside.sort_by_key(|path| !is_link(path));
    inside.iter().try_for_each(|path| remove_tree(path))?;
    fs::remove_dir(path)
}
