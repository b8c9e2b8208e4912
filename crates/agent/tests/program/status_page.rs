//! The status page as HTTP: who may see it, what is answered, and how much of it. How it looks is `browser`'s business.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use serde_json::Value;
use tempfile::TempDir;

use crate::common::{Agent, PATIENCE, address, ask, backend, free_port, service, slice, until};

/// An agent on manifests, and its port of metrics.
fn start(manifests: &str, arguments: &[&str]) -> (TempDir, Agent, SocketAddr) {
    let directory = TempDir::new().unwrap();
    fs::write(directory.path().join("all.yaml"), manifests).unwrap();
    let source = ["--manifests", directory.path().to_str().unwrap(), "--metrics-bind-address", "127.0.0.1:0"];
    let mut agent = Agent::start(&[&source, arguments].concat());
    let metrics = agent.port("serving metrics");
    (directory, agent, metrics)
}

/// Status, head in lower case, and body of an answer to some lines.
fn say(server: SocketAddr, lines: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(server).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "{lines}\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), head.to_lowercase(), body.to_owned())
}

fn get(server: SocketAddr, path: &str) -> (u16, String, String) {
    say(server, &format!("GET {path} HTTP/1.1\r\nhost: {server}"))
}

fn data(server: SocketAddr, query: &str) -> Value {
    let (status, head, body) = get(server, &format!("/status/data?{query}"));
    assert!(status == 200 && head.contains("content-type: application/json"), "{head}{body}");
    serde_json::from_str(&body).unwrap()
}

/// Services without endpoints.
fn many(count: u16) -> String {
    (0..count).fold(String::new(), |mut text, n| {
        let [high, low] = n.to_be_bytes();
        let service = service(&format!("service-{n:05}"), SocketAddr::from(([127, 64, high, low], 80)));
        text.write_str(&service.replace("metadata:\n", "metadata:\n  namespace: many\n")).unwrap();
        text
    })
}

#[test]
fn it_is_looked_at_on_this_machine_under_its_own_names_and_nothing_else() {
    let (_directory, _agent, metrics) = start("", &[]);
    for (path, kind) in [
        ("/", "text/html; charset=utf-8"),
        ("/status/page.css", "text/css; charset=utf-8"),
        ("/status/page.js", "text/javascript; charset=utf-8"),
        ("/status/plots.js", "text/javascript; charset=utf-8"),
        ("/status/icon.svg", "image/svg+xml"),
        ("/status/data", "application/json"),
        ("/?x=1", "text/html; charset=utf-8"),
    ] {
        let (status, head, body) = get(metrics, path);
        assert_eq!(status, 200, "{path}: {head}");
        for line in [
            format!("content-type: {kind}"),
            "x-content-type-options: nosniff".to_owned(),
            "x-frame-options: deny".to_owned(),
            "cache-control: no-store".to_owned(),
            "cross-origin-resource-policy: same-origin".to_owned(),
            "content-security-policy: default-src 'none'; script-src 'self'; style-src 'self'".to_owned(),
            "frame-ancestors 'none'".to_owned(),
        ] {
            assert!(head.contains(&line), "{path}: {line}: {head}");
        }
        assert!(!head.contains("unsafe"), "{head}");
        let head_only = say(metrics, &format!("HEAD {path} HTTP/1.1\r\nhost: localhost"));
        assert_eq!((head_only.0, head_only.2.as_str()), (200, ""), "{path}");
        assert!(!body.is_empty());
    }
    // Nothing of the page is loaded from elsewhere, or would need to be allowed.
    let page = get(metrics, "/").2;
    for inline in ["style=", "onclick", "onerror", "<style", "javascript:", "http:", "https:"] {
        assert!(!page.contains(inline), "{inline}");
    }
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        let (status, head, _) = say(metrics, &format!("{method} / HTTP/1.1\r\nhost: localhost"));
        assert!(status == 405 && head.contains("allow: get, head"), "{method}: {head}");
    }
    for host in ["host: evil.example", "host: localhost.evil.example:10249", "host: localhost\r\nhost: a", ""]
    {
        let lines = format!("GET /status/data HTTP/1.1\r\n{host}");
        let (status, head, body) = say(metrics, lines.trim_end());
        assert!(status == 403 && body.contains("ask for localhost"), "{host}: {head}{body}");
        assert!(head.contains("frame-ancestors"), "{head}");
    }
    let (status, _, body) = get(metrics, "/nothing");
    assert!(status == 404 && body.contains("try / (the status page), /metrics, "), "{body}");
    for path in ["/status/", "/status/x", "/status/../x", "/index.html", "/status"] {
        let (status, _, body) = get(metrics, path);
        assert!(status == 404 && body.contains("try /"), "{path}: {body}");
    }
    for query in ["page=-1", "page=x", "sort=luck", "page=99999999999999999999999"] {
        let (status, _, body) = get(metrics, &format!("/status/data?{query}"));
        assert!(status == 400 && body.contains(&query[..4]), "{query}: {body}");
    }
}

#[test]
fn it_can_be_off() {
    let (_directory, _agent, metrics) = start("", &["--status-page", "off"]);
    for path in ["/", "/status/data", "/status/page.js"] {
        let (status, _, body) = get(metrics, path);
        assert!(status == 404 && body.contains("try /metrics, "), "{path}: {body}");
    }
    assert_eq!(get(metrics, "/metrics").0, 200);
}

#[test]
fn it_says_what_is_wrong_and_why() {
    let (web, both) = (free_port(address()), free_port(address()));
    let taken = std::net::TcpListener::bind((address(), 0)).unwrap();
    let at = taken.local_addr().unwrap();
    let manifests = [
        service("web", web),
        slice("web", &[backend(1), backend(2)]),
        service("none", free_port(address())),
        service("taken", at) + &slice("taken", &[backend(1)]),
        service("older", both) + &slice("older", &[backend(1)]),
        service("younger", both) + &slice("younger", &[backend(2)]),
    ];
    let (_directory, _agent, metrics) = start(&manifests.concat(), &["--hostname-override", "here"]);
    (0..3).for_each(|_| assert!(ask(web).is_ok()));
    let mut said = Value::Null;
    until("traffic is counted", || {
        said = data(metrics, "filter=default/web");
        said["traffic"]["total"] == 3 && said["services"]["items"][0]["traffic"]["bytesFromEndpoint"] == 3
    });
    assert_eq!((&said["status"]["node"], &said["status"]["isHealthy"]), (&"here".into(), &true.into()));
    let row = &said["services"]["items"][0];
    assert_eq!((&row["ready"], &row["endpoints"]), (&2.into(), &2.into()), "{row}");
    assert_eq!(row["addresses"], serde_json::json!([web.to_string()]));
    assert_eq!((&row["troubles"], &said["services"]["matched"]), (&serde_json::json!([]), &1.into()));

    let troubles = said["troubles"]["items"].as_array().unwrap();
    let what = |service: &str| {
        let of = troubles.iter().find(|trouble| trouble["service"] == service);
        of.unwrap_or_else(|| panic!("{service}: {troubles:?}"))["what"].as_str().unwrap().to_owned()
    };
    assert!(what("default/none").ends_with("clients are refused: no endpoints"), "{troubles:?}");
    let taken = what("default/taken");
    assert!(taken.contains(&format!("cannot listen on {at}/TCP")) && taken.contains("in use"), "{taken}");
    assert!(what("default/younger").contains("belongs to Service default/older"), "{troubles:?}");
    // `none` and `taken` have no endpoint or no socket.
    let only = data(metrics, "troubled=yes");
    let names: Vec<_> =
        only["services"]["items"].as_array().unwrap().iter().map(|row| row["name"].clone()).collect();
    assert_eq!(names, ["none", "taken"]);

    let full = &data(metrics, "namespace=default&name=web&port=&protocol=TCP&family=IPv4")["inFull"];
    assert_eq!(full["endpoints"].as_array().unwrap().len(), 2, "{full}");
    assert_eq!(full["frontends"][0]["inside"]["verdict"], "relay", "{full}");
    assert!(data(metrics, "namespace=default&name=gone")["inFull"].is_null());
}

#[test]
fn of_ten_thousand_services_a_few_are_sent() {
    const COUNT: u16 = 10_000;
    // By name it comes last.
    let taken = std::net::TcpListener::bind((address(), 0)).unwrap();
    let at = taken.local_addr().unwrap();
    let last = service("taken", at) + &slice("taken", &[backend(1)]);
    let manifests = many(COUNT - 1) + &last.replace("metadata:\n", "metadata:\n  namespace: zz\n");
    let (_directory, _agent, metrics) = start(&manifests, &[]);
    let services = |query: &str| data(metrics, query)["services"].clone();
    let (_, _, body) = get(metrics, "/status/data");
    assert!(body.len() < 64_000, "{} bytes", body.len());
    let first = services("");
    assert_eq!(
        (&first["total"], &first["matched"], &first["pages"]),
        (&COUNT.into(), &COUNT.into(), &200.into())
    );
    let rows = first["items"].as_array().unwrap();
    assert_eq!((rows.len(), &rows[0]["name"]), (50, &"service-00000".into()));
    assert_eq!(services("page=1")["items"][0]["name"], "service-00050");
    let last = services("page=100000");
    assert_eq!((&last["page"], &last["items"][49]["name"]), (&199.into(), &"taken".into()));
    for filter in ["SERVICE-07654", "127.64.29.230:80", "many/service-07654"] {
        let found = services(&format!("filter={filter}&page=3"));
        assert_eq!((&found["matched"], &found["items"][0]["name"]), (&1.into(), &"service-07654".into()));
    }
    assert_eq!(services("filter=nothing")["matched"], 0);
    let troubles = data(metrics, "")["troubles"].clone();
    let items = troubles["items"].as_array().unwrap();
    assert_eq!((items.len(), &troubles["count"]), (100, &COUNT.into()));
    assert_eq!(items[0]["service"], "zz/taken", "what is broken comes before what nobody serves");
}
