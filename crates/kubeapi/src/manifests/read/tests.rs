use super::super::document::split;
use super::*;
use crate::api::OrDefault;

/// Reads a text of one document.
fn read_one(text: &str) -> Contents {
    let documents = split(text, Format::Yaml);
    assert_eq!(documents.len(), 1, "{text}");
    read(&documents[0])
}

fn service(text: &str) -> api::Service {
    let mut contents = read_one(text);
    assert_eq!(contents.flaws, [], "{text}");
    match contents.objects.pop() {
        Some((None, Raw::Service(service))) => *service,
        other => panic!("{text}: {other:?}"),
    }
}

/// Port names and numbers of a Service with this list of ports.
fn ports(ports: &str) -> Vec<(Option<String>, i32)> {
    let service = service(&format!("{HEAD}spec:\n  ports: {ports}\n"));
    let ports = service.spec.ports.unwrap().into_iter();
    ports.map(|OrDefault(port)| (port.name, port.port.unwrap())).collect()
}

fn named(name: &str, port: i32) -> (Option<String>, i32) {
    (Some(name.to_owned()), port)
}

const HEAD: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\n";

#[test]
fn plain_scalars_stay_strings_where_a_string_belongs() {
    // YAML 1.1 reads these as booleans, numbers and a date.
    for name in ["y", "n", "on", "off", "yes", "No", "true", "80", "010", "1e3", "1.50", "0x1F", "2024-01-01"]
    {
        assert_eq!(ports(&format!("[{{name: {name}, port: 80}}]")), [named(name, 80)]);
    }
}

#[test]
fn quoting_does_not_matter() {
    for port in ["80", "\"80\"", "'80'", "0x50", "!!int 80"] {
        assert_eq!(ports(&format!("[{{name: 'a', \"port\": {port}}}]")), [named("a", 80)], "{port}");
    }
}

#[test]
fn usual_spellings_of_the_same_service() {
    let block = format!("{HEAD}spec:\n  clusterIP: 10.96.0.1\n  ports:\n  - name: http\n    port: 80\n");
    let wanted = service(&block);
    let json = r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"web"},
        "spec":{"clusterIP":"10.96.0.1","ports":[{"name":"http","port":80}]}}"#;
    for text in [
        block.replace('\n', "\r\n"),
        format!("\u{feff}{block}"),
        format!("--- # the first\n{block}...\n"),
        format!("%YAML 1.2\n---\n{block}"),
        format!("# comment\n\n{block}\n# end\n"),
        block.replace(": 80", ":\t80\t# tab"),
        block.replace("  - name", "    - name").replace("    port", "      port"),
        block.replace("10.96.0.1", "\"10.96.0.1\""),
        block.replace("10.96.0.1", ">-\n    10.96.0.1"),
        block.replace("name: http", "&n name: &v http"),
        block.replace("metadata: {name: web}", "metadata:\n  creationTimestamp: null\n  name: web"),
        format!("{block}status:\n  loadBalancer: {{}}\nunknown: [1]\n").replace("status", "other"),
        "{apiVersion: v1, kind: Service, metadata: {name: web}, \
          spec: {clusterIP: 10.96.0.1, ports: [{name: http, port: 80,},],},}"
            .to_owned(),
        json.to_owned(),
        format!("--- {json}\n"),
        json.replace("    ", "\t"),
    ] {
        assert_eq!(service(&text), wanted, "{text:?}");
    }
}

#[test]
fn anchors_and_merge_keys() {
    let text = "\n  - &p {name: a, port: 80, protocol: UDP}\n  - <<: *p\n    name: b\n  - *p";
    assert_eq!(ports(text), [named("a", 80), named("b", 80), named("a", 80)]);
}

/// Text, and what has to be in `item line field | what | mend`.
#[test]
fn flaws_say_where_what_and_how_to_mend() {
    let spec = |spec: &str| format!("{HEAD}spec:\n{spec}\n");
    let kind =
        |version: &str, kind: &str| format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: x}}\n");
    let cases: &[(String, &[&str])] = &[
        (
            spec("  ports:\n  - port: http"),
            &["Some(6) spec.ports[0].port |", "i32", "kubectl explain service"],
        ),
        (spec("  ports:\n  - port: 99999999999"), &["Some(6) spec.ports[0].port |"]),
        (spec("  ports: 80"), &["Some(5) spec.ports |", "sequence"]),
        (spec("  clusterIP: [a]"), &["spec.clusterIP |"]),
        (spec("  clusterIP: a\n  clusterIP: b"), &["Some(6) spec |", "duplicate", "clusterIP"]),
        (spec("\tclusterIP: a"), &["Some(5)", "tabs", "mend the YAML there"]),
        (spec("  ports: ["), &["Some(5) spec.ports |", "unclosed"]),
        (spec("  clusterIP: \"a"), &["Some(5)", "unclosed quote"]),
        (spec("  clusterIP: *x"), &["Some(5)", "unknown"]),
        (spec("  clusterIP: a\0"), &["Some(5)", "unexpected character"]),
        ("hello".to_owned(), &["Some(1)", "mapping"]),
        ("- a".to_owned(), &["Some(1)", "mapping"]),
        ("a: 1".to_owned(), &["kind | missing", "write them"]),
        ("kind: Service".to_owned(), &["apiVersion | missing", "write apiVersion: v1"]),
        (kind("apps/v1", "Service"), &["apiVersion |", "write apiVersion: v1"]),
        (kind("discovery.k8s.io/v1beta1", "EndpointSlice"), &["write apiVersion: discovery.k8s.io/v1"]),
        (kind("v1", "EndpointSlice"), &["write apiVersion: discovery.k8s.io/v1"]),
        (kind("v1beta1", "Node"), &["write apiVersion: v1"]),
        (kind("v1", "service"), &["kind | \"service\" is not a kind", "write Service"]),
        (kind("v1", "Servce"), &["kind | \"Servce\" is not a kind", "write Service"]),
        (kind("v1", "ServicesList"), &["write ServiceList"]),
        (kind("v1", "Sevrice"), &["write Service"]),
        (kind("apps/v1", "Servise"), &["write Service"]),
        (kind("v1", "Gadget"), &["\"Gadget\" is not a kind", "take the document out"]),
        (kind("discovery.k8s.io/v1", "EndpointSlices"), &["write EndpointSlice"]),
        (kind("discovery.k8s.oi/v1", "EndpointSlice"), &["write apiVersion: discovery.k8s.io/v1"]),
        ("kind: Servce".to_owned(), &["write Service"]),
        (kind("v1", "List"), &["items | missing", "items: []"]),
        ("{\"kind\": \"Service\",}".to_owned(), &["apiVersion | missing"]),
    ];
    for (text, parts) in cases {
        let contents = read_one(text);
        assert_eq!(contents.objects.len(), 0, "{text}");
        let [flaw] = &contents.flaws[..] else { panic!("{text}: {:?}", contents.flaws) };
        let Flaw { item, line, field, what, mend } = flaw;
        let flaw = format!("{item:?} {line:?} {} | {what} | {mend}", field.as_deref().unwrap_or_default());
        for part in *parts {
            assert!(flaw.contains(part), "{text}\n{flaw}\nhas no {part:?}");
        }
    }
}

#[test]
fn other_kinds_and_other_peoples_groups_are_passed_over() {
    for text in [
        "apiVersion: apps/v1\nkind: Deployment\nspec: {items: x}\n",
        "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: 5\n",
        "apiVersion: longhorn.io/v1beta2\nkind: Node\n",
        "apiVersion: v1\nkind: Endpoints\n",
        "apiVersion: v1\nkind: PodList\n",
        "apiVersion: v1\nkind: ServiceAccount\n",
        "apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\n",
        "apiVersion: rbac.authorization.k8s.io/v1\nkind: RoleList\n",
        "apiVersion: networking.k8s.io/v1\nkind: Ingress\n",
        "apiVersion: apiregistration.k8s.io/v1\nkind: APIService\n",
        "kind: Kustomization\n",
        "~\n",
        "&a\n",
    ] {
        let contents = read_one(text);
        assert_eq!((contents.objects.len(), contents.flaws), (0, vec![]), "{text}");
    }
}

/// Indexes of the items that were read, and of the broken ones.
fn list(text: &str) -> (Vec<usize>, Vec<usize>) {
    let contents = read_one(text);
    let objects = contents.objects.iter().map(|(item, _)| item.unwrap()).collect();
    (objects, contents.flaws.iter().map(|flaw| flaw.item.unwrap()).collect())
}

#[test]
fn items_of_a_list_fail_by_themselves() {
    let service = "{apiVersion: v1, kind: Service, metadata: {name: a}}";
    let broken = "{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {ports: 5}}";
    let other = "{apiVersion: apps/v1, kind: Deployment, spec: 5}";
    let slice =
        "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: a}, addressType: IPv4}";
    let wrong = "{apiVersion: apps/v1, kind: Service}";
    let nested = "{apiVersion: v1, kind: List, items: []}";
    let items = [service, broken, other, slice, wrong, nested, broken, service].join(", ");
    let text = format!("items: [{items}]\napiVersion: v1\nkind: List\n");
    let (mut objects, mut flaws) = list(&text);
    objects.sort_unstable();
    flaws.sort_unstable();
    assert_eq!((objects, flaws), (vec![0, 3, 7], vec![1, 4, 5, 6]));
    let contents = read_one(&text);
    let flaw = contents.flaws.iter().find(|flaw| flaw.item == Some(1)).unwrap();
    assert_eq!((flaw.field.as_deref(), flaw.line), (Some("spec.ports"), Some(1)));
}

#[test]
fn items_of_a_typed_list_need_not_say_what_they_are() {
    let text = "apiVersion: v1\nkind: ServiceList\nitems:\n- metadata: {name: a}\n- metadata: {name: b}\n";
    assert_eq!(list(text), (vec![0, 1], vec![]));
    let text = "apiVersion: v1\nkind: NodeList\nitems: [{metadata: {name: a}}]\n";
    assert!(matches!(read_one(text).objects[..], [(Some(0), Raw::Node(_))]));
    let text = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSliceList\nitems: [{addressType: IPv4}]\n";
    assert!(matches!(read_one(text).objects[..], [(Some(0), Raw::EndpointSlice(_))]));
    let text = "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nspec: {cidrs: [10.96.0.0/12]}\n";
    assert!(matches!(read_one(text).objects[..], [(None, Raw::ServiceCidr(_))]));
    assert_eq!(list("apiVersion: v1\nkind: List\nitems: [{metadata: {name: a}}]\n"), (vec![], vec![0]));
}

#[test]
fn broken_items_are_looked_for_up_to_a_bound() {
    let items = "- {kind: Service, apiVersion: v1, spec: 5}\n".repeat(MAX_BROKEN_ITEMS + 5);
    let contents = read_one(&format!("apiVersion: v1\nkind: List\nitems:\n{items}"));
    assert_eq!((contents.objects.len(), contents.flaws.len()), (0, MAX_BROKEN_ITEMS + 1));
}

#[test]
fn alias_bombs_and_deep_nesting_are_refused() {
    let level = |name: char, of: char| format!("{name}: &{name} [{}]\n", vec![format!("*{of}"); 9].join(","));
    let mut bomb = "a: &a [1,1,1,1,1,1,1,1,1]\n".to_owned();
    ('b'..='j').zip('a'..).for_each(|(name, of)| bomb += &level(name, of));
    let nested_json = format!("{{\"a\":{}", "[".repeat(1 << 20));
    for text in [format!("{bomb}{HEAD}"), "[".repeat(1 << 20), "- ".repeat(1 << 16), nested_json] {
        let contents = read_one(&text);
        assert_eq!((contents.objects.len(), contents.flaws.len()), (0, 1));
    }
}

#[test]
fn a_list_of_thousands_is_within_the_budget() {
    let item =
        "- metadata: {name: a}\n  spec:\n    clusterIP: 10.96.0.1\n    ports:\n    - {name: a, port: 80}\n";
    let text = format!("apiVersion: v1\nkind: ServiceList\nitems:\n{}", item.repeat(30_000));
    let contents = read_one(&text);
    assert_eq!((contents.objects.len(), contents.flaws), (30_000, vec![]));
}
