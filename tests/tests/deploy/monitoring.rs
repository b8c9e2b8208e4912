//! Alerts and the dashboard. That each of their metrics exists is tested where an agent runs.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use crate::manifests::{one, repository, with_components};

/// The rules, as Prometheus itself reads them.
fn rules() -> Value {
    one(&with_components("managed", &["monitoring"]), "PrometheusRule")["spec"].clone()
}

#[test]
fn each_alert_says_where_it_is_explained_and_is() {
    let alerts = fs::read_to_string(repository().join("docs/alerts.md")).unwrap();
    let rules = rules();
    let named: BTreeSet<&str> = rules["groups"][0]["rules"]
        .as_array()
        .unwrap()
        .iter()
        .map(|rule| rule["alert"].as_str().unwrap())
        .collect();
    let explained: BTreeSet<&str> = alerts.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    assert_eq!(named, explained);
    for rule in rules["groups"][0]["rules"].as_array().unwrap() {
        let (url, name) =
            (rule["annotations"]["runbook_url"].as_str().unwrap(), rule["alert"].as_str().unwrap());
        assert!(url.ends_with(&format!("docs/alerts.md#{}", name.to_lowercase())), "{url}");
    }
}

#[test]
#[ignore = "needs kubectl 1.21 or newer: .ci/manifests runs this"]
fn what_is_scraped_is_listened_on() {
    let objects = with_components("managed", &["monitoring"]);
    let port = &one(&objects, "Service")["spec"]["ports"][0];
    let daemonset = one(&objects, "DaemonSet");
    let arguments = daemonset["spec"]["template"]["spec"]["containers"][0]["args"].as_array().unwrap();
    let flag = format!("--metrics-bind-address=0.0.0.0:{}", port["targetPort"]);
    assert!(arguments.contains(&flag.as_str().into()), "{flag}: {arguments:?}");
    assert_eq!(one(&objects, "ServiceMonitor")["spec"]["endpoints"][0]["port"], port["name"]);
    let labels = |object: &Value| object["metadata"]["labels"].clone();
    let selector = |object: &Value| object["spec"]["selector"]["matchLabels"].clone();
    assert_eq!(selector(one(&objects, "ServiceMonitor")), labels(one(&objects, "Service")));
    assert_eq!(one(&objects, "Service")["spec"]["selector"], selector(daemonset));
}

#[test]
fn panels_of_the_dashboard_are_apart_and_have_queries() {
    let objects = with_components("managed", &["monitoring"]);
    let text = one(&objects, "ConfigMap")["data"]["sluice.json"].as_str().unwrap();
    let dashboard: Value = serde_json::from_str(text).unwrap();
    let (mut ids, mut cells) = (BTreeSet::new(), BTreeSet::new());
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = &panel["title"];
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}");
        let place = |name: &str| panel["gridPos"][name].as_u64().unwrap();
        assert!(place("x") + place("w") <= 24, "{title}");
        for y in place("y")..place("y") + place("h") {
            for x in place("x")..place("x") + place("w") {
                assert!(cells.insert((x, y)), "{title} lies on another one");
            }
        }
        let queries = panel["targets"].as_array().map_or(0, Vec::len);
        assert_eq!(queries == 0, panel["type"] == "row", "{title}");
    }
}

#[test]
#[ignore = "needs promtool: .ci/monitoring gets it and runs this"]
fn prometheus_understands_the_rules_and_they_fire_when_they_should() {
    let promtool = std::env::var_os("PROMTOOL").unwrap_or_else(|| "promtool".into());
    let directory = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str], name: &str, text: &Value| {
        let file = directory.path().join(name);
        fs::write(&file, text.to_string()).unwrap();
        let output = Command::new(&promtool).args(arguments).arg(&file).output().unwrap();
        (
            output.status.success(),
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)),
        )
    };
    let rules = rules();
    let (is_good, said) = run(&["check", "rules"], "rules.json", &rules);
    assert!(is_good, "{said}");
    let number = rules["groups"][0]["rules"].as_array().unwrap().len();
    assert!(said.contains(&format!("{number} rules found")), "{said}");

    let series = |name: &str, values: &str| json!({ "series": format!("{name}{{job=\"sluice\",node=\"n\"}}"), "values": values });
    let bucket = |le: &str, values: &str| {
        let name = "kubeproxy_network_programming_duration_seconds_bucket";
        json!({ "series": format!("{name}{{job=\"sluice\",node=\"n\",le=\"{le}\"}}"), "values": values })
    };
    // Name, what is seen each minute, and whether there is an alert after 20 minutes.
    let cases = [
        ("SluiceDown", vec![series("up", "0x20")], true),
        ("SluiceDown", vec![series("up", "1x20")], false),
        ("SluiceBridgeNetfilter", vec![series("sluice_bridge_netfilter", "1x20")], true),
        ("SluiceBridgeNetfilter", vec![series("sluice_bridge_netfilter", "0x20")], false),
        ("SluiceCheckProblems", vec![series("sluice_check_problems", "1x20")], true),
        ("SluiceCheckProblems", vec![series("sluice_check_problems", "0x20")], false),
        ("SluiceNotSynced", vec![series("sluice_apiserver_synced", "0x20")], true),
        ("SluiceApiserverSilent", vec![series("sluice_apiserver_last_contact_seconds", "0+60x20")], true),
        ("SluiceApiserverSilent", vec![series("sluice_apiserver_last_contact_seconds", "30x20")], false),
        ("SluiceNftablesFailing", vec![series("sluice_nftables_failures_total", "0+1x20")], true),
        ("SluiceNftablesFailing", vec![series("sluice_nftables_failures_total", "7x20")], false),
        ("SluiceHostFlowsFull", vec![series("sluice_nftables_host_flows_full_total", "0+1x20")], true),
        ("SluiceHostFlowsFull", vec![series("sluice_nftables_host_flows_full_total", "7x20")], false),
        ("SluiceNodeFlowsFull", vec![series("sluice_nftables_node_flows_full_total", "0+1x20")], true),
        (
            "SluiceEndpointsLate",
            vec![bucket("30.0", "0+1x20"), bucket("60.0", "0+9x20"), bucket("+Inf", "0+9x20")],
            true,
        ),
        (
            "SluiceEndpointsLate",
            vec![bucket("30.0", "0+9x20"), bucket("60.0", "0+9x20"), bucket("+Inf", "0+9x20")],
            false,
        ),
        (
            "SluiceEndpointsFail",
            vec![
                series("sluice_tcp_all_endpoints_failed_total", "0+10x20"),
                series("sluice_tcp_accepted_total", "0+100x20"),
            ],
            true,
        ),
        (
            "SluiceEndpointsFail",
            vec![
                series("sluice_tcp_all_endpoints_failed_total", "0+1x20"),
                series("sluice_tcp_accepted_total", "0+100x20"),
            ],
            false,
        ),
    ];
    let tests = cases.map(|(name, input, fires)| {
        // With nothing but the name: labels and texts are not what this is about.
        let expression =
            format!("count(ALERTS{{alertname=\"{name}\",alertstate=\"firing\"}}) by (node) or vector(0)");
        let wanted = if fires {
            json!([{ "labels": "{node=\"n\"}", "value": 1 }, { "labels": "{}", "value": 0 }])
        } else {
            json!([{ "labels": "{}", "value": 0 }])
        };
        json!({
            "interval": "1m", "name": name, "input_series": input,
            "promql_expr_test": [{ "expr": expression, "eval_time": "20m", "exp_samples": wanted }],
        })
    });
    let file = json!({ "rule_files": ["rules.json"], "evaluation_interval": "1m", "tests": tests });
    let (is_good, said) = run(&["test", "rules"], "tests.json", &file);
    assert!(is_good, "{said}");
}
