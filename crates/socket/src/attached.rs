//! The maps of attached programs: writing and reading them.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use sluice_socket_maps::{
    Account, Capacity, Contents, Endpoint, FrontendKey, FrontendValue, Kernel, Living, Meta, Set,
    SetAffinity, SharedClients, endpoint_flags, meta_flags,
};
use sluice_sys::bpf::{self, Mapping};
use sluice_table::SharedHealth;

use crate::accounts::{Accounts, account};
use crate::attach::LAYOUT;
use crate::census::{Listers, set_flags};
use crate::clients::Clients;
use crate::frontends::Frontends;
use crate::health::{Health, now_ns};
use crate::links::Links;
use crate::namespaces::{NAMED, Namespaces};
use crate::pins::Pins;
use crate::sets::Sets;
use crate::shape::{AFFINITIES, CONNS, FRONTENDS, META, NAMESPACES, SOURCES};
use crate::sources::Sources;
use crate::{Census, Error};

/// Attached programs. They stay attached when this is dropped or the process ends: translation goes on by what
/// is in the maps, and another agent may take over.
#[derive(Debug)]
pub struct Attached {
    pins: Pins,
    frontends: Frontends,
    clients: Arc<Clients>,
    sources: Sources,
    namespaces: OwnedFd,
    conns: OwnedFd,
    listers: Listers,
    links: Links,
    sets: Sets,
    slots: Mapping,
    endpoints: Arc<Mapping>,
    accounts: Mapping,
    counters: [OwnedFd; 2],
    meta: Mapping,
    meta_map: OwnedFd,
    capacity: Capacity,
    fresh: bool,
}

impl Attached {
    pub(crate) fn new(
        pins: Pins,
        maps: &HashMap<&'static str, OwnedFd>,
        listers: Listers,
        links: Links,
        capacity: Capacity,
        fresh: bool,
    ) -> Result<Self, Error> {
        let absent = |name: &str| Error::Object(format!("there is no map {name}"));
        let mapping = |name: &str| {
            let map = maps.get(name).ok_or_else(|| absent(name))?;
            Mapping::new(map.as_fd()).map_err(Error::system(format!("mapping {name}")))
        };
        let keep = |name: &str| {
            let map = maps.get(name).ok_or_else(|| absent(name))?;
            map.try_clone().map_err(Error::system(format!("keeping {name}")))
        };
        let mut attached = Self {
            pins,
            frontends: Frontends(keep(FRONTENDS)?),
            clients: Arc::new(Clients::new(keep(AFFINITIES)?)?),
            sources: Sources(mapping(SOURCES)?),
            namespaces: keep(NAMESPACES)?,
            conns: keep(CONNS)?,
            listers,
            links,
            sets: Sets::new(mapping("sets")?, mapping("keeping")?),
            slots: mapping("slots")?,
            endpoints: Arc::new(mapping("endpoints")?),
            accounts: mapping("accounts")?,
            counters: [keep("accounts")?, keep("totals")?],
            meta: mapping(META)?,
            meta_map: keep(META)?,
            capacity,
            fresh,
        };
        // The layout is written last: maps without it are new, or left from an attempt that got no further.
        if attached.fresh || attached.meta().layout != LAYOUT {
            attached.fresh = true;
            attached.begin_incarnations();
        }
        let host = own_namespace().map_err(Error::system("asking for the network namespace"))?;
        let mut meta = attached.meta();
        meta.layout = LAYOUT;
        meta.host_cookie = host;
        attached.write_meta(meta);
        Ok(attached)
    }

    /// Sets the first incarnations of all endpoint ids. Sockets that earlier maps have connected are still
    /// known, but their ids mean nothing here. The first incarnation is the time in milliseconds of
    /// `CLOCK_MONOTONIC`: ids change meaning less often than that, so it is greater than all earlier ones.
    fn begin_incarnations(&self) {
        #[expect(clippy::cast_possible_truncation, reason = "the numbers begin again every seven weeks")]
        let first = (now_ns() / 1_000_000) as u32;
        for id in 0..self.capacity.endpoints {
            store(self.endpoints.words(), id, [0, 0, word(0, first), 0]);
        }
    }

    /// A view of the translated sockets.
    ///
    /// # Errors
    /// No file descriptors are left.
    pub fn census(&self) -> io::Result<Census> {
        let meta = Mapping::new(self.meta_map.as_fd())?;
        Ok(Census {
            listers: self.listers.try_clone()?,
            conns: self.conns.try_clone()?,
            meta,
            directories: NAMED.map(PathBuf::from).into(),
        })
    }

    /// Tells the programs which network namespaces are pods', by their names in these directories. Until its
    /// first look, an earlier agent's knowledge stands; on failure, all but this thread's count as pods'.
    ///
    /// No directory is named, CAP_SYS_ADMIN is missing, or no file descriptors are left.
    /// No directory is named, it takes CAP_SYS_ADMIN, or no descriptors are left.
    pub fn namespaces(&self, directories: &[PathBuf]) -> io::Result<Namespaces> {
        let namespaces = self.try_namespaces(directories);
        if namespaces.is_err() {
            // Whatever an earlier agent knew.
            set_flags(&self.meta, meta_flags::KNOWN_ONLY, 0);
        }
        namespaces
    }

    fn try_namespaces(&self, directories: &[PathBuf]) -> io::Result<Namespaces> {
        Namespaces::new(directories, self.namespaces.try_clone()?, Mapping::new(self.meta_map.as_fd())?)
    }

    /// The links of the attached programs.
    pub fn links(&self) -> Links {
        self.links.clone()
    }

    /// Whether the maps are new and empty. If not, they come from an earlier agent, and connections are
    /// translated by them.
    pub fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// Leaves alone sockets whose mark has all bits of `mark`: the relay's own. 0 stands for none.
    pub fn set_relay_mark(&mut self, mark: u32) {
        self.write_meta(Meta { relay_mark: mark, ..self.meta() });
    }

    /// Leaves alone pods in which a socket listens on one of these ports, for redirected connections; 0 stands
    /// for none.
    pub fn set_sidecar_ports(&mut self, ports: [u16; 2]) {
        self.write_meta(Meta { sidecar_ports: ports.map(u16::to_be_bytes), ..self.meta() });
    }

    /// Sets after what idle time an unconnected socket may get another endpoint.
    pub fn set_flow_idle(&mut self, idle: Duration) {
        let flow_idle_ns = u64::try_from(idle.as_nanos()).unwrap_or(u64::MAX);
        self.write_meta(Meta { flow_idle_ns, ..self.meta() });
    }

    /// Tells the programs that an agent is alive at this time, in nanoseconds of `CLOCK_MONOTONIC`.
    pub fn heartbeat(&self, now_ns: u64) {
        if let Some(word) = self.meta.words().get(2) {
            word.store(now_ns, Ordering::Relaxed);
        }
    }

    /// The values that all programs read.
    pub fn meta(&self) -> Meta {
        let [layout, host_cookie, heartbeat_ns, rest, flow_idle_ns, flags] = load(self.meta.words(), 0);
        let (relay_mark, ports) = halves(rest);
        let [a, b, c, d] = ports.to_ne_bytes();
        let (sidecar_ports, (flags, pad)) = ([[a, b], [c, d]], halves(flags));
        Meta { layout, host_cookie, heartbeat_ns, relay_mark, sidecar_ports, flow_idle_ns, flags, pad }
    }

    fn write_meta(&self, meta: Meta) {
        let Meta { layout, host_cookie, heartbeat_ns, relay_mark, sidecar_ports, flow_idle_ns, flags, pad } =
            meta;
        let [[a, b], [c, d]] = sidecar_ports;
        let rest = word(relay_mark, u32::from_ne_bytes([a, b, c, d]));
        let flags = word(flags, pad);
        store(self.meta.words(), 0, [layout, host_cookie, heartbeat_ns, rest, flow_idle_ns, flags]);
    }

    /// All frontends. One that is being changed may be missing.
    ///
    /// # Errors
    /// The kernel is out of memory.
    pub fn frontends(&self) -> io::Result<Vec<(FrontendKey, FrontendValue)>> {
        self.frontends.all()
    }

    /// A set.
    pub fn set(&self, id: u32) -> Set {
        self.sets.get(id)
    }

    /// The endpoint id in a slot.
    pub fn slot(&self, index: u32) -> u32 {
        self.slots.halves().get(index as usize).map_or(0, |slot| slot.load(Ordering::Relaxed))
    }

    /// An endpoint, with its health.
    pub fn endpoint(&self, id: u32) -> Endpoint {
        let [a, b, c, failures] = load(self.endpoints.words(), id);
        let mut addr = [0; 16];
        addr[..8].copy_from_slice(&a.to_ne_bytes());
        addr[8..].copy_from_slice(&b.to_ne_bytes());
        let (port, incarnation) = halves(c);
        let [p0, p1, f0, f1] = port.to_ne_bytes();
        Endpoint { addr, port: [p0, p1], flags: u16::from_ne_bytes([f0, f1]), incarnation, failures }
    }

    /// The counters of sockets that were translated to an endpoint.
    pub fn account(&self, id: u32) -> Account {
        account(&self.accounts, id)
    }

    /// A view for looking up single frontends.
    ///
    /// # Errors
    /// No file descriptors are left.
    pub fn look_up(&self) -> io::Result<Frontends> {
        self.frontends.try_clone()
    }

    /// The programs' counters, for other threads.
    ///
    /// # Errors
    /// No memory is left.
    pub fn accounts(&self) -> io::Result<Accounts> {
        let [accounts, totals] = &self.counters;
        Accounts::new(accounts.as_fd(), totals.as_fd())
    }
}

impl Kernel for Attached {
    fn write_endpoints(&mut self, first: u32, endpoints: &[Endpoint]) {
        for (id, endpoint) in (first..).zip(endpoints) {
            let Endpoint { addr, port, flags, incarnation, failures } = *endpoint;
            let [a, b] = words(&addr);
            let [f0, f1] = flags.to_ne_bytes();
            let port = u32::from_ne_bytes([port[0], port[1], f0, f1]);
            store(self.endpoints.words(), id, [a, b, word(port, incarnation), failures]);
        }
    }

    fn renew_endpoint(&mut self, id: u32, incarnation: u32) {
        // The incarnation follows the address, the port and the flags.
        if let Some(half) = self.endpoints.halves().get(id as usize * 8 + 5) {
            half.store(incarnation, Ordering::Relaxed);
        }
    }

    fn end_flows(&mut self, id: u32) {
        let [f0, f1] = endpoint_flags::FLOWS.to_ne_bytes();
        // The flags share a half with the port, after the address. Programs and workers change other flags.
        if let Some(half) = self.endpoints.halves().get(id as usize * 8 + 4) {
            half.fetch_and(!u32::from_ne_bytes([0, 0, f0, f1]), Ordering::Relaxed);
        }
    }

    fn account(&self, id: u32) -> Account {
        account(&self.accounts, id)
    }

    fn clear_account(&mut self, id: u32) {
        store(self.accounts.words(), id, [0; 5]);
    }

    fn write_slots(&mut self, first: u32, ids: &[u32]) {
        let slots: &[AtomicU32] = self.slots.halves();
        for (slot, id) in slots.iter().skip(first as usize).zip(ids) {
            slot.store(*id, Ordering::Relaxed);
        }
    }

    fn write_set(&mut self, id: u32, set: Set) {
        self.sets.write(id, set);
    }

    fn publish(&mut self, id: u32, desc: u64) {
        self.sets.publish(id, desc);
    }

    fn write_flags(&mut self, id: u32, flags: u32) {
        self.sets.write_flags(id, flags);
    }

    fn write_affinity(&mut self, id: u32, affinity: SetAffinity) -> bool {
        self.sets.write_affinity(id, affinity)
    }

    fn leave(&mut self, id: u32) {
        let flag = |flag: u16| {
            let [f0, f1] = flag.to_ne_bytes();
            u32::from_ne_bytes([0, 0, f0, f1])
        };
        // Only this thread sets whether it is a UDP endpoint.
        if let Some(half) = self.endpoints.halves().get(id as usize * 8 + 4)
            && half.load(Ordering::Relaxed) & flag(endpoint_flags::FLOWS) == 0
        {
            half.fetch_or(flag(endpoint_flags::LEFT), Ordering::Relaxed);
        }
    }

    fn cursor(&self, id: u32) -> u64 {
        self.set(id).cursor.into()
    }

    fn barrier(&mut self) -> io::Result<()> {
        bpf::wait_for_programs()
    }

    fn put_frontends(&mut self, entries: &[(FrontendKey, FrontendValue)]) -> io::Result<()> {
        self.frontends.put(entries)
    }

    fn remove_frontends(&mut self, keys: &[FrontendKey]) -> io::Result<()> {
        self.frontends.remove(keys)
    }

    fn health(&self) -> SharedHealth {
        Arc::new(Box::new(Health::new(Arc::clone(&self.endpoints))))
    }

    fn clients(&self) -> SharedClients {
        Arc::<Clients>::clone(&self.clients)
    }

    fn forget_sources(&mut self) {
        self.sources.forget(self.meta().host_cookie);
    }

    fn take_over(&mut self) -> io::Result<()> {
        self.pins.remove_others()?.map_or(Ok(()), |left| Err(io::Error::other(left)))
    }

    fn beat(&mut self) {
        self.heartbeat(now_ns());
    }

    fn capacity(&self) -> Capacity {
        self.capacity
    }
}

impl Living for Attached {
    fn contents(&self) -> io::Result<Contents> {
        let Capacity { sets, slots, endpoints, .. } = self.capacity;
        Ok(Contents {
            frontends: self.frontends()?,
            sets: (0..sets).map(|id| self.set(id)).collect(),
            slots: (0..slots).map(|slot| self.slot(slot)).collect(),
            endpoints: (0..endpoints).map(|id| self.endpoint(id)).collect(),
            clients: self.clients.keys()?,
        })
    }
}

/// The network namespace of this thread, asked of a socket. A unix socket needs no port, of which none may be
/// left.
pub(crate) fn own_namespace() -> io::Result<u64> {
    bpf::netns_cookie(UnixDatagram::unbound()?.as_fd())
}

/// Reads an element of `N` words. An element that does not exist reads as zeros.
pub(crate) fn load<const N: usize>(words: &[AtomicU64], index: u32) -> [u64; N] {
    let mut read = [0; N];
    for (to, from) in read.iter_mut().zip(words.iter().skip(index as usize * N)) {
        *to = from.load(Ordering::Relaxed);
    }
    read
}

/// Writes an element of `N` words. Words past the end of the array are dropped.
pub(crate) fn store<const N: usize>(words: &[AtomicU64], index: u32, values: [u64; N]) {
    for (to, from) in words.iter().skip(index as usize * N).zip(values) {
        to.store(from, Ordering::Relaxed);
    }
}

/// Joins two halves in the order in which they are in memory.
pub(crate) fn word(first: u32, second: u32) -> u64 {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&first.to_ne_bytes());
    bytes[4..].copy_from_slice(&second.to_ne_bytes());
    u64::from_ne_bytes(bytes)
}

pub(crate) fn halves(word: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = word.to_ne_bytes();
    (u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h]))
}

fn words(address: &[u8; 16]) -> [u64; 2] {
    let [a, b] = address.as_chunks().0 else { return [0; 2] };
    [u64::from_ne_bytes(*a), u64::from_ne_bytes(*b)]
}

/// The hash of a key of five words: see `hash_of` of pick.h.
pub(crate) fn hash(key: &[u8; 20]) -> u32 {
    let words = key.as_chunks().0.iter().map(|bytes| u32::from_ne_bytes(*bytes));
    words.fold(0u32, |hash, word| (hash ^ word).wrapping_mul(0x9e37_79b1))
}
