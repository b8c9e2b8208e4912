//! The directory of pins. `v<layout>` below it has all maps and links, and outlives the agent.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use sluice_sys::bpf;

use crate::removal::remove_tree;
use crate::{Error, mounts};

/// The default directory for pins.
pub const PINS: &str = "/sys/fs/bpf/sluice";

/// Where distributions mount a bpffs.
const BPFFS: &str = "/sys/fs/bpf";

/// The locked directory: nobody else attaches or removes while this lives.
#[derive(Debug)]
pub(crate) struct Pins {
    pub(crate) root: PathBuf,
    /// `v<layout>`.
    pub(crate) directory: PathBuf,
    /// The lock.
    _lock: File,
}

impl Pins {
    /// Creates the directory, and a bpffs for it if none is mounted in the usual place, and locks it.
    pub(crate) fn open(root: &Path, layout: u64) -> Result<Self, Error> {
        ensure_bpffs(root)?;
        let directory = directory(root, layout);
        let lock = loop {
            fs::create_dir_all(root).map_err(Error::system(format!("making {}", root.display())))?;
            if let Some(lock) = lock(root)? {
                break lock;
            }
        };
        fs::create_dir_all(&directory).map_err(Error::system(format!("making {}", directory.display())))?;
        // The agent that asked has it now, or comes too late.
        let_go(root);
        Ok(Self { root: root.into(), directory, _lock: lock })
    }

    /// Removes what is pinned for this layout, and the directory above if nothing else is there.
    pub(crate) fn remove(&self) -> io::Result<()> {
        remove_tree(&self.directory)?;
        // It may have other versions' pins.
        let _ = fs::remove_dir(&self.root);
        Ok(())
    }
}

/// A directory among the pins by which an agent says that it is ready to take over.
const ASKED_FOR: &str = "asked_for";

/// Asks the holder of what is pinned below `pins` to let go, now that this agent is ready. Until then, the
/// holder keeps it in line with changes.
///
/// # Errors
/// There are no pins, or the request cannot be written there.
pub fn ask_for(pins: &Path) -> io::Result<()> {
    match fs::create_dir(pins.join(ASKED_FOR)) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

/// Whether an agent has asked for the pins, and nobody has let go since.
pub fn is_asked_for(pins: &Path) -> bool {
    pins.join(ASKED_FOR).exists()
}

/// Withdraws the request: the pins are not held any more, or nobody is to get them.
pub fn let_go(pins: &Path) {
    // It is no error if there is no request.
    let _ = fs::remove_dir(pins.join(ASKED_FOR));
}

/// The directory of a layout's pins.
pub(crate) fn directory(root: &Path, layout: u64) -> PathBuf {
    root.join(format!("v{layout}"))
}

/// Locks the directory of all pins. `None` if it is gone by now, whether or not there is a new one.
pub(crate) fn lock(root: &Path) -> Result<Option<File>, Error> {
    match File::open(root) {
        Ok(opened) => lock_opened(opened, root),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::system(format!("opening {}", root.display()))(error)),
    }
}

/// Locks an opened directory. The last holder may have removed it since it was opened: then it protects
/// nothing, because the next holder has another one.
fn lock_opened(opened: File, root: &Path) -> Result<Option<File>, Error> {
    let failed = |error| Error::system(format!("locking {}", root.display()))(error);
    match flock(&opened, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Err(Error::Busy(root.into())),
        Err(error) => return Err(failed(error.into())),
    }
    let held = opened.metadata().map_err(failed)?;
    let is_still = fs::metadata(root).is_ok_and(|now| (now.dev(), now.ino()) == (held.dev(), held.ino()));
    Ok(is_still.then_some(opened))
}

/// Makes sure that `pins` is in a bpffs. Mounts one if there is none in the usual place; returns whether it
/// did. That takes CAP_SYS_ADMIN, which an agent needs for nothing else: somebody else may do it before the
/// agent starts.
///
/// # Errors
/// `pins` is in another file system, or no bpffs can be mounted.
pub fn ensure_bpffs(pins: &Path) -> Result<bool, Error> {
    match find_bpffs(pins)? {
        Bpffs::There(_) => Ok(false),
        Bpffs::ToBeMounted(at) => {
            bpf::mount_bpffs(at).map(|()| true).map_err(|source| Error::NoBpffs { path: pins.into(), source })
        }
    }
}

/// The file system for pins.
pub(crate) enum Bpffs<'a> {
    /// It is mounted, and exists down to this directory.
    There(&'a Path),
    /// It has to be mounted here.
    ToBeMounted(&'a Path),
}

/// The bpffs of `pins`, or of the directory in which `pins` will be created.
pub(crate) fn find_bpffs(pins: &Path) -> Result<Bpffs<'_>, Error> {
    let failed = |source| Error::NoBpffs { path: pins.into(), source };
    let there = pins.ancestors().find(|path| path.exists()).unwrap_or(pins);
    if bpf::is_bpffs(there).map_err(failed)? {
        return Ok(Bpffs::There(there));
    }
    let usual = Path::new(BPFFS);
    if pins.starts_with(usual) && usual.exists() {
        return Ok(Bpffs::ToBeMounted(usual));
    }
    Err(failed(io::Error::other(format!("{} is another file system", there.display()))))
}

/// How deep below a bpffs, and among how many entries, pins are searched: others keep theirs there too.
const DEPTH: usize = 8;
const ENTRIES: usize = 100_000;

/// Every directory below a mounted bpffs in which programs of this crate are pinned, whoever chose it: for
/// [`remove`](crate::remove).
///
/// # Errors
/// The mounts cannot be read.
pub fn pinned() -> io::Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    let mut left = ENTRIES;
    for (_, point) in mounts::of_type("bpf")? {
        find(&point, DEPTH, &mut left, &mut found);
    }
    Ok(found)
}

fn find(directory: &Path, depth: usize, left: &mut usize, found: &mut BTreeSet<PathBuf>) {
    // A directory that is gone or unreadable is skipped.
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let Some(fewer) = left.checked_sub(1) else { return };
        *left = fewer;
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if depth > 0 {
                find(&path, depth - 1, left, found);
            }
        } else if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(OURS))
            && let Some(root) = directory.parent()
        {
            found.insert(root.to_owned());
        }
    }
}

pub(crate) fn is_link(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(LINK))
}

/// The prefix of links' names.
const LINK: &str = "link_";

/// The prefix of our programs' links.
const OURS: &str = "link_sluice_";

/// The path of a program's link.
pub(crate) fn link_path(directory: &Path, program: &str) -> PathBuf {
    directory.join(format!("{LINK}{program}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_asked_for_until_somebody_lets_go() {
        let directory = tempfile::tempdir().unwrap();
        let pins = directory.path();
        assert!(ask_for(&pins.join("none")).is_err() && !is_asked_for(&pins.join("none")));
        for _ in 0..2 {
            ask_for(pins).unwrap();
            assert!(is_asked_for(pins));
        }
        let_go(pins);
        assert!(!is_asked_for(pins));
        let_go(pins);
    }

    #[test]
    fn what_was_removed_after_it_was_opened_is_not_held() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("sluice");
        assert!(lock(&root).unwrap().is_none(), "it is not there");
        fs::create_dir(&root).unwrap();
        let [removed, replaced] = [(); 2].map(|()| File::open(&root).unwrap());
        fs::remove_dir(&root).unwrap();
        assert!(lock_opened(removed, &root).unwrap().is_none());
        fs::create_dir(&root).unwrap();
        assert!(lock_opened(replaced, &root).unwrap().is_none());
        let _held = lock(&root).unwrap().unwrap();
        assert!(matches!(lock(&root), Err(Error::Busy(_))));
    }
}
