//! The form of `/metrics`, as those who scrape it need it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::common::{Agent, address, ask, backend, free_port, get_as, service, slice, until};

const CLASSIC: &str = "text/plain;version=0.0.4";
const OPENMETRICS: &str = "application/openmetrics-text;version=1.0.0";

/// What an agent tells that has carried something, in a form.
fn scraped(accept: &str) -> String {
    let directory = TempDir::new().unwrap();
    let frontend = free_port(address());
    let manifests = service("web", frontend) + &slice("web", &[backend(1)]);
    fs::write(directory.path().join("a.yaml"), manifests).unwrap();
    let source = directory.path().to_str().unwrap();
    let mut agent = Agent::start(&[
        "--manifests",
        source,
        "--metrics-bind-address=127.0.0.1:0",
        "--service-metrics=endpoint",
    ]);
    assert_eq!(ask(frontend).unwrap(), 1);
    let metrics = agent.port("serving metrics");
    let mut body = String::new();
    until("the connection has ended", || {
        let answer = get_as(metrics, "/metrics", accept);
        body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
        body.contains("\nsluice_tcp_session_duration_seconds_count 1\n")
    });
    body
}

/// The family that a sample belongs to.
fn family<'a>(name: &'a str, kinds: &BTreeMap<&'a str, &'a str>) -> &'a str {
    let stripped = ["_total", "_bucket", "_sum", "_count", "_info"]
        .iter()
        .find_map(|suffix| name.strip_suffix(suffix).filter(|family| kinds.contains_key(family)));
    if kinds.contains_key(name) { name } else { stripped.unwrap_or_default() }
}

#[test]
fn each_family_is_described_once_and_stands_together_and_no_series_is_there_twice() {
    for accept in [CLASSIC, OPENMETRICS] {
        let text = scraped(accept);
        let (mut kinds, mut series) = (BTreeMap::new(), BTreeSet::new());
        let (mut current, mut helps) = ("", BTreeSet::new());
        for line in text.lines().filter(|line| *line != "# EOF") {
            if let Some(described) = line.strip_prefix("# TYPE ") {
                let (name, kind) = described.split_once(' ').unwrap();
                assert!(kinds.insert(name, kind).is_none(), "{name} is described twice");
                current = name;
            } else if let Some(described) = line.strip_prefix("# HELP ") {
                let (name, help) = described.split_once(' ').unwrap();
                assert!(helps.insert(help), "{name} is described as another metric is: {help}");
                assert!(
                    help.starts_with(|first: char| first.is_uppercase()) && !help.ends_with(['.', ',']),
                    "{line}"
                );
            } else {
                let (sample, value) = line.rsplit_once(' ').unwrap();
                let name = sample.split('{').next().unwrap();
                assert_eq!(family(name, &kinds), current, "{line}");
                assert!(series.insert(sample), "{sample} is there twice");
                assert!(value.parse::<f64>().is_ok(), "{line}");
                let is_total = kinds[current] == "counter" || name == GAUGE_CALLED_TOTAL;
                assert_eq!(is_total, name.ends_with("_total"), "{line} is a {}", kinds[current]);
            }
        }
        assert_eq!(helps.len(), kinds.len(), "each has a description");
        assert!(series.len() > 100, "{text}");
        // What there is to serve, by whom, and how busy they are.
        let version = concat!("sluice_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1");
        let there = ["sluice_services 1", "sluice_endpoints 1", version];
        for line in there {
            assert!(text.lines().any(|other| other.trim_end_matches(".0") == line), "{line}: {text}");
        }
        for worker in ["worker_cpu_seconds_total", "worker_tcp_sessions", "worker_udp_flows"] {
            assert!(series.contains(format!("sluice_{worker}{{worker=\"0\"}}").as_str()), "{worker}: {text}");
        }
        assert_eq!(text.ends_with("# EOF\n"), accept == OPENMETRICS);
    }
}

/// What kube-proxy calls a total, and it is a gauge.
const GAUGE_CALLED_TOTAL: &str = "kubeproxy_sync_proxy_rules_no_local_endpoints_total";

#[test]
#[ignore = "needs promtool: .ci/monitoring gets it and runs this"]
fn prometheus_reads_it() {
    let promtool = std::env::var_os("PROMTOOL").unwrap_or_else(|| "promtool".into());
    let mut child = Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(scraped(CLASSIC).as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat();
    let is_known = format!("{GAUGE_CALLED_TOTAL} non-counter metrics should not have \"_total\" suffix");
    let others: Vec<&str> = said.lines().filter(|line| *line != is_known).collect();
    assert_eq!(others, [""; 0]);
    // Its status for what it would have otherwise, and for nothing else.
    assert_eq!(output.status.code(), Some(3));
}
