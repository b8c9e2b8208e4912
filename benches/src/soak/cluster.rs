//! The cluster: a lab, an apiserver in the node's network, Services, and servers behind them.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, anyhow};
use serde_json::Value;
use sluice_testbed::apiserver::{Apiserver, Resource, Status};
use sluice_testbed::lab::{Host, Lab, Process, Server};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::manifests::{node, service_with, slice};

/// The servers' port.
pub(super) const SERVER_PORT: u16 = 8080;
/// The Services' ports, TCP and UDP.
const PORT: u16 = 80;
const PORTS: [(&str, u16, u16); 2] = [("TCP", PORT, SERVER_PORT), ("UDP", PORT, SERVER_PORT)];

/// The nodePort of the steady Service.
const NODE_PORT: u16 = 30_001;

/// Addresses without listeners. All of them belong to the noisy server's host.
const NOBODYS: &str = "10.244.3.0/24";

/// Number of pods. 0 is the client. 1 and 2, and the node itself, are the steady endpoints; 3 to 5 the mortal
/// ones; 6 and 7, and one pod of the other node, the changing ones. 8 makes noise, and 9 receives it.
const PODS: usize = 10;
const STEADY: [usize; 2] = [1, 2];
/// The pods whose servers die.
pub(super) const MORTAL: [usize; 3] = [3, 4, 5];
const CHANGING: [usize; 2] = [6, 7];
const NOISY: usize = 9;

/// A cluster.
pub(super) struct Cluster {
    /// Its hosts.
    pub(super) lab: Lab,
    apiserver: Apiserver,
    directory: TempDir,
    _servers: Vec<Server>,
    /// A pod's network namespace is found through its processes when its sockets have to be destroyed.
    _processes: Vec<Process>,
    // The apiserver runs on it.
    _runtime: Runtime,
}

impl Cluster {
    /// Creates everything but the agent, with this many endpoints that refuse.
    ///
    /// # Errors
    /// No lab can be created here.
    pub(super) fn new(refusing: usize) -> Result<Self> {
        let lab = Lab::builder().pods(PODS).other_pods(1).build()?;
        for client in [lab.pod(0), lab.pod(8), lab.outside()] {
            client.ns.set("net/ipv4/tcp_tw_reuse", "1")?;
        }
        let noisy = lab.pod(NOISY);
        noisy.ns.ip(&format!("route add local {NOBODYS} dev lo"))?;
        lab.node().ns.ip(&format!("route add {NOBODYS} dev veth{NOISY}"))?;
        let pods = STEADY.iter().chain(&CHANGING).chain([&NOISY]).map(|index| lab.pod(*index));
        let servers = pods
            .chain([lab.node(), lab.other_pod(0)])
            .map(|host| Ok(host.serve(SERVER_PORT)?))
            .collect::<Result<Vec<_>>>()?;

        let mut program = Command::new("sleep");
        program.arg("infinity");
        let processes = [lab.pod(0), lab.pod(8)].map(|client| client.spawn(&program));
        let processes = processes.into_iter().collect::<Result<Vec<_>, _>>()?;

        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let builder = Apiserver::builder()
            .bind((lab.node().v4, 6443).into())
            .token("secret")
            .service_cidrs(&["10.96.0.0/16".parse()?]);
        let apiserver = lab.node().ns.run(|| runtime.block_on(builder.start()))?;
        let directory = tempfile::Builder::new().prefix("sluice-bench-").tempdir()?;
        let cluster =
            Self { lab, apiserver, directory, _servers: servers, _processes: processes, _runtime: runtime };
        fs::write(cluster.kubeconfig(), cluster.apiserver.kubeconfig()?)?;
        cluster.fill(refusing)?;
        Ok(cluster)
    }

    fn fill(&self, refusing: usize) -> Result<()> {
        self.create(Resource::Nodes, node(&self.lab))?;
        let of = |pods: &[usize]| pods.iter().map(|index| self.lab.pod(*index).v4).collect::<Vec<_>>();
        let mut steady = service_with("steady", ip(1), &PORTS);
        steady["spec"]["type"] = "NodePort".into();
        for port in steady["spec"]["ports"].as_array_mut().into_iter().flatten() {
            port["nodePort"] = NODE_PORT.into();
        }
        self.create(Resource::Services, steady)?;
        self.put_slice("steady", &[of(&STEADY), vec![self.lab.node().v4]].concat())?;
        let nobodys: Vec<Ipv4Addr> =
            (1..=254).take(refusing).map(|last| Ipv4Addr::new(10, 244, 3, last)).collect();
        let others = [
            ("mortal", ip(2), of(&MORTAL)),
            ("changing", ip(3), of(&CHANGING)),
            ("noisy", ip(4), of(&[NOISY])),
            ("refusing", ip(5), nobodys),
        ];
        for (name, ip, endpoints) in others {
            self.create(Resource::Services, service_with(name, ip, &PORTS))?;
            self.put_slice(name, &endpoints)?;
        }
        Ok(())
    }

    /// The agent's kubeconfig.
    pub(super) fn kubeconfig(&self) -> PathBuf {
        self.directory.path().join("kubeconfig")
    }

    /// The steady Service.
    pub(super) fn steady(&self) -> SocketAddr {
        (ip(1), PORT).into()
    }

    /// The steady Service at its nodePort.
    pub(super) fn steady_node_port(&self) -> SocketAddr {
        (self.lab.node().v4, NODE_PORT).into()
    }

    /// The Service whose endpoints die.
    pub(super) fn mortal(&self) -> SocketAddr {
        (ip(2), PORT).into()
    }

    /// The Service whose endpoints change.
    pub(super) fn changing(&self) -> SocketAddr {
        (ip(3), PORT).into()
    }

    /// The Service that is flooded with datagrams.
    pub(super) fn noisy(&self) -> SocketAddr {
        (ip(4), PORT).into()
    }

    /// The Service whose endpoints all refuse.
    pub(super) fn refusing(&self) -> SocketAddr {
        (ip(5), PORT).into()
    }

    /// The client that makes noise.
    pub(super) fn noisy_client(&self) -> &Host {
        self.lab.pod(8)
    }

    /// Starts a server of the mortal Service.
    ///
    /// # Errors
    /// It is already running.
    pub(super) fn serve(&self, mortal: usize) -> Result<Server> {
        Ok(self.lab.pod(mortal).serve(SERVER_PORT)?)
    }

    /// Gives the changing Service its `turn`th set of endpoints, which is never empty.
    ///
    /// # Errors
    /// The apiserver refuses it.
    pub(super) fn change(&self, turn: usize) -> Result<()> {
        let [first, second] = CHANGING.map(|index| self.lab.pod(index).v4);
        let third = self.lab.other_pod(0).v4;
        let sets = [
            vec![first],
            vec![first, second],
            vec![second, third],
            vec![third],
            vec![first, second, third],
            vec![second],
        ];
        self.put_slice("changing", &sets[turn % sets.len()])
    }

    /// Creates a temporary Service with the steady one's endpoints. Returns its address.
    ///
    /// # Errors
    /// The apiserver refuses it.
    pub(super) fn create_temporary(&self, turn: usize) -> Result<SocketAddr> {
        let last = 100 + u8::try_from(turn % 100).unwrap_or(0);
        let name = temporary(turn);
        self.create(Resource::Services, service_with(&name, ip(last), &PORTS))?;
        self.put_slice(&name, &STEADY.map(|index| self.lab.pod(index).v4))?;
        Ok((ip(last), PORT).into())
    }

    /// Deletes a temporary Service.
    ///
    /// # Errors
    /// It does not exist.
    pub(super) fn delete_temporary(&self, turn: usize) -> Result<()> {
        let name = temporary(turn);
        self.apiserver.delete(Resource::EndpointSlices, "default", &name).map_err(|status| told(&status))?;
        self.apiserver.delete(Resource::Services, "default", &name).map_err(|status| told(&status))
    }

    fn create(&self, resource: Resource, object: Value) -> Result<()> {
        self.apiserver.create(resource, object).map(drop).map_err(|status| told(&status))
    }

    fn put_slice(&self, name: &str, endpoints: &[Ipv4Addr]) -> Result<()> {
        let object = slice(name, name, &PORTS, endpoints);
        let put = match self.apiserver.get(Resource::EndpointSlices, "default", name) {
            Some(_) => self.apiserver.update(Resource::EndpointSlices, object),
            None => self.apiserver.create(Resource::EndpointSlices, object),
        };
        put.map(drop).map_err(|status| told(&status)).with_context(|| format!("endpoints of {name}"))
    }
}

fn ip(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 96, 0, last)
}

fn temporary(turn: usize) -> String {
    format!("temporary-{turn}")
}

fn told(status: &Status) -> anyhow::Error {
    anyhow!("the apiserver says {}", status.message)
}
