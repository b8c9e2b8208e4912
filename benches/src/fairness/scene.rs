//! The place where fairness is measured: a node with a noisy and a quiet client, each with its own Service.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;

use anyhow::Result;
use sluice_testbed::lab::{Host, Lab, Process, Server};
use tempfile::TempDir;

use crate::agent::{Agent, Source, TPROXY};
use crate::flood;
use crate::manifests::{Manifests, service_with, slice};
use crate::site::{cpus, end};
use crate::tool::is_installed;

/// The port of all endpoints, and of all Services but the bulk one.
const PORT: u16 = 8080;
/// The port of the noisy bulk server.
const BULK_PORT: u16 = 8081;
/// Ports on a relay with one address, for what are separate Service addresses elsewhere.
const NOISY_PORT: u16 = 8082;
const REFUSING_PORT: u16 = 8083;

const QUIET: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
const NOISY: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 2);
const REFUSING: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 3);
const RELAY: Ipv4Addr = Ipv4Addr::new(10, 98, 0, 80);

/// Addresses without listeners. All of them belong to the noisy server's host.
const NOBODYS: &str = "10.244.3.0/24";

/// The carrier of the connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carrier {
    /// None: the node routes.
    Direct,
    /// Sluice on a node.
    Sluice,
    /// haproxy in TCP mode.
    Haproxy,
}

impl Carrier {
    /// All carriers, the baseline first.
    pub const ALL: [Self; 3] = [Self::Direct, Self::Sluice, Self::Haproxy];

    /// The name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Sluice => "sluice",
            Self::Haproxy => "haproxy",
        }
    }

    /// Whether it is installed.
    pub fn is_installed(self) -> bool {
        self != Self::Haproxy || is_installed("haproxy")
    }

    /// Whether it supports UDP.
    pub fn has_udp(self) -> bool {
        self != Self::Haproxy
    }
}

/// The addresses for clients.
#[derive(Debug, Clone, Copy)]
pub(super) struct Addresses {
    /// The quiet Service, TCP and UDP.
    pub(super) quiet: SocketAddr,
    /// The noisy Service, TCP and UDP.
    pub(super) noisy: SocketAddr,
    /// The noisy Service for bulk.
    pub(super) bulk: SocketAddr,
    /// A Service whose endpoints all refuse.
    pub(super) refusing: SocketAddr,
}

/// A lab with clients, servers, and a carrier between them.
pub(super) struct Scene {
    /// The addresses for clients.
    pub(super) addresses: Addresses,
    lab: Lab,
    carriers: Vec<Process>,
    _servers: [Server; 2],
    _source: flood::Source,
    _directory: TempDir,
}

impl Scene {
    /// Creates a scene with this many endpoints that refuse.
    ///
    /// # Errors
    /// No lab can be created here, or the carrier does not start.
    pub(super) fn new(carrier: Carrier, refusing: usize) -> Result<Self> {
        let lab = Lab::builder().pods(4).other_pods(0).build()?;
        let (noisy, quiet) = (lab.pod(1), lab.pod(3));
        for client in [lab.pod(0), lab.pod(2)] {
            // Otherwise, many short connections from one address would use up its ports, with any carrier.
            client.ns.set("net/ipv4/tcp_tw_reuse", "1")?;
        }
        noisy.ns.ip(&format!("route add local {NOBODYS} dev lo"))?;
        lab.node().ns.ip(&format!("route add {NOBODYS} dev veth1"))?;
        let servers = [noisy.serve(PORT)?, quiet.serve(PORT)?];
        let source = flood::Source::start(noisy, BULK_PORT)?;
        let directory = tempfile::Builder::new().prefix("sluice-bench-").tempdir()?;
        let nobodys: Vec<Ipv4Addr> =
            (1..=254).take(refusing).map(|last| Ipv4Addr::new(10, 244, 3, last)).collect();
        let addresses = match carrier {
            Carrier::Direct => Addresses {
                quiet: (quiet.v4, PORT).into(),
                noisy: (noisy.v4, PORT).into(),
                bulk: (noisy.v4, BULK_PORT).into(),
                refusing: (Ipv4Addr::new(10, 244, 3, 1), PORT).into(),
            },
            Carrier::Sluice => Addresses {
                quiet: (QUIET, PORT).into(),
                noisy: (NOISY, PORT).into(),
                bulk: (NOISY, BULK_PORT).into(),
                refusing: (REFUSING, PORT).into(),
            },
            Carrier::Haproxy => Addresses {
                quiet: (RELAY, PORT).into(),
                noisy: (RELAY, NOISY_PORT).into(),
                bulk: (RELAY, BULK_PORT).into(),
                refusing: (RELAY, REFUSING_PORT).into(),
            },
        };
        let carriers = match carrier {
            Carrier::Direct => Vec::new(),
            Carrier::Sluice => {
                let manifests = Manifests::new(directory.path(), &lab)?;
                let both = [("TCP", PORT, PORT), ("UDP", PORT, PORT)];
                let more = [both[0], both[1], ("TCP", BULK_PORT, BULK_PORT)];
                manifests.put(
                    "services",
                    &[
                        service_with("quiet", QUIET, &both),
                        slice("quiet", "quiet", &both, &[quiet.v4]),
                        service_with("noisy", NOISY, &more),
                        slice("noisy", "noisy", &more, &[noisy.v4]),
                        service_with("refusing", REFUSING, &both),
                        slice("refusing", "refusing", &both, &nobodys),
                    ],
                )?;
                let source = Source::Manifests(&manifests);
                vec![Agent { program: None, arguments: &TPROXY, source }.start(lab.node())?]
            }
            Carrier::Haproxy => {
                lab.node().ns.ip(&format!("address add {RELAY}/32 dev lo"))?;
                let path = directory.path().join("haproxy.conf");
                fs::write(&path, haproxy(noisy.v4, quiet.v4, &nobodys))?;
                vec![lab.node().spawn(Command::new("haproxy").arg("-db").arg("-f").arg(path))?]
            }
        };
        let scene =
            Self { addresses, lab, carriers, _servers: servers, _source: source, _directory: directory };
        crate::site::await_tcp(scene.quiet_client(), addresses.quiet, &scene.carriers)?;
        Ok(scene)
    }

    /// The client that makes noise.
    pub(super) fn noisy_client(&self) -> &Host {
        self.lab.pod(0)
    }

    /// The client of the quiet Service.
    pub(super) fn quiet_client(&self) -> &Host {
        self.lab.pod(2)
    }

    /// The carrier's processes; empty if the kernel does the work.
    pub(super) fn carriers(&self) -> &[Process] {
        &self.carriers
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        end(&mut self.carriers);
    }
}

/// haproxy's configuration, with as many connections as 20,000 descriptors allow: it needs two for each, and
/// two for each pipe.
fn haproxy(noisy: Ipv4Addr, quiet: Ipv4Addr, nobodys: &[Ipv4Addr]) -> String {
    let one = |port: u16, server: Ipv4Addr, to: u16| {
        format!("listen p{port}\n  bind {RELAY}:{port}\n  server s {server}:{to}\n")
    };
    let servers: String =
        nobodys.iter().enumerate().map(|(n, ip)| format!("  server s{n} {ip}:{PORT}\n")).collect();
    format!(
        "global\n  nbthread {}\n  maxconn 7000\n\
         defaults\n  mode tcp\n  maxconn 7000\n  option splice-auto\n  option redispatch 1\n\
         \x20 timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n{}{}{}\
         listen p{REFUSING_PORT}\n  bind {RELAY}:{REFUSING_PORT}\n{servers}",
        cpus(),
        one(PORT, quiet, PORT),
        one(NOISY_PORT, noisy, PORT),
        one(BULK_PORT, noisy, BULK_PORT),
    )
}
