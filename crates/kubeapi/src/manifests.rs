//! Services, EndpointSlices, Nodes and ServiceCIDRs from manifest files: `--manifests PATH`.
//!
//! ```text
//!  disk ──► document ──► read ──► parse ──► state ──► Batch ──► whoever watches
//!  (files)  (---)        (types)  (convert) (last good versions)
//! ```
//!
//! Only `disk` and `watch` do I/O; the rest is pure. All of it runs on the caller's thread, or on the one thread
//! that [`ManifestSource::watch`] starts. Do not call it from async threads: files may block.
//!
//! A file that is half-written or invalid never removes the objects that it gave before: see
//! [`ManifestSource::poll`].

mod disk;
mod document;
mod parse;
mod read;
mod report;
mod source;
mod state;
mod watch;

use std::io;
use std::path::{Path, PathBuf};

use sluice_model::Change;

pub use report::{Place, Report, Severity};
pub use source::ManifestSource;
pub use watch::{POLL_INTERVAL, Watch};

/// News from the files, in the order in which to apply them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// The changes of objects.
    pub changes: Vec<Change>,
    /// Reports about the files.
    pub reports: Vec<Report>,
}

impl Batch {
    /// Whether there is no news.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.reports.is_empty()
    }
}

/// Why manifests cannot be watched at all. Errors inside files are in [`Batch::reports`].
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The list of paths is empty.
    #[error("no manifest path given: name a file or a directory")]
    NoPath,
    /// A path does not exist, or cannot be accessed.
    #[error("manifests {}: {error}: name a file or directory that exists", path.display())]
    Path {
        /// The path as it was given.
        path: PathBuf,
        /// The system's error. No `source`: it is in the message.
        error: io::Error,
    },
}

/// Loads one text as if it were the only manifest file: YAML, or JSON if `path` ends in `.json`.
/// `path` is for reports; nothing is read from disk.
pub fn load_text(path: &Path, text: &[u8]) -> Batch {
    let key = state::FileKey { root: 0, path: path.into() };
    let mut state = state::State::default();
    state.update(&key, parse::parse(&key.path, text));
    state.take()
}
