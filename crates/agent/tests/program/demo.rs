//! `sluice demo`: what the README promises of it.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::common::until;

/// Where demos run that are to need no privileges: those that root starts are somebody else's.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        fs::create_dir(place.files()).unwrap();
        for (path, mode) in [(place.0.path(), 0o755), (&place.files(), 0o777)] {
            fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        }
        // Where it was built others may not look. And a file that this process writes could not be run while another thread
        // starts something.
        let copied = Command::new("install").arg(env!("CARGO_BIN_EXE_sluice")).arg(place.program()).status();
        assert!(copied.unwrap().success());
        place
    }

    fn program(&self) -> PathBuf {
        self.0.path().join("sluice")
    }

    /// Where demos have their files.
    fn files(&self) -> PathBuf {
        self.0.path().join("files")
    }

    fn is_empty(&self) -> bool {
        fs::read_dir(self.files()).unwrap().next().is_none()
    }

    fn start(&self, arguments: &[&str]) -> Child {
        let mut command = if rustix::process::geteuid().is_root() {
            let mut command = Command::new("setpriv");
            command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(self.program());
            command
        } else {
            Command::new(self.program())
        };
        command
            .arg("demo")
            .args(arguments)
            .env("TMPDIR", self.files())
            .env_remove("RUST_LOG")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }
}

/// The cells of an endpoint's row, in each table that has one.
fn rows<'a>(said: &'a str, endpoint: &str) -> Vec<Vec<&'a str>> {
    let cells = |line: &'a str| line.split(['│', '┆']).map(str::trim).collect::<Vec<_>>();
    said.lines().map(cells).filter(|cells| cells.contains(&endpoint)).collect()
}

#[test]
fn demos_that_run_together_lose_no_request_share_nothing_and_need_no_privileges() {
    let place = Place::new();
    let demos: Vec<Child> =
        (0..3).map(|_| place.start(&["--once", "--requests", "300", "--workers", "2"])).collect();
    let mut backends = Vec::new();
    for demo in demos {
        let output = demo.wait_with_output().unwrap();
        let [said, complaints] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
        assert!(output.status.success(), "{said}{complaints}");
        assert!(said.contains("\n0 of "), "{said}");
        assert_eq!(complaints, "");
        let web_a = rows(&said, "web-a");
        backends.push(web_a[0][3].to_owned());
        // Nobody could follow what is gone in a moment; and what happened is said although this is no terminal.
        assert!(!said.contains("curl") && !said.contains("another terminal"), "{said}");
        for event in ["web-d has joined", "web-a has stopped", "web-a is gone"] {
            assert!(said.contains(event), "{event}: {said}");
        }
        // Each table has its own round: what is counted twice would be more than all requests.
        let web: Vec<Vec<&str>> =
            ["web-a", "web-b", "web-c", "web-d"].iter().flat_map(|name| rows(&said, name)).collect();
        let carried: u64 = web.iter().map(|row| row[4].parse::<u64>().unwrap()).sum();
        let total = said.lines().find_map(|line| line.strip_prefix("0 of ")?.split(' ').next()).unwrap();
        let total: u64 = total.parse().unwrap();
        assert!(web.len() == 7 && (600..total).contains(&carried), "{carried} of {total}: {said}");
        assert_eq!(rows(&said, "dns-a").len(), 1, "{said}");
    }
    backends.sort_unstable();
    backends.dedup();
    assert_eq!(backends.len(), 3, "{backends:?}");
    assert!(place.is_empty());
}

#[test]
fn a_demo_that_is_told_to_end_takes_its_files_away() {
    let place = Place::new();
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let mut demo = place.start(&[]);
        let mut said = BufReader::new(demo.stdout.take().unwrap()).lines();
        assert!(said.any(|line| line.unwrap().contains("curl ")));
        assert!(!place.is_empty());
        kill_process(Pid::from_child(&demo), signal).unwrap();
        // Whatever it writes is to find a reader.
        std::thread::spawn(move || said.for_each(drop));
        until("the demo ends", || demo.try_wait().unwrap().is_some());
        assert!(place.is_empty(), "{signal:?}");
    }
}

#[test]
fn where_it_cannot_run_it_says_what_to_change() {
    let cases = [
        ("TMPDIR=/proc exec \"$0\" demo --once", "set TMPDIR to one that files can be written to"),
        (
            "exec unshare $([ $(id -u) = 0 ] || echo --user --map-root-user) --net \"$0\" demo --once",
            "(ip link set lo up)",
        ),
        ("ulimit -n 64; exec \"$0\" demo --once", "raise the limit (ulimit -n)"),
        ("ulimit -n 150; exec \"$0\" demo --once --workers 500", "lower --workers"),
        ("exec \"$0\" demo --once --requests 9 >/dev/full", "cannot write to standard output: No space left"),
        ("exec \"$0\" check >/dev/full", "cannot write to standard output: No space left"),
        ("exec \"$0\" version >/dev/full", "cannot write to standard output: No space left"),
    ];
    for (script, said) in cases {
        let mut command = Command::new("bash");
        let output =
            command.args(["-c", script, env!("CARGO_BIN_EXE_sluice")]).env_remove("RUST_LOG").output();
        let output = output.unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(errors.lines().count() == 1 && errors.contains(said), "{script}: {errors}");
        assert_eq!(output.status.code(), Some(1), "{script}");
    }
}
