//! `--socket-pod-annotations`: pods, and those of namespaces, that are left to the relay because they are annotated so.

use std::fs;
use std::net::SocketAddr;

use serde_json::{Value, json};
use sluice_testbed::apiserver::{Apiserver, Resource};
use sluice_testbed::lab::{Bpffs, Cgroup, Host, Lab, Names, PATIENCE};
use tempfile::TempDir;

use crate::at_sockets::{Agent, METRICS, metrics, value};
use crate::manifests::{BACKEND, FAMILIES, Service, cluster_ip};
use crate::scene::{AGENT, sluice, until, well};

/// The Pod object of a host; `said` is its annotation.
fn pod(host: &Host, name: &str, said: Option<&str>) -> Value {
    let addresses = [host.v4.to_string(), host.v6.to_string()];
    json!({
        "metadata": { "name": name, "namespace": "default", "annotations": annotations(said) },
        "spec": { "nodeName": "node", "containers": [{ "name": "c", "image": "i" }] },
        "status": {
            "phase": "Running", "podIP": addresses[0], "podIPs": addresses.map(|ip| json!({ "ip": ip })),
        },
    })
}

/// As a kubelet does: what an object is created with has no status.
fn create(apiserver: &Apiserver, pod: Value) {
    apiserver.create(Resource::Pods, pod.clone()).unwrap();
    apiserver.update_status(Resource::Pods, pod).unwrap();
}

fn annotations(said: Option<&str>) -> Value {
    said.map_or(json!({}), |said| json!({ "sluice.dev/socket-mode": said }))
}

/// Whether a new connection of its sockets is decided when it is made, or relayed.
fn is_led(agent: &Agent, host: &Host, to: SocketAddr) -> bool {
    let stream = host.tcp_stream(to, PATIENCE).unwrap();
    let client = stream.local_addr().unwrap().to_string();
    let mut state = None;
    until("the connection is listed", || {
        let list = agent.json(&["connections"]);
        let row = list["items"].as_array().unwrap().iter().find(|row| row["client"] == client).cloned();
        state = row.map(|row| row["state"].clone());
        state.is_some()
    });
    state.unwrap() == "translated"
}

/// Why they are not decided, by what the agent says.
fn why(agent: &Agent, host: &Host, to: SocketAddr) -> String {
    let told = agent.json(&["explain", &host.v4.to_string(), &to.to_string()])["atSocket"].clone();
    assert_eq!(told["verdict"], "pass", "{told}");
    told["why"].as_str().unwrap().to_owned()
}

#[test]
fn pods_and_namespaces_are_left_to_the_relay_by_their_annotation() {
    let bpffs = Bpffs::mount().unwrap();
    let cgroup = Cgroup::enter().unwrap();
    let lab = well(Lab::new());
    let _server = well(lab.pod(1).serve(BACKEND));
    let names = Names::new().unwrap();
    [0, 1].into_iter().for_each(|pod| names.add(&lab.pod(pod).ns).unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let cidrs = ["10.96.0.0/16", "fd00:96::/112"].map(|cidr| cidr.parse().unwrap());
    let builder = Apiserver::builder().bind((lab.node().v4, 6443).into()).token("t").service_cidrs(&cidrs);
    let apiserver = lab.node().ns.run(|| runtime.block_on(builder.start())).unwrap();
    apiserver.create(Resource::Nodes, lab.node_object()).unwrap();
    for object in Service::new(1).here(lab.pod(1)).objects() {
        let resource =
            if object["kind"] == "Service" { Resource::Services } else { Resource::EndpointSlices };
        apiserver.create(resource, object).unwrap();
    }
    let a = |said| pod(lab.pod(0), "a", said);
    create(&apiserver, a(None));
    let mut elsewhere = pod(lab.pod(1), "elsewhere", None);
    elsewhere["spec"]["nodeName"] = "other".into();
    create(&apiserver, elsewhere);

    let directory = TempDir::new().unwrap();
    let kubeconfig = directory.path().join("kubeconfig");
    fs::write(&kubeconfig, apiserver.kubeconfig().unwrap()).unwrap();
    let arguments = AGENT.map(|argument| match argument {
        "tproxy" => "socket",
        "0" => METRICS,
        other => other,
    });
    let mut command = sluice(arguments);
    command.arg("--kubeconfig").arg(&kubeconfig).arg("--socket-cgroup").arg(cgroup.path());
    command.arg("--socket-pins").arg(bpffs.path().join("sluice"));
    command.arg("--socket-namespaces").arg(names.path()).arg("--socket-pod-annotations");
    let agent = Agent::start(command, &lab, directory.path(), 1);

    // The first connection to an endpoint proves it, and is relayed.
    let to = FAMILIES.map(|family| cluster_ip(1, family));
    to.iter().for_each(|to| drop(lab.node().tcp_stream(*to, PATIENCE).unwrap()));
    let led = |host: &Host| to.map(|to| is_led(&agent, host, to));
    let becomes = |what: &str, wanted: bool| until(what, || led(lab.pod(0)) == [wanted; 2]);
    becomes("a pod that says nothing is led", true);
    until("one that nobody knows is relayed", || led(lab.pod(1)) == [false; 2]);
    assert_eq!(why(&agent, lab.pod(1), to[0]), "no pod of this node is known to have the client's address");
    apiserver.update(Resource::Pods, a(Some("false"))).unwrap();
    becomes("a pod is left to the relay", false);
    let wanted = "an annotation of the pod, or of its namespace, keeps it out (sluice.dev/socket-mode)";
    assert_eq!(why(&agent, lab.pod(0), to[0]), wanted);
    apiserver.update(Resource::Pods, a(Some("true"))).unwrap();
    becomes("it is led again", true);

    let said_of_all =
        |said| json!({ "metadata": { "name": "default", "annotations": annotations(Some(said)) } });
    apiserver.update(Resource::Namespaces, said_of_all("false")).unwrap();
    create(&apiserver, pod(lab.pod(1), "b", Some("true")));
    until("another pod of the namespace is led, as it says so itself", || led(lab.pod(1)) == [true; 2]);
    assert_eq!(led(lab.pod(0)), [true; 2], "so does this one");
    apiserver.update(Resource::Pods, a(None)).unwrap();
    becomes("its namespace says no", false);
    let status = agent.json(&["status"])["atSockets"].as_str().unwrap().to_owned();
    assert!(status.ends_with("of the node and of 1 pods; 1 more are left to the relay"), "{status}");
    let told = metrics(&lab);
    let numbers = ["", "_kept_out"].map(|of| value(&told, &format!("sluice_socket_namespaces{of}"), &[]));
    assert_eq!(numbers, [Some(1.0), Some(1.0)]);
    apiserver.update(Resource::Namespaces, said_of_all("true")).unwrap();
    becomes("its namespace says yes", true);
    agent.stop();
}
