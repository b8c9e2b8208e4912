//! The systemd unit.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use sluice::cli;

use crate::manifests::{daemonset, overlay, pod, repository};

fn unit() -> String {
    fs::read_to_string(repository().join("deploy/systemd/sluice.service")).unwrap()
}

fn settings(unit: &str) -> BTreeMap<&str, &str> {
    unit.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('=')).collect()
}

#[test]
fn the_agent_understands_its_command_line_and_has_the_time_that_it_gives() {
    let unit = unit();
    let settings = settings(&unit);
    assert_eq!(settings["Environment"], "SLUICE_FLAGS=");
    let line = settings["ExecStart"].strip_suffix(" $SLUICE_FLAGS").unwrap();
    let words: Vec<_> = line.split(' ').map(Into::into).collect();
    let cli = cli::try_parse(&words).unwrap_or_else(|error| panic!("{error}"));
    let cli::Command::Agent(agent) = cli.command else { panic!("{line}") };
    assert!(agent.grace_period.as_secs() < settings["TimeoutStopSec"].parse().unwrap());
}

#[test]
#[ignore = "needs kubectl 1.21 or newer: .ci/manifests runs this"]
fn it_has_the_capabilities_of_the_daemonset() {
    let unit = unit();
    let ours: BTreeSet<&str> = settings(&unit)["CapabilityBoundingSet"].split(' ').collect();
    let pod = pod(&daemonset(&overlay("managed")));
    let context = pod.containers[0].security_context.clone().unwrap();
    let theirs = context.capabilities.unwrap().add.unwrap();
    let theirs: Vec<String> = theirs.iter().map(|name| format!("CAP_{name}")).collect();
    assert_eq!(ours, theirs.iter().map(String::as_str).collect());
}

#[test]
fn systemd_understands_it() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("sluice.service");
    // The program is to be there.
    fs::write(&file, unit().replace("/usr/local/bin/sluice", "/bin/true")).unwrap();
    match Command::new("systemd-analyze").arg("verify").arg(&file).output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("skipped: there is no systemd-analyze here");
        }
        Err(error) => panic!("{error}"),
        Ok(output) => {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        }
    }
}
