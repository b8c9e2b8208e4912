//! `sluice agent` on an apiserver, driven by the real kubectl: from `kubectl create` to bytes.

use std::fs;
use std::io::{ErrorKind, Write};
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use sluice_testbed::apiserver::{Apiserver, Builder};
use tempfile::TempDir;

use crate::common::{Agent, address, ask, backend, free_port, get, get_as, service, slice, until};

/// An apiserver for Services on loopback, and the kubeconfig to reach it.
pub(crate) struct Cluster {
    pub(crate) apiserver: Apiserver,
    directory: TempDir,
}

impl Cluster {
    pub(crate) async fn start(builder: Builder) -> Self {
        let apiserver = builder.service_cidrs(&["127.0.0.0/8".parse().unwrap()]).start().await.unwrap();
        let directory = TempDir::new().unwrap();
        fs::write(directory.path().join("kubeconfig"), apiserver.kubeconfig().unwrap()).unwrap();
        Self { apiserver, directory }
    }

    pub(crate) fn kubeconfig(&self) -> String {
        self.directory.path().join("kubeconfig").to_str().unwrap().to_owned()
    }

    /// Runs kubectl with a manifest on its standard input.
    pub(crate) fn kubectl(&self, arguments: &str, manifest: &str) {
        let mut child = Command::new("kubectl")
            .args(["--kubeconfig", &self.kubeconfig()])
            .args(["--cache-dir", self.directory.path().join("cache").to_str().unwrap()])
            .args(arguments.split(' '))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("kubectl: {error}: apt-get install kubernetes-client"));
        child.stdin.take().unwrap().write_all(manifest.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kubectl {arguments}: {said}");
    }
}

fn is_refused(frontend: SocketAddr) -> bool {
    ask(frontend).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_kubectl_creates_is_served_and_what_it_deletes_is_refused() {
    let cluster = Cluster::start(Apiserver::builder().token("secret")).await;
    let frontend = free_port(address());
    let (one, two) = (backend(1), backend(2));
    let _agent = Agent::start(&["--kubeconfig", &cluster.kubeconfig()]);

    cluster.kubectl("create -f -", &(service("web", frontend) + &slice("web", &[one])));
    until("the Service is served", || ask(frontend).is_ok_and(|byte| byte == 1));

    cluster.kubectl("replace -f -", &slice("web", &[two]));
    until("the change is served", || ask(frontend).is_ok_and(|byte| byte == 2));

    let unready = r#"{"endpoints":[{"addresses":["192.0.2.1"],"conditions":{"ready":false}}]}"#;
    cluster.kubectl(&format!("patch endpointslice web-0 --type merge -p {unready}"), "");
    until("nothing is ready", || is_refused(frontend));

    cluster.kubectl("replace -f -", &slice("web", &[one]));
    until("it is served again", || ask(frontend).is_ok_and(|byte| byte == 1));
    cluster.kubectl("delete service web", "");
    until("the deletion is served", || is_refused(frontend));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_apiserver_of_before_1_31_is_followed_and_that_is_said_once() {
    let cluster = Cluster::start(Apiserver::builder().no_service_fields()).await;
    let frontend = free_port(address());
    cluster.kubectl("create -f -", &(service("web", frontend) + &slice("web", &[backend(1)])));
    let mut agent = Agent::start(&["--kubeconfig", &cluster.kubeconfig()]);
    assert_eq!(ask(frontend).unwrap(), 1);
    let line = agent.wait_for("1.30");
    assert!(line.contains("INFO") && line.contains("headless"), "{line}");
    let said = agent.heard();
    assert!(!said.iter().any(|line| line.contains("WARN") && line.contains("apiserver")), "{said:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_apiserver_what_was_last_known_is_served_and_caught_up_on_later() {
    let cluster = Cluster::start(Apiserver::builder().client_certificates()).await;
    let (frontend, other) = (free_port(address()), free_port(address()));
    let one = backend(1);
    cluster.kubectl("create -f -", &(service("web", frontend) + &slice("web", &[one])));
    let mut agent = Agent::start(&["--kubeconfig", &cluster.kubeconfig()]);
    assert_eq!(ask(frontend).unwrap(), 1);

    cluster.apiserver.stop().await.unwrap();
    agent.wait_for("WARN");
    assert_eq!(ask(frontend).unwrap(), 1);

    cluster.apiserver.start_again().unwrap();
    cluster.kubectl("create -f -", &(service("other", other) + &slice("other", &[one])));
    cluster.kubectl("delete service web", "");
    until("the news is served", || ask(other).is_ok() && is_refused(frontend));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_tells_whether_the_apiserver_is_there() {
    let cluster = Cluster::start(Apiserver::builder()).await;
    let frontend = free_port(address());
    cluster.kubectl("create -f -", &(service("web", frontend) + &slice("web", &[backend(1)])));
    let socket = cluster.directory.path().join("admin.sock");
    let socket = socket.to_str().unwrap();
    let mut agent = Agent::start(&["--kubeconfig", &cluster.kubeconfig(), "--admin-socket", socket]);
    agent.wait_for("answering commands");
    let status = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"));
        let output = command.args(["status", "-o", "json", "--admin-socket", socket]).output().unwrap();
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    let told = status();
    assert_eq!((&told["source"], &told["isSynced"]), (&"apiserver".into(), &true.into()), "{told}");
    assert!(told["ageSeconds"].is_number(), "{told}");
    cluster.apiserver.stop().await.unwrap();
    until("it is said that the apiserver is gone", || {
        let problems = status()["problems"].to_string();
        problems.contains("apiserver http")
    });
    let told = status();
    // The cluster has no Node of this name, so that /healthz is 503.
    assert_eq!((&told["services"], &told["isHealthy"]), (&1.into(), &false.into()), "{told}");
    assert!(told["problems"].to_string().contains("the cluster has no Node"), "{told}");

    // One that comes now knows nothing, and no restart would mend that.
    let other = cluster.directory.path().join("other.sock");
    let other = other.to_str().unwrap();
    let kubeconfig = cluster.kubeconfig();
    let arguments =
        ["--kubeconfig", &kubeconfig, "--admin-socket", other, "--metrics-bind-address", "127.0.0.1:0"];
    let mut new = Agent::spawn(&arguments);
    let metrics = new.port("serving metrics");
    new.wait_for("answering commands");
    let answer = get(metrics, "/healthz");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\nok"), "{answer}");
    let expect = |socket: &str, state: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"));
        command.args(["status", "--expect", state, "--admin-socket", socket]).output().unwrap()
    };
    assert!(expect(other, "live").status.success() && expect(socket, "ready").status.success());
    let output = expect(other, "ready");
    assert_eq!(output.status.code(), Some(1));
    let complaint = String::from_utf8_lossy(&output.stderr);
    let parts = ["the agent is not ready: ", "the apiserver has not told everything"];
    assert!(parts.iter().all(|part| complaint.contains(part)), "{complaint}");
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_tell_what_was_carried_and_how_old_the_state_is() {
    let cluster = Cluster::start(Apiserver::builder()).await;
    let frontend = free_port(address());
    let one = backend(1);
    cluster.kubectl("create -f -", &(service("web", frontend) + &slice("web", &[one])));
    let arguments = ["--kubeconfig", &cluster.kubeconfig(), "--metrics-bind-address", "127.0.0.1:0"];
    let mut agent = Agent::start(&arguments);
    assert_eq!(ask(frontend).unwrap(), 1);

    let metrics = agent.port("serving metrics");
    let get = |path: &str| get(metrics, path);
    const OF_THE_SERVICE: &str = "sluice_service_connections_total{namespace=\"default\",service=\"web\",port=\"\",protocol=\"TCP\"} 1\n";
    let text = get("/metrics");
    for line in [
        "sluice_tcp_established_total 1\n",
        "sluice_apiserver_synced 1",
        "sluice_frontends 1",
        OF_THE_SERVICE,
    ] {
        assert!(text.contains(line), "{line} is not in:\n{text}");
    }
    assert!(text.contains("\nsluice_apiserver_last_contact_seconds "), "{text}");
    // As dashboards for kube-proxy ask.
    let host = cluster.apiserver.address();
    for line in [
        "kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 1\n",
        "kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv6\"} 1\n",
        "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family=\"IPv6\"} ",
        "kubeproxy_sync_proxy_rules_service_changes_total 1\n",
        "kubeproxy_sync_proxy_rules_endpoint_changes_pending 0",
        &format!("rest_client_request_duration_seconds_count{{verb=\"GET\",host=\"{host}\"}} "),
        &format!("rest_client_requests_total{{code=\"200\",host=\"{host}\",method=\"GET\"}} "),
        "\nprocess_cpu_seconds_total ",
        "# TYPE sluice_tcp_connect_duration_seconds histogram\n",
        "\nsluice_tcp_connect_duration_seconds_count 1\n",
        "# TYPE sluice_tcp_established_total counter\n",
        "kubeproxy_network_programming_duration_seconds_count{ip_family=\"IPv4\"} 0\n",
        "kubeproxy_network_programming_duration_seconds_bucket{le=\"30.0\",ip_family=\"IPv6\"} 0\n",
        "kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family=\"IPv4\",traffic_policy=\"internal\"} 0.0\n",
        "kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family=\"IPv6\",traffic_policy=\"external\"} 0.0\n",
    ] {
        assert!(text.contains(line), "{line} is not in:\n{text}");
    }
    assert!(text.contains("content-type: text/plain; version=0.0.4") && !text.contains("# EOF"), "{text}");
    let openmetrics = get_as(metrics, "/metrics", "application/openmetrics-text;version=1.0.0,*/*;q=0.1");
    assert!(openmetrics.contains("# TYPE sluice_tcp_established counter\n"), "{openmetrics}");
    assert!(openmetrics.ends_with("# EOF\n") && openmetrics.matches("# EOF").count() == 1);

    let written = format!("rest_client_requests_total{{code=\"201\",host=\"{host}\",method=\"POST\"}} 1\n");
    until("the Event of the start is counted", || get("/metrics").contains(&written));
    until("the session's end is measured", || {
        get("/metrics").contains("\nsluice_tcp_session_duration_seconds_count 1\n")
    });
    // What led to a change of endpoints happened a while ago, but after the start.
    let now = jiff::Timestamp::now();
    let labels = "  labels:\n";
    let annotation = "endpoints.kubernetes.io/last-change-trigger-time";
    let annotated = format!("  annotations:\n    {annotation}: \"{now}\"\n{labels}");
    cluster.kubectl("replace -f -", &slice("web", &[backend(2)]).replace(labels, &annotated));
    until("the change is measured", || {
        get("/metrics")
            .contains("kubeproxy_network_programming_duration_seconds_count{ip_family=\"IPv6\"} 1\n")
    });
    // Endpoints are on no node here.
    let local = "spec:\n  internalTrafficPolicy: Local";
    let other = free_port(address());
    let lone = service("lone", other).replace("spec:", local) + &slice("lone", &[one]);
    cluster.kubectl("create -f -", &lone);
    until("the Service without local endpoints is counted", || {
        let name = "kubeproxy_sync_proxy_rules_no_local_endpoints_total";
        get("/metrics").contains(&format!("{name}{{ip_family=\"IPv4\",traffic_policy=\"internal\"}} 1.0\n"))
    });
    const LAST: &str = "kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv4\"} ";
    let last = text.lines().find(|line| line.starts_with(LAST));
    let last: f64 = last.unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
    assert!((0.0..600.0).contains(&(now - last)), "{last}");
    for path in ["/healthz", "/healthz/ping"] {
        let answer = get(path);
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\nok"), "{path}: {answer}");
    }
    assert!(get("/nothing").starts_with("HTTP/1.1 404"));
    assert!(get("/proxyMode").ends_with("\r\n\r\nbind"), "none of kube-proxy's");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_looks_whether_the_cluster_has_this_node() {
    let cluster = Cluster::start(Apiserver::builder().token("secret")).await;
    cluster.kubectl("create -f -", "apiVersion: v1\nkind: Node\nmetadata:\n  name: here\n");
    let check = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"));
        command.arg("check").args(arguments).env_remove("KUBECONFIG").env_remove("KUBERNETES_SERVICE_HOST");
        let said = String::from_utf8(command.output().unwrap().stdout).unwrap();
        let line = said.lines().find(|line| line.split_whitespace().nth(1) == Some("node"));
        line.unwrap_or_else(|| panic!("{said}")).to_owned()
    };
    let kubeconfig = cluster.kubeconfig();
    let there = check(&["--kubeconfig", &kubeconfig, "--hostname-override", "Here"]);
    assert!(there.starts_with("ok") && there.contains("has the Node \"here\""), "{there}");
    let range = "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata:\n  name: more\nspec:\n  cidrs: [10.96.0.0/16]\n";
    cluster.kubectl("create -f -", range);
    let mut node =
        "apiVersion: v1\nkind: Node\nmetadata:\n  name: inside\nstatus:\n  addresses:\n".to_owned();
    node += "  - {type: InternalIP, address: 192.0.2.1}\n  - {type: InternalIP, address: 10.96.0.9}\n";
    cluster.kubectl("create -f -", &node);
    let inside = check(&["--kubeconfig", &kubeconfig, "--hostname-override", "inside"]);
    assert!(inside.starts_with("warning") && inside.contains("10.96.0.9 lies in"), "{inside}");
    let missing = check(&["--kubeconfig", &kubeconfig, "--hostname-override", "elsewhere"]);
    assert!(missing.starts_with("warning") && missing.contains("no Node \"elsewhere\""), "{missing}");
    assert!(missing.contains("Fix: see kubectl get nodes"), "{missing}");
    let unasked = check(&[]);
    assert!(unasked.starts_with("ok") && unasked.contains("was not looked for"), "{unasked}");
    let nobody = check(&["--master", "https://127.0.0.1:1"]);
    assert!(nobody.starts_with("problem") && nobody.contains("cannot be reached"), "{nobody}");
}
