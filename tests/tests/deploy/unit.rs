//! The systemd unit.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use sluice::capture_args::CaptureMode;
use sluice::cli;

use crate::manifests::{daemonset, overlay, pod, repository, with_components};

fn unit() -> String {
    fs::read_to_string(repository().join("deploy/systemd/sluice.service")).unwrap()
}

/// What there is for a node without socket mode.
fn drop_in() -> String {
    fs::read_to_string(repository().join("deploy/systemd/tproxy.conf")).unwrap()
}

fn settings(unit: &str) -> BTreeMap<&str, &str> {
    unit.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('=')).collect()
}

#[test]
fn the_agent_understands_its_command_line_and_has_the_time_that_it_gives() {
    let (unit, drop_in) = (unit(), drop_in());
    let all = settings(&unit);
    assert_eq!(all["Environment"], "SLUICE_FLAGS=");
    for (text, capture) in [(&unit, CaptureMode::Auto), (&drop_in, CaptureMode::Tproxy)] {
        let line = settings(text)["ExecStart"].strip_suffix(" $SLUICE_FLAGS").unwrap();
        let words: Vec<_> = line.split(' ').map(Into::into).collect();
        let cli = cli::try_parse(&words).unwrap_or_else(|error| panic!("{error}"));
        let cli::Command::Agent(agent) = cli.command else { panic!("{line}") };
        assert_eq!(agent.capture.mode(), capture);
        assert!(agent.grace_period.as_secs() < all["TimeoutStopSec"].parse().unwrap());
    }
}

#[test]
#[ignore = "needs kubectl 1.21 or newer: .ci/manifests runs this"]
fn it_has_the_capabilities_of_the_daemonset() {
    let (unit, drop_in) = (unit(), drop_in());
    let of = |text| settings(text)["CapabilityBoundingSet"].split(' ').map(str::to_owned);
    for (ours, objects) in [
        (of(&unit).collect::<BTreeSet<String>>(), overlay("managed")),
        // An empty line before it takes back what the unit says.
        (of(&drop_in).collect(), with_components("managed", &["tproxy"])),
    ] {
        let pod = pod(&daemonset(&objects));
        let context = pod.containers[0].security_context.clone().unwrap();
        let theirs = context.capabilities.unwrap().add.unwrap();
        assert_eq!(ours, theirs.iter().map(|name| format!("CAP_{name}")).collect());
    }
}

#[test]
fn systemd_understands_it() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("sluice.service");
    // The program is to be there.
    let with_a_program = |text: String| text.replace("/usr/local/bin/sluice", "/bin/true");
    fs::write(&file, with_a_program(unit())).unwrap();
    let below = directory.path().join("sluice.service.d");
    fs::create_dir(&below).unwrap();
    fs::write(below.join("tproxy.conf"), with_a_program(drop_in())).unwrap();
    match Command::new("systemd-analyze").arg("verify").arg(&file).output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            sluice_sys::skipped("there is no systemd-analyze here");
        }
        Err(error) => panic!("{error}"),
        Ok(output) => {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        }
    }
}
