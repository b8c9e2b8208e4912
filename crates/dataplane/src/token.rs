//! What a poll event is about, packed into mio's token; and slots whose reuse cannot be mistaken.
//!
//! A slot may be freed and reused while the current batch still has events of its former occupant. Therefore
//! every slot has a generation, every token carries it, and a lookup with an old generation finds nothing.

use slab::Slab;

/// Bits of the token: `kind:4 | generation:28 | index:32`.
const INDEX_BITS: u32 = 32;
const KIND_SHIFT: u32 = 60;
const GENERATION_MASK: u32 = (1 << (KIND_SHIFT - INDEX_BITS)) - 1;

/// How many slots [`Slots::look`] visits, at most, for each occupant that it may show.
const FREE_SLOTS: usize = 16;

/// A slot and the generation of its occupant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct SlotId {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

/// What a socket of the worker belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// Commands are waiting.
    Waker,
    /// A listening TCP socket.
    Listener(SlotId),
    /// A session's client side.
    Downstream(SlotId),
    /// A session's endpoint side.
    Upstream(SlotId),
    /// A UDP socket that clients send to.
    UdpSocket(SlotId),
    /// The upstream socket of a UDP flow.
    Flow(SlotId),
}

impl Source {
    /// The token to register with.
    pub(crate) fn token(self) -> mio::Token {
        let (kind, id) = match self {
            Self::Waker => (0, SlotId { index: 0, generation: 0 }),
            Self::Listener(id) => (1, id),
            Self::Downstream(id) => (2, id),
            Self::Upstream(id) => (3, id),
            Self::UdpSocket(id) => (4, id),
            Self::Flow(id) => (5, id),
        };
        let generation = (id.generation & GENERATION_MASK) as usize;
        mio::Token(kind << KIND_SHIFT | generation << INDEX_BITS | id.index as usize)
    }

    /// The source of an event; `None` for a token that this module did not make.
    #[expect(clippy::cast_possible_truncation, reason = "takes the token apart")]
    pub(crate) fn of(mio::Token(token): mio::Token) -> Option<Self> {
        let id = SlotId { index: token as u32, generation: (token >> INDEX_BITS) as u32 & GENERATION_MASK };
        match token >> KIND_SHIFT {
            0 => Some(Self::Waker),
            1 => Some(Self::Listener(id)),
            2 => Some(Self::Downstream(id)),
            3 => Some(Self::Upstream(id)),
            4 => Some(Self::UdpSocket(id)),
            5 => Some(Self::Flow(id)),
            _ => None,
        }
    }
}

/// A slab whose slots have generations.
#[derive(Debug)]
pub(crate) struct Slots<T> {
    entries: Slab<(u32, T)>,
    next_generation: u32,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self { entries: Slab::new(), next_generation: 0 }
    }
}

impl<T> Slots<T> {
    /// Puts a value into a free slot; `make` receives the slot's id.
    pub(crate) fn insert_with(&mut self, make: impl FnOnce(SlotId) -> T) -> SlotId {
        let generation = self.next_generation;
        self.next_generation = (generation + 1) & GENERATION_MASK;
        let entry = self.entries.vacant_entry();
        // A worker is out of file descriptors long before it is out of 32 bits.
        let index = u32::try_from(entry.key()).unwrap_or(u32::MAX);
        let id = SlotId { index, generation };
        entry.insert((generation, make(id)));
        id
    }

    pub(crate) fn get(&self, id: SlotId) -> Option<&T> {
        match self.entries.get(id.index as usize) {
            Some((generation, value)) if *generation == id.generation => Some(value),
            _ => None,
        }
    }

    pub(crate) fn get_mut(&mut self, id: SlotId) -> Option<&mut T> {
        match self.entries.get_mut(id.index as usize) {
            Some((generation, value)) if *generation == id.generation => Some(value),
            _ => None,
        }
    }

    pub(crate) fn remove(&mut self, id: SlotId) -> Option<T> {
        self.get_mut(id)?;
        self.entries.try_remove(id.index as usize).map(|(_, value)| value)
    }

    /// Shows up to `tenants` occupants, beginning at slot `from`. Returns where to continue, if there may be
    /// more. Skipping a free slot is cheap, but the number of slots visited is bounded too.
    pub(crate) fn look(&self, from: usize, tenants: usize, mut show: impl FnMut(&T)) -> Option<usize> {
        let end = from.saturating_add(tenants.saturating_mul(FREE_SLOTS)).min(self.entries.capacity());
        let mut left = tenants;
        for slot in from..end {
            if let Some((_, tenant)) = self.entries.get(slot) {
                if left == 0 {
                    return Some(slot);
                }
                left -= 1;
                show(tenant);
            }
        }
        (end < self.entries.capacity()).then_some(end)
    }

    pub(crate) fn ids(&self) -> Vec<SlotId> {
        let id = |(index, (generation, _)): (usize, &(u32, T))| SlotId {
            index: u32::try_from(index).unwrap_or(u32::MAX),
            generation: *generation,
        };
        self.entries.iter().map(id).collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_says_what_it_is_about() {
        for index in [0, 1, u32::MAX] {
            for generation in [0, 1, GENERATION_MASK] {
                let id = SlotId { index, generation };
                for source in [
                    Source::Listener(id),
                    Source::Downstream(id),
                    Source::Upstream(id),
                    Source::UdpSocket(id),
                    Source::Flow(id),
                ] {
                    assert_eq!(Source::of(source.token()), Some(source));
                }
            }
        }
        assert_eq!(Source::of(Source::Waker.token()), Some(Source::Waker));
        assert_eq!(Source::of(mio::Token(usize::MAX)), None);
    }

    #[test]
    fn a_walk_shows_every_tenant_once_and_few_at_a_time() {
        let mut slots = Slots::default();
        let ids: Vec<SlotId> = (0..10_000).map(|n| slots.insert_with(|_| n)).collect();
        // Few are left, far from each other except for some at the end.
        let is_kept = |n: usize| n % 1_000 == 7 || n > 9_900;
        ids.iter().enumerate().filter(|(n, _)| !is_kept(*n)).for_each(|(_, id)| {
            slots.remove(*id);
        });
        let (mut seen, mut parts, mut next) = (Vec::new(), 0, Some(0));
        while let Some(from) = next {
            let before = seen.len();
            next = slots.look(from, 10, |n| seen.push(*n));
            assert!(seen.len() - before <= 10 && next.is_none_or(|next| next > from && next - from <= 160));
            parts += 1;
        }
        assert_eq!(seen, (0..10_000).filter(|n| is_kept(*n)).collect::<Vec<_>>());
        assert!(parts > 10_000 / 160);
        assert_eq!(Slots::<u8>::default().look(0, 10, |_| unreachable!()), None);
    }

    #[test]
    fn a_reused_slot_is_not_its_former_tenant() {
        let mut slots = Slots::default();
        let first = slots.insert_with(|_| "first");
        assert_eq!(slots.remove(first), Some("first"));
        let second = slots.insert_with(|_| "second");
        assert_eq!(first.index, second.index);
        assert_eq!(slots.get_mut(first), None);
        assert_eq!(slots.remove(first), None);
        assert_eq!(slots.get_mut(second), Some(&mut "second"));
    }
}
