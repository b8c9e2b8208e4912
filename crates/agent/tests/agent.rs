//! `sluice agent` as a person runs it: the program, manifests on disk, signals, and what it says.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]
#![expect(clippy::panic, reason = "how a test fails")]

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(20);

/// A loopback address of this test alone.
fn address() -> Ipv4Addr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let [.., high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 128 | high & 63, low, NEXT.fetch_add(1, Ordering::Relaxed))
}

fn free_port(ip: Ipv4Addr) -> SocketAddr {
    TcpListener::bind((ip, 0)).unwrap().local_addr().unwrap()
}

/// A server that answers every connection with one byte, its own.
fn backend(byte: u8) -> SocketAddr {
    let listener = TcpListener::bind((address(), 0)).unwrap();
    let backend = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let _ = stream.write_all(&[byte]);
                // Open until the client closes.
                let _ = stream.read(&mut [0]);
            });
        }
    });
    backend
}

fn service(name: &str, frontend: SocketAddr) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\nspec:\n  clusterIP: {}\n  ports:\n  - port: {}\n---\n",
        frontend.ip(),
        frontend.port()
    )
}

/// One slice, so all endpoints must have the same port.
fn slice(service: &str, endpoints: &[SocketAddr]) -> String {
    let mut text = String::new();
    for (n, endpoint) in endpoints.iter().enumerate() {
        write!(
            text,
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {service}-{n}\n  labels:\n    \
             kubernetes.io/service-name: {service}\naddressType: IPv4\nports:\n- name: \"\"\n  port: {}\n\
             endpoints:\n- addresses:\n  - {}\n---\n",
            endpoint.port(),
            endpoint.ip()
        )
        .unwrap();
    }
    text
}

/// The byte that a connection is answered with.
fn ask(frontend: SocketAddr) -> std::io::Result<u8> {
    let mut stream = TcpStream::connect(frontend)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    Ok(byte[0])
}

/// Waits for a condition.
fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A running agent and what it says.
struct Agent {
    child: Child,
    lines: Receiver<String>,
    heard: Vec<String>,
}

impl Agent {
    /// Starts the agent on manifests and waits until it is ready.
    fn start(manifests: &Path, more: &[&str]) -> Self {
        let mut agent = Self::spawn(&[&["--manifests", manifests.to_str().unwrap()], more].concat());
        agent.wait_for("ready");
        agent
    }

    fn spawn(arguments: &[&str]) -> Self {
        Self::run(Command::new(env!("CARGO_BIN_EXE_sluice")).arg("agent").args(arguments))
    }

    fn run(command: &mut Command) -> Self {
        let mut child = command.env_remove("RUST_LOG").stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            stderr.lines().map_while(Result::ok).all(|line| sender.send(line).is_ok())
        });
        Self { child, lines, heard: Vec::new() }
    }

    /// Waits for a line that contains `text`, which may have come already, and returns it.
    fn wait_for(&mut self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(line) = self.heard.iter().find(|line| line.contains(text)) {
                return line.clone();
            }
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => self.heard.push(line),
                Err(_) => panic!("never said {text:?}; said:\n{}", self.heard.join("\n")),
            }
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        until("the agent ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn manifests_on_disk_are_served_and_followed() {
    let directory = TempDir::new().unwrap();
    let frontend = free_port(address());
    let (one, two) = (backend(1), backend(2));
    let path = directory.path().join("web.yaml");
    fs::write(&path, service("web", frontend) + &slice("web", &[one])).unwrap();
    let _agent = Agent::start(directory.path(), &["--workers", "2"]);
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
    let mut agent = Agent::start(directory.path(), &[]);
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
    write("second.yaml", &service("second", good));
    write("loop.yaml", &(service("loop", looping) + &slice("loop", &[looping])));
    let mut agent = Agent::start(directory.path(), &[]);
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
    let mut agent = Agent::start(directory.path(), &[]);
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
    let mut agent = Agent::start(directory.path(), &[]);
    let line = agent.wait_for("192.0.2.1:8080/TCP");
    assert!(line.contains("not one of this machine's"), "{line}");
}

#[test]
fn what_cannot_work_ends_at_once_and_says_why() {
    for (arguments, said) in [
        (&["--manifests", "/nonexistent/manifests"][..], "/nonexistent/manifests"),
        (&["--manifests", "/tmp", "--hostname-override", " "], "--hostname-override"),
    ] {
        let mut agent = Agent::spawn(arguments);
        agent.wait_for(said);
        assert_eq!(agent.wait().code(), Some(1));
    }
    let usage = Command::new(env!("CARGO_BIN_EXE_sluice")).arg("agent").output().unwrap();
    assert_eq!(usage.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&usage.stderr).contains("--manifests"));
}

#[test]
fn without_descriptors_new_connections_wait_or_are_reset_and_old_ones_go_on() {
    let directory = TempDir::new().unwrap();
    let frontend = free_port(address());
    let backend = backend(7);
    fs::write(directory.path().join("web.yaml"), service("web", frontend) + &slice("web", &[backend]))
        .unwrap();
    let mut agent = Agent::run(Command::new("bash").args([
        "-c",
        "ulimit -n 48 && exec \"$0\" agent --manifests \"$1\" --workers 1",
        env!("CARGO_BIN_EXE_sluice"),
        directory.path().to_str().unwrap(),
    ]));
    agent.wait_for("ready");
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
fn sigterm_refuses_new_connections_and_lets_old_ones_finish() {
    let directory = TempDir::new().unwrap();
    let frontend = free_port(address());
    let backend = backend(7);
    fs::write(directory.path().join("web.yaml"), service("web", frontend) + &slice("web", &[backend]))
        .unwrap();
    let mut agent = Agent::start(directory.path(), &[]);
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
    let directory = TempDir::new().unwrap();
    let frontend = free_port(address());
    let backend = backend(7);
    fs::write(directory.path().join("web.yaml"), service("web", frontend) + &slice("web", &[backend]))
        .unwrap();
    let mut agent = Agent::start(directory.path(), &[]);
    let mut stream = TcpStream::connect(frontend).unwrap();
    stream.read_exact(&mut [0]).unwrap();
    agent.signal(Signal::TERM);
    agent.wait_for("stopping");
    agent.signal(Signal::INT);
    assert_eq!(agent.wait().code(), Some(1));
}
