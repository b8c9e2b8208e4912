//! `sluice agent` on manifests, as a person runs it: the program, files on disk, signals, and what it says.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;

use rustix::process::Signal;
use tempfile::TempDir;

use crate::common::{Agent, PATIENCE, address, ask, backend, free_port, service, slice, until};

/// A directory with a Service whose only endpoint answers with a byte, and its address.
fn one_service(byte: u8) -> (TempDir, SocketAddr) {
    let directory = TempDir::new().unwrap();
    let frontend = free_port(address());
    let manifest = service("web", frontend) + &slice("web", &[backend(byte)]);
    fs::write(directory.path().join("web.yaml"), manifest).unwrap();
    (directory, frontend)
}

/// An agent on the manifests of a directory, ready.
fn start(directory: &TempDir) -> Agent {
    Agent::start(&["--manifests", directory.path().to_str().unwrap()])
}

#[test]
fn manifests_on_disk_are_served_and_followed() {
    let directory = TempDir::new().unwrap();
    let frontend = free_port(address());
    let (one, two) = (backend(1), backend(2));
    let path = directory.path().join("web.yaml");
    fs::write(&path, service("web", frontend) + &slice("web", &[one])).unwrap();
    let _agent = start(&directory);
    assert_eq!(ask(frontend).unwrap(), 1);

    fs::write(&path, service("web", frontend) + &slice("web", &[two])).unwrap();
    until("the change is served", || ask(frontend).unwrap() == 2);

    fs::remove_file(&path).unwrap();
    until("the deletion is served", || {
        ask(frontend).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    });
}

#[test]
fn a_half_written_file_takes_nothing_down_and_is_named() {
    let directory = TempDir::new().unwrap();
    let frontend = free_port(address());
    let backend = backend(1);
    let path = directory.path().join("web.yaml");
    let text = service("web", frontend) + &slice("web", &[backend]);
    fs::write(&path, &text).unwrap();
    let mut agent = start(&directory);
    // In the middle of a document, in the middle of a word.
    fs::write(&path, &text[..text.find("addressType").unwrap() + 5]).unwrap();
    let line = agent.wait_for("ERROR");
    assert!(line.contains("web.yaml") && line.contains("document 2"), "{line}");
    assert_eq!(ask(frontend).unwrap(), 1);
    fs::write(&path, &text).unwrap();
    agent.wait_for("INFO");
    assert_eq!(ask(frontend).unwrap(), 1);
}

#[test]
fn bad_input_is_named_and_disturbs_nobody_else() {
    let directory = TempDir::new().unwrap();
    let good = free_port(address());
    let looping = free_port(address());
    let backend = backend(1);
    let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
    write("good.yaml", &(service("good", good) + &slice("good", &[backend])));
    write("broken.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: broken\n");
    write("old.yaml", "apiVersion: discovery.k8s.io/v1beta1\nkind: EndpointSlice\nmetadata: {name: old}\n");
    write(
        "portless.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {name: portless}\nspec: {clusterIP: 127.0.0.1}\n",
    );
    write("endpoint.yaml", &slice("endpoint", &[backend]).replace(&backend.ip().to_string(), "127.0.0.300"));
    // The older of two keeps an address; those without a birthday are as young as can be.
    write("second.yaml", &(service("second", good) + &slice("second", &[backend])));
    write("loop.yaml", &(service("loop", looping) + &slice("loop", &[looping])));
    let mut agent = start(&directory);
    for (text, also) in [
        ("broken.yaml", "line"),
        ("old.yaml", "discovery.k8s.io/v1"),
        ("portless", "spec.ports"),
        ("endpoint-0", "127.0.0.300"),
        ("default/second", "default/good"),
        ("default/loop", "itself"),
    ] {
        let line = agent.wait_for(text);
        assert!(line.contains(also), "{line}");
    }
    assert_eq!(ask(good).unwrap(), 1);
    assert_eq!(ask(looping).unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn a_taken_port_is_reported_with_its_mend_and_served_once_it_is_free() {
    let directory = TempDir::new().unwrap();
    let (frontend, other) = (free_port(address()), free_port(address()));
    let backend = backend(1);
    let taken = TcpListener::bind(frontend).unwrap();
    let text = [service("web", frontend), slice("web", &[backend])].concat()
        + &service("other", other)
        + &slice("other", &[backend]);
    fs::write(directory.path().join("web.yaml"), text).unwrap();
    let mut agent = start(&directory);
    let line = agent.wait_for(&frontend.to_string());
    assert!(line.contains("another process listens there"), "{line}");
    assert_eq!(ask(other).unwrap(), 1);
    drop(taken);
    until("the port is served", || ask(frontend).is_ok());
}

#[test]
fn addresses_of_other_machines_are_reported_with_the_mend() {
    let directory = TempDir::new().unwrap();
    let backend = backend(1);
    // TEST-NET-1, RFC 5737: nobody's.
    let elsewhere = SocketAddr::from(([192, 0, 2, 1], 8080));
    let text = service("web", elsewhere) + &slice("web", &[backend]);
    fs::write(directory.path().join("web.yaml"), text).unwrap();
    let mut agent = start(&directory);
    let line = agent.wait_for("192.0.2.1:8080/TCP");
    assert!(line.contains("not one of this machine's"), "{line}");
}

#[test]
fn what_cannot_work_ends_at_once_and_says_why() {
    for (arguments, said) in [
        (&["--manifests", "/nonexistent/manifests"][..], "/nonexistent/manifests"),
        (&["--manifests", "/tmp", "--hostname-override", " "], "--hostname-override"),
        (&["--kubeconfig", "/nonexistent/kubeconfig"], "/nonexistent/kubeconfig"),
        (&["--master", "not a URL"], "not a URL"),
        (&["--kubeconfig", "/dev/null"], "it has no contexts, so it is no kubeconfig: correct the file"),
    ] {
        let mut agent = Agent::spawn(arguments);
        agent.wait_for(said);
        assert_eq!(agent.wait().code(), Some(1));
    }
    let usage =
        Command::new(env!("CARGO_BIN_EXE_sluice")).args(["agent", "--workers", "0"]).output().unwrap();
    assert_eq!(usage.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&usage.stderr).contains("--workers"));
}

#[test]
fn without_descriptors_new_connections_wait_or_are_reset_and_old_ones_go_on() {
    let (directory, frontend) = one_service(7);
    let mut agent = Agent::run(Command::new("bash").args([
        "-c",
        "ulimit -n 48 && exec \"$0\" agent --metrics-bind-address 0 --manifests \"$1\" --workers 1",
        env!("CARGO_BIN_EXE_sluice"),
        directory.path().to_str().unwrap(),
    ]));
    agent.wait_for("ready frontends");
    let mut first = TcpStream::connect(frontend).unwrap();
    first.read_exact(&mut [0]).unwrap();
    for _ in 0..3 {
        // More than there are descriptors for; the kernel takes them all.
        let flood: Vec<TcpStream> = (0..60).map(|_| TcpStream::connect(frontend).unwrap()).collect();
        first.set_nonblocking(true).unwrap();
        assert_eq!(first.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock, "still open");
        drop(flood);
        until("new connections are served again", || ask(frontend).is_ok());
    }
}

#[test]
fn that_descriptors_have_run_out_is_said_with_the_client_that_has_most() {
    let (directory, frontend) = one_service(7);
    let mut agent = Agent::run(Command::new("bash").args([
        "-c",
        "ulimit -n 48 && exec \"$0\" agent --metrics-bind-address 0 --manifests \"$1\" --workers 1 --client-share 100",
        env!("CARGO_BIN_EXE_sluice"),
        directory.path().to_str().unwrap(),
    ]));
    agent.wait_for("ready frontends");
    let _flood: Vec<TcpStream> = (0..60).map(|_| TcpStream::connect(frontend).unwrap()).collect();
    let line = agent.wait_for("file descriptors have run out");
    assert!(line.contains("client=127.0.0.1") && line.contains("its_sessions="), "{line}");
}

#[test]
fn that_a_client_has_its_share_of_sessions_is_said_once_with_the_client() {
    let (directory, frontend) = one_service(7);
    let mut agent = Agent::run(Command::new("bash").args([
        "-c",
        "ulimit -n 48 && exec \"$0\" agent --metrics-bind-address 0 --manifests \"$1\" --workers 1 --client-share 50",
        env!("CARGO_BIN_EXE_sluice"),
        directory.path().to_str().unwrap(),
    ]));
    agent.wait_for("ready frontends");
    let flood: Vec<TcpStream> = (0..30).map(|_| TcpStream::connect(frontend).unwrap()).collect();
    let served = flood.iter().filter(|stream| (&**stream).read_exact(&mut [0]).is_ok()).count();
    assert!((1..flood.len() - 1).contains(&served), "{served}: several are turned away");
    let complaint = "a client has its share of all TCP sessions";
    let line = agent.wait_for(complaint);
    assert!(line.contains("client=127.0.0.1 ") && line.contains("sessions="), "{line}");

    drop(flood);
    agent.signal(Signal::TERM);
    agent.wait_for("stopped");
    let said: Vec<&String> = agent.heard().iter().filter(|line| line.contains(complaint)).collect();
    assert_eq!(said, [&line]);
}

#[test]
fn sigterm_refuses_new_connections_and_lets_old_ones_finish() {
    let (directory, frontend) = one_service(7);
    let mut agent = start(&directory);
    let mut stream = TcpStream::connect(frontend).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    agent.signal(Signal::TERM);
    agent.wait_for("stopping");
    until("new connections are refused", || TcpStream::connect(frontend).is_err());
    let mut byte = [0];
    stream.read_exact(&mut byte).unwrap();
    assert_eq!(byte, [7]);
    assert!(agent.child.try_wait().unwrap().is_none(), "it waits for the open connection");
    drop(stream);
    assert!(agent.wait().success());
}

#[test]
fn a_second_signal_ends_at_once() {
    let (directory, frontend) = one_service(7);
    let mut agent = start(&directory);
    let mut stream = TcpStream::connect(frontend).unwrap();
    stream.read_exact(&mut [0]).unwrap();
    agent.signal(Signal::TERM);
    agent.wait_for("stopping");
    agent.signal(Signal::INT);
    assert_eq!(agent.wait().code(), Some(1));
}

#[test]
fn sighup_is_answered_and_nothing_else_happens() {
    let (directory, frontend) = one_service(7);
    let mut agent = start(&directory);
    let mut open = TcpStream::connect(frontend).unwrap();
    agent.signal(Signal::HUP);
    agent.wait_for("SIGHUP means nothing here");
    assert_eq!(ask(frontend).unwrap(), 7);
    let mut byte = [0];
    open.read_exact(&mut byte).unwrap();
    assert_eq!(byte, [7]);
    // Nor while it waits for the last connections.
    agent.signal(Signal::TERM);
    agent.wait_for("stopping");
    agent.signal(Signal::HUP);
    until("new connections are refused", || TcpStream::connect(frontend).is_err());
    drop(open);
    assert!(agent.wait().success());
}

#[test]
fn metrics_are_served_once_the_agent_that_has_their_address_ends() {
    let (directory, _) = one_service(7);
    let metrics = free_port(address());
    let arguments = [
        "--manifests",
        directory.path().to_str().unwrap(),
        "--metrics-bind-address",
        &metrics.to_string(),
        "--grace-period",
        "0",
    ];
    let mut first = Agent::start(&arguments);
    first.wait_for("serving metrics");
    let mut second = Agent::start(&arguments);
    let line = second.wait_for(&format!("no metrics on {metrics}"));
    assert!(line.contains("WARN") && line.contains("--metrics-bind-address"), "{line}");
    first.signal(Signal::TERM);
    assert!(first.wait().success());
    second.wait_for("serving metrics");
    assert!(get(metrics, "/healthz").starts_with("HTTP/1.1 200"));
}

/// What an address answers to a GET.
fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Listeners may take half of the descriptors that traffic has; that leaves something for everything else.
#[test]
fn with_more_frontends_than_descriptors_those_that_have_some_are_served_and_so_is_everything_else() {
    const FRONTENDS: u16 = 200;
    let directory = TempDir::new().unwrap();
    let (ip, endpoint) = (address(), backend(7));
    let frontend = |number: u16| SocketAddr::from((ip, 20_000 + number));
    let path = |number: u16| directory.path().join(format!("s{number}.yaml"));
    let put = |number: u16| {
        let name = format!("s{number}");
        fs::write(path(number), service(&name, frontend(number)) + &slice(&name, &[endpoint])).unwrap();
    };
    (0..FRONTENDS).for_each(put);
    let mut agent = Agent::run(Command::new("bash").args([
        "-c",
        "ulimit -n 400 && exec \"$0\" agent --metrics-bind-address 127.0.0.1:0 --manifests \"$1\" --workers 1",
        env!("CARGO_BIN_EXE_sluice"),
        directory.path().to_str().unwrap(),
    ]));
    agent.wait_for("ready frontends");
    let line = agent.wait_for("ulimit -n");
    assert!(line.contains("WARN") && line.contains("raise the agent's limit"), "{line}");
    let line = agent.wait_for("serving metrics");
    let metrics: SocketAddr = line.rsplit("address=").next().unwrap().trim().parse().unwrap();
    let served: Vec<u16> = (0..FRONTENDS).filter(|number| ask(frontend(*number)).is_ok()).collect();
    assert_eq!(served.len(), 100, "{served:?}");
    let metrics_of =
        [("frontends", served.len()), ("frontends_failed", usize::from(FRONTENDS) - served.len())];
    for (name, count) in metrics_of {
        let metrics = get(metrics, "/metrics");
        assert!(metrics.contains(&format!("\nsluice_{name} {count}.0\n")), "{metrics}");
    }

    // More than there are descriptors for: some are reset, a few before connect(2) has returned.
    let busy = frontend(served[1]);
    let flood: Vec<TcpStream> = (0..400).filter_map(|_| TcpStream::connect(busy).ok()).collect();
    assert!(get(metrics, "/healthz").starts_with("HTTP/1.1 200"));
    fs::remove_file(path(served[0])).unwrap();
    until("a deletion is served", || TcpStream::connect(frontend(served[0])).is_err());
    let another = |number| !served.contains(&number) && ask(frontend(number)).is_ok();
    drop(flood);
    until("another one has its place", || (0..FRONTENDS).any(another));
    assert_eq!(ask(busy).unwrap(), 7);
}
