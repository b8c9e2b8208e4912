//! `source-hash`: chooses the endpoint by a hash of the client's address.
//!
//! The look-up table of Maglev (Eisenbud et al.: "Maglev: a fast and reliable software network load
//! balancer", NSDI 2016, section 3.4). Each endpoint has its own order of preference over the slots, and
//! endpoints take free slots in turns. The shares differ by at most one slot, and when an endpoint leaves,
//! hardly any slots but its own change.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::{mix, random};
use crate::Upstream;
use crate::endpoint_set::EndpointSet;

/// Number of slots in a table. A prime, so any step visits all of them. The same for all sets, because
/// another size would move every client. Enough for shares within 1 % of each other with up to 160 endpoints;
/// endpoints beyond the number of slots get none. 32 KiB.
const SLOTS: u16 = 16_381;

/// The endpoint of each slot, as an index into its set.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Maglev(Box<[u16]>);

impl Maglev {
    /// The table for a set of endpoints; `None` for an empty set.
    pub(crate) fn new(addresses: impl Iterator<Item = SocketAddr>) -> Option<Self> {
        const FREE: u16 = u16::MAX;
        let slots = u64::from(SLOTS);
        // The position and the step of each endpoint in its order of preference.
        let mut orders: Vec<(u64, u64)> = addresses
            .take(usize::from(SLOTS))
            .map(|address| {
                let hash = mix::hash_address(address);
                (hash % slots, mix::mix(hash) % (slots - 1) + 1)
            })
            .collect();
        if orders.is_empty() {
            return None;
        }
        let mut table = vec![FREE; usize::from(SLOTS)];
        let mut free = SLOTS;
        'filled: loop {
            for (endpoint, (at, step)) in (0..).zip(&mut orders) {
                while let Some(slot) = usize::try_from(*at).ok().and_then(|at| table.get_mut(at)) {
                    *at = (*at + *step) % slots;
                    if *slot == FREE {
                        *slot = endpoint;
                        break;
                    }
                }
                free -= 1;
                if free == 0 {
                    break 'filled;
                }
            }
        }
        Some(Self(table.into()))
    }
}

/// Chooses the endpoint of the client's slot, or of the first slot after it with a usable endpoint, so each
/// client of a dead endpoint has its own second choice. If that takes as many slots as there are endpoints,
/// it chooses any usable endpoint, the same each time: further slots would repeat each endpoint many times.
pub(super) fn choose(
    set: &EndpointSet,
    client: IpAddr,
    is_usable: impl Fn(&Arc<Upstream>) -> bool,
) -> Option<&Arc<Upstream>> {
    let (table, upstreams) = (&set.maglev()?.0, set.upstreams());
    let hash = mix::hash_ip(client);
    let (before, after) = table.split_at_checked(mix::below(hash, table.len()))?;
    let mut last = None;
    after
        .iter()
        .chain(before)
        .filter(|endpoint| last.replace(**endpoint) != Some(**endpoint))
        .take(upstreams.len())
        .find_map(|endpoint| upstreams.get(usize::from(*endpoint)).filter(|u| is_usable(u)))
        .or_else(|| random::choose(upstreams, hash, 0, is_usable))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::endpoint_set::tests::{hashed_set, upstreams};

    fn clients() -> impl Iterator<Item = IpAddr> {
        (0..4_000_u32).map(|n| IpAddr::from((0x0a01_0000 + n * 7).to_be_bytes()))
    }

    fn choices(set: &EndpointSet) -> Vec<u16> {
        clients().map(|client| choose(set, client, |_| true).unwrap().address().port()).collect()
    }

    #[test]
    fn shares_differ_by_one_slot_at_most() {
        for n in [1, 2, 3, 10, 100, 1_000] {
            let table = Maglev::new(upstreams(n).iter().map(|upstream| upstream.address())).unwrap();
            let mut counts = vec![0; usize::from(n)];
            table.0.iter().for_each(|endpoint| counts[usize::from(*endpoint)] += 1);
            assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1, "{n}: {counts:?}");
        }
    }

    #[test]
    fn a_client_always_gets_the_same_endpoint_and_clients_spread() {
        let set = hashed_set(&upstreams(10));
        let first = choices(&set);
        assert_eq!(first, choices(&hashed_set(&upstreams(10))), "the same on every node");
        for endpoint in 1..=10 {
            let share = first.iter().filter(|chosen| **chosen == endpoint).count();
            assert!((320..480).contains(&share), "{endpoint}: {share} of 4,000 clients");
        }
    }

    #[test]
    fn few_clients_move_when_an_endpoint_goes() {
        let all = upstreams(10);
        let before = choices(&hashed_set(&all));
        let after = choices(&hashed_set(&all[..9]));
        let had_it = before.iter().filter(|endpoint| **endpoint == 10).count();
        let moved = before.iter().zip(&after).filter(|(before, after)| before != after).count();
        assert!(moved >= had_it && moved - had_it < 4_000 / 50, "{had_it} had it, {moved} moved");
    }

    #[test]
    fn few_clients_move_when_an_endpoint_comes() {
        let all = upstreams(11);
        let before = choices(&hashed_set(&all[..10]));
        let after = choices(&hashed_set(&all));
        let to_it = after.iter().filter(|endpoint| **endpoint == 11).count();
        let moved = before.iter().zip(&after).filter(|(before, after)| before != after).count();
        assert!(to_it > 250 && moved - to_it < 4_000 / 50, "{to_it} to it, {moved} moved");
    }

    #[test]
    fn the_clients_of_an_unusable_endpoint_spread_over_the_others() {
        let set = hashed_set(&upstreams(5));
        let mut counts = [0; 5];
        for client in clients() {
            let first = choose(&set, client, |_| true).unwrap().address().port();
            let chosen = choose(&set, client, |upstream| upstream.address().port() != 1).unwrap();
            let chosen = chosen.address().port();
            assert!(chosen != 1 && (first == 1 || chosen == first));
            counts[usize::from(chosen) - 1] += 1;
        }
        assert!(counts[1..].iter().all(|count| (800..1_200).contains(count)), "{counts:?}");
    }

    #[test]
    fn a_search_looks_at_each_endpoint_a_few_times_at_most() {
        let set = hashed_set(&upstreams(100));
        for client in clients().take(100) {
            let looks = Cell::new(0);
            let choose = |usable: u16| {
                choose(&set, client, |upstream| {
                    looks.set(looks.get() + 1);
                    upstream.address().port() == usable
                })
            };
            assert!(choose(0).is_none());
            let only = choose(70).map(|upstream| upstream.address().port());
            assert_eq!(only, Some(70));
            assert!(looks.get() <= 2 * 4 * 100, "{}", looks.get());
        }
    }
}
