//! Socket mode: what programs in the kernel are told about frontends and endpoints, so that connections of this node's
//! clients are led to an endpoint before there is a packet. Beside `tproxy`, which has everything that is not decided
//! there.
//!
//! Belongs to the thread that changes the table: endpoints take effect here at the same moment. Frontends come last and
//! go first: at any time there is a way for what the programs leave alone.
//!
//! `offered`: what the programs are to be told. `numbers`: whom the maps' numbers of endpoints are told. `ledger`: what
//! connections did. `followed`: clients that keep their endpoints; `kept`: those that the programs know; `ended`: those that nobody
//! is led by any more.

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

/// What decides at clients' sockets.
pub trait AtSockets: Send + Sync {
    /// Has these be decided here from now on: the table knows them, and so does the other capture.
    fn offer(&mut self, frontends: &[Frontend]);

    /// Once this returns nothing is decided here any more about connections to these.
    fn withdraw(&mut self, frontends: &[Frontend]);

    /// Goes by what these service ports are now.
    fn change(&mut self, ports: &[Arc<ServicePort>]);

    /// Learns the addresses of the node's interfaces.
    fn set_interfaces(&mut self, addresses: &[IpAddr]);

    /// Everything that there is was offered: what an earlier agent has left beyond that is gone when this returns.
    fn forget_others(&mut self);

    /// Does what is due. To be called several times a second.
    fn keep(&mut self);

    /// Says that there is a relay now, which takes what is left to it: endpoints in doubt are. To be called several times
    /// a second for as long as there is one.
    fn beat(&mut self);

    /// How much there is.
    fn stats(&self) -> Stats;
}

/// How many ports are changed at a time: their endpoints, a thousand or two, are looked at several times, and from the
/// second one on are in the processor's cache.
const TOGETHER: usize = 128;

/// The maps of socket mode, kept in line with the table.
#[derive(Debug)]
pub struct Sockets<K> {
    offered: Offered,
    written: Written<K>,
    /// How much does not fit, as it was last said.
    said: usize,
}

/// The maps, and who goes by their numbers.
#[derive(Debug)]
struct Written<K> {
    maps: Maps<K>,
    health: SharedHealth,
    /// Where it is known whose the endpoints' numbers are.
    ledger: Arc<Ledger>,
    clients: Followed,
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

impl<K: Kernel + Send + Sync> Sockets<K> {
    /// Maps that are kept in line with a table, and a ledger that knows what is in them; with `host_only` for the node's own
    /// sockets alone.
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

    /// Brings the maps in line with what these ports are now; each is named once.
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

/// Prepares each part on a thread of its own, if there are several, and writes it on this one: after a start both take
/// about as long. In order.
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
            // There are as many threads as there may be, or it would not be worth one.
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

    /// Has ledger and table go by the numbers that the maps have now, for the endpoints of these ports and for what is gone.
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
        // The kernel may choose another one for a node's socket from now on.
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
