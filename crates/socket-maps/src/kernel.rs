//! What the kernel offers for changing the maps; in tests, plain memory.

use std::io;

use sluice_table::SharedHealth;

use crate::affinity::{SetAffinity, SharedClients};
use crate::layout::{Account, Endpoint, FrontendKey, FrontendValue, Set, Totals};

/// How much fits into the maps.
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

/// What the programs count; any thread may ask.
pub trait Counters: Send + Sync {
    /// What sockets translated to an endpoint have done.
    fn account(&self, id: u32) -> Account;
    /// What all of them have done.
    fn totals(&self) -> Totals;
}

/// Accounts and nothing else.
impl<F: Fn(u32) -> Account + Send + Sync> Counters for F {
    fn account(&self, id: u32) -> Account {
        self(id)
    }

    fn totals(&self) -> Totals {
        Totals::default()
    }
}

/// The maps that the programs read. Readers run at any time, on all CPUs, and what they see is in the order of the
/// calls.
pub trait Kernel {
    /// Writes endpoints from id `first` on, each with an incarnation that its id has not had: what is known of their health is
    /// overwritten.
    fn write_endpoints(&mut self, first: u32, endpoints: &[Endpoint]);
    /// Has an endpoint's id mean something else, and nothing but that: what remembers it chooses anew.
    fn renew_endpoint(&mut self, id: u32, incarnation: u32);
    /// No flow keeps to an endpoint's id any more: whoever takes the maps over has nothing to look after.
    fn end_flows(&mut self, id: u32);
    /// What sockets translated to an endpoint have done.
    fn account(&self, id: u32) -> Account;
    /// Has it begin at nothing.
    fn clear_account(&mut self, id: u32);
    /// Writes slots from `first` on.
    fn write_slots(&mut self, first: u32, ids: &[u32]);
    /// Writes a set. Only while no frontend names it.
    fn write_set(&mut self, id: u32, set: Set);
    /// Has a set use another range from the next turn on, in one step.
    fn publish(&mut self, id: u32, desc: u64);
    /// Has a set's endpoints be chosen in another way, one of [`set_flags`](crate::set_flags), from the next one on.
    fn write_flags(&mut self, id: u32, flags: u32);
    /// Has a set's clients keep their endpoints, or not, from the next connection on; whether there was room for how. Where there
    /// was none nobody is led there.
    fn write_affinity(&mut self, id: u32, affinity: SetAffinity) -> bool;
    /// No set has this endpoint of TCP any more: clients do not keep it. Those of UDP are left alone.
    fn leave(&mut self, id: u32);
    /// How many turns a set has had.
    fn cursor(&self, id: u32) -> u64;
    /// Returns once no reader holds anything that was published before.
    ///
    /// # Errors
    /// The kernel cannot wait for its readers.
    fn barrier(&mut self) -> io::Result<()>;
    /// Adds frontends, or changes them.
    ///
    /// # Errors
    /// The map is full, or the kernel is out of memory: some may be in.
    fn put_frontends(&mut self, entries: &[(FrontendKey, FrontendValue)]) -> io::Result<()>;
    /// Removes frontends; those that are not there are left out.
    ///
    /// # Errors
    /// The kernel refuses: some may be gone.
    fn remove_frontends(&mut self, keys: &[FrontendKey]) -> io::Result<()>;
    /// What the programs know of endpoints, to be shared with whoever else connects to them. It may outlive this.
    fn health(&self) -> SharedHealth;
    /// Clients that keep their endpoints. It may outlive this.
    fn clients(&self) -> SharedClients;
    /// The node has other addresses: what its own sockets come from is learnt anew.
    fn forget_sources(&mut self);
    /// Everything is in: takes away what programs with maps of another layout have left, which went on until now.
    ///
    /// # Errors
    /// Something cannot be removed.
    fn take_over(&mut self) -> io::Result<()>;
    /// Tells the programs that there is a relay now, which takes what they leave to it. It is believed for a while.
    fn beat(&mut self);
    /// How much fits.
    fn capacity(&self) -> Capacity;
}
