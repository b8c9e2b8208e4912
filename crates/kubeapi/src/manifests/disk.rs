//! Checks and reads files, without ever blocking on one or reading without bound.

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{Mode, OFlags};

use crate::mend;

/// Largest manifest: 10,000 Services with ten endpoints each take about 20 MB as `kubectl` writes them.
pub(super) const MAX_FILE_BYTES: u64 = 64 << 20;

/// The maximum number of entries read from one directory, of any name.
const MAX_ENTRIES: usize = 65_536;

/// File systems take timestamps from a clock that ticks every few milliseconds, so two writes within one tick
/// look the same. A file younger than this is read again.
const RECENT: Duration = Duration::from_millis(100);

/// What is at a path at some moment. Equal values mean that nothing was written in between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Sight {
    /// Nothing exists there.
    Absent,
    /// A regular file, behind any number of symlinks.
    File(Signature),
    /// Something that is not read: its kind, and what to do about it.
    Other(String, &'static str),
}

/// Attributes that change when a file does: its identity, size and times in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Signature {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Signature {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Whether a write just now might not be visible. A clock that is far off (a network file system's) must not
    /// make this true for ever.
    pub(super) fn is_recent(&self) -> bool {
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let nanos = |(seconds, nanos): (i64, i64)| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
        let age = i128::try_from(since_epoch.as_nanos()).unwrap_or_default() - nanos(self.changed);
        age.unsigned_abs() < RECENT.as_nanos()
    }
}

/// Checks a path, following symlinks.
pub(super) fn look(path: &Path) -> Sight {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => Sight::File(Signature::of(&metadata)),
        Ok(metadata) if metadata.is_dir() => {
            Sight::Other("a directory, where a file was".to_owned(), "restart to read a directory")
        }
        Ok(_) => {
            let mend = "pipes and devices are not read: put a file there";
            Sight::Other("not a regular file".to_owned(), mend)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => match fs::symlink_metadata(path) {
            Ok(_) => Sight::Other("a symlink to nowhere".to_owned(), "mend the link, or delete it"),
            Err(_) => Sight::Absent,
        },
        Err(error) => Sight::Other(error.to_string(), mend::of_file(&error, "make the file readable")),
    }
}

/// The result of reading a file.
#[derive(Debug)]
pub(super) enum Contents {
    /// The bytes, and the signature of the file at that time.
    Read(Vec<u8>, Signature),
    /// It was written to or replaced while it was read: try again.
    Changing,
    /// Larger than [`MAX_FILE_BYTES`].
    TooLarge,
    /// It cannot be read.
    Failed(io::Error),
}

/// Reads a regular file. Never blocks on a pipe that took the file's place.
pub(super) fn read(path: &Path) -> Contents {
    read_bounded(path, MAX_FILE_BYTES).unwrap_or_else(Contents::Failed)
}

fn read_bounded(path: &Path, limit: u64) -> io::Result<Contents> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let mut file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    let before = file.metadata()?;
    if !before.is_file() {
        return Ok(Contents::Changing);
    }
    if before.size() > limit {
        return Ok(Contents::TooLarge);
    }
    let mut bytes = Vec::with_capacity(usize::try_from(before.size()).unwrap_or_default());
    // One more byte shows that the file has grown.
    file.by_ref().take(before.size() + 1).read_to_end(&mut bytes)?;
    let signature = Signature::of(&before);
    let is_whole = bytes.len() as u64 == before.size();
    if !is_whole || look(path) != Sight::File(signature) || Signature::of(&file.metadata()?) != signature {
        return Ok(Contents::Changing);
    }
    Ok(Contents::Read(bytes, signature))
}

/// The manifests directly inside a directory, by name: `*.yaml`, `*.yml`, `*.json`; no hidden files and no
/// directories. A ConfigMap mount keeps its versions in hidden ones (`..data`).
pub(super) fn list(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory)?.take(MAX_ENTRIES) {
        let path = entry?.path();
        let is_hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        let is_manifest = path.extension().is_some_and(|extension| {
            ["yaml", "yml", "json"].iter().any(|wanted| extension.eq_ignore_ascii_case(wanted))
        });
        if is_manifest && !is_hidden && !path.is_dir() {
            paths.push(path);
        }
    }
    paths.sort_unstable();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_up_to_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.yaml");
        fs::write(&path, "12345678").unwrap();
        assert!(matches!(read_bounded(&path, 8), Ok(Contents::Read(bytes, _)) if bytes == b"12345678"));
        fs::write(&path, "123456789").unwrap();
        assert!(matches!(read_bounded(&path, 8), Ok(Contents::TooLarge)));
    }

    #[test]
    fn a_pipe_in_place_of_a_file_does_not_block() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe.yaml");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        assert!(matches!(look(&path), Sight::Other(..)));
        assert!(matches!(read(&path), Contents::Changing));
    }

    #[test]
    fn a_write_shows_in_the_signature() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.yaml");
        fs::write(&path, "a").unwrap();
        let first = look(&path);
        assert_eq!(look(&path), first);
        fs::write(&path, "ab").unwrap();
        assert_ne!(look(&path), first);
        fs::remove_file(&path).unwrap();
        assert_eq!(look(&path), Sight::Absent);
    }

    #[test]
    fn only_manifests_directly_inside_are_listed_by_name() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b.yaml", "a.json", "c.YML", ".hidden.yaml", "notes.txt", "yaml", "d.yaml~"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        fs::create_dir(dir.path().join("sub.yaml")).unwrap();
        let names: Vec<_> = list(dir.path()).unwrap();
        let names: Vec<_> = names.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["a.json", "b.yaml", "c.YML"]);
    }
}
