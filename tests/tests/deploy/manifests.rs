//! The manifests as `kubectl` renders them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Container, PodSpec};
use serde_json::Value;

/// All overlays.
pub(crate) const OVERLAYS: [&str; 3] = ["kubeadm", "managed", "kind"];

/// What can be added to each of them.
pub(crate) const COMPONENTS: [&str; 5] = ["kubeconfig", "migrate", "monitoring", "pod-annotations", "tproxy"];

/// The folder of this repository.
pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().into()
}

/// The objects of an overlay.
pub(crate) fn overlay(name: &str) -> Vec<Value> {
    kustomize(&repository().join("deploy/overlays").join(name))
}

/// The objects of an overlay with components, as somebody's own kustomization would have them.
pub(crate) fn with_components(name: &str, components: &[&str]) -> Vec<Value> {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    // From here to the root, and down again: kustomize takes no absolute paths.
    let up = "../".repeat(directory.path().components().count() - 1);
    let deploy = format!("{up}{}", repository().join("deploy").strip_prefix("/").unwrap().display());
    let list = |kind: &str, names: &[&str]| {
        names.iter().map(|name| format!("- {deploy}/{kind}/{name}\n")).collect::<String>()
    };
    let text =
        format!("resources:\n{}components:\n{}", list("overlays", &[name]), list("components", components));
    fs::write(directory.path().join("kustomization.yaml"), text).unwrap();
    kustomize(directory.path())
}

fn kustomize(directory: &Path) -> Vec<Value> {
    let kubectl = std::env::var_os("KUBECTL").unwrap_or_else(|| "kubectl".into());
    let output = Command::new(kubectl).arg("kustomize").arg(directory).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {error} (kubectl 1.21 or newer is needed)", directory.display());
    // What it warns of is what its next version does not take.
    assert_eq!(error, "", "{}", directory.display());
    serde_saphyr::from_multiple(&String::from_utf8(output.stdout).unwrap()).unwrap()
}

/// The one object of a kind.
pub(crate) fn one<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    let mut found = objects.iter().filter(|object| object["kind"] == kind);
    let object = found.next().unwrap_or_else(|| panic!("there is no {kind}"));
    assert!(found.next().is_none(), "there is more than one {kind}");
    object
}

/// The one DaemonSet.
pub(crate) fn daemonset(objects: &[Value]) -> DaemonSet {
    serde_json::from_value(one(objects, "DaemonSet").clone()).unwrap()
}

/// What its pods are.
pub(crate) fn pod(daemonset: &DaemonSet) -> PodSpec {
    daemonset.spec.clone().unwrap().template.spec.unwrap()
}

/// All containers of a pod, those first that run first.
pub(crate) fn containers(pod: &PodSpec) -> impl Iterator<Item = &Container> {
    pod.init_containers.iter().flatten().chain(&pod.containers)
}
