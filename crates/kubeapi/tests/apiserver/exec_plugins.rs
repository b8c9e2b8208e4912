//! Credentials of exec plugins.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::{Value, json};
use sluice_kubeapi::apiserver::{Config, Resource as Watched, Timing};
use sluice_testbed::apiserver::{Apiserver, Failure, Resource, Target, Validity};

use crate::access::{Lab, reason};
use crate::cluster::{DEADLINE, Followed, soon, timing, until};

#[tokio::test]
async fn an_exec_plugin_gives_a_token_and_is_asked_again_after_a_401() {
    let mut lab = Lab::start(Apiserver::builder().token("one")).await;
    lab.write("token", "one");
    let script = "#!/bin/sh\necho x >> runs\nprintf '{\"apiVersion\":\"client.authentication.k8s.io/v1\",\
                  \"status\":{\"token\":\"%s\"}}' \"$(cat token)\"\n";
    let plugin = lab.write("plugin", format!("#!/bin/sh\ncd \"$(dirname \"$0\")\"\n{script}"));
    fs::set_permissions(&plugin, fs::Permissions::from_mode(0o755)).unwrap();
    let exec = json!({ "apiVersion": "client.authentication.k8s.io/v1", "command": "./plugin" });
    lab.user(json!({ "exec": exec }));
    let mut followed = lab.synced().await;
    let runs = || fs::read_to_string(lab.directory.path().join("runs")).unwrap().lines().count();
    assert_eq!(runs(), 1);
    lab.write("token", "two");
    lab.server.replace_tokens(&["two"]);
    lab.assert_goes_on(&mut followed, "b").await;
    assert!(runs() > 1);
    fs::remove_file(&plugin).unwrap();
    lab.server.replace_tokens(&["three"]);
    lab.server.drop_connections();
    reason(&followed, "no credentials from the exec plugin: ").await;
}

#[tokio::test]
async fn an_exec_plugin_that_hangs_is_run_once_for_all_who_wait_for_it() {
    let mut lab = Lab::start(Apiserver::builder().token("one")).await;
    let script = "#!/bin/sh\ncd \"$(dirname \"$0\")\"\necho x >> runs\nuntil [ -e end ]; do sleep 0.01; done\nexit 1\n";
    let plugin = lab.write("plugin", script);
    fs::set_permissions(&plugin, fs::Permissions::from_mode(0o755)).unwrap();
    let exec = json!({ "apiVersion": "client.authentication.k8s.io/v1", "command": "./plugin" });
    lab.user(json!({ "exec": exec }));
    // Nobody tries a second time before the test is over.
    let timing = Timing { backoff_min: DEADLINE, backoff_max: DEADLINE, ..timing() };
    let followed = Followed::new(Config { timing, ..lab.config() });
    let path = lab.directory.path().join("runs");
    let runs = || fs::read_to_string(&path).map_or(0, |runs| runs.lines().count());
    soon(async {
        while runs() == 0 {
            tokio::task::yield_now().await;
        }
        // All others have come to wait by now: there is one thread.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        lab.write("end", "");
        while Watched::ALWAYS.iter().any(|resource| followed.health().of(*resource).errors() == 0) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(runs(), 1);
}

/// What makes [`cat`](exec_of) a plugin: a client certificate.
fn certificate_credential(lab: &Lab) -> Value {
    let identity = lab.server.client_identity(Validity::Valid).unwrap();
    credential(
        json!({ "clientCertificateData": identity.certificate_pem, "clientKeyData": identity.key_pem }),
    )
}

fn credential(status: Value) -> Value {
    json!({
        "apiVersion": "client.authentication.k8s.io/v1beta1", "kind": "ExecCredential", "status": status })
}

/// A plugin that says what the file says.
fn exec_of(path: &Path) -> Value {
    let api = "client.authentication.k8s.io/v1beta1";
    json!({ "exec": { "apiVersion": api, "command": "cat", "args": [path] } })
}

#[tokio::test]
async fn an_exec_plugin_gives_a_client_certificate() {
    let mut lab = Lab::start(Apiserver::builder().client_certificates()).await;
    let path = lab.write("credential", certificate_credential(&lab).to_string());
    lab.user(exec_of(&path));
    lab.synced().await;
}

#[tokio::test]
async fn what_an_exec_plugin_gave_goes_with_the_kubeconfig_that_names_it() {
    let mut lab = Lab::start(Apiserver::builder().client_certificates()).await;
    let path = lab.write("credential", certificate_credential(&lab).to_string());
    lab.user(exec_of(&path));
    let followed = lab.synced().await;
    lab.user(json!({}));
    lab.config();
    lab.server.drop_connections();
    reason(&followed, "401: it does not accept the credentials").await;
}

#[tokio::test]
async fn a_client_certificate_of_an_exec_plugin_goes_when_the_plugin_gives_none_any_more() {
    let mut lab = Lab::start(Apiserver::builder().client_certificates()).await;
    let path = lab.write("credential", certificate_credential(&lab).to_string());
    lab.user(exec_of(&path));
    let followed = lab.synced().await;
    lab.write("credential", credential(json!({ "token": "of-nobody" })).to_string());
    // Otherwise a request that is under way may get the answer, and be cut off before it arrives.
    let all = [Resource::Services, Resource::EndpointSlices, Resource::Nodes, Resource::ServiceCidrs];
    until(&lab.server, |counters| all.iter().all(|of| counters.open_watches(*of) == 1)).await;
    lab.server.faults().fail(Target::ANY, Failure::Unauthorized, 1);
    lab.server.faults().close_watches();
    reason(&followed, "401: it does not accept the credentials").await;
}
