//! Socket mode: tells the BPF programs about frontends and endpoints, so that they lead connections of this
//! node's clients to an endpoint before there is a packet. It works beside `tproxy`, which handles everything
//! that is not decided there.
//!
//! It belongs to the thread that changes the table, so endpoints take effect here at the same moment. Frontends
//! are added last and removed first: at any time `tproxy` serves what the programs leave alone.
//!
//! `offered`: what the programs have to know. `numbers`: tells others the endpoints' ids in the maps. `ledger`:
//! accounts of connections. `followed`: clients that keep their endpoints; `kept`: those that the programs know;
//! `ended`: those of sets that are gone.

mod ended;
mod followed;
mod kept;
mod ledger;
mod numbers;
mod offered;

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Instant;

use sluice_model::Frontend;
use sluice_socket_maps::{Kernel, Maps, Port, PortKey, Stats};
use sluice_table::{ServicePort, SharedHealth, Table};
use tracing::warn;

use self::followed::Followed;
pub use self::ledger::{Ledger, Sum};
use self::offered::Offered;

/// The part of the capture that decides at clients' sockets.
pub trait AtSockets: Send + Sync {
    /// Starts to decide about these frontends here. The table and the other capture already have them.
    fn offer(&mut self, frontends: &[Frontend]);

    /// Stops deciding about these frontends. Once this returns, no connection to them is decided here.
    fn withdraw(&mut self, frontends: &[Frontend]);

    /// Applies the current state of these service ports.
    fn change(&mut self, ports: &[Arc<ServicePort>]);

    /// Sets the addresses of the node's interfaces.
    fn set_interfaces(&mut self, addresses: &[IpAddr]);

    /// Notes that all frontends were offered. When this returns, any others that an earlier agent left are gone.
    fn forget_others(&mut self);

    /// Does the work that is due. Must be called several times a second.
    fn keep(&mut self);

    /// Notes that there is a relay, which accepts the connections that are left to it: those to unverified
    /// endpoints. Must be called several times a second while there is one.
    fn beat(&mut self);

    /// Numbers of entries and events.
    fn stats(&self) -> Stats;
}

/// How many ports are changed together. Their endpoints, one or two thousand, are read several times, and stay
/// in the processor's cache after the first.
const TOGETHER: usize = 128;

/// Keeps the maps of socket mode in line with the table.
#[derive(Debug)]
pub struct Sockets<K> {
    offered: Offered,
    written: Written<K>,
    /// The last logged number of entries that do not fit.
    said: usize,
}

/// The maps, and the users of their endpoint ids.
#[derive(Debug)]
struct Written<K> {
    maps: Maps<K>,
    health: SharedHealth,
    /// Knows which endpoint each id belongs to.
    ledger: Arc<Ledger>,
    clients: Followed,
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

impl<K: Kernel + Send + Sync> Sockets<K> {
    /// Keeps maps in line with a table, and a ledger in line with the maps. With `host_only`, only for the
    /// node's own sockets.
    pub fn new(mut maps: Maps<K>, table: &Table, ledger: Arc<Ledger>, host_only: bool) -> Self {
        maps.follow_ids();
        let health = maps.kernel().health();
        let clients = Followed::new(maps.kernel().clients());
        Self {
            offered: Offered::new(table.reader(), host_only),
            written: Written { maps, health, ledger, clients },
            said: 0,
        }
    }

    /// Brings the maps in line with the current state of these ports; each key occurs once.
    fn refresh(&mut self, keys: &[PortKey]) {
        let Self { offered, written, .. } = self;
        let mut gone = Vec::new();
        pipelined(
            keys.chunks(TOGETHER),
            |keys| offered.wanted(keys),
            |ports| {
                gone.extend(ports.iter().filter(|(_, port)| port.frontends.is_empty()).map(|(key, _)| *key));
                written.write(offered, ports);
            },
        );
        for key in gone {
            offered.forget(key);
            written.clients.forget(key);
        }
    }
}

/// Prepares each part on a thread of its own, if there are several, and writes it on this one, in order: after a
/// start both take about as long.
fn pipelined<P: Send, W: Send>(
    parts: impl ExactSizeIterator<Item = P> + Send + Clone,
    prepare: impl Fn(P) -> W + Sync,
    mut write: impl FnMut(W),
) {
    thread::scope(|scope| {
        let (sender, prepared) = mpsc::sync_channel(1);
        let (others, prepare) = (parts.clone(), &prepare);
        let ahead = move || others.map(prepare).try_for_each(|part| sender.send(part));
        let is_ahead = parts.len() > 1
            && thread::Builder::new().name("prepare".into()).spawn_scoped(scope, ahead).is_ok();
        if is_ahead {
            prepared.iter().for_each(&mut write);
        } else {
            // The thread limit is reached, or there are too few parts for a thread.
            parts.map(prepare).for_each(&mut write);
        }
    });
}

impl<K: Kernel + Send + Sync> Written<K> {
    fn write(&mut self, offered: &Offered, ports: Vec<(PortKey, Port)>) {
        let keys: Vec<PortKey> = ports.iter().map(|(key, _)| *key).collect();
        self.maps.apply(ports);
        self.share(offered, &keys);
    }

    /// Tells ledger and table the current ids of these ports' endpoints, and which ids are gone.
    fn share(&mut self, offered: &Offered, keys: &[PortKey]) {
        self.ledger.follow(&self.maps.take_id_changes());
        for key in keys {
            if let Some(known) = offered.get(*key) {
                numbers::share(&known.port, *key, &self.maps, &self.health, &self.ledger);
                self.clients.share(&known.port, *key, &self.maps);
            }
        }
    }
}

impl<K: Kernel + Send + Sync> AtSockets for Sockets<K> {
    fn offer(&mut self, frontends: &[Frontend]) {
        let touched = self.offered.add(frontends);
        self.refresh(&touched);
    }

    fn withdraw(&mut self, frontends: &[Frontend]) {
        let touched = self.offered.remove(frontends);
        self.refresh(&touched);
    }

    fn change(&mut self, ports: &[Arc<ServicePort>]) {
        let keys = offered::each_once(ports.iter().map(offered::key).collect());
        self.refresh(&keys);
    }

    fn set_interfaces(&mut self, addresses: &[IpAddr]) {
        let touched = self.offered.set_interfaces(addresses);
        self.refresh(&touched);
        // From now on the kernel may choose another source address for a node's socket.
        self.written.maps.kernel_mut().forget_sources();
    }

    fn forget_others(&mut self) {
        let Self { offered, written, .. } = self;
        written.maps.forget_unclaimed();
        written.share(offered, &[]);
        written.clients.adopt(offered, &written.maps, Instant::now());
        if let Err(error) = written.maps.kernel_mut().take_over() {
            warn!("what an older version has left is not all gone: {error}");
        }
    }

    fn keep(&mut self) {
        let Self { offered, written, said } = self;
        let changed = written.maps.retry();
        written.share(offered, &changed);
        written.ledger.settle_some();
        written.clients.forget_some();
        let waiting = written.maps.stats().waiting;
        if waiting > *said {
            warn!(
                "{waiting} service ports do not fit into the maps of socket mode, and are relayed: raise \
                 --socket-endpoints"
            );
        }
        *said = waiting;
    }

    fn beat(&mut self) {
        self.written.maps.kernel_mut().beat();
    }

    fn stats(&self) -> Stats {
        self.written.clients.count(self.written.maps.stats())
    }
}

#[cfg(test)]
mod tests;
