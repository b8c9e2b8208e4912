//! One object of each kind, with all of its fields, and the fields that are read.

use serde_json::{Value, json};

use super::super::super::resource::Resource;
use super::{Kind, Part};

/// All kinds that are followed.
pub(super) fn all() -> [Kind; 6] {
    [service(), slice(), node(), service_cidr(), pod(), namespace()]
}

fn service() -> Kind {
    let metadata = metadata(json!({ "app": "web" }));
    Kind {
        resource: Resource::Services,
        full: json!({
            "apiVersion": "v1", "kind": "Service", "metadata": metadata,
            "spec": {
                "type": "LoadBalancer", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00::1"],
                "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "PreferDualStack",
                "externalIPs": ["203.0.113.1", "2001:db8::1"], "externalName": "", "selector": { "app": "web" },
                "loadBalancerSourceRanges": ["10.0.0.0/8", "2001:db8::/32"], "loadBalancerIP": "198.51.100.1",
                "loadBalancerClass": "example.com/lb", "allocateLoadBalancerNodePorts": true,
                "internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local", "healthCheckNodePort": 30100,
                "publishNotReadyAddresses": true, "trafficDistribution": "PreferSameZone",
                "sessionAffinity": "ClientIP", "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": 60 } },
                "ports": [
                    { "name": "http", "protocol": "TCP", "appProtocol": "http", "port": 80, "targetPort": "web",
                      "nodePort": 30080 },
                    { "name": "dns", "protocol": "UDP", "port": 53, "targetPort": 5353, "nodePort": 30053 },
                ],
            },
            "status": {
                "loadBalancer": { "ingress": [
                    { "ip": "198.51.100.1", "ipMode": "VIP", "hostname": "a.example",
                      "ports": [{ "port": 80, "protocol": "TCP", "error": "none" }] },
                    { "ip": "2001:db8::2", "ipMode": "VIP" },
                ] },
                "conditions": [{ "type": "Ready", "status": "True", "observedGeneration": 1, "reason": "Fine",
                    "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z" }],
            },
        }),
        read: &[
            ("metadata.namespace", &[Part::Name]),
            ("metadata.name", &[Part::Name]),
            ("metadata.resourceVersion", &[]),
            ("metadata.creationTimestamp", &[Part::Created]),
            ("metadata.labels", &[]),
            ("metadata.annotations[sluice.dev/balance]", &[Part::Annotations]),
            ("spec.type", &[Part::HealthCheck]),
            ("spec.clusterIP", &[Part::Addresses]),
            ("spec.clusterIPs[*]", &[Part::Addresses]),
            ("spec.ipFamilies[*]", &[Part::Addresses]),
            ("spec.externalIPs[*]", &[Part::Addresses]),
            ("spec.loadBalancerSourceRanges[*]", &[Part::SourceRanges]),
            ("spec.internalTrafficPolicy", &[Part::InternalPolicy]),
            ("spec.externalTrafficPolicy", &[Part::ExternalPolicy, Part::HealthCheck]),
            ("spec.healthCheckNodePort", &[Part::HealthCheck]),
            ("spec.sessionAffinity", &[Part::Affinity]),
            ("spec.sessionAffinityConfig.clientIP.timeoutSeconds", &[Part::Affinity]),
            ("spec.ports[*].name", &[Part::Ports]),
            ("spec.ports[*].protocol", &[Part::Ports]),
            ("spec.ports[*].port", &[Part::Ports]),
            ("spec.ports[*].nodePort", &[Part::Ports]),
            ("status.loadBalancer.ingress[*].ip", &[Part::Addresses]),
            ("status.loadBalancer.ingress[*].ipMode", &[Part::Addresses]),
        ],
        is_in_files: true,
        vital: &[
            "metadata",
            "metadata.namespace",
            "metadata.name",
            "spec",
            "spec.ports",
            "spec.loadBalancerSourceRanges",
        ],
    }
}

fn slice() -> Kind {
    let endpoint = |n: u8| {
        json!({
            "addresses": [format!("10.0.0.{n}"), "10.0.1.1"], "hostname": "h", "nodeName": "node-1", "zone": "z1",
            "conditions": { "ready": false, "serving": true, "terminating": true },
            "deprecatedTopology": { "a": "b" },
            "targetRef": { "kind": "Pod", "name": "p", "namespace": "shop", "uid": "u", "apiVersion": "v1",
                "fieldPath": "", "resourceVersion": "1" },
            "hints": { "forZones": [{ "name": "z1" }], "forNodes": [{ "name": "node-1" }] },
        })
    };
    Kind {
        resource: Resource::EndpointSlices,
        full: json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": metadata(json!({ "kubernetes.io/service-name": "web", "app": "web" })),
            "addressType": "IPv4", "endpoints": [endpoint(1), endpoint(2)],
            "ports": [{ "name": "http", "protocol": "TCP", "port": 8080, "appProtocol": "http" },
                { "name": "dns", "protocol": "UDP", "port": 5353 }],
        }),
        read: &[
            ("metadata.namespace", &[Part::Name]),
            ("metadata.name", &[Part::Name]),
            ("metadata.resourceVersion", &[]),
            ("metadata.creationTimestamp", &[]),
            ("metadata.annotations[sluice.dev/balance]", &[]),
            ("metadata.labels[kubernetes.io/service-name]", &[Part::Name]),
            ("addressType", &[]),
            ("ports[*].name", &[Part::Ports]),
            ("ports[*].protocol", &[Part::Ports]),
            ("ports[*].port", &[Part::Ports]),
            ("endpoints[*].addresses[*]", &[Part::Endpoints]),
            ("endpoints[*].conditions.ready", &[Part::Endpoints]),
            ("endpoints[*].conditions.serving", &[Part::Endpoints]),
            ("endpoints[*].conditions.terminating", &[Part::Endpoints]),
            ("endpoints[*].nodeName", &[Part::Endpoints]),
            ("endpoints[*].hints.forZones[*].name", &[Part::Endpoints]),
            ("endpoints[*].hints.forNodes[*].name", &[Part::Endpoints]),
        ],
        is_in_files: true,
        vital: &[
            "metadata",
            "metadata.namespace",
            "metadata.name",
            "metadata.labels",
            "metadata.labels[kubernetes.io/service-name]",
            "addressType",
            "ports",
            "endpoints",
        ],
    }
}

fn node() -> Kind {
    let mut metadata = metadata(json!({ "topology.kubernetes.io/zone": "z1", "kubernetes.io/os": "linux" }));
    metadata.as_object_mut().unwrap().remove("namespace");
    Kind {
        resource: Resource::Node,
        full: json!({
            "apiVersion": "v1", "kind": "Node", "metadata": metadata,
            "spec": {
                "podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:1::/64"], "providerID": "p://1",
                "externalID": "x", "unschedulable": true,
                "configSource": { "configMap": { "namespace": "n", "name": "c", "kubeletConfigKey": "k" } },
                "taints": [{ "key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule", "value": "1",
                    "timeAdded": "2026-01-01T00:00:00Z" }],
            },
            "status": {
                "addresses": [{ "type": "InternalIP", "address": "192.168.0.1" },
                    { "type": "Hostname", "address": "node-1" }],
                "allocatable": { "cpu": "2" }, "capacity": { "cpu": "2" }, "phase": "Running",
                "conditions": [{ "type": "Ready", "status": "True", "reason": "Fine", "message": "",
                    "lastHeartbeatTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z" }],
                "config": { "error": "" }, "daemonEndpoints": { "kubeletEndpoint": { "Port": 10250 } },
                "features": { "supplementalGroupsPolicy": true },
                "images": [{ "names": ["a", "b"], "sizeBytes": 1 }],
                "nodeInfo": { "architecture": "amd64", "bootID": "b", "kernelVersion": "6.1",
                    "swap": { "capacity": 1 } },
                "runtimeHandlers": [{ "name": "r", "features": { "userNamespaces": true } }],
                "volumesAttached": [{ "name": "v", "devicePath": "d" }], "volumesInUse": ["v"],
            },
        }),
        read: &[
            ("metadata.namespace", &[]),
            ("metadata.name", &[Part::Name]),
            ("metadata.resourceVersion", &[]),
            ("metadata.creationTimestamp", &[]),
            ("metadata.deletionTimestamp", &[Part::Eligible]),
            ("metadata.annotations[sluice.dev/balance]", &[]),
            ("metadata.labels[topology.kubernetes.io/zone]", &[Part::Zone]),
            ("spec.podCIDR", &[Part::PodCidrs]),
            ("spec.podCIDRs[*]", &[Part::PodCidrs]),
            ("spec.taints[*].key", &[Part::Eligible]),
            ("status.addresses[*].type", &[Part::Addresses]),
            ("status.addresses[*].address", &[Part::Addresses]),
        ],
        is_in_files: true,
        vital: &["metadata", "metadata.name"],
    }
}

fn service_cidr() -> Kind {
    let mut metadata = metadata(json!({ "app": "web" }));
    metadata.as_object_mut().unwrap().remove("namespace");
    Kind {
        resource: Resource::ServiceCidrs,
        full: json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": metadata,
            "spec": { "cidrs": ["10.96.0.0/12", "fd00::/112"] },
            "status": { "conditions": [{ "type": "Ready", "status": "True", "reason": "", "message": "",
                "observedGeneration": 1, "lastTransitionTime": "2026-01-01T00:00:00Z" }] },
        }),
        read: &[
            ("metadata.namespace", &[]),
            ("metadata.name", &[Part::Name]),
            ("metadata.resourceVersion", &[]),
            ("metadata.creationTimestamp", &[]),
            ("metadata.annotations[sluice.dev/balance]", &[]),
            ("spec.cidrs[*]", &[Part::Addresses]),
        ],
        is_in_files: true,
        vital: &["metadata", "metadata.name", "spec.cidrs"],
    }
}

fn pod() -> Kind {
    let mut metadata = metadata(json!({ "app": "web" }));
    metadata["annotations"] = json!({ "sluice.dev/socket-mode": "false", "other.dev/a": "b" });
    Kind {
        resource: Resource::Pods,
        full: json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": metadata,
            "spec": {
                "nodeName": "node-1", "hostNetwork": false, "hostPID": true, "restartPolicy": "Always", "priority": 0,
                "containers": [{ "name": "c", "image": "i", "ports": [{ "containerPort": 80 }],
                    "env": [{ "name": "A", "value": "b" }] }],
                "initContainers": [{ "name": "i", "image": "i" }], "volumes": [{ "name": "v", "emptyDir": {} }],
                "tolerations": [{ "operator": "Exists" }], "overhead": { "cpu": "1" }, "dnsPolicy": "ClusterFirst",
            },
            "status": {
                "phase": "Running", "podIP": "10.1.0.2", "podIPs": [{ "ip": "10.1.0.2" }, { "ip": "fd00::2" }],
                "hostIP": "192.168.0.1", "hostIPs": [{ "ip": "192.168.0.1" }], "qosClass": "Burstable",
                "startTime": "2026-01-01T00:00:00Z", "observedGeneration": 1, "message": "", "reason": "",
                "conditions": [{ "type": "Ready", "status": "True", "lastProbeTime": null,
                    "lastTransitionTime": "2026-01-01T00:00:00Z" }],
                "containerStatuses": [{ "name": "c", "ready": true, "restartCount": 1, "state": { "running": {} } }],
            },
        }),
        read: &[
            ("metadata.namespace", &[Part::Name]),
            ("metadata.name", &[Part::Name]),
            ("metadata.resourceVersion", &[]),
            ("metadata.creationTimestamp", &[]),
            ("metadata.annotations[sluice.dev/socket-mode]", &[Part::AtSockets]),
            ("spec.hostNetwork", &[]),
            ("status.phase", &[]),
            ("status.podIP", &[]),
            ("status.podIPs[*].ip", &[Part::Addresses]),
        ],
        is_in_files: false,
        vital: &["metadata", "metadata.namespace", "metadata.name"],
    }
}

fn namespace() -> Kind {
    let mut metadata = metadata(json!({ "kubernetes.io/metadata.name": "web" }));
    metadata["annotations"] = json!({ "sluice.dev/socket-mode": "false", "other.dev/a": "b" });
    metadata.as_object_mut().unwrap().remove("namespace");
    Kind {
        resource: Resource::Namespaces,
        full: json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": metadata, "spec": { "finalizers": ["kubernetes"] },
            "status": { "phase": "Active", "conditions": [{ "type": "A", "status": "True" }] },
        }),
        read: &[
            ("metadata.namespace", &[]),
            ("metadata.name", &[Part::Name]),
            ("metadata.resourceVersion", &[]),
            ("metadata.creationTimestamp", &[]),
            ("metadata.annotations[sluice.dev/socket-mode]", &[Part::AtSockets]),
        ],
        is_in_files: false,
        vital: &["metadata", "metadata.name"],
    }
}

fn metadata(labels: Value) -> Value {
    json!({
        "name": "web", "namespace": "shop", "generateName": "web-", "uid": "u", "selfLink": "", "generation": 3,
        "resourceVersion": "7", "creationTimestamp": "2026-01-01T00:00:00Z", "labels": labels,
        "deletionGracePeriodSeconds": 30, "finalizers": ["service.kubernetes.io/load-balancer-cleanup"],
        "annotations": { "sluice.dev/balance": "random", "other.dev/a": "b" },
        "managedFields": [{ "manager": "m", "operation": "Update", "apiVersion": "v1", "subresource": "status",
            "time": "2026-01-01T00:00:00Z", "fieldsType": "FieldsV1", "fieldsV1": { "f:spec": {} } }],
        "ownerReferences": [{ "apiVersion": "v1", "kind": "K", "name": "n", "uid": "u", "controller": true,
            "blockOwnerDeletion": true }],
    })
}
