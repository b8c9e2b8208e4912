//! Follows files on disk: which ones to check, and when to read one.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::disk::{self, Contents, Sight};
use super::state::{FileKey, State};
use super::{Batch, ManifestError, parse};
use crate::mend;

/// The maximum number of files to follow: each costs a `stat` per poll.
const MAX_FILES: usize = 4096;

/// How often the first load tries to read a file that is being written.
const LOAD_ATTEMPTS: usize = 3;

/// Gives the objects of files and directories, and their changes.
///
/// It blocks on files; do not use it on async threads. [`ManifestSource::watch`] runs it on a thread of its own.
#[derive(Debug)]
pub struct ManifestSource {
    roots: Vec<Root>,
    files: BTreeMap<FileKey, Followed>,
    state: State,
}

/// A configured path.
#[derive(Debug)]
struct Root {
    path: Arc<Path>,
    is_directory: bool,
}

/// A file that is followed.
#[derive(Debug)]
struct Followed {
    /// What the last poll saw; `None` for a new file.
    seen: Option<Sight>,
    /// The state that was last read.
    done: Option<Sight>,
}

impl ManifestSource {
    /// Follows files and directories, in order of precedence. Nothing is read yet.
    ///
    /// # Errors
    /// There is no path, or one does not exist.
    pub fn new(paths: Vec<PathBuf>) -> Result<Self, ManifestError> {
        if paths.is_empty() {
            return Err(ManifestError::NoPath);
        }
        let roots = paths.into_iter().map(|path| match fs::metadata(&path) {
            Ok(metadata) => Ok(Root { path: path.into(), is_directory: metadata.is_dir() }),
            Err(error) => Err(ManifestError::Path { path, error }),
        });
        let roots = roots.collect::<Result<_, _>>()?;
        Ok(Self { roots, files: BTreeMap::new(), state: State::default() })
    }

    /// Reads everything in its current state. Must be called once, first.
    pub fn load(&mut self) -> Batch {
        for (key, seen) in self.look() {
            for _ in 0..LOAD_ATTEMPTS {
                if self.read(&key, &seen) {
                    break;
                }
            }
        }
        self.state.take()
    }

    /// Looks for changes; cheap if there are none. A file is read when two polls in a row saw it in the same
    /// state, and that state has not been read before. Must be called every
    /// [`POLL_INTERVAL`](super::POLL_INTERVAL).
    ///
    /// Nothing is removed by an error in a file, or because it cannot be read or is half-written:
    /// * An object that is broken, or missing in a file with an error, keeps its last good version. The good
    ///   objects of the file count. If the file has no errors all of it counts, including removals.
    /// * An empty file keeps its previous objects. Only deleting the file removes all of them.
    /// * A file or directory that cannot be read, and a directory that is gone, keep their objects.
    pub fn poll(&mut self) -> Option<Batch> {
        for (key, seen) in self.look() {
            let Some(followed) = self.files.get_mut(&key) else { continue };
            let is_stable = followed.seen.replace(seen.clone()).as_ref() == Some(&seen);
            if is_stable && followed.done.as_ref() != Some(&seen) {
                self.read(&key, &seen);
            }
        }
        Some(self.state.take()).filter(|batch| !batch.is_empty())
    }

    /// Checks all paths, and starts to follow new files.
    fn look(&mut self) -> Vec<(FileKey, Sight)> {
        let mut sights: BTreeMap<FileKey, Sight> = BTreeMap::new();
        for (root, Root { path, is_directory }) in self.roots.iter().enumerate() {
            let key = FileKey { root, path: Arc::clone(path) };
            if !is_directory {
                let sight = disk::look(path);
                sights.insert(key, sight);
                continue;
            }
            let listed = match disk::list(path) {
                Ok(listed) => listed,
                Err(error) => {
                    let what = format!("{error}: all it held stays as it was");
                    let mend = mend::of_file(&error, "make it a directory that can be read");
                    self.state.unreadable(&key, what, mend);
                    continue;
                }
            };
            for key in self.files.keys().filter(|key| key.root == root) {
                sights.insert(key.clone(), Sight::Absent);
            }
            let mut surplus = 0;
            for path in listed {
                let key = FileKey { root, path: path.into() };
                if !self.files.contains_key(&key) && sights.len() >= MAX_FILES {
                    surplus += 1;
                    continue;
                }
                let sight = disk::look(&key.path);
                sights.insert(key, sight);
            }
            if surplus == 0 {
                self.state.readable(&key);
            } else {
                let what = format!("more than {MAX_FILES} files; {surplus} of them are not looked at");
                self.state.unreadable(&key, what, "join some of them into one");
            }
        }
        remove_repeated(&mut sights);
        for key in sights.keys() {
            self.files.entry(key.clone()).or_insert(Followed { seen: None, done: None });
        }
        sights.into_iter().collect()
    }

    /// Handles what was seen of a file; false if it has to be checked again.
    fn read(&mut self, key: &FileKey, seen: &Sight) -> bool {
        let mut is_done = true;
        match seen {
            Sight::Absent => {
                self.state.remove(key);
                let is_listed = self.roots.get(key.root).is_some_and(|root| root.is_directory);
                if is_listed {
                    self.files.remove(key);
                }
            }
            Sight::Other(what, mend) => self.state.unreadable(key, what.as_str(), mend),
            Sight::File(_) => match disk::read(&key.path) {
                Contents::Read(bytes, signature) => {
                    self.state.update(key, parse::parse(&key.path, &bytes));
                    is_done = !signature.is_recent() && Sight::File(signature) == *seen;
                }
                Contents::Changing => return false,
                Contents::TooLarge => {
                    let what = format!("larger than {} MiB", disk::MAX_FILE_BYTES >> 20);
                    self.state.unreadable(key, what, "spread it over several files");
                }
                Contents::Failed(error) => {
                    let mend = mend::of_file(&error, "make the file readable");
                    self.state.unreadable(key, error.to_string(), mend);
                    is_done = false;
                }
            },
        }
        if let Some(followed) = self.files.get_mut(key).filter(|_| is_done) {
            followed.done = Some(seen.clone());
        }
        true
    }
}

/// Removes repeated files: one that is reached by several configured paths is read once, for the first of them.
fn remove_repeated(sights: &mut BTreeMap<FileKey, Sight>) {
    let mut paths = std::collections::HashSet::new();
    sights.retain(|key, _| paths.insert(Arc::clone(&key.path)));
}
