//! How long an endpoint change takes from the apiserver to the endpoint of a new connection: through the HTTP
//! watch, the table and the workers, beside 10,000 other Services. Reports quantiles, which criterion does
//! not.

#![expect(clippy::expect_used, reason = "a benchmark that cannot run has failed")]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde_json::{Value, json};
use sluice::controller::Controller;
use sluice::proxy::{Proxy, ProxyConfig};
use sluice_kubeapi::apiserver::{ApiserverSource, Config, Environment};
use sluice_table::WriterConfig;
use sluice_testbed::apiserver::{Apiserver, Resource};
use sluice_tests::backend::Backend;
use sluice_tests::{World, free_port, loopback_address};

const NODE: &str = "node-0";
const PATIENCE: Duration = Duration::from_secs(60);

/// The number of other Services and of timed changes.
struct Load {
    others: u32,
    changes: usize,
}

/// Under `cargo bench`.
const FULL: Load = Load { others: 10_000, changes: 1_000 };
/// With `--test`: only checks that it works.
const SMALL: Load = Load { others: 50, changes: 10 };

#[tokio::main]
async fn main() {
    let load = if std::env::args().any(|argument| argument == "--test") { SMALL } else { FULL };
    let backends = [b"a", b"b"].map(|name| {
        Backend::accepting(move |mut stream| {
            // A client that is gone gets no answer.
            let _ = stream.write_all(name);
        })
    });
    let ip = loopback_address().into();
    let frontend = SocketAddr::new(ip, free_port(ip));
    let apiserver = Apiserver::builder().token("secret").start().await.expect("an apiserver");
    // None of these addresses is this machine's, so they are in the table but have no listener.
    let others = (0..load.others).flat_map(|n| {
        let name = format!("other-{n}");
        let address = SocketAddr::from((Ipv4Addr::from(0x0a60_0000 + n), 80));
        let endpoints: Vec<_> = (0..10).map(|i| Ipv4Addr::from(0x0b00_0000 + 10 * n + i).into()).collect();
        let slice = slice(&name, &endpoints, 8080);
        [(Resource::Services, service(&name, address)), (Resource::EndpointSlices, slice)]
    });
    apiserver.load(others);
    apiserver.load([(Resource::Services, service("web", frontend))]);
    let [first, second] = backends.each_ref().map(|backend| backend.address);
    let slices = [first, second].map(|address| slice("web", &[address.ip()], address.port()));
    apiserver.load([(Resource::EndpointSlices, slices[0].clone())]);

    let directory = tempfile::tempdir().expect("a directory");
    let kubeconfig = directory.path().join("kubeconfig");
    std::fs::write(&kubeconfig, apiserver.kubeconfig().expect("a kubeconfig")).expect("a file");
    let mut config = Config::new(NODE, Environment::default());
    config.kubeconfig = Some(kubeconfig);

    let proxy = ProxyConfig::bind(WriterConfig::new(NODE), World::CONFIG);
    let controller = Controller::start(Proxy::start(proxy).expect("workers")).expect("a thread");
    let (_source, mut batches) = ApiserverSource::start(config).expect("a configuration that can be used");
    let feed = controller.feed().clone();
    tokio::spawn(async move {
        while let Some(changes) = batches.recv().await {
            // It fails when the benchmark ends.
            let _ = feed.apply(changes).await;
        }
    });
    let times = tokio::task::spawn_blocking(move || {
        let mut times = Histogram::<u64>::new_with_bounds(1, 60_000_000, 3).expect("valid bounds");
        until_answered_by(frontend, b'a');
        for n in 1..=load.changes {
            let (slice, name) = if n % 2 == 0 { (&slices[0], b'a') } else { (&slices[1], b'b') };
            let start = Instant::now();
            apiserver.update(Resource::EndpointSlices, slice.clone()).expect("the slice is there");
            until_answered_by(frontend, name);
            let micros = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
            times.saturating_record(micros);
        }
        times
    });
    let times = times.await.expect("the measurement does not panic");
    let quantile = |q: f64| Duration::from_micros(times.value_at_quantile(q));
    let line = format!(
        "change_to_connection beside {} Services: {} changes, p50 {:.1?}, p99 {:.1?}, max {:.1?}\n",
        load.others,
        times.len(),
        quantile(0.50),
        quantile(0.99),
        quantile(1.0),
    );
    std::io::stdout().write_all(line.as_bytes()).expect("standard output takes a line");
    controller.stop(Duration::ZERO);
}

/// Connects repeatedly until this backend answers.
fn until_answered_by(frontend: SocketAddr, name: u8) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut byte = [0];
        let answer = TcpStream::connect(frontend).and_then(|mut stream| stream.read_exact(&mut byte));
        if answer.is_ok() && byte == [name] {
            return;
        }
        assert!(Instant::now() < deadline, "the change has not taken effect");
    }
}

fn service(name: &str, address: SocketAddr) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": name, "namespace": "default" },
        "spec": {
            "clusterIP": address.ip(), "clusterIPs": [address.ip()],
            "ports": [{ "port": address.port(), "protocol": "TCP" }],
        },
    })
}

fn slice(service: &str, endpoints: &[std::net::IpAddr], port: u16) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": service, "namespace": "default", "labels": { "kubernetes.io/service-name": service },
        },
        "addressType": "IPv4",
        "ports": [{ "name": "", "port": port, "protocol": "TCP" }],
        "endpoints": endpoints.iter().map(|ip| json!({ "addresses": [ip] })).collect::<Vec<_>>(),
    })
}
