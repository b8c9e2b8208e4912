//! What pods and namespaces are annotated with, for whoever asks.

use serde_json::{Value, json};
use sluice_kubeapi::apiserver::{self, Config};
use sluice_model::Object;
use sluice_testbed::apiserver::{Apiserver, Failure, Resource, Target};

use crate::cluster::{Followed, NODE, config, plain, service, soon};

fn pod(name: &str, node: &str, phase: &str) -> Value {
    json!({
        "metadata": { "name": name, "namespace": "default", "annotations": { "sluice.dev/socket-mode": "false" } },
        "spec": { "nodeName": node, "containers": [{ "name": "c", "image": "i" }] },
        "status": { "phase": phase, "podIP": "10.1.0.2", "podIPs": [{ "ip": "10.1.0.2" }] },
    })
}

/// As a kubelet does: what an object is created with has no status.
fn create(server: &Apiserver, pod: Value) {
    server.create(Resource::Pods, pod.clone()).unwrap();
    server.update_status(Resource::Pods, pod).unwrap();
}

fn asking(server: &Apiserver) -> Config {
    Config { pods: true, ..config(server) }
}

#[tokio::test]
async fn those_of_this_node_and_all_namespaces_are_followed() {
    let server = plain().await;
    create(&server, pod("a", NODE, "Running"));
    create(&server, pod("b", "other", "Running"));
    let mut followed = Followed::new(asking(&server));
    followed.until(|objects| objects.keys().any(|name| name.to_string() == "Pod default/a")).await;
    followed.until(|objects| objects.keys().any(|name| name.to_string() == "Namespace kube-system")).await;
    let pods = followed.objects.values().filter_map(|object| match object {
        Object::Pod(pod) => Some((pod.name.to_string(), pod.at_sockets)),
        _ => None,
    });
    assert_eq!(Vec::from_iter(pods), [("default/a".to_owned(), Some(false))]);
    // One that is over has no address any more.
    server.update_status(Resource::Pods, pod("a", NODE, "Succeeded")).unwrap();
    followed.until(|objects| objects.keys().all(|name| name.to_string() != "Pod default/a")).await;
}

#[tokio::test]
async fn nobody_is_asked_about_them_without_need_and_nothing_waits_for_them() {
    let server = plain().await;
    server.create(Resource::Services, service("a")).unwrap();
    server.faults().fail(Target::resource(Resource::Pods), Failure::Forbidden, usize::MAX);
    let followed = Followed::synced(&server).await;
    assert!(followed.health().reasons().is_empty());
    let of = |followed: &Followed| followed.health().of(apiserver::Resource::Pods).requests();
    assert_eq!((of(&followed), followed.health().is_synced()), (0, true));

    let mut followed = Followed::new(asking(&server));
    followed.until(|objects| objects.keys().any(|name| name.to_string() == "Service default/a")).await;
    let wanted = "403: this account may not read pods: apply deploy/components/pod-annotations, or leave out \
                  --socket-pod-annotations; its ClusterRole lacks apiGroups: [\"\"], resources: [\"pods\"]";
    let reason = async {
        while !followed.health().reasons().iter().any(|(_, reason)| reason.contains(wanted)) {
            tokio::task::yield_now().await;
        }
    };
    soon(reason).await;
}
