//! `random`: any endpoint, with equal probability.

use std::sync::Arc;

use super::mix;
use crate::Upstream;

/// Chooses a usable endpoint by number `turn` of the sequence that starts at `seed`. The workers share the
/// counter and so the sequence; there is no generator to lock, or to keep for each thread.
pub(super) fn choose(
    upstreams: &[Arc<Upstream>],
    seed: u64,
    turn: u64,
    is_usable: impl Fn(&Arc<Upstream>) -> bool,
) -> Option<&Arc<Upstream>> {
    let random = mix::nth(seed, turn);
    upstreams.get(mix::below(random, upstreams.len())).filter(|upstream| is_usable(upstream)).or_else(|| {
        let usable = || upstreams.iter().filter(|upstream| is_usable(upstream));
        // Uses a new number: the one that led to an unusable endpoint is not uniformly distributed any more.
        usable().nth(mix::below(mix::mix(random), usable().count()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint_set::tests::upstreams;

    /// How often each of `n` endpoints is chosen in 10,000 turns.
    fn counts(n: u16, is_usable: impl Fn(&Arc<Upstream>) -> bool) -> Vec<usize> {
        let upstreams = upstreams(n);
        let mut counts = vec![0; usize::from(n)];
        for turn in 0..10_000 {
            let chosen = choose(&upstreams, 7, turn, &is_usable).unwrap();
            counts[usize::from(chosen.address().port()) - 1] += 1;
        }
        counts
    }

    #[test]
    fn all_have_equal_chances() {
        // 10,000 draws of one in five: 2,000 each, with a standard deviation of 40.
        let counts = counts(5, |_| true);
        assert!(counts.iter().all(|count| (1_840..2_160).contains(count)), "{counts:?}");
    }

    #[test]
    fn the_share_of_unusable_ones_spreads_over_all_others() {
        let counts = counts(5, |upstream| upstream.address().port() > 2);
        assert_eq!(counts[..2], [0, 0]);
        assert!(counts[2..].iter().all(|count| (3_140..3_530).contains(count)), "{counts:?}");
    }

    #[test]
    fn without_a_usable_one_there_is_none() {
        assert!(choose(&upstreams(3), 7, 0, |_| false).is_none());
        assert!(choose(&[], 7, 0, |_| true).is_none());
    }
}
