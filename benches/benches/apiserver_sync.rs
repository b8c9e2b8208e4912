//! Following a large cluster over TLS: time until the table is complete, peak memory, and how long one
//! endpoint change takes from the testbed's apiserver into the table.
//!
//! The apiserver runs in this process. The agent's side runs in its own process, so that its memory can be
//! measured: the same program, with the path of a kubeconfig. Both sides communicate by its standard input
//! and output.

#![expect(clippy::expect_used, clippy::panic, reason = "a benchmark that cannot run has failed")]

use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sluice_kubeapi::apiserver::{ApiserverSource, Config, Environment};
use sluice_model::{Change, ObjectRef};
use sluice_table::{Writer, WriterConfig};
use sluice_testbed::apiserver::{Apiserver, Resource};

const NODE: &str = "node-0";
const ENDPOINTS: usize = 10;

/// The size of the cluster, how often it is followed from the start, and how many changes are timed.
struct Load {
    services: usize,
    rounds: usize,
    changes: usize,
}

/// Under `cargo bench`.
const FULL: Load = Load { services: 10_000, rounds: 5, changes: 2_000 };
/// With `--test`: only checks that it works.
const SMALL: Load = Load { services: 50, rounds: 1, changes: 10 };

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("--agent") => agent(arguments.get(1).expect("the path of a kubeconfig")),
        _ if arguments.iter().any(|argument| argument == "--test") => measure(&SMALL),
        _ => measure(&FULL),
    }
}

fn say(line: &str) {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).expect("standard output takes a line");
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Runtime::new().expect("a tokio runtime")
}

/// The agent's side: follows the cluster into a table, and reports its state.
fn agent(kubeconfig: &str) {
    let began = Instant::now();
    runtime().block_on(async {
        let config =
            Config { kubeconfig: Some(kubeconfig.into()), ..Config::new(NODE, Environment::default()) };
        let (_source, mut batches) = ApiserverSource::start(config).expect("a kubeconfig that can be used");
        let mut writer = Writer::new(WriterConfig::new(NODE));
        let first = batches.recv().await.expect("the source runs");
        let read = began.elapsed();
        let objects = first.len();
        apply(&mut writer, first);
        let (took, routes) = (began.elapsed(), writer.table().routes().len());
        say(&format!("{} {} {} {objects} {routes}", read.as_micros(), took.as_micros(), peak_kib()));
        while let Some(changes) = batches.recv().await {
            let names: Vec<String> = changes.iter().filter_map(slice_of).collect();
            apply(&mut writer, changes);
            names.iter().for_each(|name| say(name));
        }
    });
}

fn apply(writer: &mut Writer, changes: Vec<Change>) {
    writer.apply_all(changes);
    let mut plan = writer.plan();
    writer.publish(&mut plan);
    writer.finish(&mut plan);
}

fn slice_of(change: &Change) -> Option<String> {
    match change {
        Change::Apply(object) => match object.reference() {
            ObjectRef::EndpointSlice(name) => Some(name.name.to_string()),
            _ => None,
        },
        Change::Delete(_) => None,
    }
}

/// The peak memory of this process.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a VmHWM line");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

fn measure(load: &Load) {
    let runtime = runtime();
    let server = runtime.block_on(Apiserver::builder().token("secret").start()).expect("an apiserver");
    server.load(
        (0..load.services).flat_map(|n| {
            [(Resource::Services, service(n)), (Resource::EndpointSlices, slice(n, ENDPOINTS))]
        }),
    );
    let directory = tempfile::tempdir().expect("a directory");
    let kubeconfig = directory.path().join("kubeconfig");
    std::fs::write(&kubeconfig, server.kubeconfig().expect("a kubeconfig")).expect("a file");
    say(&format!("{} Services with {ENDPOINTS} endpoints each, over TLS", load.services));
    for round in 1..=load.rounds {
        let mut agent = Agent::start(&kubeconfig);
        let line = agent.line();
        let numbers: Vec<u64> = line.split(' ').map(|number| number.parse().expect("a number")).collect();
        let [read, synced, peak, objects, routes] = numbers[..] else { panic!("not five numbers: {line}") };
        let is_enough = |number: u64, wanted: usize| usize::try_from(number).is_ok_and(|n| n >= wanted);
        assert!(is_enough(objects, 2 * load.services) && is_enough(routes, load.services), "{line}");
        let (read, synced) = (Duration::from_micros(read), Duration::from_micros(synced));
        say(&format!("apiserver_sync/synced    {synced:.2?} (read {read:.2?}), peak {} MiB", peak / 1024));
        if round == load.rounds {
            changes(&server, &mut agent, load);
        }
    }
}

/// Times one change at a time, from the apiserver's store to the agent's table and back through a pipe.
fn changes(server: &Apiserver, agent: &mut Agent, load: &Load) {
    let mut times: Vec<Duration> = (0..load.changes)
        .map(|change| {
            let n = change * 7_919 % load.services;
            let name = slice_name(n);
            let endpoints = ENDPOINTS - 1 - change % 2;
            let began = Instant::now();
            server.load([(Resource::EndpointSlices, slice(n, endpoints))]);
            while agent.line() != name {}
            began.elapsed()
        })
        .collect();
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)];
    say(&format!("apiserver_sync/change    p50 {:.2?}, p99 {:.2?}, max {:.2?}", at(50), at(99), at(100)));
}

/// The agent's process.
struct Agent {
    process: Child,
    lines: BufReader<ChildStdout>,
}

impl Agent {
    fn start(kubeconfig: &Path) -> Self {
        let program = std::env::current_exe().expect("this program");
        let mut process = Command::new(program)
            .arg("--agent")
            .arg(kubeconfig)
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program once more");
        let lines = BufReader::new(process.stdout.take().expect("its output"));
        Self { process, lines }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        let read = self.lines.read_line(&mut line).expect("its output can be read");
        assert!(read > 0, "the agent's side has ended");
        line.trim_end().to_owned()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn slice_name(n: usize) -> String {
    format!("service-{n:05}-x7k2p")
}

/// Managed fields, which real objects have too.
fn managed_fields(manager: &str) -> Value {
    json!([{
        "manager": manager, "operation": "Update", "apiVersion": "v1", "time": "2026-01-01T00:00:00Z",
        "fieldsType": "FieldsV1",
        "fieldsV1": { "f:metadata": { "f:labels": { ".": {}, "f:app": {} } }, "f:spec": {
            "f:internalTrafficPolicy": {}, "f:ports": { ".": {}, "k:{\"port\":80,\"protocol\":\"TCP\"}": {
                ".": {}, "f:name": {}, "f:port": {}, "f:protocol": {}, "f:targetPort": {} } },
            "f:selector": {}, "f:sessionAffinity": {}, "f:type": {} } },
    }])
}

fn service(n: usize) -> Value {
    let address = format!("10.{}.{}.{}", 96 + n / 65_536, n / 256 % 256, n % 256);
    let name = format!("service-{n:05}");
    json!({
        "metadata": {
            "name": name, "namespace": format!("namespace-{}", n % 100),
            "labels": { "app": name, "app.kubernetes.io/managed-by": "Helm" },
            "annotations": { "meta.helm.sh/release-name": name },
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "managedFields": managed_fields("helm"),
        },
        "spec": {
            "clusterIP": address, "clusterIPs": [address], "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack", "internalTrafficPolicy": "Cluster", "type": "ClusterIP",
            "ports": [{ "name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080 }],
            "selector": { "app": name }, "sessionAffinity": "None",
        },
        "status": { "loadBalancer": {} },
    })
}

fn slice(n: usize, endpoints: usize) -> Value {
    let service = format!("service-{n:05}");
    let namespace = format!("namespace-{}", n % 100);
    let endpoint = |e: usize| {
        json!({
            "addresses": [format!("10.{}.{}.{}", 128 + n / 6400, n / 25 % 256, n % 25 * 10 + e)],
            "conditions": { "ready": true, "serving": true, "terminating": false },
            "nodeName": format!("node-{}", (n + e) % 200), "zone": format!("zone-{}", e % 3),
            "targetRef": {
                "kind": "Pod", "name": format!("{service}-5d4f8c7b9-{e:05}"), "namespace": namespace,
                "uid": "00000000-0000-0000-0000-000000000000",
            },
        })
    };
    json!({
        "metadata": {
            "name": slice_name(n), "namespace": namespace, "generateName": format!("{service}-"),
            "labels": {
                "app": service, "kubernetes.io/service-name": service,
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
            },
            "ownerReferences": [{
                "apiVersion": "v1", "kind": "Service", "name": service, "controller": true,
                "blockOwnerDeletion": true, "uid": "00000000-0000-0000-0000-000000000000",
            }],
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "managedFields": managed_fields("kube-controller-manager"),
        },
        "addressType": "IPv4",
        "endpoints": (0..endpoints).map(endpoint).collect::<Vec<_>>(),
        "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
    })
}
