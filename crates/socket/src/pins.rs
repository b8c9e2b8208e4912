//! The directory of pins: `v<layout>` below it has all maps and links, and outlives the agent.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use sluice_sys::bpf;

use crate::removal::remove_tree;
use crate::{Error, mounts};

/// Where pins are unless said otherwise.
pub const PINS: &str = "/sys/fs/bpf/sluice";

/// Where distributions mount a bpffs.
const BPFFS: &str = "/sys/fs/bpf";

/// The directory, held: nobody else attaches or removes while this lives.
#[derive(Debug)]
pub(crate) struct Pins {
    pub(crate) root: PathBuf,
    /// `v<layout>`.
    pub(crate) directory: PathBuf,
    /// Locked.
    _lock: File,
}

impl Pins {
    /// Makes the directory, and a bpffs for it if there is none where distributions have one, and locks it.
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
        // Whoever asked for it has it now, or comes too late.
        let_go(root);
        Ok(Self { root: root.into(), directory, _lock: lock })
    }

    /// Removes what is pinned for this layout, and the directory above if nothing else is there.
    pub(crate) fn remove(&self) -> io::Result<()> {
        remove_tree(&self.directory)?;
        // There may be other versions' pins in it.
        let _ = fs::remove_dir(&self.root);
        Ok(())
    }
}

/// A directory in that of all pins, by which an agent says that it is ready to have them.
const ASKED_FOR: &str = "asked_for";

/// Asks whoever holds what is pinned below `pins` to let go of it, now that it would not be missed. Until then that one is to
/// keep it in line with what changes.
///
/// # Errors
/// There are none, or it cannot be said there.
pub fn ask_for(pins: &Path) -> io::Result<()> {
    match fs::create_dir(pins.join(ASKED_FOR)) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

/// Whether somebody has asked for them, and nobody has let go since.
pub fn is_asked_for(pins: &Path) -> bool {
    pins.join(ASKED_FOR).exists()
}

/// Says that they are not held any more, or that nobody is to have them.
pub fn let_go(pins: &Path) {
    // That there is none is as good.
    let _ = fs::remove_dir(pins.join(ASKED_FOR));
}

/// Where a layout has its pins.
pub(crate) fn directory(root: &Path, layout: u64) -> PathBuf {
    root.join(format!("v{layout}"))
}

/// Holds the directory of all pins; none if it is gone by now, whether or not there is another one.
pub(crate) fn lock(root: &Path) -> Result<Option<File>, Error> {
    match File::open(root) {
        Ok(opened) => lock_opened(opened, root),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::system(format!("opening {}", root.display()))(error)),
    }
}

/// Whoever held it may have removed it after it was opened here: that one holds nobody up, and the next one has another.
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

/// Sees to it that `pins` are in a bpffs, and mounts one if there is none where distributions have one; whether it
/// did. It takes CAP_SYS_ADMIN, which an agent needs for nothing else: somebody else may do it before it starts.
///
/// # Errors
/// They are in another file system, or none can be mounted.
pub fn ensure_bpffs(pins: &Path) -> Result<bool, Error> {
    match find_bpffs(pins)? {
        Bpffs::There(_) => Ok(false),
        Bpffs::ToBeMounted(at) => {
            bpf::mount_bpffs(at).map(|()| true).map_err(|source| Error::NoBpffs { path: pins.into(), source })
        }
    }
}

/// The file system that pins are to be in.
pub(crate) enum Bpffs<'a> {
    /// It is there, as far as down to here.
    There(&'a Path),
    /// This is where it belongs.
    ToBeMounted(&'a Path),
}

/// The bpffs that `pins`, or the directory that they are to be made in, are in.
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

/// How deep below a bpffs pins are looked for, and among how many entries: others keep theirs there, too.
const DEPTH: usize = 8;
const ENTRIES: usize = 100_000;

/// Every directory below a mounted bpffs that programs of this crate's are pinned in, whoever chose it: what [`remove`](crate::remove)
/// takes.
///
/// # Errors
/// What is mounted cannot be read.
pub fn pinned() -> io::Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    let mut left = ENTRIES;
    for (_, point) in mounts::of_type("bpf")? {
        find(&point, DEPTH, &mut left, &mut found);
    }
    Ok(found)
}

fn find(directory: &Path, depth: usize, left: &mut usize, found: &mut BTreeSet<PathBuf>) {
    // One that is gone, or that may not be read, has nothing to say.
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

/// What names of links begin with.
const LINK: &str = "link_";

/// The same of our programs.
const OURS: &str = "link_sluice_";

/// Where the link of a program is.
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
