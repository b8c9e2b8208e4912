use sluice_model::{Object, ObjectName};

use super::*;
use crate::manifests::{Severity, parse};

/// Files in memory.
#[derive(Default)]
struct Files(State);

/// The results of a step: changes as `+web 10.96.0.1 [80]` and `-web`, reports without their advice.
#[derive(Debug, Default, PartialEq)]
struct Step {
    changes: Vec<String>,
    errors: Vec<String>,
    infos: usize,
}

fn key(name: &str) -> FileKey {
    FileKey { root: 0, path: Path::new(name).into() }
}

impl Files {
    fn put(&mut self, name: &str, text: &str) {
        let key = key(name);
        self.0.update(&key, parse::parse(&key.path, text.as_bytes()));
    }

    fn write(&mut self, name: &str, text: &str) -> Step {
        self.put(name, text);
        self.step()
    }

    fn remove(&mut self, name: &str) -> Step {
        self.0.remove(&key(name));
        self.step()
    }

    fn step(&mut self) -> Step {
        let batch = self.0.take();
        let changes = batch.changes.iter().map(|change| match change {
            Change::Apply(Object::Service(service)) => {
                let ports: Vec<u16> = service.ports.iter().map(|port| port.port).collect();
                format!("+{} {} {ports:?}", service.name.name, service.cluster_ips[0])
            }
            Change::Apply(Object::EndpointSlice(slice)) => {
                format!("+{} {}", slice.name.name, slice.endpoints.len())
            }
            Change::Apply(Object::Node(node)) => format!("+{}", node.name),
            Change::Apply(Object::ServiceCidr(cidr)) => format!("+{}", cidr.name),
            Change::Apply(object @ (Object::Pod(_) | Object::Namespace(_))) => {
                unreachable!("files have none: {object:?}")
            }
            Change::Delete(
                ObjectRef::Node(name) | ObjectRef::ServiceCidr(name) | ObjectRef::Namespace(name),
            ) => {
                format!("-{name}")
            }
            Change::Delete(
                ObjectRef::Service(name) | ObjectRef::EndpointSlice(name) | ObjectRef::Pod(name),
            ) => {
                format!("-{}", name.name)
            }
        });
        let changes = changes.collect();
        let (infos, errors): (Vec<_>, Vec<_>) =
            batch.reports.into_iter().partition(|report| report.severity == Severity::Info);
        assert!(infos.iter().all(|report| report.what == "good again"));
        Step { changes, errors: errors.iter().map(ToString::to_string).collect(), infos: infos.len() }
    }
}

/// A Service document, one port for each number.
fn service(name: &str, ip: &str, ports: &[i32]) -> String {
    let ports: Vec<String> = ports.iter().map(|port| format!("{{name: p{port}, port: {port}}}")).collect();
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  clusterIP: {ip}\n  ports: [{}]\n",
        ports.join(", ")
    )
}

fn a() -> String {
    service("a", "10.96.0.1", &[80])
}

fn b() -> String {
    service("b", "10.96.0.2", &[80])
}

fn changes(changes: &[&str]) -> Step {
    Step { changes: changes.iter().map(ToString::to_string).collect(), ..Step::default() }
}

/// Asserts changes and the parts of the reports, in order.
#[track_caller]
fn assert_step(step: &Step, changes: &[&str], errors: &[&str]) {
    assert_eq!(step.changes, changes, "{step:#?}");
    assert_eq!(step.errors.len(), errors.len(), "{step:#?}");
    for (error, part) in step.errors.iter().zip(errors) {
        assert!(error.contains(part), "{step:#?} has no {part:?}");
    }
}

#[test]
fn the_first_load_takes_what_is_valid_and_reports_the_rest() {
    let mut files = Files::default();
    let flawed = service("c", "10.96.0.3", &[80, 70000]);
    let no_ip = "---\napiVersion: v1\nkind: Service\nmetadata: {name: d}\nspec: {ports: [{port: 1}]}\n";
    let other = "---\napiVersion: apps/v1\nkind: Deployment\n";
    let no_name = "---\napiVersion: v1\nkind: Service\nspec: {clusterIP: 10.96.0.9, ports: [{port: 1}]}\n";
    let text = [&a(), "---\nkind: [\n", &flawed, no_ip, other, no_name, &b()].concat();
    assert_step(
        &files.write("f.yaml", &text),
        &["+c 10.96.0.3 [80]", "+b 10.96.0.2 [80]", "+a 10.96.0.1 [80]"],
        &[
            "document 2 (line 9)",
            "f.yaml: document 3 (line 11): Service default/c: spec.ports[1].port: 70000 is not a port: write a",
            "document 4 (line 18): Service default/d: spec.clusterIP: missing: nothing to listen on: write the",
            "metadata.name: missing",
        ],
    );
}

#[test]
fn a_sound_file_updates_adds_and_removes() {
    let mut files = Files::default();
    assert_eq!(files.write("f.yaml", &(a() + &b())), changes(&["+b 10.96.0.2 [80]", "+a 10.96.0.1 [80]"]));
    assert_eq!(files.write("f.yaml", &(b() + &a())), changes(&[]));
    let text = service("a", "10.96.0.7", &[80]) + &service("c", "10.96.0.3", &[1]);
    assert_eq!(files.write("f.yaml", &text), changes(&["-b", "+c 10.96.0.3 [1]", "+a 10.96.0.7 [80]"]));
    assert_eq!(files.remove("f.yaml"), changes(&["-c", "-a"]));
}

/// All ways to make a file with the Services a and b unsound while a is updated.
#[test]
fn an_unsound_file_takes_nothing_away_and_updates_what_is_good() {
    let new_a = service("a", "10.96.0.7", &[80]);
    let doc = |text: &str| format!("---\napiVersion: v1\nkind: Service\nmetadata: {{name: {text}\n");
    let cases = [
        ("syntax", "---\nkind: [\n".to_owned()),
        ("type", doc("b}\nspec: {ports: 5}")),
        ("another document's type", doc("x}\nspec: {ports: 5}")),
        ("wrong element", service("b", "10.96.0.2", &[70000])),
        ("wrong element of another", service("x", "10.96.0.2", &[70000])),
        ("no cluster IP", doc("b}")),
        ("a name cut short, no cluster IP", doc("x}")),
        ("no name", doc("}\nspec: {clusterIP: 10.96.0.2, ports: [{port: 1}]}")),
        ("twice", new_a.clone()),
        ("a kind that is none", b().replace("Service", "Servce")),
        ("wrong apiVersion", "---\napiVersion: v2\nkind: Service\n".to_owned()),
    ];
    for (name, text) in cases {
        let mut files = Files::default();
        files.write("f.yaml", &(a() + &b()));
        let step = files.write("f.yaml", &(new_a.clone() + &text));
        assert!(step.changes.iter().any(|change| change == "+a 10.96.0.7 [80]"), "{name}: {step:#?}");
        assert!(!step.changes.iter().any(|change| change.contains(['-', 'b'])), "{name}: {step:#?}");
        assert!(
            step.errors.iter().any(|e| e.contains("Service default/b: kept as they were")),
            "{name}: {step:#?}"
        );
        assert_eq!(files.write("f.yaml", &(new_a.clone() + &text)).errors, [""; 0], "{name}: said once");
        let step = files.write("f.yaml", &new_a);
        assert_eq!((step.changes.contains(&"-b".to_owned()), step.infos), (true, 1), "{name}: {step:#?}");
        assert_eq!(step.errors, [""; 0], "{name}");
    }
}

#[test]
fn an_empty_file_keeps_what_it_held() {
    for text in ["", " \n\t\n", "# nothing\n---\n"] {
        let mut files = Files::default();
        assert_eq!(files.write("f.yaml", text), Step::default(), "empty from the start is fine");
        files.write("f.yaml", &a());
        assert_step(
            &files.write("f.yaml", text),
            &[],
            &["empty, and held objects before: delete the file", "kept"],
        );
        assert_eq!(files.remove("f.yaml"), changes(&["-a"]));
    }
}

#[test]
fn a_file_of_other_kinds_removes_what_it_held() {
    let mut files = Files::default();
    files.write("f.yaml", &a());
    assert_eq!(files.write("f.yaml", "apiVersion: apps/v1\nkind: Deployment\n"), changes(&["-a"]));
}

#[test]
fn a_service_that_becomes_headless_or_external_goes() {
    for spec in ["{clusterIP: None}", "{type: ExternalName, externalName: x}"] {
        let mut files = Files::default();
        files.write("f.yaml", &(a() + &b()));
        let text = format!("apiVersion: v1\nkind: Service\nmetadata: {{name: b}}\nspec: {spec}\n");
        assert_eq!(files.write("f.yaml", &(a() + "---\n" + &text)), changes(&["-b"]));
    }
}

#[test]
fn a_flaw_from_the_start_does_not_hold_the_file_back() {
    let mut files = Files::default();
    let flawed = |ip: &str| service("c", ip, &[80, 70000]);
    let no_ip = "---\napiVersion: v1\nkind: Service\nmetadata: {name: d}\n";
    files.write("f.yaml", &(a() + &b() + &flawed("10.96.0.3") + no_ip));
    let step = files.write("f.yaml", &(a() + &flawed("10.96.0.4") + no_ip));
    assert_eq!(step, changes(&["-b", "+c 10.96.0.4 [80]"]));
    let step = files.write("f.yaml", &(a() + &service("c", "10.96.0.4", &[80, 81])));
    assert_eq!(step, Step { infos: 1, ..changes(&["+c 10.96.0.4 [80, 81]"]) });
    assert_step(&files.write("f.yaml", &(a() + &flawed("10.96.0.5"))), &[], &["70000", "kept as they were"]);
}

#[test]
fn a_slice_without_a_list_of_endpoints_keeps_them() {
    let slice = |rest: &str| {
        format!(
            "addressType: IPv4\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: s, \
             labels: {{kubernetes.io/service-name: a}}}}\nports: [{{name: '', port: 80}}]\n{rest}\n"
        )
    };
    let mut files = Files::default();
    assert_eq!(files.write("f.yaml", &slice("endpoints: [{addresses: [10.0.0.1]}]")), changes(&["+s 1"]));
    assert_step(
        &files.write("f.yaml", &slice("")),
        &[],
        &["endpoints: missing: write `endpoints: []`", "kept"],
    );
    assert_step(&files.write("f.yaml", &slice("endpoints:")), &[], &[]);
    assert_eq!(files.write("f.yaml", &slice("endpoints: []")), Step { infos: 1, ..changes(&["+s 0"]) });
}

#[test]
fn a_file_that_cannot_be_read_keeps_what_it_gave() {
    let mut files = Files::default();
    files.write("f.yaml", &a());
    files.0.unreadable(&key("f.yaml"), "permission denied", "make it readable");
    assert_step(&files.step(), &[], &["permission denied: make it readable", "kept as they were"]);
    files.0.unreadable(&key("f.yaml"), "permission denied", "make it readable");
    assert_eq!(files.step(), Step::default());
    assert_eq!(files.write("f.yaml", &a()), Step { infos: 1, ..Step::default() });
}

#[test]
fn bytes_that_are_not_text_keep_what_was_there() {
    let mut files = Files::default();
    files.write("f.yaml", &a());
    let key = key("f.yaml");
    files.0.update(&key, parse::parse(&key.path, b"\xff\xfea\0"));
    assert_step(&files.step(), &[], &["not UTF-8 from byte 0 on: save the file as UTF-8", "kept"]);
}

#[test]
fn of_the_same_object_in_two_files_the_first_counts() {
    let mut files = Files::default();
    files.put("2.yaml", &(service("a", "10.96.0.7", &[80]) + &b()));
    files.put("1.yaml", &a());
    let twice = "2.yaml: Service default/a: it is in 1.yaml, too, and that one counts: delete one";
    assert_step(&files.step(), &["+b 10.96.0.2 [80]", "+a 10.96.0.1 [80]"], &[twice]);
    assert_eq!(files.write("2.yaml", &(service("a", "10.96.0.8", &[80]) + &b())), Step::default());
    assert_eq!(files.remove("1.yaml"), Step { infos: 1, ..changes(&["+a 10.96.0.8 [80]"]) });
    assert_step(&files.write("1.yaml", &a()), &["+a 10.96.0.1 [80]"], &[twice]);
    assert_eq!(files.remove("2.yaml"), changes(&["-b"]));
}

#[test]
fn an_object_that_moves_between_files_is_never_deleted() {
    let mut files = Files::default();
    files.write("1.yaml", &(a() + &b()));
    files.put("1.yaml", &a());
    files.put("2.yaml", &b());
    assert_eq!(files.step(), changes(&["+b 10.96.0.2 [80]"]));
}

#[test]
fn in_one_file_the_first_counts() {
    let mut files = Files::default();
    let text = a() + &service("a", "10.96.0.7", &[80]);
    assert_step(
        &files.write("f.yaml", &text),
        &["+a 10.96.0.1 [80]"],
        &["document 2 (line 9): Service default/a: it is in this file twice; the one in document 1 counts"],
    );
}

#[test]
fn reports_about_one_file_are_bounded() {
    let mut files = Files::default();
    let step = files.write("f.yaml", &"---\n[\n".repeat(MAX_REPORTS + 10));
    assert_eq!(step.errors.len(), MAX_REPORTS + 1);
    assert!(step.errors[MAX_REPORTS].contains("and 10 more problems"));
}

#[test]
fn a_report_is_not_repeated_when_lines_move() {
    let mut files = Files::default();
    let flawed = service("c", "10.96.0.3", &[70000]);
    assert_eq!(files.write("f.yaml", &flawed).errors.len(), 1);
    assert_eq!(files.write("f.yaml", &format!("# comment\n\n{flawed}")), Step::default());
}

/// A file as kubectl writes it: keys in alphabetical order, several kinds.
fn kubectl_file() -> String {
    let service = |name: &str, n: u8| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  creationTimestamp: \"2026-01-01T00:00:00Z\"\n  \
             name: {name}\n  namespace: shop\nspec:\n  clusterIP: 10.96.0.{n}\n  clusterIPs:\n  - 10.96.0.{n}\n  \
             ipFamilies:\n  - IPv4\n  ports:\n  - name: http\n    port: 80\n    protocol: TCP\n    targetPort: 8080\n  \
             - name: dns\n    nodePort: 30053\n    port: 53\n    protocol: UDP\n  sessionAffinity: None\n  \
             type: NodePort\nstatus:\n  loadBalancer: {{}}\n"
        )
    };
    let slice = |name: &str, n: u8| {
        format!(
            "addressType: IPv4\napiVersion: discovery.k8s.io/v1\nendpoints:\n- addresses:\n  - 10.0.0.{n}\n  \
             conditions:\n    ready: true\n  nodeName: node-1\n- addresses:\n  - 10.0.1.{n}\n  \
             conditions: {{ready: true}}\nkind: EndpointSlice\nmetadata:\n  labels:\n    \
             kubernetes.io/service-name: {name}\n  name: {name}-x7k2p\n  namespace: shop\nports:\n\
             - name: http\n  port: 8080\n  protocol: TCP\n"
        )
    };
    let list = "apiVersion: v1\nitems:\n- apiVersion: v1\n  kind: Node\n  metadata:\n    name: node-1\n  \
         spec:\n    podCIDRs:\n    - 10.244.0.0/24\nkind: List\n";
    [service("web-10", 1), slice("web-10", 1), list.to_owned(), service("web-1", 2), slice("web-1", 2)]
        .join("---\n")
}

/// Cuts the file at every byte: objects may be removed only if the cut cannot be noticed.
fn cut_everywhere(name: &str, whole: &str) {
    for end in 0..whole.len() {
        let mut files = Files::default();
        let first = files.write(name, whole);
        assert_eq!((first.changes.len(), first.errors.len()), (5, 0), "{first:#?}");
        let cut = &whole[..end];
        let step = files.write(name, cut);
        let gone: Vec<_> = step.changes.iter().filter(|change| change.starts_with('-')).collect();
        if !gone.is_empty() {
            let alone = Files::default().write(name, cut);
            assert_eq!(alone.errors, [""; 0], "cut at {end}, {gone:?} gone:\n{cut}");
            assert_eq!(step.errors, [""; 0], "cut at {end}, {gone:?} gone:\n{cut}");
        }
        files.write(name, whole);
        assert_eq!(files.0.files[&key(name)].held.len(), 5, "cut at {end}");
        let last = files.write(name, whole);
        assert_eq!(last, Step::default(), "cut at {end}");
    }
}

#[test]
fn a_yaml_file_cut_at_any_byte_takes_nothing_away_that_shows() {
    cut_everywhere("f.yaml", &kubectl_file());
}

#[test]
fn a_json_file_cut_at_any_byte_takes_nothing_away_that_shows() {
    let values: Vec<serde_json::Value> =
        kubectl_file().split("---\n").map(|document| serde_saphyr::from_str(document).unwrap()).collect();
    let whole: Vec<String> =
        values.iter().map(|value| serde_json::to_string_pretty(value).unwrap()).collect();
    cut_everywhere("f.json", &whole.join("\n"));
}

#[test]
fn any_byte_may_be_wrong() {
    let whole = kubectl_file();
    for (at, byte) in
        (0..whole.len()).flat_map(|at| b"\0\xff{[\"&*!:-\n\t9".iter().map(move |byte| (at, *byte))).step_by(7)
    {
        let mut bytes = whole.clone().into_bytes();
        bytes[at] = byte;
        let key = key("f.yaml");
        let mut files = Files::default();
        files.write("f.yaml", &whole);
        files.0.update(&key, parse::parse(&key.path, &bytes));
        files.step();
    }
}

#[test]
fn names_are_kept_apart_by_kind_and_namespace() {
    let in_namespace =
        |namespace: &str| a().replace("{name: a}", &format!("{{name: a, namespace: {namespace}}}"));
    let mut files = Files::default();
    let step = files.write("f.yaml", &(a() + &in_namespace("x") + &in_namespace("y")));
    assert_eq!((step.changes.len(), step.errors.len()), (3, 0));
    let name = ObjectName::new("default", "a");
    assert!(files.0.givers.contains_key(&ObjectRef::Service(name)));
}
