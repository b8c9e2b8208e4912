//! The sets from which programs choose endpoints, and the session affinity of their clients: see `struct set`
//! and `struct keeping` of layout.h.
//!
//! Few sets have session affinity, so a set has only the number of an element in another array. A released
//! number is reused only after a barrier, because a program may just have read it.

use std::mem::offset_of;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use sluice_socket_maps::{Set, SetAffinity, set_flags};
use sluice_sys::bpf::{self, Mapping};

use crate::attached::{halves, load, store, word};
use crate::layout;

/// Bits of a set's rule: `SET_RANDOM` and `SET_KEPT`. The other bits are the number.
const RANDOM: u32 = 1 << 31;
const KEPT: u32 = 1 << 30;

/// The size of an element in words and in halves, and the index of its range and its rule.
const WORDS: usize = size_of::<layout::Set>() / 8;
const HALVES: usize = size_of::<layout::Set>() / 4;
const DESC: usize = offset_of!(layout::Set, desc) / 8;
const RULE: usize = offset_of!(layout::Set, rule) / 4;

/// The number if there was no room: no element has it, so clients of the set are left to the relay.
const NOWHERE: u32 = KEPT - 1;

/// Both arrays.
#[derive(Debug)]
pub(crate) struct Sets {
    sets: Mapping,
    keeping: Mapping,
    /// Free elements.
    free: Vec<u32>,
    /// Released elements that a program may still use.
    let_go: Vec<u32>,
}

impl Sets {
    pub(crate) fn new(sets: Mapping, keeping: Mapping) -> Self {
        let rules = sets.halves().iter().skip(RULE).step_by(HALVES);
        let mut named: Vec<u32> = rules.filter_map(|rule| element(rule.load(Ordering::Relaxed))).collect();
        named.sort_unstable();
        let mut free = Vec::new();
        for (at, place) in (0..).zip(keeping.words()) {
            if named.binary_search(&at).is_err() {
                // An earlier agent may have ended in between.
                place.store(0, Ordering::Relaxed);
                free.push(at);
            }
        }
        Self { sets, keeping, free, let_go: Vec::new() }
    }

    pub(crate) fn get(&self, id: u32) -> Set {
        let [desc, rest] = load(self.sets.words(), id);
        let (cursor, rule) = halves(rest);
        let flags = if rule & RANDOM == 0 { 0 } else { set_flags::RANDOM };
        Set { desc, cursor, flags, affinity: self.affinity(rule).pack() }
    }

    fn affinity(&self, rule: u32) -> SetAffinity {
        let Some(at) = element(rule) else { return SetAffinity::default() };
        match self.place(at).map_or(0, |place| place.load(Ordering::Relaxed)) {
            // Unlike any wanted affinity: whoever wants this set then writes it.
            0 => SetAffinity { number: 0, timeout_ms: u32::MAX },
            word => SetAffinity::unpack(word),
        }
    }

    /// Writes a set. Only allowed while no frontend names it.
    pub(crate) fn write(&mut self, id: u32, set: Set) {
        let Set { desc, cursor, flags, affinity } = set;
        self.write_affinity(id, SetAffinity::default());
        store(self.sets.words(), id, [desc, word(cursor, bits(flags))]);
        self.write_affinity(id, SetAffinity::unpack(affinity));
    }

    /// Gives a set another range.
    pub(crate) fn publish(&self, id: u32, desc: u64) {
        if let Some(word) = self.sets.words().get(id as usize * WORDS + DESC) {
            word.store(desc, Ordering::Release);
        }
    }

    pub(crate) fn write_flags(&self, id: u32, flags: u32) {
        if let Some(rule) = self.rule(id) {
            // Only this thread writes the rule.
            rule.store(rule.load(Ordering::Relaxed) & !RANDOM | bits(flags), Ordering::Relaxed);
        }
    }

    pub(crate) fn write_affinity(&mut self, id: u32, affinity: SetAffinity) -> bool {
        let Some(rule) = self.rule(id).map(|rule| rule.load(Ordering::Relaxed)) else { return false };
        let before = element(rule).filter(|at| self.place(*at).is_some());
        let word = affinity.pack();
        let next = match before.and_then(|at| self.place(at)) {
            Some(place) if word != 0 => {
                place.store(word, Ordering::Relaxed);
                return true;
            }
            _ if word == 0 => 0,
            _ => KEPT | self.give(word).unwrap_or(NOWHERE),
        };
        if let Some(place) = self.rule(id) {
            place.store(rule & RANDOM | next, Ordering::Release);
        }
        if let Some(at) = before {
            self.place(at).into_iter().for_each(|place| place.store(0, Ordering::Release));
            self.let_go.push(at);
        }
        element(next) != Some(NOWHERE)
    }

    /// Writes `word` to a free element; returns its number.
    fn give(&mut self, word: u64) -> Option<u32> {
        if self.free.is_empty() && !self.let_go.is_empty() {
            bpf::wait_for_programs().ok()?;
            self.free.append(&mut self.let_go);
        }
        let at = self.free.pop()?;
        self.place(at)?.store(word, Ordering::Release);
        Some(at)
    }

    fn rule(&self, id: u32) -> Option<&AtomicU32> {
        self.sets.halves().get(id as usize * HALVES + RULE)
    }

    fn place(&self, at: u32) -> Option<&AtomicU64> {
        self.keeping.words().get(at as usize)
    }
}

/// The number of a set's affinity element, if it has session affinity.
fn element(rule: u32) -> Option<u32> {
    (rule & KEPT != 0).then_some(rule & NOWHERE)
}

fn bits(flags: u32) -> u32 {
    if flags & set_flags::RANDOM == 0 { 0 } else { RANDOM }
}
