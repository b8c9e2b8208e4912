//! The real `kubectl` against the in-memory apiserver: `$KUBECTL`, or the one on `PATH`.
//!
//! Fails if there is none, unless `SLUICE_SKIP_KUBECTL=1` is set.

// All of it is test code, including helpers, which clippy does not see by itself.
#![allow(clippy::expect_used, clippy::panic, clippy::print_stderr, clippy::unwrap_used)]

use std::io::ErrorKind;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use serde_json::Value;
use sluice_testbed::apiserver::{Apiserver, Resource};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

/// How long anything may take before the test fails.
const DEADLINE: Duration = Duration::from_secs(60);

const MANIFEST: &str = r#"
apiVersion: v1
kind: Service
metadata:
  name: web
  labels: { app: web }
spec:
  ports:
  - { name: http, port: 80, targetPort: 8080 }
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: web-1
  labels: { kubernetes.io/service-name: web }
addressType: IPv4
ports:
- { name: http, port: 8080, protocol: TCP }
endpoints:
- addresses: ["10.0.0.1"]
- addresses: ["10.0.0.2"]
  conditions: { ready: false }
"#;

/// A kubectl with a server and a home directory of its own.
struct Kubectl {
    program: String,
    home: TempDir,
}

struct Output {
    status: ExitStatus,
    out: String,
    err: String,
}

impl Kubectl {
    /// `None` if there is none and the tests may be skipped.
    async fn for_server(server: &Apiserver) -> Option<Self> {
        let home = TempDir::new().unwrap();
        std::fs::write(home.path().join("kubeconfig"), server.kubeconfig().unwrap()).unwrap();
        let program = std::env::var("KUBECTL").unwrap_or_else(|_| "kubectl".to_owned());
        let kubectl = Self { program, home };
        match kubectl.command(&["version", "--client"]).output().await {
            Ok(_) => Some(kubectl),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let skip = std::env::var("SLUICE_SKIP_KUBECTL").is_ok_and(|value| value == "1");
                assert!(
                    skip,
                    "there is no {}: install kubectl (Debian: apt-get install kubernetes-client), or set \
                     SLUICE_SKIP_KUBECTL=1 to go without this test",
                    kubectl.program
                );
                sluice_sys::skipped("no kubectl here, and SLUICE_SKIP_KUBECTL=1");
                None
            }
            Err(error) => panic!("{} does not start: {error}", kubectl.program),
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.env("HOME", self.home.path()).env("KUBECONFIG", self.home.path().join("kubeconfig"));
        command.args(arguments).kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    async fn run(&self, arguments: &[&str], input: &str) -> Output {
        let mut child = self.command(arguments).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).await.unwrap();
        let output = tokio::time::timeout(DEADLINE, child.wait_with_output()).await;
        let output = output.expect("kubectl took too long").unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Output { status: output.status, out: text(&output.stdout), err: text(&output.stderr) }
    }

    /// Runs it, checks that it succeeds, and returns its output.
    async fn works(&self, arguments: &[&str]) -> String {
        self.works_with(arguments, "").await
    }

    async fn works_with(&self, arguments: &[&str], input: &str) -> String {
        let output = self.run(arguments, input).await;
        assert!(output.status.success(), "kubectl {arguments:?}: {}{}", output.out, output.err);
        output.out
    }

    /// Runs it, checks that it fails, and returns its error output.
    async fn fails(&self, arguments: &[&str], input: &str) -> String {
        let output = self.run(arguments, input).await;
        assert!(!output.status.success(), "kubectl {arguments:?}: {}{}", output.out, output.err);
        output.err
    }
}

/// The columns of each line.
fn columns(text: &str) -> Vec<Vec<&str>> {
    text.lines().map(|line| line.split_whitespace().collect()).collect()
}

#[tokio::test]
async fn kubectl_creates_shows_changes_and_deletes() {
    let server = Apiserver::builder().token("secret").start().await.unwrap();
    let Some(kubectl) = Kubectl::for_server(&server).await else { return };
    let service = || server.get(Resource::Services, "default", "web").unwrap_or(Value::Null);
    let slice = || server.get(Resource::EndpointSlices, "default", "web-1").unwrap_or(Value::Null);

    kubectl.works_with(&["create", "-f", "-"], MANIFEST).await;
    assert_eq!(service()["spec"]["clusterIP"], "10.96.0.2");
    assert_eq!(slice()["endpoints"].as_array().unwrap().len(), 2);
    let again = kubectl.fails(&["create", "-f", "-"], MANIFEST).await;
    assert!(again.contains("(AlreadyExists)"), "{again}");

    let shown = kubectl.works(&["get", "services"]).await;
    let rows = columns(&shown);
    assert_eq!(rows[0], ["NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "AGE"]);
    assert_eq!(rows[1][..5], ["web", "ClusterIP", "10.96.0.2", "<none>", "80/TCP"]);
    let shown = kubectl.works(&["get", "endpointslices", "--all-namespaces"]).await;
    let rows = columns(&shown);
    assert_eq!(rows[0], ["NAMESPACE", "NAME", "ADDRESSTYPE", "PORTS", "ENDPOINTS", "AGE"]);
    assert_eq!(rows[1][..5], ["default", "web-1", "IPv4", "8080", "10.0.0.1,10.0.0.2"]);
    let none = [
        "get",
        "services",
        "-l",
        "app notin (web)",
        "--field-selector",
        "spec.clusterIP!=None",
        "-o",
        "name",
    ];
    assert_eq!(kubectl.works(&none).await, "");

    let changed = MANIFEST.replace("targetPort: 8080", "targetPort: 9090").replace("10.0.0.2", "10.0.0.3");
    kubectl.works_with(&["replace", "-f", "-"], &changed).await;
    assert_eq!(service()["spec"]["ports"][0]["targetPort"], 9090);
    assert_eq!(slice()["endpoints"][1]["addresses"][0], "10.0.0.3");

    let strategic = r#"{"spec":{"ports":[{"port":80,"targetPort":7070}],"type":"NodePort"}}"#;
    kubectl.works(&["patch", "service", "web", "-p", strategic]).await;
    assert_eq!(service()["spec"]["ports"][0]["name"], "http", "merged by port");
    assert_eq!(service()["spec"]["ports"][0]["nodePort"], 30000);
    let merge = r#"{"endpoints":[{"addresses":["10.0.0.9"]}]}"#;
    kubectl.works(&["patch", "endpointslice", "web-1", "--type", "merge", "-p", merge]).await;
    assert_eq!(slice()["endpoints"].as_array().unwrap().len(), 1);
    let json = r#"[{"op":"add","path":"/metadata/labels/x","value":"y"}]"#;
    kubectl.works(&["patch", "service", "web", "--type", "json", "-p", json]).await;
    assert_eq!(service()["metadata"]["labels"]["x"], "y");

    kubectl.works_with(&["apply", "-f", "-"], MANIFEST).await;
    assert_eq!(service()["spec"]["ports"][0]["targetPort"], 8080);

    kubectl.works(&["delete", "service/web", "endpointslice/web-1"]).await;
    assert_eq!((service(), slice()), (Value::Null, Value::Null));
    let gone = kubectl.fails(&["get", "service", "web"], "").await;
    assert!(gone.contains(r#"services "web" not found"#), "{gone}");
}

#[tokio::test]
async fn kubectl_says_what_is_wrong() {
    let server = Apiserver::builder().client_certificates().start().await.unwrap();
    let Some(kubectl) = Kubectl::for_server(&server).await else { return };
    let invalid = MANIFEST.replace("name: web\n", "name: Web\n").replace("port: 80,", "port: 70000,");
    let told = kubectl.fails(&["create", "-f", "-"], &invalid).await;
    assert!(told.contains("metadata.name") && told.contains("spec.ports[0].port"), "{told}");
    let told = kubectl.fails(&["get", "secrets"], "").await;
    assert!(told.contains(r#"doesn't have a resource type "secrets""#), "{told}");
}

#[tokio::test]
async fn kubectl_watches() {
    let server = Apiserver::builder().start().await.unwrap();
    let Some(kubectl) = Kubectl::for_server(&server).await else { return };
    let (mut services, mut slices) = (follow(&kubectl, "services"), follow(&kubectl, "endpointslices"));
    for resource in [Resource::Services, Resource::EndpointSlices] {
        let mut counters = server.counters();
        let open = counters.wait_for(|counters| counters.open_watches(resource) == 1);
        tokio::time::timeout(DEADLINE, open).await.expect("kubectl does not watch").unwrap();
    }
    kubectl.works_with(&["create", "-f", "-"], MANIFEST).await;
    assert_eq!(services.row().await[..3], ["web", "ClusterIP", "10.96.0.2"]);
    assert_eq!(slices.row().await[..4], ["web-1", "IPv4", "8080", "10.0.0.1,10.0.0.2"]);
    let patch = r#"{"spec":{"type":"NodePort"}}"#;
    kubectl.works(&["patch", "service", "web", "-p", patch]).await;
    assert_eq!(services.row().await[..2], ["web", "NodePort"]);
    kubectl.works(&["delete", "endpointslice", "web-1"]).await;
    assert_eq!(slices.row().await[0], "web-1");
}

/// A running `kubectl get -w`.
struct Followed {
    _child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

fn follow(kubectl: &Kubectl, resource: &str) -> Followed {
    let mut child = kubectl.command(&["get", resource, "-w"]).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    Followed { _child: child, lines }
}

impl Followed {
    /// The next row that is not a heading.
    async fn row(&mut self) -> Vec<String> {
        loop {
            let line = tokio::time::timeout(DEADLINE, self.lines.next_line()).await;
            let line = line.expect("no row came").unwrap().expect("kubectl ended");
            let row: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
            if row.first().is_some_and(|first| first != "NAME") {
                return row;
            }
        }
    }
}
