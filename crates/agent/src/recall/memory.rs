//! Which client has which endpoint, in the form that agents exchange.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sluice_dataplane::{FlowEnds, Place};
use sluice_table::{Kept, ServicePort, Table};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tracing::info;

use crate::proxy::Observer;

/// The most flows that are sent.
const MOST_FLOWS: usize = 65_536;

/// The most clients with session affinity that are sent, some 15 MB. There may be millions, and an answer is in
/// memory as a whole.
const MOST_CLIENTS: usize = 200_000;

/// Which client has which endpoint at one moment.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Memory {
    /// Client, frontend and endpoint of each UDP flow.
    flows: Vec<(SocketAddr, SocketAddr, SocketAddr)>,
    /// Clients with session affinity.
    ports: Vec<PortClients>,
    /// When it was collected or received.
    #[serde(skip, default = "Instant::now")]
    at: Instant,
}

/// The clients of a Service port in one family.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct PortClients {
    /// As returned by [`key`].
    port: String,
    clients: Vec<Client>,
}

/// A client's address, its endpoint, its idle time in milliseconds, and [`Kept::is_apart`].
type Client = (IpAddr, SocketAddr, u64, bool);

impl Memory {
    /// Collects what this agent knows now. Asks the workers for a few flows at a time.
    pub(super) async fn collect(observer: &Observer) -> Self {
        let mut flows = Vec::new();
        for worker in 0..observer.workers() {
            let mut next = Some(Place::UDP);
            while let Some(place) = next.filter(|_| flows.len() < MOST_FLOWS) {
                let (answer, part) = oneshot::channel();
                observer.look(worker, place, move |part| drop(answer.send(part)));
                // A worker that has ended has no flows.
                let Ok(part) = part.await else { break };
                next = part.next;
                let ends = part.connections.iter().filter_map(FlowEnds::of);
                flows.extend(ends.map(|ends| (ends.client, ends.frontend, ends.endpoint)));
            }
        }
        let at = Instant::now();
        let mut room = MOST_CLIENTS;
        let ports = service_ports(observer.table()).into_iter().filter_map(|(port, service_port)| {
            let clients: Vec<Client> = service_port.kept_clients(at, room).into_iter().map(client).collect();
            room -= clients.len();
            (!clients.is_empty()).then_some(PortClients { port, clients })
        });
        Self { flows, ports: ports.collect(), at }
    }

    /// Writes it as one line.
    pub(super) async fn write(&self, to: &mut UnixStream) -> io::Result<()> {
        let mut line = serde_json::to_vec(self)?;
        line.push(b'\n');
        to.write_all(&line).await
    }

    /// The UDP flows.
    pub(crate) fn flows(&self) -> impl Iterator<Item = FlowEnds> {
        self.flows.iter().map(|&(client, frontend, endpoint)| FlowEnds { client, frontend, endpoint })
    }

    /// Gives these clients in the table the endpoints that they had, unless the table does not know both or
    /// knows something newer.
    pub(crate) fn recall_clients(&self, table: &Table) {
        if self.ports.is_empty() {
            return;
        }
        let (ports, now) = (service_ports(table), Instant::now());
        let passed = now.saturating_duration_since(self.at);
        let mut recalled = 0;
        for PortClients { port, clients } in &self.ports {
            let Some(port) = ports.get(port) else { continue };
            for &(client, endpoint, idle, is_apart) in clients {
                let idle = passed.saturating_add(Duration::from_millis(idle));
                let is_new = port.recall_client(&Kept { client, endpoint, idle, is_apart }, now);
                recalled += usize::from(is_new);
            }
        }
        info!(clients = recalled, "clients with session affinity keep their endpoints");
    }
}

fn client(Kept { client, endpoint, idle, is_apart }: Kept) -> Client {
    (client, endpoint, idle.as_millis().try_into().unwrap_or(u64::MAX), is_apart)
}

/// All Service ports by the name that both agents use.
fn service_ports(table: &Table) -> HashMap<String, Arc<ServicePort>> {
    let key = |port: &ServicePort| format!("{} {} {:?}", port.name(), port.name().protocol, port.family());
    table.routes().iter().map(|route| (key(route.service_port()), Arc::clone(route.service_port()))).collect()
}
