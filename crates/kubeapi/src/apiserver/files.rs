//! Reads the configuration's files. A volume that hangs blocks the thread that reads from it indefinitely. So
//! there is at most one such thread, and waiting for it is limited.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;

use super::access::Access;
use super::config::{self, Config, ConfigError};

/// Reads the files repeatedly.
#[derive(Debug)]
pub(super) struct Files {
    config: Config,
    /// How long to wait for one read.
    limit: Duration,
    reading: Option<Reading>,
}

/// A read that may still be under way.
#[derive(Debug)]
struct Reading {
    task: JoinHandle<Result<Access, ConfigError>>,
    disk: Arc<Disk>,
    /// It took too long: its result may be outdated when it arrives.
    is_late: bool,
}

impl Files {
    pub(super) fn new(config: Config) -> Self {
        Self { limit: config.timing.read, config, reading: None }
    }

    /// Reads the files. `None` if that takes too long.
    pub(super) async fn read(&mut self) -> Option<Result<Access, ConfigError>> {
        match &self.reading {
            Some(Reading { task, disk, .. }) if task.is_finished() => {
                disk.answers();
                self.reading = None;
            }
            Some(reading) if reading.is_late => return None,
            _ => {}
        }
        let Reading { task, disk, is_late } = self.reading.get_or_insert_with(|| {
            let (config, disk) = (self.config.clone(), Arc::new(Disk::default()));
            let read_by = Arc::clone(&disk);
            let task = spawn_blocking(move || {
                let read = config::load(&config, &read_by);
                read_by.answers();
                read
            });
            Reading { task, disk, is_late: false }
        });
        match timeout(self.limit, task).await {
            Ok(read) => {
                self.reading = None;
                read.ok()
            }
            Err(_) => {
                *is_late = true;
                disk.hangs(self.limit);
                None
            }
        }
    }
}

/// Reads files, and records which one is being read.
#[derive(Debug, Default)]
pub(super) struct Disk {
    file: Mutex<PathBuf>,
    is_overdue: AtomicBool,
}

impl Disk {
    /// Reads a file. Blocks.
    pub(super) fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        path.clone_into(&mut self.file.lock().unwrap_or_else(PoisonError::into_inner));
        std::fs::read(path)
    }

    fn file(&self) -> PathBuf {
        self.file.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn hangs(&self, limit: Duration) {
        self.is_overdue.store(true, Relaxed);
        let file = self.file();
        tracing::warn!(
            "{}: it could not be read within {limit:?}: see to the volume that it is on; what was read before counts until then",
            file.display()
        );
    }

    fn answers(&self) {
        if self.is_overdue.swap(false, Relaxed) {
            tracing::info!("{}: it can be read again", self.file().display());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::super::access::{Auth, Secret};
    use super::super::config::{Environment, Timing};
    use super::*;

    #[tokio::test]
    async fn a_file_that_hangs_is_waited_for_once_and_not_for_long_and_is_read_again_when_it_answers() {
        let account = tempfile::tempdir().unwrap();
        let (token, hung) = (account.path().join("token"), account.path().join("hung"));
        fs::write(account.path().join("ca.crt"), "PEM").unwrap();
        assert!(Command::new("mkfifo").arg(&token).status().unwrap().success());
        let environment =
            Environment { service_account: Some(account.path().to_owned()), ..Environment::default() };
        let mut files = Files::new(Config {
            masters: vec!["https://10.0.0.2".to_owned()],
            timing: Timing { read: Duration::from_millis(100), ..Timing::default() },
            ..Config::new("node-1", environment)
        });
        assert!(files.read().await.is_none());
        let disk = Arc::clone(&files.reading.as_ref().unwrap().disk);
        assert!(disk.is_overdue.load(Relaxed));
        assert_eq!(disk.file(), token);
        files.limit = Duration::from_secs(3_600);
        for _ in 0..100 {
            assert!(files.read().await.is_none(), "nobody waits again");
        }
        assert!(Arc::ptr_eq(&disk, &files.reading.as_ref().unwrap().disk), "one reading at a time");

        fs::rename(&token, &hung).unwrap();
        fs::write(&token, "new").unwrap();
        fs::write(&hung, "old").unwrap();
        while disk.is_overdue.load(Relaxed) {
            tokio::task::yield_now().await;
        }
        let read = loop {
            match files.read().await {
                Some(read) => break read.unwrap(),
                None => tokio::task::yield_now().await,
            }
        };
        assert_eq!(read.auth, Auth::Token(Secret("new".to_owned())));
        assert!(files.reading.is_none());
    }
}
