//! What the agent runs with is written as a document that means the same, and of a document what says nothing counts for nothing.

use super::*;

#[test]
fn what_is_written_is_read_as_the_same() {
    let flags = "--capture tproxy --workers 3 --udp-idle-timeout 7 --cluster-cidr 10.0.0.0/8,fd00::/32 --v 4 \
                 --nodeport-addresses 192.0.2.0/24,2001:db8::/32 --masquerade-all --passive-health=false \
                 --kubeconfig a\"b --master http://a --master http://b --healthz-bind-address [::]:7 --oom-score-adj -7";
    for flags in [flags, "--capture tproxy", "--manifests a --capture bind"] {
        let args = parse(flags).unwrap();
        let case = Case::new("");
        write(&args.said.effective, &case.path).unwrap();
        let again = case.parse("").unwrap_or_else(|complaint| panic!("{complaint}"));
        assert_eq!(without_effect(&again), None);
        let text = fs::read_to_string(&case.path).unwrap();
        let (mut one, mut other) = (args.said.effective, again.said.effective);
        for map in [&mut one.flags, &mut other.flags] {
            map.remove("config");
            // Several flags say where these are, and one field.
            map.retain(|flag, _| !["healthz-", "metrics-"].iter().any(|of| flag.starts_with(of)));
            // A list or a text with commas, seconds with or without their unit.
            let normal = |values: &mut Vec<String>| {
                let parts = values.iter().flat_map(|value| value.split(',')).filter(|part| !part.is_empty());
                *values =
                    parts.map(|part| if part == "7" { "7s".to_owned() } else { part.to_owned() }).collect();
            };
            map.values_mut().for_each(normal);
            map.retain(|_, values| !values.is_empty());
        }
        assert_eq!(one, other, "{text}");
    }
}

#[test]
fn the_ports_that_count_are_written_and_read() {
    #[rustfmt::skip]
    let cases = [
        ("--capture tproxy",                           Some("0.0.0.0:10256"), "127.0.0.1:10249"),
        ("--manifests a",                              None,                  "127.0.0.1:10249"),
        ("--healthz-port 7 --metrics-port 8",          Some("0.0.0.0:7"),     "127.0.0.1:10249"),
        ("--capture bind --metrics-bind-address ::1 --metrics-port 8", None,                 "[::1]:8"),
        ("--capture tproxy --healthz-port 0 --metrics-port 0", Some("0"),     "0"),
        ("--capture tproxy --healthz-bind-address= --metrics-bind-address=", Some("0"), "0"),
        ("--capture bind --healthz-bind-address 192.0.2.1",           Some("192.0.2.1:10256"), "127.0.0.1:10249"),
    ];
    for (flags, healthz, metrics) in cases {
        let args = parse(flags).unwrap();
        let case = Case::new("");
        write(&args.said.effective, &case.path).unwrap();
        let text = fs::read_to_string(&case.path).unwrap();
        let configz: serde_json::Value = serde_json::from_str(&configz(&args.said.effective)).unwrap();
        let shown = |field: &str| configz["kubeproxy.config.k8s.io"][field].as_str();
        assert_eq!(
            (shown("healthzBindAddress"), shown("metricsBindAddress")),
            (healthz, Some(metrics)),
            "{flags}"
        );
        let again = case.parse("").unwrap_or_else(|complaint| panic!("{text}: {complaint}"));
        assert_eq!(again.said.effective.ports.metrics, args.said.effective.ports.metrics, "{text}");
        if healthz.is_some() {
            assert_eq!(again.said.effective.ports, args.said.effective.ports, "{text}");
        }
    }
}

#[test]
fn of_text_only_the_empty_one_is_nothing() {
    let args = with(
        &format!("{HEAD}healthzBindAddress: \"0\"\nmetricsBindAddress: \"0\"\nhostnameOverride: \"0\"\n"),
        "",
    );
    assert_eq!((args.ports.healthz(args.capture.mode()), args.ports.metrics()), (None, None));
    assert_eq!(value(&args, "hostname-override"), ["0"]);
    let args = with(&format!("{HEAD}hostnameOverride: \"false\"\n"), "");
    assert_eq!(value(&args, "hostname-override"), ["false"]);
    let args = with(&format!("{HEAD}healthzBindAddress: ''\nhostnameOverride: ''\noomScoreAdj: 0\n"), "");
    assert!(args.ports.healthz(args.capture.mode()).is_some());
    assert!(value(&args, "hostname-override").is_empty() && without_effect(&args).is_none());
}
