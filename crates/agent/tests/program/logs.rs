//! What the agent says, and in which form.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::common::{Agent, PATIENCE, address, ask, backend, free_port, get, service, slice, until};

/// What a server says to a PUT.
fn put(server: SocketAddr, path: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(server).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let length = body.len();
    let head = format!("PUT {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {length}");
    write!(stream, "{head}\r\n\r\n{body}").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn records(agent: &mut Agent) -> Vec<Value> {
    let read = |line: &String| serde_json::from_str::<Value>(line).unwrap_or_else(|_| panic!("{line}"));
    agent.heard().iter().map(read).filter(|line| line["msg"] == "connection ended").collect()
}

#[test]
fn every_line_is_json_and_each_connection_is_told_of_when_it_ends() {
    let directory = TempDir::new().unwrap();
    let (served, dead) = (free_port(address()), free_port(address()));
    let (endpoint, nobody) = (backend(7), free_port(address()));
    let manifests = service("web", served) + &slice("web", &[endpoint]) + &service("dead", dead);
    fs::write(directory.path().join("a.yaml"), manifests + &slice("dead", &[nobody])).unwrap();
    let source = directory.path().to_str().unwrap();
    let mut agent =
        Agent::spawn(&["--manifests", source, "--logging-format=json", "--connection-log", "all"]);
    agent.wait_for("\"msg\":\"ready\"");
    assert_eq!(ask(served).unwrap(), 7);
    assert!(ask(dead).is_err());
    agent.wait_for("\"end\":\"no-endpoint\"");
    agent.wait_for("\"end\":\"closed\"");
    agent.signal(Signal::TERM);
    assert!(agent.wait().success());

    let records = records(&mut agent);
    assert_eq!(records.len(), 2, "{records:#?}");
    let of = |name: &str| records.iter().find(|record| record["service"] == name).unwrap();
    let web = of("default/web");
    assert_eq!(web["protocol"], "TCP");
    assert_eq!(web["frontend"], served.to_string());
    assert_eq!(web["endpoint"], endpoint.to_string());
    assert_eq!((&web["bytes_from_client"], &web["bytes_to_client"]), (&0.into(), &1.into()));
    assert!(web["client"].as_str().unwrap().parse::<SocketAddr>().is_ok());
    let seconds = |name: &str| web[name].as_f64().unwrap();
    assert!(0.0 <= seconds("connect_seconds") && seconds("connect_seconds") <= seconds("duration_seconds"));
    assert_eq!(of("default/dead")["endpoint"], Value::Null);
}

#[test]
fn a_flow_is_told_of_with_what_it_carried() {
    let directory = TempDir::new().unwrap();
    let (frontend, endpoint) = (free_port(address()), UdpSocket::bind((address(), 0)).unwrap());
    let udp = |text: String| text.replace("  - port:", "  - protocol: UDP\n    port:");
    let slices = slice("dns", &[endpoint.local_addr().unwrap()]);
    let narrow = free_port(address());
    let limit = "  name: narrow\n  annotations: {sluice.dev/max-connections: \"1\"}\n";
    let second = service("narrow", narrow).replace("  name: narrow\n", limit);
    let slices = slices + &slice("narrow", &[endpoint.local_addr().unwrap()]);
    let slices = slices.replace("- name: \"\"\n", "- name: \"\"\n  protocol: UDP\n");
    fs::write(directory.path().join("a.yaml"), udp(service("dns", frontend) + &second) + &slices).unwrap();
    let source = directory.path().to_str().unwrap();
    let mut agent = Agent::start(&[
        "--manifests",
        source,
        "--connection-log=1/1",
        "--udp-idle-timeout=100ms",
        "--metrics-bind-address=127.0.0.1:0",
    ]);
    let client = UdpSocket::bind((address(), 0)).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.send_to(b"four", frontend).unwrap();
    let (length, flow) = endpoint.recv_from(&mut [0; 10]).unwrap();
    assert_eq!(length, 4);
    endpoint.send_to(b"answer", flow).unwrap();
    assert_eq!(client.recv(&mut [0; 10]).unwrap(), 6);
    let metrics = agent.port("serving metrics");
    let labels = "namespace=\"default\",service=\"dns\",port=\"\",protocol=\"UDP\"";
    // The second Service takes one flow at a time.
    let lost = labels.replace("dns", "narrow");
    for line in [
        format!("sluice_service_datagrams_from_clients_total{{{labels}}} 1\n"),
        format!("sluice_service_datagrams_to_clients_total{{{labels}}} 1\n"),
        format!("sluice_service_datagrams_lost_total{{{labels},reason=\"full\"}} 0\n"),
    ] {
        until(&line, || get(metrics, "/metrics").contains(&line));
    }
    let refused = format!("sluice_service_datagrams_lost_total{{{lost},reason=\"service-limit\"}} ");
    // A flow is short here: both are sent until they meet.
    until("one of two flows is refused", || {
        client.send_to(b"first", narrow).unwrap();
        UdpSocket::bind((address(), 0)).unwrap().send_to(b"lost", narrow).unwrap();
        let metrics = get(metrics, "/metrics");
        metrics.split_once(&refused).is_some_and(|(_, count)| !count.starts_with('0'))
    });
    // The flows of the two end in either order: workers do not wait for each other.
    let line = agent.wait_for("service=default/dns");
    for part in [
        "connection ended",
        &format!("client={}", client.local_addr().unwrap()),
        "bytes_from_client=4",
        "bytes_to_client=6",
        "end=\"idle\"",
    ] {
        assert!(line.contains(part), "{part} is not in {line}");
    }
}

#[test]
fn a_filter_that_says_nothing_or_nothing_that_can_be_used_leaves_the_default() {
    for (filter, complaints) in [("", 0), ("warning", 1), ("info,sluice=loud", 1), ("info", 0)] {
        let directory = TempDir::new().unwrap();
        let source = directory.path().to_str().unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_sluice"))
            .args(["agent", "--capture=bind", "--metrics-bind-address=0", "--manifests", source])
            .env("RUST_LOG", filter)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let mut lines = Vec::new();
        // Ends where it is silent, too: with the process.
        let watchdog = std::thread::spawn({
            let id = Pid::from_child(&child);
            move || {
                std::thread::park_timeout(PATIENCE);
                let _ = kill_process(id, Signal::TERM);
            }
        });
        for line in stderr.lines().map_while(Result::ok) {
            if line.contains("ready frontends") {
                watchdog.thread().unpark();
            }
            lines.push(line);
        }
        child.wait().unwrap();
        watchdog.join().unwrap();
        let count = |text: &str| lines.iter().filter(|line| line.contains(text)).count();
        assert_eq!(
            (count("is not used"), count("ready frontends")),
            (complaints, 1),
            "{filter:?}: {lines:#?}"
        );
    }
}

#[test]
fn the_log_level_is_changed_at_run_time_where_profiling_is_allowed() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("a.yaml");
    let frontend = free_port(address());
    fs::write(&file, service("web", frontend) + &slice("web", &[backend(1)])).unwrap();
    let source = file.to_str().unwrap();
    let mut agent =
        Agent::start(&["--manifests", source, "--metrics-bind-address=127.0.0.1:0", "--profiling"]);
    let metrics = agent.port("serving metrics");
    assert!(put(metrics, "/debug/flags/v", "much").starts_with("HTTP/1.1 400"));
    assert!(put(metrics, "/debug/flags/v", &"1".repeat(100_000)).starts_with("HTTP/1.1 400"));
    assert!(put(metrics, "/metrics", "4").starts_with("HTTP/1.1 405"));
    let answer = put(metrics, "/debug/flags/v", "4");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("verbosity to 4"), "{answer}");
    agent.wait_for("verbosity=4");
    fs::remove_file(&file).unwrap();
    assert!(agent.wait_for("DEBUG").contains("closed"));

    fs::write(&file, service("web", frontend)).unwrap();
    let mut without = Agent::start(&["--manifests", source, "--metrics-bind-address=127.0.0.1:0"]);
    let metrics = without.port("serving metrics");
    let answer = put(metrics, "/debug/flags/v", "4");
    assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("--profiling"), "{answer}");
}

#[test]
fn colours_are_for_terminals_whose_user_wants_them() {
    let on_a_terminal = |no_color: Option<&str>| {
        let sluice = format!("{} services --admin-socket /nonexistent/a.sock", env!("CARGO_BIN_EXE_sluice"));
        // script(1) runs it on a terminal of its own.
        let mut command = Command::new("script");
        command.args(["-qec", &sluice, "/dev/null"]).env("SHELL", "/bin/sh").stdin(Stdio::null());
        command.env_remove("NO_COLOR").envs(no_color.map(|value| ("NO_COLOR", value)));
        let output = command.env_remove("RUST_LOG").output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(said.contains("ERROR"), "{said:?}");
        said.contains("\u{1b}[")
    };
    assert_eq!([None, Some(""), Some("1")].map(on_a_terminal), [true, true, false]);
}
