//! The watched resources: paths and selectors.

use std::fmt;

use sluice_model::{ObjectName, ObjectRef};

use super::reason::Reason;

/// The field that identifies headless Services.
const SERVICE_FIELD: &str = "spec.clusterIP";

/// A resource of the API that is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Resource {
    /// `v1` Services, except headless ones and those of another proxy.
    Services,
    /// `discovery.k8s.io/v1` EndpointSlices, except those of headless Services.
    EndpointSlices,
    /// The `v1` Node that the agent runs on.
    Node,
    /// `networking.k8s.io/v1` ServiceCIDRs. Clusters before Kubernetes 1.33 may have none.
    ServiceCidrs,
    /// The `v1` Pods of the node that the agent runs on, if their annotations are asked for.
    Pods,
    /// `v1` Namespaces, if annotations of pods are asked for.
    Namespaces,
}

impl Resource {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Services, Self::EndpointSlices, Self::Node, Self::ServiceCidrs, Self::Pods, Self::Namespaces];

    /// The resources that are always followed. The others are followed on request, and nothing waits for them.
    pub const ALWAYS: [Self; 4] = [Self::Services, Self::EndpointSlices, Self::Node, Self::ServiceCidrs];

    /// Whether it is followed only on request.
    pub(super) fn is_optional(self) -> bool {
        !Self::ALWAYS.contains(&self)
    }

    /// The API group in RBAC rules; "" is the core.
    pub fn group(self) -> &'static str {
        match self {
            Self::Services | Self::Node | Self::Pods | Self::Namespaces => "",
            Self::EndpointSlices => "discovery.k8s.io",
            Self::ServiceCidrs => "networking.k8s.io",
        }
    }

    /// The name in paths and RBAC rules.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Services => "services",
            Self::EndpointSlices => "endpointslices",
            Self::Node => "nodes",
            Self::ServiceCidrs => "servicecidrs",
            Self::Pods => "pods",
            Self::Namespaces => "namespaces",
        }
    }

    /// Whether it must be listed in full before anything is programmed.
    pub(super) fn is_required(self) -> bool {
        matches!(self, Self::Services | Self::EndpointSlices)
    }

    /// Whether a 404 means that the cluster has an older version, and is no error.
    pub(super) fn may_be_absent(self) -> bool {
        self == Self::ServiceCidrs
    }

    pub(super) fn path(self) -> String {
        match self.group() {
            "" => format!("/api/v1/{}", self.plural()),
            group => format!("/apis/{group}/v1/{}", self.plural()),
        }
    }

    /// Whether the apiserver says that it does not know the field of this resource's selector: before Kubernetes
    /// 1.31 Services can be selected by name only. Without the selector more objects arrive, but they are still
    /// not served. The wording differs between versions, but always names the field; errors about a bad page or
    /// version do not.
    pub(super) fn lacks_field(self, reason: &Reason) -> bool {
        self == Self::Services && matches!(reason, Reason::Status(400, said) if said.contains(SERVICE_FIELD))
    }

    /// Query parameters that leave out objects that this node does not need. An object that stops matching
    /// arrives as deleted.
    pub(super) fn selectors(self, node: &str) -> Vec<(&'static str, String)> {
        match self {
            Self::Services => vec![
                ("labelSelector", "!service.kubernetes.io/service-proxy-name".to_owned()),
                ("fieldSelector", format!("{SERVICE_FIELD}!=None")),
            ],
            Self::EndpointSlices => {
                vec![("labelSelector", "!service.kubernetes.io/headless".to_owned())]
            }
            Self::Node => vec![("fieldSelector", format!("metadata.name={node}"))],
            Self::Pods => vec![("fieldSelector", format!("spec.nodeName={node}"))],
            Self::ServiceCidrs | Self::Namespaces => Vec::new(),
        }
    }

    pub(super) fn reference(self, namespace: Option<&str>, name: &str) -> ObjectRef {
        let qualified =
            || ObjectName::new(namespace.filter(|text| !text.is_empty()).unwrap_or("default"), name);
        match self {
            Self::Services => ObjectRef::Service(qualified()),
            Self::EndpointSlices => ObjectRef::EndpointSlice(qualified()),
            Self::Node => ObjectRef::Node(name.into()),
            Self::ServiceCidrs => ObjectRef::ServiceCidr(name.into()),
            Self::Pods => ObjectRef::Pod(qualified()),
            Self::Namespaces => ObjectRef::Namespace(name.into()),
        }
    }

    pub(super) fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.plural())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    /// The permissions in rules: a verb, a group and a resource each.
    fn allowed(rules: &Value) -> BTreeSet<String> {
        let texts = |list: &Value| -> Vec<String> { serde_json::from_value(list.clone()).unwrap() };
        let mut allowed = BTreeSet::new();
        for rule in rules.as_array().unwrap() {
            for group in &texts(&rule["apiGroups"]) {
                for resource in &texts(&rule["resources"]) {
                    allowed.extend(
                        texts(&rule["verbs"]).iter().map(|verb| format!("{verb} {group}/{resource}")),
                    );
                }
            }
        }
        allowed
    }

    fn asked(is_optional: bool) -> impl Iterator<Item = String> {
        let resources =
            Resource::ALL.into_iter().filter(move |resource| resource.is_optional() == is_optional);
        resources.flat_map(|resource| {
            ["list", "watch"].map(|verb| format!("{verb} {}/{}", resource.group(), resource.plural()))
        })
    }

    #[test]
    fn the_rules_in_deploy_allow_what_is_asked_for_and_little_more() {
        let yaml = include_str!("../../../../deploy/base/rbac.yaml");
        let documents: Vec<Value> = serde_saphyr::from_multiple(yaml).unwrap();
        let role = documents.into_iter().find(|document| document["kind"] == "ClusterRole").unwrap();
        // The requests of `EventWriter`.
        let others = ["create events.k8s.io/events", "patch events.k8s.io/events"];
        let expected = asked(false).chain(others.map(str::to_owned)).collect();
        assert_eq!(allowed(&role["rules"]), expected);
    }

    #[test]
    fn the_component_adds_what_annotations_take() {
        let yaml = include_str!("../../../../deploy/components/pod-annotations/kustomization.yaml");
        let component: Value = serde_saphyr::from_str(yaml).unwrap();
        let patch = component["patches"][0]["patch"].as_str().unwrap();
        let patch: Value = serde_saphyr::from_str(patch).unwrap();
        let rules = Value::from(vec![patch[0]["value"].clone()]);
        assert_eq!(allowed(&rules), asked(true).collect());
    }
}
