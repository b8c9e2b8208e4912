//! The kernel's operations on the maps; in tests, plain memory.

use std::io;

use sluice_table::SharedHealth;

use crate::affinity::{SetAffinity, SharedClients};
use crate::layout::{Account, Endpoint, FrontendKey, FrontendValue, Set, Totals};

/// The capacities of the maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Frontends.
    pub frontends: u32,
    /// Sets.
    pub sets: u32,
    /// Slots: endpoint ids in the ranges of sets.
    pub slots: u32,
    /// Endpoints.
    pub endpoints: u32,
}

/// The programs' counters. Any thread may read them.
pub trait Counters: Send + Sync {
    /// The counters of sockets translated to an endpoint.
    fn account(&self, id: u32) -> Account;
    /// The counters of all of them together.
    fn totals(&self) -> Totals;
}

/// Accounts alone, without totals.
impl<F: Fn(u32) -> Account + Send + Sync> Counters for F {
    fn account(&self, id: u32) -> Account {
        self(id)
    }

    fn totals(&self) -> Totals {
        Totals::default()
    }
}

/// The maps that the programs read. Programs run at any time, on all CPUs, and see changes in the order of
/// the calls.
pub trait Kernel {
    /// Writes endpoints from id `first` on, each with an incarnation that its id has not had. Overwrites the
    /// state of their health.
    fn write_endpoints(&mut self, first: u32, endpoints: &[Endpoint]);
    /// Changes the incarnation of an endpoint's id, and nothing else: sockets that remember it choose a new
    /// endpoint.
    fn renew_endpoint(&mut self, id: u32, incarnation: u32);
    /// Records that no flow stays with an endpoint's id any more, so a successor need not care for it.
    fn end_flows(&mut self, id: u32);
    /// The counters of sockets translated to an endpoint.
    fn account(&self, id: u32) -> Account;
    /// Resets these counters.
    fn clear_account(&mut self, id: u32);
    /// Writes slots from `first` on.
    fn write_slots(&mut self, first: u32, ids: &[u32]);
    /// Writes a set, which no frontend may name.
    fn write_set(&mut self, id: u32, set: Set);
    /// Atomically changes the range that a set uses from the next turn on.
    fn publish(&mut self, id: u32, desc: u64);
    /// Changes how a set's endpoints are chosen, by bits of [`set_flags`](crate::set_flags), from the next
    /// pick on.
    fn write_flags(&mut self, id: u32, flags: u32);
    /// Sets whether a set's clients keep their endpoints, from the next connection on. Returns whether there
    /// was room for it. Otherwise, no connection is translated to the set.
    fn write_affinity(&mut self, id: u32, affinity: SetAffinity) -> bool;
    /// Records that no set contains this TCP endpoint any more, so clients do not keep it. Has no effect on
    /// UDP endpoints.
    fn leave(&mut self, id: u32);
    /// The number of turns that a set has had.
    fn cursor(&self, id: u32) -> u64;
    /// Returns once no program uses anything that was published before.
    ///
    /// # Errors
    /// The kernel cannot wait for the programs.
    fn barrier(&mut self) -> io::Result<()>;
    /// Adds or changes frontends.
    ///
    /// # Errors
    /// The map is full, or the kernel has no memory: some changes may have been made.
    fn put_frontends(&mut self, entries: &[(FrontendKey, FrontendValue)]) -> io::Result<()>;
    /// Removes frontends; absent ones are ignored.
    ///
    /// # Errors
    /// Those of the kernel: some may have been removed.
    fn remove_frontends(&mut self, keys: &[FrontendKey]) -> io::Result<()>;
    /// The health of endpoints, to be shared with the relay. It may outlive this.
    fn health(&self) -> SharedHealth;
    /// The clients with session affinity. It may outlive this.
    fn clients(&self) -> SharedClients;
    /// Forgets the source addresses of the node's own sockets, which are learnt again, because the node's
    /// addresses have changed.
    fn forget_sources(&mut self);
    /// Removes the programs with maps of another layout, which were in use until now. To be called when the
    /// maps are complete.
    ///
    /// # Errors
    /// Something cannot be removed.
    fn take_over(&mut self) -> io::Result<()>;
    /// Tells the programs that there is a relay, to which they may leave connections. They believe it for a
    /// while.
    fn beat(&mut self);
    /// The capacities of the maps.
    fn capacity(&self) -> Capacity;
}
