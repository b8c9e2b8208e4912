//! Forgets clients of sets that are gone, or that no longer have session affinity. Such entries lead nobody, but
//! take room. The thread that changes the table forgets some at a time.

use std::collections::HashMap;
use std::sync::Arc;

use super::kept::{Clients, OfSet};

/// How many clients are checked each time: one system call, plus one for each that is forgotten. The largest
/// possible number takes a few seconds.
pub(super) const AT_ONCE: usize = 1024;

/// The sets whose clients are to be forgotten.
#[derive(Debug, Default)]
pub(super) struct Ended {
    /// Sets that were added during the current pass.
    waiting: HashMap<u32, Arc<OfSet>>,
    /// The sets of the current pass over all clients.
    looked_for: HashMap<u32, Arc<OfSet>>,
    /// Where the pass continues.
    from: Option<u32>,
}

impl Ended {
    /// Adds a set whose clients lead nobody any more.
    pub(super) fn add(&mut self, set: Arc<OfSet>) {
        set.end();
        // A worker that adds a client just now sees that the set is over.
        if set.has_clients() {
            self.waiting.insert(set.number(), set);
        }
    }

    /// Whether the clients of this set are about to be forgotten.
    pub(super) fn has(&self, number: u32) -> bool {
        self.waiting.contains_key(&number) || self.looked_for.contains_key(&number)
    }

    /// Checks some clients.
    pub(super) fn forget_some(&mut self, clients: &Clients) {
        if self.looked_for.is_empty() {
            (self.looked_for, self.from) = (std::mem::take(&mut self.waiting), None);
        }
        if self.looked_for.is_empty() {
            return;
        }
        let Ok(part) = clients.known.part(self.from, AT_ONCE) else {
            // Starts over next time.
            self.from = None;
            return;
        };
        for key in part.keys {
            if let Some(set) = self.looked_for.get(&key.number) {
                set.remove(key);
            }
        }
        self.from = part.next;
        match self.from {
            Some(_) => self.looked_for.retain(|_, set| set.has_clients()),
            None => self.looked_for.drain().for_each(|(_, set)| set.write_off()),
        }
    }
}
