//! A network namespace for a test, and what is to be done and seen in it.

use std::fs;
use std::io::{BufRead, BufReader, Lines};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use nix::sched::{CloneFlags, unshare};

/// Runs a test on a thread of its own, in network and mount namespaces that end with it.
pub(crate) fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(|| {
        let flags = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS;
        unshare(flags).expect("needs CAP_SYS_ADMIN, to make namespaces");
        run("mount --make-rprivate /");
        run("ip link set lo up");
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs a program with arguments; returns what it prints.
pub(crate) fn run(command: &str) -> String {
    try_run(command).unwrap_or_else(|error| panic!("{command}: {error}"))
}

/// The same, where it may fail; returns what it says about that.
pub(crate) fn try_run(command: &str) -> Result<String, String> {
    let mut words = command.split(' ');
    let program = words.next().unwrap();
    let output = Command::new(program).args(words).stdin(Stdio::null()).output().unwrap();
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout).unwrap()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// All that there is of nftables, policy rules and routes, but for who the owner is.
pub(crate) fn kernel_state() -> String {
    [
        "nft --stateless list ruleset",
        "ip -details rule list",
        "ip -details -6 rule list",
        "ip -details route list table all",
        "ip -details -6 route list table all",
    ]
    .map(run)
    .join("\n---\n")
    .lines()
    .filter(|line| !line.trim_start().starts_with("elements = { 0x"))
    .collect::<Vec<_>>()
    .join("\n")
}

/// The table without what packets put into it, in an order that does not depend on when elements came.
pub(crate) fn table() -> String {
    let listing = run("nft --stateless list table inet sluice");
    let mut lines: Vec<&str> = listing
        .split([',', '\n'])
        .map(|part| part.trim().trim_start_matches("elements = { ").trim_end_matches(" }"))
        .filter(|part| !part.is_empty())
        .collect();
    lines.sort_unstable();
    lines.join("\n")
}

/// Puts a program that always fails in the place of nft, for this namespace, for as long as this lives.
pub(crate) struct BrokenNft;

impl BrokenNft {
    pub(crate) fn new(directory: &Path) -> Self {
        let broken = Self::doing(directory, "echo 'no nft today' >&2; exit 1");
        assert!(try_run("nft --version").is_err());
        broken
    }

    /// One that says what there is, and is killed when it is to change something.
    pub(crate) fn killed_at_changes(directory: &Path) -> Self {
        let whole = directory.join("whole-nft");
        fs::copy(nft(), &whole).unwrap();
        Self::doing(
            directory,
            &format!("case \"$*\" in *--file*) kill -KILL $$;; esac; exec {} \"$@\"", whole.display()),
        )
    }

    fn doing(directory: &Path, script: &str) -> Self {
        let stub = directory.join("nft");
        fs::write(&stub, format!("#!/bin/sh\n{script}\n")).unwrap();
        run(&format!("chmod +x {}", stub.display()));
        run(&format!("mount --bind {} {}", stub.display(), nft().display()));
        Self
    }
}

impl Drop for BrokenNft {
    fn drop(&mut self) {
        run(&format!("umount {}", nft().display()));
    }
}

fn nft() -> std::path::PathBuf {
    let path = std::env::var_os("PATH").unwrap();
    std::env::split_paths(&path).map(|directory| directory.join("nft")).find(|nft| nft.exists()).unwrap()
}

/// Follows the transactions of nftables in the namespace.
pub(crate) struct Monitor {
    nft: Child,
    lines: Lines<BufReader<ChildStdout>>,
    markers: u32,
}

impl Monitor {
    pub(crate) fn new() -> Self {
        let mut nft = Command::new("nft").arg("monitor").stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(nft.stdout.take().unwrap()).lines();
        let mut monitor = Self { nft, lines, markers: 0 };
        // It has begun to listen when it has seen one of these; until then it says nothing.
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| sender.send(monitor.lines.next().unwrap().unwrap()));
            while receiver.try_recv().is_err() {
                run("nft add table inet marker");
                run("nft delete table inet marker");
            }
        });
        monitor.transactions();
        monitor
    }

    /// The transactions since the last call, each with what it did, line by line. Who the owner is each of them says; that
    /// is left out.
    pub(crate) fn transactions(&mut self) -> Vec<Vec<String>> {
        self.markers += 1;
        let marker = format!("add table inet marker{}", self.markers);
        run(&format!("nft {marker}"));
        let mut transactions = Vec::new();
        let mut current = Vec::new();
        let mut has_owner = false;
        for line in self.lines.by_ref() {
            let line = line.unwrap();
            if line == marker {
                break;
            }
            if line.contains(" inet sluice_owner") {
                has_owner = true;
            } else if line.starts_with("# new generation") {
                if current.is_empty() && std::mem::take(&mut has_owner) {
                    continue;
                }
                transactions.push(std::mem::take(&mut current));
            } else {
                current.push(line);
            }
        }
        // The marker's own generation.
        assert!(self.lines.next().unwrap().unwrap().starts_with("# new generation"));
        run(&format!("nft delete table inet marker{}", self.markers));
        let deletion = [self.lines.next().unwrap().unwrap(), self.lines.next().unwrap().unwrap()];
        assert!(deletion[0].starts_with("delete table inet marker"), "{deletion:?}");
        transactions.retain(|transaction| !transaction.iter().all(|line| line.ends_with(" inet marker")));
        transactions
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.nft.kill();
        let _ = self.nft.wait();
    }
}
