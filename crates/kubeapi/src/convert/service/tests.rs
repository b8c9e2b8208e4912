use serde_json::{Value, json};
use sluice_model::{ObjectName, Protocol};

use super::*;

/// A valid Service with `patch` laid over its spec; `metadata` and `status` in it replace those.
fn convert(patch: Value) -> Converted<Service> {
    let mut value = json!({
        "metadata": {"name": "web"},
        "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]},
    });
    for (key, patch) in patch.as_object().unwrap() {
        match key.as_str() {
            "metadata" | "status" => value[key] = patch.clone(),
            _ => value["spec"][key] = patch.clone(),
        }
    }
    service(&serde_json::from_value(value).unwrap())
}

fn good(patch: Value) -> Service {
    let converted = convert(patch.clone());
    assert_eq!(converted.problems, [], "{patch}");
    converted.result.unwrap_or_else(|skip| panic!("{patch}: {skip}"))
}

/// The Service and the fields with problems.
fn flawed(patch: Value) -> (Service, Vec<String>) {
    let converted = convert(patch.clone());
    let fields = converted.problems.into_iter().map(|problem| problem.field).collect();
    (converted.result.unwrap_or_else(|skip| panic!("{patch}: {skip}")), fields)
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn everything_a_service_says() {
    let service = good(json!({
        "metadata": {
            "name": "web", "namespace": "shop", "creationTimestamp": "1970-01-01T00:01:40Z",
            "annotations": {"sluice.dev/retry": "off", "sluice.dev/max-connections": "1000", "other.dev/x": "y"},
        },
        "type": "LoadBalancer",
        "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00::1"], "ipFamilies": ["IPv4", "IPv6"],
        "externalIPs": ["203.0.113.1", "2001:db8::1"],
        "loadBalancerSourceRanges": ["10.0.0.0/8", " 2001:db8::/32 "],
        "internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local",
        "healthCheckNodePort": 30100,
        "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
        "ports": [
            {"name": "http", "port": 80, "targetPort": "named", "nodePort": 30080},
            {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 5353, "nodePort": 0},
        ],
        "status": {"loadBalancer": {"ingress": [
            {"ip": "198.51.100.1"}, {"ip": "198.51.100.2", "ipMode": "VIP"},
            {"ip": "198.51.100.3", "ipMode": "Proxy"}, {"hostname": "lb.example"}, {"ip": "2001:db8::2"},
        ]}},
    }));
    assert_eq!(
        service,
        Service {
            name: ObjectName::new("shop", "web"),
            created: 100,
            cluster_ips: ips(&["10.96.0.1", "fd00::1"]),
            external_ips: ips(&["203.0.113.1", "2001:db8::1"]),
            load_balancer_ips: ips(&["198.51.100.1", "198.51.100.2", "2001:db8::2"]),
            source_ranges: Some(vec!["10.0.0.0/8".parse().unwrap(), "2001:db8::/32".parse().unwrap()]),
            internal_policy: TrafficPolicy::Local,
            external_policy: TrafficPolicy::Local,
            affinity: Some(Duration::from_secs(60)),
            health_check_node_port: Some(30100),
            ports: vec![
                ServicePort {
                    name: "http".into(),
                    protocol: Protocol::Tcp,
                    port: 80,
                    node_port: Some(30080)
                },
                ServicePort { name: "dns".into(), protocol: Protocol::Udp, port: 53, node_port: None },
            ],
            max_connections: NonZeroU32::new(1_000),
            annotations: [("retry".into(), "off".into()), ("max-connections".into(), "1000".into())].into(),
        }
    );
}

#[test]
fn what_is_absent_has_the_apiservers_defaults() {
    let service = good(json!({}));
    assert_eq!(service.name, ObjectName::new("default", "web"));
    assert_eq!(service.created, i64::MAX);
    assert_eq!((service.internal_policy, service.external_policy), Default::default());
    assert_eq!((service.affinity, service.health_check_node_port, service.source_ranges), (None, None, None));
    assert_eq!(good(json!({"sessionAffinity": "ClientIP"})).affinity, Some(Duration::from_secs(10_800)));
}

#[test]
fn services_that_do_not_count() {
    let cases = [
        (json!({"type": "ExternalName", "externalName": "example.org"}), Skip::ExternalName),
        (json!({"clusterIP": "None"}), Skip::Headless),
        (json!({"clusterIP": null, "clusterIPs": ["None"]}), Skip::Headless),
        (json!({"clusterIP": ""}), Skip::NoClusterIp),
        (json!({"clusterIP": null}), Skip::NoClusterIp),
        (
            json!({"metadata": {"name": "web", "labels": {"service.kubernetes.io/service-proxy-name": ""}}}),
            Skip::OtherProxy,
        ),
        (json!({"clusterIP": "nonsense"}), Skip::Broken),
        (json!({"metadata": {}}), Skip::Broken),
        (json!({"metadata": {"name": ""}}), Skip::Broken),
    ];
    for (patch, skip) in cases {
        let converted = convert(patch.clone());
        assert_eq!(converted.result, Err(skip), "{patch}");
        assert_eq!(!converted.problems.is_empty(), skip == Skip::Broken, "{patch}");
    }
    assert_eq!(service(&api::Service::default()).result, Err(Skip::NoClusterIp));
}

/// Patch, cluster IPs, fields with problems.
#[test]
fn cluster_ips_one_per_family() {
    let dual = ["10.96.0.1", "fd00::1"];
    let cases: &[(Value, &[&str], &[&str])] = &[
        (json!({}), &["10.96.0.1"], &[]),
        (json!({"clusterIP": "fd00::1"}), &["fd00::1"], &[]),
        (json!({"clusterIP": "010.96.0.01"}), &["10.96.0.1"], &[]),
        (json!({"clusterIP": "::ffff:10.96.0.1"}), &["10.96.0.1"], &[]),
        (json!({"clusterIPs": dual}), &dual, &[]),
        (json!({"clusterIP": null, "clusterIPs": dual}), &dual, &[]),
        (json!({"clusterIPs": dual, "ipFamilies": ["IPv4", "IPv6"]}), &dual, &[]),
        (json!({"ipFamilies": ["IPv4"]}), &["10.96.0.1"], &[]),
        (json!({"clusterIPs": dual, "ipFamilies": ["IPv4"]}), &["10.96.0.1"], &[]),
        (
            json!({"clusterIPs": dual, "ipFamilies": ["IPv4", "IPv4"]}),
            &["10.96.0.1"],
            &["spec.clusterIPs[1]"],
        ),
        (json!({"clusterIPs": dual, "ipFamilies": ["IPv4", "v6"]}), &["10.96.0.1"], &["spec.ipFamilies[1]"]),
        (json!({"clusterIPs": ["10.96.0.1", "fd00::g"]}), &["10.96.0.1"], &["spec.clusterIPs[1]"]),
        (json!({"clusterIPs": ["10.96.0.1", "10.96.0.2"]}), &["10.96.0.1"], &["spec.clusterIPs[1]"]),
        (json!({"clusterIPs": ["10.96.0.2"]}), &["10.96.0.2"], &["spec.clusterIPs[0]"]),
    ];
    for (patch, wanted, problems) in cases {
        let (service, fields) = flawed(patch.clone());
        assert_eq!(service.cluster_ips, ips(wanted), "{patch}");
        assert_eq!(fields, *problems, "{patch}");
    }
}

/// Source ranges as written, what is left of them, fields with problems.
#[test]
fn source_ranges_restrict_unless_every_family_is_open() {
    let field = |i: usize| format!("spec.loadBalancerSourceRanges[{i}]");
    let all = || "spec.loadBalancerSourceRanges".to_owned();
    type Case<'a> = (&'a [&'a str], Option<&'a [&'a str]>, Vec<String>);
    let cases: &[Case<'_>] = &[
        (&[], None, vec![]),
        (&["10.1.2.3/8"], Some(&["10.0.0.0/8"]), vec![]),
        (&["\t10.0.0.0/8 "], Some(&["10.0.0.0/8"]), vec![]),
        (&["nonsense", "10.0.0.0/8"], Some(&["10.0.0.0/8"]), vec![field(0)]),
        (&["10.0.0.1", "10.0.0.0/33"], None, vec![field(0), field(1), all()]),
        (&["10.0.0.0/8", "0.0.0.0/0"], None, vec![]),
        (&["::/0"], None, vec![]),
        (&["0.0.0.0/0", "::/0"], None, vec![]),
        (&["10.0.0.0/8", "::/0"], Some(&["10.0.0.0/8", "::/0"]), vec![]),
        (&["0.0.0.0/0", "2001:db8::/32"], Some(&["0.0.0.0/0", "2001:db8::/32"]), vec![]),
    ];
    for (ranges, wanted, problems) in cases {
        let (service, fields) = flawed(json!({"loadBalancerSourceRanges": ranges}));
        let found = service.source_ranges.map(|r| r.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(found, wanted.map(|w| w.iter().map(ToString::to_string).collect()), "{ranges:?}");
        assert_eq!(fields, *problems, "{ranges:?}");
    }
}

/// Patch, ports left as `name:port/protocol@nodePort`, fields with problems.
#[test]
fn ports() {
    let cases: &[(Value, &[&str], &[&str])] = &[
        (json!(null), &[], &["spec.ports"]),
        (json!([]), &[], &["spec.ports"]),
        (json!([{"port": 0}]), &[], &["spec.ports[0].port"]),
        (json!([{"name": "a"}]), &[], &["spec.ports[0].port"]),
        (json!([{"port": 65536}, {"port": 65535}]), &[":65535/TCP@None"], &["spec.ports[0].port"]),
        (json!([{"port": -80}]), &[], &["spec.ports[0].port"]),
        (
            json!([{"name": "a", "port": 1, "protocol": "SCTP"}, {"name": "b", "port": 1}]),
            &["b:1/TCP@None"],
            &["spec.ports[0].protocol"],
        ),
        (json!([{"port": 1, "protocol": "udp"}]), &[], &["spec.ports[0].protocol"]),
        (json!([{"port": 1, "nodePort": 70000}]), &[":1/TCP@None"], &["spec.ports[0].nodePort"]),
        (
            json!([{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]),
            &[":53/UDP@None", ":53/TCP@None"],
            &[],
        ),
        (json!([{"port": 1}, {"port": 2}]), &[":1/TCP@None"], &["spec.ports[1].name"]),
        (
            json!([{"name": "a", "port": 1}, {"name": "b", "port": 1}]),
            &["a:1/TCP@None"],
            &["spec.ports[1].port"],
        ),
    ];
    for (patch, wanted, problems) in cases {
        let (service, fields) = flawed(json!({"ports": patch}));
        let found: Vec<String> = service
            .ports
            .iter()
            .map(|p| format!("{}:{}/{}@{:?}", p.name, p.port, p.protocol, p.node_port))
            .collect();
        assert_eq!(found, *wanted, "{patch}");
        assert_eq!(fields, *problems, "{patch}");
    }
}

#[test]
fn a_wrong_address_is_left_out_and_the_rest_counts() {
    let (service, fields) = flawed(json!({"externalIPs": ["203.0.113.1/32", "203.0.113.2", "2001:db8::1"]}));
    assert_eq!(service.external_ips, ips(&["203.0.113.2"]));
    assert_eq!(fields, ["spec.externalIPs[0]", "spec.externalIPs[2]"]);

    let ingress =
        json!([{"ip": "nonsense"}, {"ip": "198.51.100.1"}, {"ip": "198.51.100.2", "ipMode": "vip"}]);
    let (service, fields) = flawed(json!({"status": {"loadBalancer": {"ingress": ingress}}}));
    assert_eq!(service.load_balancer_ips, ips(&["198.51.100.1"]));
    assert_eq!(fields, ["status.loadBalancer.ingress[0].ip", "status.loadBalancer.ingress[2].ipMode"]);
}

#[test]
fn a_limit_that_is_no_number_is_none_and_said() {
    let limit = |text: &str| {
        let metadata = json!({"name": "web", "annotations": {"sluice.dev/max-connections": text}});
        let object =
            json!({"metadata": metadata, "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}});
        let converted = service(&serde_json::from_value(object).unwrap());
        let said = converted.problems.iter().map(|problem| problem.field.clone()).collect::<Vec<_>>();
        (converted.result.unwrap().max_connections.map(NonZeroU32::get), said)
    };
    assert_eq!(limit("1"), (Some(1), vec![]));
    assert_eq!(limit(" 500 "), (Some(500), vec![]));
    let said = vec!["metadata.annotations[sluice.dev/max-connections]".to_owned()];
    for junk in ["", "0", "-1", "many", "1e3", "4294967296"] {
        assert_eq!(limit(junk), (None, said.clone()), "{junk:?}");
    }
}

#[test]
fn wrong_policies_and_timeouts_fall_back_to_the_default() {
    let (service, fields) = flawed(json!({
        "internalTrafficPolicy": "local", "externalTrafficPolicy": "Node", "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 0}},
    }));
    assert_eq!((service.internal_policy, service.external_policy), Default::default());
    assert_eq!(service.affinity, Some(DEFAULT_AFFINITY));
    assert_eq!(
        fields,
        [
            "spec.externalTrafficPolicy",
            "spec.internalTrafficPolicy",
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds"
        ]
    );
    let (service, fields) = flawed(json!({"sessionAffinity": "Cookie"}));
    assert_eq!((service.affinity, fields), (None, vec!["spec.sessionAffinity".to_owned()]));
}

#[test]
fn the_health_check_port_is_for_local_load_balancers_only() {
    let with = |kind: &str, policy: &str, port: i32| json!({"type": kind, "externalTrafficPolicy": policy, "healthCheckNodePort": port});
    assert_eq!(good(with("LoadBalancer", "Local", 30100)).health_check_node_port, Some(30100));
    assert_eq!(good(with("LoadBalancer", "Local", 0)).health_check_node_port, None);
    assert_eq!(good(with("LoadBalancer", "Cluster", 30100)).health_check_node_port, None);
    assert_eq!(good(with("NodePort", "Local", 30100)).health_check_node_port, None);
    assert_eq!(flawed(with("LoadBalancer", "Local", 70000)).1, ["spec.healthCheckNodePort"]);
}

/// The maximum number of ports: if each were compared with all before it, the test would not end.
#[test]
fn each_port_number_may_be_there_once_with_either_protocol() {
    let port =
        |n: u32, protocol: &str| json!({"name": format!("{protocol}{n}"), "port": n, "protocol": protocol});
    let mut ports: Vec<Value> = (1..=65_535).flat_map(|n| [port(n, "TCP"), port(n, "UDP")]).collect();
    ports.extend([port(7, "TCP"), json!({"name": "other", "port": 7})]);
    let (service, fields) = flawed(json!({"ports": ports}));
    assert_eq!(service.ports.len(), 2 * 65_535);
    assert_eq!(fields, ["spec.ports[131070].name", "spec.ports[131071].port"]);
}
