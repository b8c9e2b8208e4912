//! Opens and closes health check ports as Services and addresses change, and retries what failed.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use sluice_dataplane::{Listeners, Permit};
use sluice_model::{Family, ObjectName, mend_of_shortage};
use sluice_table::HealthCheck;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tracing::{debug, info, warn};

use super::Failure;
use super::answer::answer;
use crate::events::Events;
use crate::http_server::{self, ANSWER_TIME, Connections, Settings};

/// Pause before a taken port is tried again: people wait until the obstacle is gone.
const RETRY: Duration = Duration::from_secs(1);

/// The most failures that are logged one by one if many come at once, for example because kube-proxy still has
/// all ports.
const COMPLAINTS_AT_ONCE: usize = 20;

/// The reason in kube-proxy's Events.
const FAILED: &str = "FailedToStartServiceHealthcheck";

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// Each connection serves one request: load balancers need no more, and a short connection takes no room from
/// others.
const SETTINGS: Settings =
    Settings { patience: Duration::from_secs(10), answer_time: ANSWER_TIME, keep_alive: false };

/// Whether the proxy as a whole is healthy.
pub(super) type Healthy = Arc<dyn Fn() -> bool + Send + Sync>;

/// The open and the failed ports.
pub(super) struct Ports {
    connections: Connections,
    listeners: Listeners,
    events: Events,
    healthy: Healthy,
    ports: BTreeMap<SocketAddr, Port>,
    /// The list that [`Ports::ports`] was made from; a changed list is another allocation.
    checks: Arc<Vec<Arc<HealthCheck>>>,
    addresses: Vec<IpAddr>,
    /// Services whose port belongs to another Service.
    conflicts: BTreeSet<Conflict>,
    /// New failures since the last [`Ports::sum_up`].
    complaints: usize,
}

/// A Service, its port, and the Service that has it.
type Conflict = (ObjectName, u16, ObjectName);

struct Port {
    check: Arc<HealthCheck>,
    state: State,
}

enum State {
    Open { _server: Server, _permit: Permit },
    Failed { reason: Option<i32>, retry_at: Instant },
}

/// The task that serves a port; dropping this ends it.
struct Server(JoinHandle<()>);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Ports {
    /// No ports yet.
    pub(super) fn new(
        connections: Connections,
        listeners: Listeners,
        events: Events,
        healthy: Healthy,
    ) -> Self {
        Self {
            connections,
            listeners,
            events,
            healthy,
            ports: BTreeMap::new(),
            checks: Arc::default(),
            addresses: Vec::new(),
            conflicts: BTreeSet::new(),
            complaints: 0,
        }
    }

    /// How many ports answer.
    pub(super) fn open(&self) -> usize {
        self.ports.values().filter(|port| matches!(port.state, State::Open { .. })).count()
    }

    /// How many ports could not be opened.
    pub(super) fn failed(&self) -> usize {
        self.ports.len() - self.open()
    }

    /// The ports that could not be opened, and the Services whose port belongs to another one.
    pub(super) fn failures(&self) -> impl Iterator<Item = Failure> {
        let conflicts = self.conflicts.iter().map(|(service, port, owner)| Failure {
            service: service.clone(),
            what: format!("no health check: {}", taken_by(*port, owner)),
        });
        let failed = |(address, port): (&SocketAddr, &Port)| match port.state {
            State::Failed { reason, .. } => Some(Failure {
                service: port.check.service().clone(),
                what: format!("no health check on {address}: {}", mend(reason)),
            }),
            State::Open { .. } => None,
        };
        conflicts.chain(self.ports.iter().filter_map(failed))
    }

    /// Serves exactly these checks on these addresses; an unspecified address stands for all of its family.
    /// Retries what failed if that is due. Leaves alone what is served already.
    pub(super) fn reconcile(
        &mut self,
        checks: &Arc<Vec<Arc<HealthCheck>>>,
        addresses: &[IpAddr],
        now: Instant,
    ) {
        if !Arc::ptr_eq(checks, &self.checks) || addresses != self.addresses {
            self.checks = Arc::clone(checks);
            self.addresses = addresses.to_vec();
            let (wanted, conflicts) = wanted(checks, addresses);
            for (service, port, owner) in conflicts.difference(&self.conflicts) {
                let what = taken_by(*port, owner);
                warn!(%service, "no health check of {service}: {what}");
                self.events.warn(service, FAILED, "Listen", format!("no health check: {what}"));
            }
            self.conflicts = conflicts;
            // A port that moves, for example to all addresses from some, stays open until the new one is: they
            // do not exclude each other, and nobody is refused in between.
            let owners: BTreeMap<u16, &Arc<HealthCheck>> =
                wanted.iter().map(|(address, check)| (address.port(), check)).collect();
            self.keep(|address, check| {
                owners.get(&address.port()).is_some_and(|owner| Arc::ptr_eq(owner, check))
            });
            for (address, check) in &wanted {
                if !self.ports.contains_key(address) {
                    let state = self.open_port(*address, check, None, now);
                    self.ports.insert(*address, Port { check: Arc::clone(check), state });
                }
            }
            self.keep(|address, _| wanted.contains_key(address));
        }
        let due = |(address, port): (&SocketAddr, &Port)| match port.state {
            State::Failed { reason, retry_at } if retry_at <= now => {
                Some((*address, Arc::clone(&port.check), reason))
            }
            _ => None,
        };
        let due: Vec<_> = self.ports.iter().filter_map(due).collect();
        for (address, check, reason) in due {
            let state = self.open_port(address, &check, Some(reason), now);
            self.ports.insert(address, Port { check, state });
        }
        self.sum_up();
    }

    /// Closes all ports for which `stays` is false.
    fn keep(&mut self, stays: impl Fn(&SocketAddr, &Arc<HealthCheck>) -> bool) {
        self.ports.retain(|address, port| {
            let stays = stays(address, &port.check);
            if !stays {
                debug!(%address, service = %port.check.service(), "health check port closed");
            }
            stays
        });
    }

    /// Logs how many failures were not logged one by one.
    fn sum_up(&mut self) {
        let complaints = std::mem::take(&mut self.complaints);
        if let Some(unsaid) = complaints.checked_sub(COMPLAINTS_AT_ONCE).filter(|unsaid| *unsaid > 0) {
            warn!("{unsaid} more health check ports cannot be listened on; -v names them");
        }
    }

    /// Opens a port and serves it. `failed_before`: why it could not be opened the last time.
    fn open_port(
        &mut self,
        address: SocketAddr,
        check: &Arc<HealthCheck>,
        failed_before: Option<Option<i32>>,
        now: Instant,
    ) -> State {
        let service = check.service();
        let opened = self.listeners.take(1).and_then(|permit| Ok((permit, listen(address)?)));
        match opened {
            Ok((permit, listener)) => {
                match failed_before {
                    Some(_) => {
                        info!(%address, %service, "the health check port can be had now and is served")
                    }
                    None => debug!(%address, %service, "health check port opened"),
                }
                let server = self.serve(listener, Family::of(address.ip()), Arc::clone(check));
                State::Open { _server: server, _permit: permit }
            }
            Err(error) => {
                let reason = error.raw_os_error();
                if failed_before != Some(reason) {
                    self.complaints += 1;
                    let what = format!("{error}: {}", mend(reason));
                    if self.complaints <= COMPLAINTS_AT_ONCE {
                        warn!(%service, "no health check of {service} on {address}: {what}");
                    } else {
                        debug!(%service, "no health check of {service} on {address}: {what}");
                    }
                    self.events.warn(
                        service,
                        FAILED,
                        "Listen",
                        format!("no health check on {address}: {what}"),
                    );
                }
                State::Failed { reason, retry_at: now + RETRY }
            }
        }
    }

    fn serve(&self, listener: TcpListener, family: Family, check: Arc<HealthCheck>) -> Server {
        let healthy = Arc::clone(&self.healthy);
        let connections = self.connections.clone();
        Server(tokio::spawn(async move {
            let answer = move |_: &_| answer(check.service(), check.local_endpoints(family), healthy());
            match http_server::serve(listener, connections, SETTINGS, answer).await {}
        }))
    }
}

/// Which check answers at which address and port. If two Services claim a port (an apiserver gives it to one
/// only), it goes to the first by name.
fn wanted(
    checks: &[Arc<HealthCheck>],
    addresses: &[IpAddr],
) -> (BTreeMap<SocketAddr, Arc<HealthCheck>>, BTreeSet<Conflict>) {
    let mut owners: BTreeMap<u16, &Arc<HealthCheck>> = BTreeMap::new();
    let mut conflicts = BTreeSet::new();
    for check in checks {
        let owner = owners.entry(check.port()).or_insert(check);
        if !Arc::ptr_eq(owner, check) {
            conflicts.insert((check.service().clone(), check.port(), owner.service().clone()));
        }
    }
    let addresses: Vec<IpAddr> = addresses.iter().copied().filter(|ip| !is_link_local(*ip)).collect();
    let all = owners.into_values().flat_map(|check| {
        let answers = |ip: &&IpAddr| check.families().contains(&Family::of(**ip));
        addresses.iter().filter(answers).map(move |ip| (*ip, check))
    });
    (all.map(|(ip, check)| (SocketAddr::new(ip, check.port()), Arc::clone(check))).collect(), conflicts)
}

/// Whether the address needs an interface to be meaningful: no load balancer can ask there.
fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

/// Opens a listener that other agents of the same user can share: in a rolling update, no load balancer misses
/// an answer between the old and the new agent, and the socket for all addresses may exist beside those for
/// single ones. Each family has its own sockets.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

fn taken_by(port: u16, owner: &ObjectName) -> String {
    format!("its port {port} is that of {owner}; give it another")
}

fn mend(reason: Option<i32>) -> &'static str {
    match reason.map(Errno::from_raw_os_error) {
        Some(Errno::ADDRINUSE) => "another process listens there (kube-proxy?); stop it. It is tried again",
        Some(Errno::ADDRNOTAVAIL) => "the address is not on an interface of this node. It is tried again",
        Some(Errno::ACCESS) => "the port is privileged; run with CAP_NET_BIND_SERVICE. It is tried again",
        _ => reason
            .map(io::Error::from_raw_os_error)
            .and_then(|error| mend_of_shortage(&error))
            .unwrap_or("it is tried again"),
    }
}
