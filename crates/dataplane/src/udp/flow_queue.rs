//! A queue of slots in the order of their use, linked through the slots themselves. Moving one to the end, or
//! removing it from the middle, takes constant time.
//!
//! No crate (`lru`, `hashlink`) fits: those keep keys and values in nodes that are found only by key. Here,
//! poll events find a flow by its slot, and one flow is in two queues at a time and moves between several.

use crate::token::{SlotId, Slots};

/// The neighbours of a slot in its queue.
#[derive(Debug, Default)]
pub(super) struct Links {
    older: Option<SlotId>,
    newer: Option<SlotId>,
}

/// Selects one of a slot's pairs of neighbours: a slot may be in one queue of each chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chain {
    /// The queues of all flows.
    Table,
    /// The queues of one client's flows.
    Client,
}

/// An item that can be queued.
pub(super) trait Linked {
    fn links(&mut self, chain: Chain) -> &mut Links;
}

/// The two ends of a queue and its length.
#[derive(Debug)]
pub(super) struct Queue {
    chain: Chain,
    oldest: Option<SlotId>,
    newest: Option<SlotId>,
    len: usize,
}

impl Queue {
    pub(super) const fn new(chain: Chain) -> Self {
        Self { chain, oldest: None, newest: None, len: 0 }
    }

    /// The slot that was queued first.
    pub(super) fn oldest(&self) -> Option<SlotId> {
        self.oldest
    }

    /// The slot that was queued last.
    pub(super) fn newest(&self) -> Option<SlotId> {
        self.newest
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Appends a slot that is in no queue.
    pub(super) fn push<T: Linked>(&mut self, slots: &mut Slots<T>, id: SlotId) {
        let Some(slot) = slots.get_mut(id) else { return };
        *slot.links(self.chain) = Links { older: self.newest, newer: None };
        match self.newest.and_then(|newest| slots.get_mut(newest)) {
            Some(newest) => newest.links(self.chain).newer = Some(id),
            None => self.oldest = Some(id),
        }
        self.newest = Some(id);
        self.len += 1;
    }

    /// Removes a slot from this queue. It must be in it.
    pub(super) fn remove<T: Linked>(&mut self, slots: &mut Slots<T>, id: SlotId) {
        let Some(slot) = slots.get_mut(id) else { return };
        let Links { older, newer } = std::mem::take(slot.links(self.chain));
        match older.and_then(|older| slots.get_mut(older)) {
            Some(slot) => slot.links(self.chain).newer = newer,
            None => self.oldest = newer,
        }
        match newer.and_then(|newer| slots.get_mut(newer)) {
            Some(slot) => slot.links(self.chain).older = older,
            None => self.newest = older,
        }
        self.len -= 1;
    }

    /// The slots from the oldest to the newest; for checks. Stops where the links are inconsistent.
    pub(super) fn walk<T: Linked>(&self, slots: &mut Slots<T>) -> Vec<SlotId> {
        let (mut walked, mut next) = (Vec::new(), self.oldest);
        while let Some(id) = next.filter(|_| walked.len() <= self.len) {
            let Some(slot) = slots.get_mut(id) else { break };
            if slot.links(self.chain).older != walked.last().copied() {
                break;
            }
            next = slot.links(self.chain).newer;
            walked.push(id);
        }
        walked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Linked for Links {
        fn links(&mut self, _: Chain) -> &mut Links {
            self
        }
    }

    #[test]
    fn slots_leave_from_anywhere_and_the_order_of_the_others_stays() {
        for taken in 0..4 {
            let mut slots = Slots::default();
            let mut queue = Queue::new(Chain::Table);
            let mut ids: Vec<_> = (0..4).map(|_| slots.insert_with(|_| Links::default())).collect();
            ids.iter().for_each(|&id| queue.push(&mut slots, id));
            assert_eq!(queue.walk(&mut slots), ids);

            let moved = ids.remove(taken);
            queue.remove(&mut slots, moved);
            assert_eq!(queue.walk(&mut slots), ids);
            queue.push(&mut slots, moved);
            ids.push(moved);
            assert_eq!(queue.walk(&mut slots), ids);

            for id in ids.clone() {
                assert_eq!(queue.oldest(), Some(id));
                queue.remove(&mut slots, id);
            }
            assert_eq!((queue.oldest, queue.newest, queue.len), (None, None, 0));
        }
    }
}
