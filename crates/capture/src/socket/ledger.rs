//! Adds the programs' accounts of translated connections, which are by endpoint id, to the endpoints of the
//! table, where all other connections are counted.
//!
//! Nothing has to be done while connections come and go: a reader settles the accounts first. The thread that
//! changes endpoints tells the meaning of ids. Any thread may do either.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sluice_socket_maps::{Account, Counters, IdChange, Totals};
use sluice_table::{Times, Upstream};

/// How many accounts are settled while others wait: some tens of microseconds.
const CHUNK: usize = 2_048;

/// The accounts and their endpoints.
pub struct Ledger {
    counters: Box<dyn Counters>,
    /// The totals when this agent began.
    began: Totals,
    books: Mutex<Books>,
}

/// The sums over all translated connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sum {
    /// TCP connections that were established, and datagram sockets and flows.
    pub connections: u64,
    /// TCP connections that have ended.
    pub closed: u64,
    /// TCP connections that the endpoint or the network prevented.
    pub failed: u64,
    /// Bytes from clients, of ended connections.
    pub bytes_to: u64,
    /// Bytes to clients, of ended connections.
    pub bytes_from: u64,
    /// The duration of ended connections, in microseconds.
    pub duration_us: u64,
}

#[derive(Debug, Default)]
struct Books {
    /// By endpoint id.
    entries: Vec<Option<Entry>>,
    /// Accounts that ids from an earlier agent had when this one began.
    found: HashMap<u32, Account>,
    /// The sum over all ids since this agent began.
    sum: Sum,
    /// Where [`Ledger::settle_some`] continues.
    next: usize,
}

/// An endpoint that connections are led to.
#[derive(Debug)]
struct Entry {
    upstream: Arc<Upstream>,
    is_tcp: bool,
    /// No new connections are led to it.
    has_left: bool,
    /// The part of the account that the endpoint already has.
    seen: Account,
    open: u32,
}

/// The number of open connections. The two counters are not read at the same moment.
fn open(account: &Account) -> u32 {
    account.connections.wrapping_sub(account.closed).cast_signed().max(0).cast_unsigned()
}

fn add(to: &AtomicU64, more: u64) {
    if more > 0 {
        to.fetch_add(more, Ordering::Relaxed);
    }
}

impl Entry {
    /// Adds the difference to the endpoint.
    fn settle(&mut self, now: Account, sum: &mut Sum) {
        if now == self.seen {
            return;
        }
        let Some(more) = since(&self.seen, &now) else { return };
        let to = self.upstream.stats().translated();
        let parts = [
            (&to.connections, &mut sum.connections, more.connections),
            (&to.closed, &mut sum.closed, more.closed),
            (&to.failures, &mut sum.failed, more.failed),
            (&to.bytes_to_endpoint, &mut sum.bytes_to, more.bytes_to),
            (&to.bytes_from_endpoint, &mut sum.bytes_from, more.bytes_from),
            (&to.micros, &mut sum.duration_us, more.duration_us),
        ];
        for (to, sum, more) in parts {
            add(to, more);
            *sum += more;
        }
        self.seen = now;
        self.set_open(if self.is_tcp { open(&now) } else { 0 });
    }

    fn set_open(&mut self, open: u32) {
        if open != self.open {
            let to = self.upstream.stats().translated();
            // Other ids of the same endpoint contribute to it.
            to.active.fetch_add(u64::from(open).wrapping_sub(self.open.into()), Ordering::Relaxed);
            self.open = open;
        }
    }

    /// Whether nothing more will be counted.
    fn is_over(&self) -> bool {
        self.has_left && self.open == 0
    }
}

/// The growth of an account. `None` if it has been cleared for its id's next meaning; its former contents are
/// reported at that time.
fn since(seen: &Account, now: &Account) -> Option<Sum> {
    let small = |of: fn(&Account) -> u32| u64::try_from(of(now).wrapping_sub(of(seen)).cast_signed()).ok();
    let large = |of: fn(&Account) -> u64| of(now).checked_sub(of(seen));
    Some(Sum {
        connections: small(|account| account.connections)?,
        closed: small(|account| account.closed)?,
        failed: small(|account| account.failed)?,
        bytes_to: large(|account| account.bytes_to)?,
        bytes_from: large(|account| account.bytes_from)?,
        duration_us: large(|account| account.duration_us)?,
    })
}

impl Ledger {
    /// A ledger of these counters.
    pub fn new(counters: impl Counters + 'static) -> Self {
        let counters: Box<dyn Counters> = Box::new(counters);
        Self { began: counters.totals(), counters, books: Mutex::default() }
    }

    /// Adds the growth of all accounts to their endpoints.
    pub fn settle(&self) {
        let mut from = 0;
        while self.settle_from(&mut self.books(), from) {
            from += CHUNK;
        }
    }

    /// Settles some accounts, and the next ones with the next call. Called several times a second, it reads
    /// every account long before its counters wrap, even if nobody else does, and drops endpoints that are over.
    pub(super) fn settle_some(&self) {
        let mut books = self.books();
        let from = books.next;
        books.next = if self.settle_from(&mut books, from) { from + CHUNK } else { 0 };
    }

    /// Settles a chunk; returns whether there was any.
    fn settle_from(&self, books: &mut Books, from: usize) -> bool {
        let Books { entries, sum, .. } = books;
        let rest = entries.get_mut(from..).unwrap_or_default();
        for (id, place) in (from..).zip(rest.iter_mut().take(CHUNK)) {
            let Some(entry) = place else { continue };
            entry.settle(self.counters.account(u32::try_from(id).unwrap_or(u32::MAX)), sum);
            if entry.is_over() {
                *place = None;
            }
        }
        !rest.is_empty()
    }

    /// The sum of all settled accounts.
    pub fn sum(&self) -> Sum {
        self.books().sum
    }

    /// Totals that are not known by endpoint.
    pub fn totals(&self) -> Totals {
        let (now, began) = (self.counters.totals(), &self.began);
        let mut lives = now.lives;
        lives.iter_mut().zip(began.lives).for_each(|(now, began)| *now = now.saturating_sub(began));
        Totals {
            aborted: now.aborted.saturating_sub(began.aborted),
            timeouts: now.timeouts.saturating_sub(began.timeouts),
            lives,
            ..Totals::default()
        }
    }

    /// How long ended connections lasted, according to the settled accounts.
    pub fn lives(&self) -> Times {
        Times::of_lives(self.totals().lives, Duration::from_micros(self.sum().duration_us))
    }

    /// The endpoint of an id, as long as its account may grow.
    pub fn upstream(&self, id: u32) -> Option<Arc<Upstream>> {
        let books = self.books();
        let entry = books.entries.get(id as usize)?.as_ref()?;
        Some(Arc::clone(&entry.upstream))
    }

    /// Applies changes of ids.
    pub(super) fn follow(&self, changes: &[IdChange]) {
        let mut books = self.books();
        let Books { entries, found, sum, .. } = &mut *books;
        for change in changes {
            let (IdChange::Found(id) | IdChange::Left(id) | IdChange::Freed(id, _)) = *change;
            let place = entries.get_mut(id as usize);
            match (*change, place) {
                (IdChange::Found(_), _) => {
                    found.insert(id, self.counters.account(id));
                }
                (IdChange::Left(_), Some(place)) => {
                    found.remove(&id);
                    if let Some(entry) = place {
                        entry.has_left = true;
                        entry.settle(self.counters.account(id), sum);
                        if entry.is_over() {
                            *place = None;
                        }
                    }
                }
                (IdChange::Freed(_, last), Some(place)) => {
                    found.remove(&id);
                    if let Some(mut entry) = place.take() {
                        entry.settle(last, sum);
                        // Later growth is not counted.
                        entry.set_open(0);
                    }
                }
                (IdChange::Left(_) | IdChange::Freed(..), None) => {
                    found.remove(&id);
                }
            }
        }
    }

    /// Tells which endpoints ids belong to.
    pub(super) fn bind<'a>(&self, is_tcp: bool, ids: impl Iterator<Item = (u32, &'a Arc<Upstream>)>) {
        let mut books = self.books();
        let Books { entries, found, .. } = &mut *books;
        for (id, upstream) in ids {
            let at = id as usize;
            if entries.len() <= at {
                entries.resize_with(at + 1, || None);
            }
            let Some(place) = entries.get_mut(at) else { continue };
            match place {
                Some(entry) if Arc::ptr_eq(&entry.upstream, upstream) => {}
                // The endpoint was removed and added again, and connections were led to it all the time.
                Some(entry) => {
                    let open = entry.open;
                    entry.set_open(0);
                    entry.upstream = Arc::clone(upstream);
                    entry.set_open(open);
                }
                None => {
                    // Usually an earlier agent has left none.
                    let seen = if found.is_empty() { None } else { found.remove(&id) };
                    let seen = seen.unwrap_or_default();
                    let upstream = Arc::clone(upstream);
                    let entry = place.insert(Entry { upstream, is_tcp, has_left: false, seen, open: 0 });
                    if is_tcp {
                        entry.set_open(open(&seen));
                    }
                }
            }
        }
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Ledger {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Ledger").field("books", &self.books).finish_non_exhaustive()
    }
}
