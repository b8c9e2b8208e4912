//! Round robin: one counter for all workers, and the offset at which a set starts counting.
//!
//! Every pick takes the next number, so N x k picks over N endpoints give exactly k each, whichever threads
//! make them. When the set changes, [`continue_from`] chooses the offset so that the pick after the change is
//! the endpoint that was next, or the first one after it that is still there. So frequent changes of a set do
//! not favour its first endpoints.

use std::sync::atomic::{AtomicU64, Ordering};

/// The counter of one set of endpoints. It outlives all versions of the set.
#[derive(Debug, Default)]
pub(crate) struct Rotation(AtomicU64);

impl Rotation {
    /// Takes the next turn.
    pub(crate) fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }

    /// The turn that [`Rotation::next`] would return.
    pub(crate) fn peek(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The index into a set of `len` endpoints for turn `turn`; `offset` is below `len`.
pub(crate) fn position(turn: u64, offset: u64, len: usize) -> usize {
    let len = len.max(1) as u64;
    // Only one division, because it is the slowest instruction of a pick.
    let position = turn % len + offset;
    usize::try_from(if position < len { position } else { position - len }).unwrap_or(0)
}

/// The offset for a new version of a set. With it, `turn` points to the endpoint that was next in the old
/// version, or to the first one after it, in the old order, that is still in the new version. `new` is
/// sorted.
pub fn continue_from<T: Ord>(turn: u64, old: &[T], old_offset: u64, new: &[T]) -> u64 {
    if new.is_empty() {
        return 0;
    }
    let due = position(turn, old_offset, old.len());
    let (before, after) = old.split_at(due.min(old.len()));
    let start =
        after.iter().chain(before).find_map(|endpoint| new.binary_search(endpoint).ok()).unwrap_or(0) as u64;
    let len = new.len() as u64;
    (start + len - turn % len) % len
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_position_is_kept_across_changes() {
        let rotation = Rotation::default();
        let mut set = vec!['a', 'b', 'c'];
        let mut offset = 0;
        let mut picks = String::new();
        let mut pick = |set: &[char], offset, times| {
            for _ in 0..times {
                picks.push(set[position(rotation.next(), offset, set.len())]);
            }
            picks.clone()
        };
        let mut change = |set: &mut Vec<char>, new: &[char]| {
            offset = continue_from(rotation.peek(), set, offset, new);
            *set = new.to_vec();
            offset
        };
        let mut at = 0;
        assert_eq!(pick(&set, at, 4), "abca");
        at = change(&mut set, &['a', 'b', 'c', 'd']);
        assert_eq!(pick(&set, at, 4), "abca".to_owned() + "bcda");
        at = change(&mut set, &['a', 'c', 'd']);
        assert_eq!(pick(&set, at, 3), "abcabcda".to_owned() + "cda");
        at = change(&mut set, &['x', 'y']);
        assert_eq!(pick(&set, at, 2), "abcabcdacda".to_owned() + "xy");
    }

    #[test]
    fn a_flapping_endpoint_does_not_favour_its_neighbours() {
        let rotation = Rotation::default();
        let (with, without) = ([0, 1, 2, 3], [0, 1, 2]);
        let mut counts = [0; 4];
        let mut offset = 0;
        for _ in 0..1_000 {
            offset = continue_from(rotation.peek(), &without, offset, &with);
            counts[with[position(rotation.next(), offset, with.len())]] += 1;
            offset = continue_from(rotation.peek(), &with, offset, &without);
            counts[without[position(rotation.next(), offset, without.len())]] += 1;
        }
        let (low, high) = (counts[..3].iter().min().unwrap(), counts[..3].iter().max().unwrap());
        assert!(high - low <= 1, "{counts:?}");
    }

    #[test]
    fn empty_sets_have_a_harmless_position() {
        assert_eq!(position(7, 0, 0), 0);
        assert_eq!(continue_from::<u8>(7, &[], 0, &[]), 0);
        assert_eq!(continue_from(7, &[], 0, &[1]), 0);
    }
}
