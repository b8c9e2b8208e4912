//! What connections did that were led to their endpoint at the client's socket: from the programs' accounts, which go
//! by an endpoint's number, to the endpoints of the table, where all else is counted.
//!
//! Nobody has to do anything while connections come and go: whoever wants to see numbers has them settled before. Who
//! changes endpoints says what numbers mean. Any thread may do either.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sluice_socket_maps::{Account, IdChange};
use sluice_table::Upstream;

/// How many accounts are settled while others wait: some tens of microseconds.
const CHUNK: usize = 2_048;

/// The accounts that there are, and whose they are.
pub struct Ledger {
    read: Box<dyn Fn(u32) -> Account + Send + Sync>,
    books: Mutex<Books>,
}

#[derive(Debug, Default)]
struct Books {
    /// By number.
    entries: Vec<Option<Entry>>,
    /// What endpoints had done that an earlier agent has given their numbers.
    found: HashMap<u32, Account>,
    /// Over all numbers, since this agent has looked.
    sum: Account,
}

/// An endpoint that is led to.
#[derive(Debug)]
struct Entry {
    upstream: Arc<Upstream>,
    is_tcp: bool,
    /// Nothing leads there any more.
    has_left: bool,
    /// As far as the endpoint has it.
    seen: Account,
    made: u64,
    open: u64,
}

/// Connections that came about, or may.
fn made(account: &Account) -> u64 {
    account.connections.saturating_sub(account.failed + account.aborted)
}

fn add(to: &AtomicU64, more: u64) {
    if more > 0 {
        to.fetch_add(more, Ordering::Relaxed);
    }
}

impl Entry {
    /// Lets the endpoint have what is new.
    fn settle(&mut self, now: Account, sum: &mut Account) {
        if now == self.seen {
            return;
        }
        let to = self.upstream.stats().translated();
        let seen = self.seen;
        let mut more = |of: fn(&mut Account) -> &mut u64| {
            let (mut now, mut seen) = (now, seen);
            let more = of(&mut now).saturating_sub(*of(&mut seen));
            *of(sum) += more;
            more
        };
        more(|account| &mut account.connections);
        more(|account| &mut account.timeouts);
        more(|account| &mut account.aborted);
        add(&to.failures, more(|account| &mut account.failed));
        add(&to.closed, more(|account| &mut account.closed));
        add(&to.micros, more(|account| &mut account.duration_us));
        add(&to.bytes_to_endpoint, more(|account| &mut account.bytes_to));
        add(&to.bytes_from_endpoint, more(|account| &mut account.bytes_from));
        // One that is being made counts, and stops to if it fails. What was told is never taken back.
        let made = made(&now);
        add(&to.connections, made.saturating_sub(self.made));
        self.made = self.made.max(made);
        self.seen = now;
        self.set_open(if self.is_tcp { made.saturating_sub(now.closed) } else { 0 });
    }

    fn set_open(&mut self, open: u64) {
        if open != self.open {
            let to = self.upstream.stats().translated();
            // Other numbers of the endpoint's have a part in it.
            to.active.fetch_add(open.wrapping_sub(self.open), Ordering::Relaxed);
            self.open = open;
        }
    }

    /// Whether nothing will come any more.
    fn is_over(&self) -> bool {
        self.has_left && self.open == 0
    }
}

impl Ledger {
    /// Accounts as they are read by `read`.
    pub fn new(read: impl Fn(u32) -> Account + Send + Sync + 'static) -> Self {
        Self { read: Box::new(read), books: Mutex::default() }
    }

    /// Lets every endpoint have what its account says.
    pub fn settle(&self) {
        let mut from = 0;
        loop {
            let mut books = self.books();
            let Books { entries, sum, .. } = &mut *books;
            let rest = entries.get_mut(from..).unwrap_or_default();
            if rest.is_empty() {
                return;
            }
            for (id, place) in (from..).zip(rest.iter_mut().take(CHUNK)) {
                let Some(entry) = place else { continue };
                entry.settle((self.read)(u32::try_from(id).unwrap_or(u32::MAX)), sum);
                if entry.is_over() {
                    *place = None;
                }
            }
            from += CHUNK;
        }
    }

    /// What was settled so far, of all endpoints together.
    pub fn sum(&self) -> Account {
        self.books().sum
    }

    /// Whose a number is, as long as something may come of it.
    pub fn upstream(&self, id: u32) -> Option<Arc<Upstream>> {
        let books = self.books();
        let entry = books.entries.get(id as usize)?.as_ref()?;
        Some(Arc::clone(&entry.upstream))
    }

    /// Learns what became of numbers.
    pub(super) fn follow(&self, changes: &[IdChange]) {
        let mut books = self.books();
        let Books { entries, found, sum } = &mut *books;
        for change in changes {
            let (IdChange::Found(id) | IdChange::Left(id) | IdChange::Freed(id, _)) = *change;
            let place = entries.get_mut(id as usize);
            match (*change, place) {
                (IdChange::Found(_), _) => {
                    found.insert(id, (self.read)(id));
                }
                (IdChange::Left(_), Some(place)) => {
                    found.remove(&id);
                    if let Some(entry) = place {
                        entry.has_left = true;
                        entry.settle((self.read)(id), sum);
                        if entry.is_over() {
                            *place = None;
                        }
                    }
                }
                (IdChange::Freed(_, last), Some(place)) => {
                    found.remove(&id);
                    if let Some(mut entry) = place.take() {
                        entry.settle(last, sum);
                        // Whatever else comes of it is not counted.
                        entry.set_open(0);
                    }
                }
                (IdChange::Left(_) | IdChange::Freed(..), None) => {
                    found.remove(&id);
                }
            }
        }
    }

    /// Learns whose numbers are.
    pub(super) fn bind(&self, is_tcp: bool, ids: impl Iterator<Item = (u32, Arc<Upstream>)>) {
        let mut books = self.books();
        let Books { entries, found, .. } = &mut *books;
        for (id, upstream) in ids {
            let at = id as usize;
            if entries.len() <= at {
                entries.resize_with(at + 1, || None);
            }
            let Some(place) = entries.get_mut(at) else { continue };
            match place {
                Some(entry) if Arc::ptr_eq(&entry.upstream, &upstream) => {}
                // The endpoint had gone and is back, without a time in which nothing led there.
                Some(entry) => {
                    let open = entry.open;
                    entry.set_open(0);
                    entry.upstream = upstream;
                    entry.set_open(open);
                }
                None => {
                    let seen = found.remove(&id).unwrap_or_default();
                    let made = made(&seen);
                    let entry = Entry { upstream, is_tcp, has_left: false, seen, made, open: 0 };
                    let entry = place.insert(entry);
                    if is_tcp {
                        entry.set_open(made.saturating_sub(seen.closed));
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
