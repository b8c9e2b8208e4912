//! Clients of sets that are no more, or whose clients keep no endpoint any more: they lead nobody, but take room. They are
//! forgotten some at a time, by the thread that changes the table.

use std::collections::HashMap;
use std::sync::Arc;

use super::kept::{Clients, OfSet};

/// How many clients are looked at each time: one system call, and one for each that is forgotten. All that there may be are
/// through after a few seconds.
pub(super) const AT_ONCE: usize = 1024;

/// The sets whose clients are to be forgotten.
#[derive(Debug, Default)]
pub(super) struct Ended {
    /// Those that came while others were looked for.
    waiting: HashMap<u32, Arc<OfSet>>,
    /// Those that are looked for, among all clients there are.
    looked_for: HashMap<u32, Arc<OfSet>>,
    /// From where on.
    from: Option<u32>,
}

impl Ended {
    /// Nobody is led any more by what is known of the clients of this set.
    pub(super) fn add(&mut self, set: Arc<OfSet>) {
        set.end();
        // Whoever adds one just now sees that it is over.
        if set.has_clients() {
            self.waiting.insert(set.number(), set);
        }
    }

    /// Whether these are about to be forgotten.
    pub(super) fn has(&self, number: u32) -> bool {
        self.waiting.contains_key(&number) || self.looked_for.contains_key(&number)
    }

    /// Looks at some clients.
    pub(super) fn forget_some(&mut self, clients: &Clients) {
        if self.looked_for.is_empty() {
            (self.looked_for, self.from) = (std::mem::take(&mut self.waiting), None);
        }
        if self.looked_for.is_empty() {
            return;
        }
        let Ok(part) = clients.known.part(self.from, AT_ONCE) else {
            // From the beginning, the next time.
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
