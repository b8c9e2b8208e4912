//! What tests of the program share: backends, manifests, a running agent and what it says.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A loopback address of this test alone.
pub(crate) fn address() -> Ipv4Addr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let [.., high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 128 | high & 63, low, NEXT.fetch_add(1, Ordering::Relaxed))
}

pub(crate) fn free_port(ip: Ipv4Addr) -> SocketAddr {
    TcpListener::bind((ip, 0)).unwrap().local_addr().unwrap()
}

/// A server that answers every connection with one byte, its own.
pub(crate) fn backend(byte: u8) -> SocketAddr {
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

pub(crate) fn service(name: &str, frontend: SocketAddr) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\nspec:\n  clusterIP: {}\n  ports:\n  - port: {}\n---\n",
        frontend.ip(),
        frontend.port()
    )
}

/// One slice, so all endpoints must have the same port.
pub(crate) fn slice(service: &str, endpoints: &[SocketAddr]) -> String {
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
pub(crate) fn ask(frontend: SocketAddr) -> std::io::Result<u8> {
    let mut stream = TcpStream::connect(frontend)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    Ok(byte[0])
}

/// What an HTTP server answers, head and body.
pub(crate) fn get(server: SocketAddr, path: &str) -> String {
    get_as(server, path, "*/*")
}

/// The same, in a form that is asked for.
pub(crate) fn get_as(server: SocketAddr, path: &str, accept: &str) -> String {
    request(server, path, &format!("host: a\r\naccept: {accept}"))
}

/// The same of a server by that name.
pub(crate) fn get_by(server: SocketAddr, path: &str, host: &str) -> String {
    request(server, path, &format!("host: {host}"))
}

fn request(server: SocketAddr, path: &str, headers: &str) -> String {
    let mut stream = TcpStream::connect(server).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\n{headers}\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Waits for a condition.
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A running agent and what it says.
pub(crate) struct Agent {
    pub(crate) child: Child,
    lines: Receiver<String>,
    heard: Vec<String>,
}

impl Agent {
    /// Starts the agent and waits until it is ready.
    pub(crate) fn start(source: &[&str]) -> Self {
        let mut agent = Self::spawn(source);
        agent.wait_for("ready frontends");
        agent
    }

    pub(crate) fn spawn(arguments: &[&str]) -> Self {
        let says = |flag: &str| arguments.iter().any(|argument| argument.starts_with(flag));
        let mut quiet = vec!["agent"];
        // No metrics unless asked for: the default port is there only once.
        if !says("--metrics-bind-address") {
            quiet.extend(["--metrics-bind-address", "0"]);
        }
        // Root with an apiserver would take this machine for a node.
        if !says("--capture") && !says("--config") {
            quiet.extend(["--capture", "bind"]);
        }
        Self::run(Command::new(env!("CARGO_BIN_EXE_sluice")).args(quiet).args(arguments))
    }

    pub(crate) fn run(command: &mut Command) -> Self {
        Self::run_for(command.stderr(Stdio::piped()), |child| Box::new(child.stderr.take().unwrap()))
    }

    /// Runs it and listens to what is chosen.
    pub(crate) fn run_for(
        command: &mut Command,
        choose: impl FnOnce(&mut Child) -> Box<dyn Read + Send>,
    ) -> Self {
        let mut child = command.env_remove("RUST_LOG").spawn().unwrap();
        let stderr = BufReader::new(choose(&mut child));
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            stderr.lines().map_while(Result::ok).all(|line| sender.send(line).is_ok())
        });
        Self { child, lines, heard: Vec::new() }
    }

    /// Waits for a line that contains `text`, which may have come already, and returns it.
    pub(crate) fn wait_for(&mut self, text: &str) -> String {
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

    /// Everything that it has said.
    pub(crate) fn heard(&mut self) -> &[String] {
        self.heard.extend(self.lines.try_iter());
        &self.heard
    }

    /// The address of a port of its own, which it says when it serves it.
    pub(crate) fn port(&mut self, what: &str) -> SocketAddr {
        self.wait_for(what).rsplit("address=").next().unwrap().trim().parse().unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
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

/// Runs a shell script in a network namespace of its own, which is gone afterwards. `$sluice` is the program.
pub(crate) fn on_a_node(script: &str) -> Output {
    let is_root = rustix::process::geteuid().is_root();
    let as_root: &[&str] = if is_root { &[] } else { &["--user", "--map-root-user"] };
    // Without any bpffs: what other agents of this machine have pinned is not for tests to remove. And with a /sys of its
    // own, which shows the namespace's interfaces.
    let before = "umount --all --lazy --types bpf 2>/dev/null || :\nmount -t sysfs sysfs /sys";
    Command::new("unshare")
        .args(as_root)
        .args(["--net", "--mount", "--", "sh", "-euc"])
        .arg(format!("{before}\n{script}"))
        .env("sluice", env!("CARGO_BIN_EXE_sluice"))
        .output()
        .unwrap_or_else(|error| panic!("unshare (of util-linux): {error}"))
}
