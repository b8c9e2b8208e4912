//! What people are told at the Node and at Services: Events.

use std::net::{SocketAddr, TcpListener};

use serde_json::Value;
use sluice_testbed::apiserver::{Apiserver, Failure, Resource, Target, Verb};

use crate::apiserver::Cluster;
use crate::common::{Agent, address, ask, backend, free_port, get, service, slice, until};

/// The reasons of all Events, with the object that they are about.
fn told(cluster: &Cluster) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let of = |event: &Value| (text(&event["reason"]), text(&event["regarding"]["name"]));
    let mut told: Vec<_> = cluster.apiserver.list(Resource::Events).iter().map(of).collect();
    told.sort();
    told
}

/// A Service at another address of its own, with an external address that others may have, too.
fn at(name: &str, external: SocketAddr) -> String {
    // Who has no endpoint misses nothing.
    leading_to(SocketAddr::new(address().into(), 9), name, external)
}

/// The same, with an endpoint.
fn leading_to(endpoint: SocketAddr, name: &str, external: SocketAddr) -> String {
    let own = SocketAddr::new(address().into(), external.port());
    let service =
        service(name, own).replace("spec:\n", &format!("spec:\n  externalIPs: [{}]\n", external.ip()));
    service + &slice(name, &[endpoint])
}

fn requests(cluster: &Cluster, verb: Verb) -> u64 {
    cluster.apiserver.counters().borrow().requests(verb, Resource::Events)
}

fn agent(cluster: &Cluster) -> Agent {
    Agent::start(&[
        "--kubeconfig",
        &cluster.kubeconfig(),
        "--hostname-override=node-1",
        "--metrics-bind-address=127.0.0.1:0",
    ])
}

#[tokio::test(flavor = "multi_thread")]
async fn people_are_told_of_the_start_of_conflicts_and_of_what_cannot_be_served() {
    let cluster = Cluster::start(Apiserver::builder().token("secret")).await;
    let _agent = agent(&cluster);
    let both = free_port(address());
    // Of the same age, the first by its name has it.
    cluster.kubectl("create -f -", &(at("older", both) + &at("younger", both)));
    // Somebody else has it, and does not share it.
    let listener = TcpListener::bind((address(), 0)).unwrap();
    let taken = service("taken", listener.local_addr().unwrap()) + &slice("taken", &[backend(1)]);
    cluster.kubectl("create -f -", &taken);
    let wanted =
        [("FailedToServeFrontend", "taken"), ("FrontendConflict", "younger"), ("Starting", "node-1")];
    let wanted = wanted.map(|(reason, name)| (reason.to_owned(), name.to_owned()));
    let mut seen = Vec::new();
    until("all is told", || {
        seen = told(&cluster);
        seen.len() >= wanted.len()
    });
    assert_eq!(seen, wanted);
    let events = cluster.apiserver.list(Resource::Events);
    let of = |reason: &str| events.iter().find(|event| event["reason"] == reason).unwrap();
    let conflict = of("FrontendConflict");
    assert_eq!((&conflict["type"], &conflict["regarding"]["kind"]), (&"Warning".into(), &"Service".into()));
    let note = conflict["note"].as_str().unwrap();
    assert!(note.contains("older") && note.contains(&both.to_string()), "{note}");
    let start = of("Starting");
    assert_eq!((&start["type"], &start["metadata"]["namespace"]), (&"Normal".into(), &"default".into()));
    assert_eq!(start["reportingInstance"], "sluice-node-1");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_write_events_says_so_once_and_serves_all_the_same() {
    let cluster = Cluster::start(Apiserver::builder()).await;
    let forbidden = Target::verb(Verb::Create).of(Resource::Events);
    cluster.apiserver.faults().fail(forbidden, Failure::Forbidden, usize::MAX);
    let mut agent = agent(&cluster);
    let line = agent.wait_for("no Events are written");
    assert!(line.contains("WARN") && line.contains("RBAC of deploy/"), "{line}");
    let frontend = free_port(address());
    let older = leading_to(backend(1), "older", frontend);
    cluster.kubectl("create -f -", &(older + &at("younger", frontend)));
    until("it is served", || ask(frontend).is_ok_and(|byte| byte == 1));
    let metrics = agent.port("serving metrics");
    // The start, and the conflict.
    until("it is counted", || get(metrics, "/metrics").contains("\nsluice_events_dropped_total 2\n"));
    assert_eq!(requests(&cluster, Verb::Create), 1);
    assert_eq!(agent.heard().iter().filter(|line| line.contains("no Events")).count(), 1);
}

/// As [`at`], in the namespace `shop`.
fn in_shop(name: &str, external: SocketAddr) -> String {
    at(name, external).replace("metadata:\n", "metadata:\n  namespace: shop\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn where_events_are_forbidden_they_are_written_elsewhere() {
    let cluster = Cluster::start(Apiserver::builder()).await;
    cluster.kubectl("create -f -", "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop\n");
    let creation = Target::verb(Verb::Create).of(Resource::Events);
    cluster.apiserver.faults().fail(creation, Failure::Forbidden, 1);
    let mut agent = agent(&cluster);
    agent.wait_for("no Events are written in default");
    let both = free_port(address());
    cluster.kubectl("create -f -", &(in_shop("older", both) + &in_shop("younger", both)));
    until("the conflict is told", || !told(&cluster).is_empty());
    assert_eq!(told(&cluster), [("FrontendConflict".to_owned(), "younger".to_owned())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_that_goes_takes_its_events_with_it_and_no_others() {
    let cluster = Cluster::start(Apiserver::builder()).await;
    let held = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop\n  finalizers: [example.com/held]\n";
    cluster.kubectl("create -f -", held);
    let both = free_port(address());
    let alone = in_shop("younger", both);
    let alone: String =
        alone.lines().filter(|line| !line.contains("externalIPs")).map(|l| format!("{l}\n")).collect();
    cluster.kubectl("create -f -", &(in_shop("older", both) + &alone));
    let mut agent = agent(&cluster);
    until("the start is told", || told(&cluster).len() == 1);
    cluster.kubectl("delete namespace shop --wait=false", "");
    let patch = format!(
        "patch service younger --namespace shop --type merge -p {{\"spec\":{{\"externalIPs\":[\"{}\"]}}}}",
        both.ip()
    );
    cluster.kubectl(&patch, "");
    until("it is tried", || requests(&cluster, Verb::Create) == 2);
    let another = free_port(address());
    cluster.kubectl("create -f -", &(at("a", another) + &at("b", another)));
    until("the next conflict is told", || told(&cluster).len() == 2);
    assert_eq!(told(&cluster)[0], ("FrontendConflict".to_owned(), "b".to_owned()));
    assert!(!agent.heard().iter().any(|line| line.contains("no Events")));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_is_refused_is_not_tried_again() {
    let cluster = Cluster::start(Apiserver::builder()).await;
    let creation = Target::verb(Verb::Create).of(Resource::Events);
    cluster.apiserver.faults().fail(creation, Failure::Invalid, 1);
    let _agent = agent(&cluster);
    until("the start is refused", || requests(&cluster, Verb::Create) == 1);
    let both = free_port(address());
    cluster.kubectl("create -f -", &(at("older", both) + &at("younger", both)));
    until("the conflict is told", || !told(&cluster).is_empty());
    assert_eq!(told(&cluster), [("FrontendConflict".to_owned(), "younger".to_owned())]);
    assert_eq!(requests(&cluster, Verb::Create), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_apiserver_is_asked_again_and_one_that_hangs_holds_nothing_up() {
    let cluster = Cluster::start(Apiserver::builder()).await;
    let events = Target::resource(Resource::Events);
    let faults = cluster.apiserver.faults();
    faults.fail(events, Failure::TooManyRequests { retry_after: 1 }, 1);
    let mut agent = agent(&cluster);
    until("the start is told after all", || told(&cluster).len() == 1);
    assert_eq!(requests(&cluster, Verb::Create), 2);

    faults.fail(events, Failure::Hang, usize::MAX);
    let both = free_port(address());
    cluster.kubectl("create -f -", &(at("older", both) + &at("younger", both)));
    until("it is asked", || requests(&cluster, Verb::Create) == 3);
    // More than wait to be written; of each address eight are told that they do not get it.
    let addresses: Vec<SocketAddr> = (0..20).map(|_| free_port(address())).collect();
    let many = (0..180).map(|n| {
        let text = at(&format!("zz-{n}"), addresses[n / 9]);
        text.lines().filter(|line| !line.contains("clusterIP")).map(|line| format!("{line}\n")).collect()
    });
    cluster.kubectl("create -f -", &many.collect::<Vec<String>>().concat());
    let metrics = agent.port("serving metrics");
    until("what is too much is counted", || {
        let text = get(metrics, "/metrics");
        let line = text.lines().find_map(|line| line.strip_prefix("sluice_events_dropped_total "));
        line.is_some_and(|count| count.parse::<u64>().is_ok_and(|count| count > 0))
    });
    cluster.kubectl("apply -f -", &slice("older", &[backend(1)]));
    until("it is served", || ask(both).is_ok_and(|byte| byte == 1));
}
