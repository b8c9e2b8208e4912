//! The program nft, for agents that are told where: it may take half a minute where others change nftables all the time.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

/// Waits for as long as there is a file, and says that it does. After the first transaction, if only then.
const SCRIPT: &str = r#"#!/bin/sh
cd ${0%/*}
if [ ! -e patient ] || [ -e begun ]; then
    while [ -e slow ]; do : > waits; sleep 0.02; done
fi
case "$*" in *--file*) : > begun;; esac
PATH=$REAL_PATH exec nft "$@"
"#;

/// It, and whether it is slow.
pub(crate) struct SlowNft {
    directory: TempDir,
}

impl SlowNft {
    /// Slow when it is made to be.
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let nft = directory.path().join("nft");
        fs::write(&nft, SCRIPT).unwrap();
        fs::set_permissions(&nft, fs::Permissions::from_mode(0o755)).unwrap();
        Self { directory }
    }

    /// Slow from the first transaction on, and not before: by that one an agent takes the place of another one.
    pub(crate) fn after_the_first_transaction() -> Self {
        let nft = Self::new();
        fs::write(nft.file("patient"), "").unwrap();
        nft.slow_down();
        nft
    }

    /// Has an agent use it.
    pub(crate) fn of(&self, agent: &mut Command) {
        let path = std::env::var("PATH").unwrap();
        agent.env("REAL_PATH", &path).env("PATH", format!("{}:{path}", self.directory.path().display()));
    }

    pub(crate) fn slow_down(&self) {
        fs::write(self.file("slow"), "").unwrap();
    }

    pub(crate) fn go_on(&self) {
        fs::remove_file(self.file("slow")).unwrap();
    }

    /// Whether an agent waits for it.
    pub(crate) fn is_waited_for(&self) -> bool {
        self.file("waits").exists()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}
