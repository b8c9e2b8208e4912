//! A buddy allocator for slots. A range's length is a power of two, and its base a multiple of the length.
//! Two free halves are merged, which limits fragmentation.

use std::collections::BTreeSet;

/// Sets have up to 2^16 - 1 endpoints.
const ORDERS: u32 = 17;

/// Consecutive slots: `2^order` of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Range {
    pub(crate) base: u32,
    order: u32,
}

impl Range {
    /// The range at `base` for `count` endpoints.
    pub(crate) fn at(base: u32, count: u16) -> Self {
        Self { base, order: order(count) }
    }

    /// The number of slots.
    pub(crate) fn len(self) -> u32 {
        1 << self.order
    }
}

fn order(count: u16) -> u32 {
    u32::from(count.max(1)).next_power_of_two().trailing_zeros()
}

/// The free slots.
#[derive(Debug)]
pub(crate) struct Ranges {
    bound: u32,
    /// The bases of the free ranges of each order.
    free: Vec<BTreeSet<u32>>,
    given: u32,
}

impl Ranges {
    pub(crate) fn new(bound: u32) -> Self {
        let mut ranges = Self { bound, free: vec![BTreeSet::new(); ORDERS as usize], given: 0 };
        let mut base = 0;
        while base < bound {
            let aligned = if base == 0 { ORDERS - 1 } else { base.trailing_zeros().min(ORDERS - 1) };
            let order = aligned.min((bound - base).ilog2());
            ranges.insert(Range { base, order });
            base += 1 << order;
        }
        ranges
    }

    /// Allocates a range for `count` endpoints.
    pub(crate) fn give(&mut self, count: u16) -> Option<Range> {
        let wanted = order(count);
        let (mut at, base) = (wanted..ORDERS).find_map(|order| Some((order, *self.of(order)?.first()?)))?;
        self.remove(Range { base, order: at });
        while at > wanted {
            at -= 1;
            self.insert(Range { base: base + (1 << at), order: at });
        }
        self.given += 1 << wanted;
        Some(Range { base, order: wanted })
    }

    /// Allocates a range that is known to be in use. Returns whether it was free.
    pub(crate) fn give_this(&mut self, range: Range) -> bool {
        let is_sound = range.base.is_multiple_of(range.len())
            && range.base.checked_add(range.len()).is_some_and(|end| end <= self.bound);
        let around = |order: u32| Range { base: range.base >> order << order, order };
        let found = (range.order..ORDERS).map(around).find(|wider| self.is_free(*wider));
        let Some(mut wider) = found.filter(|_| is_sound) else { return false };
        self.remove(wider);
        while wider.order > range.order {
            let order = wider.order - 1;
            let halves = [wider.base, wider.base + (1 << order)].map(|base| Range { base, order });
            let is_upper = range.base >= halves[1].base;
            let [lower, upper] = halves;
            let (keep, other) = if is_upper { (upper, lower) } else { (lower, upper) };
            self.insert(other);
            wider = keep;
        }
        self.given += range.len();
        true
    }

    pub(crate) fn take_back(&mut self, mut range: Range) {
        self.given -= range.len();
        while range.order + 1 < ORDERS {
            let buddy = Range { base: range.base ^ range.len(), order: range.order };
            if !self.is_free(buddy) {
                break;
            }
            self.remove(buddy);
            range = Range { base: range.base.min(buddy.base), order: range.order + 1 };
        }
        self.insert(range);
    }

    /// The number of slots in allocated ranges.
    pub(crate) fn given(&self) -> u32 {
        self.given
    }

    fn of(&self, order: u32) -> Option<&BTreeSet<u32>> {
        self.free.get(order as usize)
    }

    fn is_free(&self, range: Range) -> bool {
        self.of(range.order).is_some_and(|bases| bases.contains(&range.base))
    }

    fn insert(&mut self, range: Range) {
        if let Some(bases) = self.free.get_mut(range.order as usize) {
            bases.insert(range.base);
        }
    }

    fn remove(&mut self, range: Range) {
        if let Some(bases) = self.free.get_mut(range.order as usize) {
            bases.remove(&range.base);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn as_many_fit_as_there_are_slots() {
        let mut ranges = Ranges::new(100);
        let given: Vec<Range> = std::iter::from_fn(|| ranges.give(10)).collect();
        assert_eq!((given.len(), ranges.given()), (6, 96));
        assert_eq!(ranges.give(4).map(|range| range.base), Some(96));
        assert_eq!(ranges.give(1), None);
        assert_eq!(Ranges::new(1 << 20).give(u16::MAX).map(Range::len), Some(1 << 16));
    }

    #[test]
    fn what_is_not_a_range_of_ours_is_not_given() {
        let mut ranges = Ranges::new(100);
        assert!(ranges.give_this(Range::at(32, 10)));
        for range in
            [Range::at(32, 10), Range::at(32, 1), Range::at(0, 33), Range::at(40, 10), Range::at(96, 8)]
        {
            assert!(!ranges.give_this(range), "{range:?}");
        }
    }

    proptest! {
        #[test]
        fn ranges_never_overlap_and_all_comes_back(bound in 1_u32..300, steps in prop::collection::vec((any::<bool>(), 1_u16..40), 1..200)) {
            let fresh = Ranges::new(bound);
            let mut ranges = Ranges::new(bound);
            let mut given: Vec<Range> = Vec::new();
            for (is_give, number) in steps {
                if is_give {
                    if let Some(range) = ranges.give(number) {
                        prop_assert!(range.len() >= u32::from(number) && range.base + range.len() <= bound);
                        prop_assert!(given.iter().all(|other| other.base + other.len() <= range.base || range.base + range.len() <= other.base));
                        given.push(range);
                    }
                } else if !given.is_empty() {
                    let range = given.swap_remove(usize::from(number) % given.len());
                    ranges.take_back(range);
                }
            }
            let mut again = Ranges::new(bound);
            for range in &given {
                prop_assert!(again.give_this(*range));
            }
            prop_assert_eq!(&again.free, &ranges.free);
            given.into_iter().for_each(|range| ranges.take_back(range));
            prop_assert_eq!((ranges.given(), &ranges.free), (0, &fresh.free));
        }
    }
}
