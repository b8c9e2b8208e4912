//! What is in `deploy/monitoring` asks for nothing that an agent on a node does not tell.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};

use sluice_testbed::apiserver::{Apiserver, Resource};
use sluice_testbed::lab::{Lab, PATIENCE};

use crate::scene::{AGENT, READY, sluice, until, well};

const ALERTS: &str = include_str!("../../../../deploy/monitoring/rules.yaml");
const DASHBOARD: &str = include_str!("../../../../deploy/monitoring/sluice.json");

/// Names of metrics in queries: those that begin as ours do.
fn asked(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("sluice_") || word.starts_with("kubeproxy_")).collect()
}

/// What is answered there.
pub(crate) fn get(server: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(server)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn each_metric_of_an_alert_or_a_panel_exists() {
    let lab = well(Lab::new());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let builder = Apiserver::builder().bind((lab.node().v4, 6443).into()).plain_http();
    let apiserver = lab.node().ns.run(|| runtime.block_on(builder.start())).unwrap();
    apiserver.create(Resource::Nodes, lab.node_object()).unwrap();
    let url = apiserver.url();
    let [address, _] = AGENT[AGENT.len() - 2..] else { panic!("{AGENT:?}") };
    assert_eq!(address, "--metrics-bind-address");
    let admin = ["--admin-socket", "0"];
    let arguments = AGENT[..AGENT.len() - 1].iter().copied();
    let arguments = arguments.chain(["127.0.0.1:10249", "--master", &url]).chain(admin);
    let agent = well(lab.node().spawn(&sluice(arguments)));
    well(agent.wait_for(READY, PATIENCE));

    let mut metrics = String::new();
    let address = SocketAddr::from(([127, 0, 0, 1], 10_249));
    until("metrics can be read", || {
        metrics = lab.node().ns.run(|| get(address, "/metrics")).unwrap_or_default();
        metrics.starts_with("HTTP/1.1 200")
    });
    // A histogram of a Service's is there with its first connection, and described from the start.
    let histograms: Vec<String> = metrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" histogram"))
        .map(|name| format!("{name}_bucket"))
        .collect();
    let mut told: BTreeSet<&str> = metrics
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split([' ', '{']).next())
        .collect();
    told.extend(histograms.iter().map(String::as_str));
    for family in ["IPv4", "IPv6"] {
        let failures = format!(
            "\nkubeproxy_sync_proxy_rules_nftables_sync_failures_total{{ip_family=\"{family}\"}} 0\n"
        );
        assert!(metrics.contains(&failures), "{metrics}");
    }
    for (what, text) in [("alert", ALERTS), ("panel", DASHBOARD)] {
        let asked = asked(text);
        assert!(asked.len() > 10, "{asked:?}");
        let missing: Vec<_> = asked.difference(&told).collect();
        assert!(missing.is_empty(), "{what}: nobody tells {missing:?}");
    }
}

#[test]
fn the_status_page_is_for_clients_on_this_node_unless_it_is_for_all() {
    let lab = well(Lab::new());
    let manifests = tempfile::TempDir::new().unwrap();
    let source = ["agent", "--manifests", manifests.path().to_str().unwrap()];
    for (flags, elsewhere) in [(&[][..], "HTTP/1.1 403"), (&["--status-page", "all"][..], "HTTP/1.1 200")] {
        let arguments = [&source[..], &["--metrics-bind-address", "[::]:10249"], flags].concat();
        let agent = well(lab.node().spawn(&sluice(arguments)));
        well(agent.wait_for("serving metrics", PATIENCE));
        let node = [lab.node().v4.into(), lab.node().v6.into()];
        let loopback: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        for (host, addresses, page) in [
            (lab.node(), loopback, "HTTP/1.1 200"),
            // To an address that others reach, even if it is one of them that does not.
            (lab.node(), node, elsewhere),
            (lab.pod(0), node, elsewhere),
            (lab.outside(), node, elsewhere),
        ] {
            for address in addresses.map(|ip| SocketAddr::new(ip, 10_249)) {
                for (path, wanted) in [("/", page), ("/status/data", page), ("/metrics", "HTTP/1.1 200")] {
                    let answer = host.ns.run(|| get(address, path)).unwrap();
                    assert!(
                        answer.starts_with(wanted),
                        "{} {flags:?} {address}{path}: {answer}",
                        host.ns.name()
                    );
                }
            }
        }
    }
}
