//! The Helm chart: it makes the very objects of the overlays. `helm` renders: the one of `$HELM`, else that on `PATH`.
//! `.ci/helm` gets one, and runs this.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use crate::manifests::{overlay, repository, with_components};

/// What the chart makes of these values, or why not.
fn render(values: &Value) -> Result<Vec<Value>, String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), values.to_string()).unwrap();
    let helm = std::env::var_os("HELM").unwrap_or_else(|| "helm".into());
    let chart = repository().join("deploy/helm/sluice");
    let mut command = Command::new(helm);
    command.args(["template", "sluice"]).arg(chart).args(["--namespace", "kube-system", "--values"]);
    let output = command.arg(file.path()).output().unwrap();
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(&String::from_utf8(output.stdout).unwrap()).unwrap();
    Ok(documents.into_iter().filter(|document| !document.is_null()).collect())
}

/// By kind: there is one of each.
fn by_kind(objects: Vec<Value>) -> BTreeMap<String, Value> {
    let number = objects.len();
    let objects: BTreeMap<String, Value> =
        objects.into_iter().map(|object| (object["kind"].as_str().unwrap().to_owned(), object)).collect();
    assert_eq!(objects.len(), number);
    objects
}

#[test]
#[ignore = "needs Helm: .ci/helm gets it and runs this"]
fn it_makes_what_the_overlays_are() {
    let account = json!({ "mode": "account", "masters": ["https://apiserver.example.com:443"] });
    let cases = [
        (json!({}), overlay("kubeadm")),
        (json!({ "migrate": true }), with_components("kubeadm", &["migrate"])),
        (json!({ "podAnnotations": true }), with_components("kubeadm", &["pod-annotations"])),
        (json!({ "capture": "tproxy" }), with_components("kubeadm", &["tproxy"])),
        (json!({ "apiserver": account, "clusterCIDR": "10.244.0.0/16" }), overlay("managed")),
    ];
    for (values, wanted) in cases {
        let made = render(&values).unwrap_or_else(|error| panic!("{values}: {error}"));
        assert_eq!(by_kind(made), by_kind(wanted), "{values}");
    }
    let values = json!({
        "apiserver": { "mode": "kubeconfig", "kubeconfigSecret": "mine" },
        "capture": "tproxy", "settings": false, "leftovers": false, "gracePeriodSeconds": 300, "extraArgs": ["--track-connections"],
        "metricsBindAddress": "0.0.0.0:10249", "statusPage": "all",
        "disableBridgeNetfilter": false,
    });
    let made = by_kind(render(&values).unwrap());
    let pod = &made["DaemonSet"]["spec"]["template"]["spec"];
    assert_eq!(pod["initContainers"], Value::Null);
    assert_eq!(pod["terminationGracePeriodSeconds"], 305);
    let run = json!({ "name": "run", "emptyDir": { "medium": "Memory", "sizeLimit": "1Mi" } });
    assert_eq!(pod["volumes"], json!([run, { "name": "kubeconfig", "secret": { "secretName": "mine" } }]));
    let arguments = pod["containers"][0]["args"].as_array().unwrap();
    for argument in [
        "--grace-period=300s",
        "--kubeconfig=/etc/sluice/kubeconfig",
        "--track-connections",
        "--metrics-bind-address=0.0.0.0:10249",
        "--status-page=all",
        "--disable-bridge-netfilter=false",
    ] {
        assert!(arguments.contains(&argument.into()), "{argument}: {arguments:?}");
    }
    assert_eq!(arguments.last(), Some(&"--track-connections".into()), "it wins");
    // Who makes the kernel's settings is told, too.
    for (mode, wanted) in [("kubeadm", 5), ("kubeconfig", 4)] {
        let values = json!({ "apiserver": { "mode": mode }, "disableBridgeNetfilter": false });
        let settings =
            &by_kind(render(&values).unwrap())["DaemonSet"]["spec"]["template"]["spec"]["initContainers"][0];
        let arguments = settings["args"].as_array().unwrap();
        assert_eq!(arguments.last(), Some(&"--disable-bridge-netfilter=false".into()), "{mode}");
        assert_eq!(arguments.len(), wanted, "{mode}: {arguments:?}");
    }
}

/// Whoever writes `off` into values without quotes has written false.
#[test]
#[ignore = "needs Helm: .ci/helm gets it and runs this"]
fn the_status_page_is_off_with_and_without_quotes() {
    for (value, wanted) in [
        (json!("off"), Some("--status-page=off")),
        (json!(false), Some("--status-page=off")),
        (json!("loopback"), None),
    ] {
        let made = by_kind(render(&json!({ "statusPage": value })).unwrap());
        let arguments = &made["DaemonSet"]["spec"]["template"]["spec"]["containers"][0]["args"];
        let mut said = arguments.as_array().unwrap().iter().filter_map(Value::as_str);
        assert_eq!(said.find(|argument| argument.contains("status-page")), wanted, "{value}");
    }
}

#[test]
#[ignore = "needs Helm: .ci/helm gets it and runs this"]
fn wrong_values_are_refused() {
    for values in [
        json!({ "apiserver": { "mode": "account" } }),
        json!({ "apiserver": { "mode": "kubeadmin" } }),
        json!({ "apiserver": { "mode": "account", "masters": ["10.0.0.2:6443"] } }),
        json!({ "capture": "bind" }),
        json!({ "clusterCidr": "10.244.0.0/16" }),
        json!({ "clusterCIDR": "pods" }),
        json!({ "gracePeriodSeconds": "25s" }),
        json!({ "statusPage": "everybody" }),
        json!({ "statusPage": true }),
        json!({ "maxSurge": 0 }),
        json!({ "maxSurge": "0%" }),
    ] {
        assert!(render(&values).is_err(), "{values}");
    }
}
