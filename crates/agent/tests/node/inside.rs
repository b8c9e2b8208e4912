//! What `sluice explain` says of captured packets.

use std::process::Command;

use sluice_model::Family;

use crate::manifests::{PORT, cluster_ip};
use crate::scene::Scene;

#[test]
fn packets_that_are_captured_are_explained_and_those_that_no_service_wants() {
    let scene = Scene::new();
    let _agent = scene.start();
    let explain = |client: &str, destination: String| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"));
        command.args(["explain", client, &destination, "-o", "json", "--admin-socket"]).arg(scene.socket());
        let output = command.output().unwrap();
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    let frontend = cluster_ip(1, Family::V4);
    let told = explain("10.244.7.7", frontend.to_string());
    assert_eq!(
        (&told["origin"], &told["outcome"]["verdict"]),
        (&"localPod".into(), &"relay".into()),
        "{told}"
    );
    assert_eq!((&told["sourceAddress"], told["endpoints"].as_array().unwrap().len()), (&"client".into(), 2));
    let told = explain("192.0.2.1", format!("{}:{}", frontend.ip(), PORT + 1));
    assert_eq!(
        (&told["origin"], &told["outcome"]["verdict"]),
        (&"outside".into(), &"refuse".into()),
        "{told}"
    );
}
