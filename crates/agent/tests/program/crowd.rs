//! What looking costs while ten thousand connections are open: a measurement, not a test. Figures are in docs/observe.md.
//!
//! `ulimit -n 20000; cargo test -p sluice --test program -- --ignored --nocapture ten_thousand_connections`

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::common::{Agent, PATIENCE, address, free_port, get, service, slice, until};
use crate::inside::command;

/// TCP sessions and UDP flows: as many as the agent has descriptors for where it may have 20,000.
const SESSIONS: usize = 8_000;
const FLOWS: usize = 2_000;

/// How long each column is measured.
const TIME: Duration = Duration::from_secs(8);

/// A backend that sends back what it gets, on tokio's threads.
fn echo() -> SocketAddr {
    let listener = TcpListener::bind((address(), 0)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let at = listener.local_addr().unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = [0; 64];
                while let Ok(n @ 1..) = stream.read(&mut buffer).await {
                    if stream.write_all(&buffer[..n]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    at
}

/// The same for datagrams.
fn echo_udp() -> SocketAddr {
    let socket = UdpSocket::bind((address(), 0)).unwrap();
    let at = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        while let Ok((_, client)) = socket.recv_from(&mut [0; 64]) {
            let _ = socket.send_to(b"x", client);
        }
    });
    at
}

/// How long exchanges took on one open connection, in order, while something else is done again and again; and how long that
/// took.
fn measured(frontend: SocketAddr, pause: Duration, other: impl Fn() + Send + 'static) -> [Duration; 3] {
    let is_over = Arc::new(AtomicBool::new(false));
    let ends = Arc::clone(&is_over);
    let others = std::thread::spawn(move || {
        let mut times = Vec::new();
        while !ends.load(Ordering::Relaxed) {
            let start = Instant::now();
            other();
            times.push(start.elapsed());
            std::thread::sleep(pause.saturating_sub(start.elapsed()));
        }
        times.sort_unstable();
        times[times.len() / 2]
    });
    let mut stream = TcpStream::connect(frontend).unwrap();
    stream.set_nodelay(true).unwrap();
    let (start, mut times) = (Instant::now(), Vec::new());
    while start.elapsed() < TIME {
        let asked = Instant::now();
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0]).unwrap();
        times.push(asked.elapsed());
        std::thread::sleep(Duration::from_micros(500));
    }
    is_over.store(true, Ordering::Relaxed);
    times.sort_unstable();
    [times[times.len() / 2], times[times.len() * 99 / 100], others.join().unwrap()]
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures, for a minute, and needs 20,000 descriptors"]
async fn ten_thousand_connections() {
    let directory = TempDir::new().unwrap();
    let (frontend, backend) = (free_port(address()), echo());
    let manifests = directory.path().join("manifests");
    fs::create_dir(&manifests).unwrap();
    fs::write(manifests.join("web.yaml"), service("web", frontend) + &slice("web", &[backend])).unwrap();
    let dns = free_port(address());
    let udp = service("dns", dns).replace("  - port:", "  - protocol: UDP\n    port:")
        + &slice("dns", &[echo_udp()]).replace("\n  port:", "\n  protocol: UDP\n  port:");
    fs::write(manifests.join("dns.yaml"), udp).unwrap();
    let socket = directory.path().join("admin.sock");
    let mut agent = Agent::start(&[
        "--manifests",
        manifests.to_str().unwrap(),
        "--admin-socket",
        socket.to_str().unwrap(),
        "--metrics-bind-address=127.0.0.1:0",
        "--client-share=100",
        "--udp-idle-timeout=1h",
    ]);
    let metrics = agent.port("serving metrics");
    agent.wait_for("answering commands");
    let mut sessions = Vec::new();
    for n in 0..SESSIONS {
        let session = tokio::time::timeout(PATIENCE, async {
            let mut session = tokio::net::TcpStream::connect(frontend).await?;
            session.write_all(b"x").await?;
            session.read_exact(&mut [0]).await?;
            Ok::<_, std::io::Error>(session)
        });
        sessions.push(session.await.unwrap().unwrap_or_else(|error| panic!("session {n}: {error}")));
    }
    let mut flows = Vec::new();
    for _ in 0..FLOWS {
        let flow = UdpSocket::bind("127.0.0.1:0").unwrap();
        flow.connect(dns).unwrap();
        flow.set_read_timeout(Some(PATIENCE)).unwrap();
        flow.send(b"x").unwrap();
        flow.recv(&mut [0]).unwrap();
        flows.push(flow);
    }
    until("all are open", || {
        let text = get(metrics, "/metrics");
        let is_told = |name: &str, count: usize| text.contains(&format!("\nsluice_{name} {count}.0\n"));
        is_told("tcp_active", SESSIONS) && is_told("udp_flows_active", FLOWS)
    });
    let ask = {
        let socket = socket.clone();
        move || {
            let output = command(&socket, "connections --limit 10000 -o json");
            assert!(output.status.success() && output.stdout.len() > (SESSIONS + FLOWS) * 100, "{output:?}");
        }
    };
    let scrape = move || assert!(get(metrics, "/metrics").contains("sluice_tcp_active"));
    let page =
        move || assert!(crate::common::get_by(metrics, "/status/data", "localhost").contains("inFull"));
    let (second, at_once) = (Duration::from_secs(1), Duration::ZERO);
    let rest = || std::thread::sleep(Duration::from_millis(50));
    println!("{:50} {:>10} {:>10} {:>10}", "meanwhile", "p50", "p99", "it takes");
    let row = |what: &str, [p50, p99, took]: [Duration; 3]| {
        println!("{what:50} {p50:>10.0?} {p99:>10.0?} {took:>10.1?}");
    };
    row("nothing", measured(frontend, second, rest));
    row("sluice connections each second", measured(frontend, second, ask.clone()));
    row("sluice connections again and again", measured(frontend, at_once, ask));
    row("a scrape each second", measured(frontend, second, scrape));
    row("a scrape again and again", measured(frontend, at_once, scrape));
    row("the status page each second", measured(frontend, second, page));
    row("nothing", measured(frontend, second, rest));
    drop((sessions, flows));
}
