//! UDP endpoints that serve but are in no set.

use super::*;

/// A UDP port with these endpoints in its set, and others that still serve.
fn port(port: u8, endpoints: &[u8], parked: &[u8]) -> (PortKey, Port) {
    let (key, mut wanted) = balanced(&[port], port, endpoints);
    wanted.frontends[0].0.protocol = Protocol::Udp;
    wanted.serving = addresses(port, &[endpoints, parked].concat());
    (key, wanted)
}

fn gone(number: u8) -> (PortKey, Port) {
    (PortKey(number.into()), Port { serving: addresses(number, &[1, 2, 3]), ..Port::default() })
}

/// The ids of a port's endpoints, with their incarnations.
fn numbers<K: Kernel>(maps: &Maps<K>, port: u8) -> Vec<(SocketAddr, SocketNumber)> {
    maps.numbers(PortKey(port.into()), SetName::Cluster).collect()
}

fn keeps(maps: &Maps<Memory>, (address, number): (SocketAddr, SocketNumber)) -> bool {
    let endpoint = maps.kernel().endpoint(number.id);
    (endpoint.address(), endpoint.incarnation) == (address, number.incarnation)
}

#[test]
fn one_that_serves_keeps_its_number_in_and_out_of_the_set() {
    let mut maps = Maps::new(Memory::new(LARGE));
    maps.follow_ids();
    maps.apply([port(1, &[1, 2], &[])]);
    let before = numbers(&maps, 1);
    maps.apply([port(1, &[2, 3], &[1])]);
    maps.reclaim();
    assert!(keeps(&maps, before[0]));
    assert_eq!(maps.take_id_changes(), [], "what it did is still its own");
    let writes = maps.kernel().writes().endpoints;
    maps.apply([port(1, &[1, 2], &[3])]);
    assert_eq!((numbers(&maps, 1), maps.kernel().writes().endpoints), (before.clone(), writes));
    // No endpoint is left for new flows.
    maps.apply([port(1, &[], &[1, 2])]);
    assert!(before.iter().all(|number| keeps(&maps, *number)));
    maps.apply([port(1, &[], &[2])]);
    assert_eq!([0, 1].map(|at| keeps(&maps, before[at])), [false, true]);
    maps.apply([gone(1)]);
    assert!(!keeps(&maps, before[1]));
    maps.reclaim();
    assert_eq!((maps.stats().endpoints, maps.ports.len()), (0, 0));
}

#[test]
fn of_tcp_there_are_none() {
    let mut maps = Maps::new(Memory::new(LARGE));
    let (key, mut wanted) = balanced(&[1], 1, &[1, 2]);
    wanted.serving = addresses(1, &[1, 2]);
    maps.apply([(key, wanted.clone())]);
    wanted.cluster.truncate(1);
    maps.apply([(key, wanted)]);
    maps.reclaim();
    assert_eq!(maps.stats().endpoints, 1);
}

#[test]
fn where_numbers_are_short_those_that_are_in_no_set_make_room() {
    let mut maps = Maps::new(Memory::new(SMALL));
    let many: Vec<u8> = (1..=20).collect();
    maps.apply([port(1, &many, &[])]);
    let before = numbers(&maps, 1);
    maps.apply([port(1, &[1], &many)]);
    maps.apply([port(2, &[1, 2, 3, 4], &[])]);
    assert!(before.iter().all(|number| keeps(&maps, *number)), "there is room yet");
    maps.apply([port(3, &[1, 2, 3, 4], &[])]);
    assert_eq!((maps.stats().waiting, maps.stats().endpoints, numbers(&maps, 3).len()), (0, 9, 4));
    assert!(keeps(&maps, before[0]));
    assert!(!before[1..].iter().any(|number| keeps(&maps, *number)));
    // When they come back, they are new.
    maps.apply([port(1, &[1, 2], &many)]);
    assert_eq!(numbers(&maps, 1)[0], before[0]);
    assert_ne!(numbers(&maps, 1)[1], before[1]);
}

#[test]
fn what_has_no_room_takes_none_out_for_nothing() {
    let mut maps = Maps::new(Memory::new(SMALL));
    maps.apply([port(1, &[1, 2, 3], &[])]);
    let before = numbers(&maps, 1);
    maps.apply([port(1, &[3], &[1, 2])]);
    // More than there are ids.
    let many: Vec<u8> = (1..=30).collect();
    let (key, wanted) = port(1, &many, &[]);
    let mut state = maps.ports.remove(&key).unwrap();
    assert!(maps.update(key, &mut state, &wanted, false).is_err());
    maps.ports.insert(key, state);
    assert!(before.iter().all(|number| keeps(&maps, *number)));
    maps.apply([port(1, &[1, 2, 3], &[])]);
    assert_eq!(numbers(&maps, 1), before);
}

#[test]
fn a_successor_takes_them_over_and_what_serves_no_more_means_something_else() {
    let mut maps = Maps::new(Memory::new(LARGE));
    maps.apply([port(1, &[1, 2, 3], &[]), port(2, &[1, 2], &[])]);
    let [one, two] = [1, 2].map(|port| numbers(&maps, port));
    maps.apply([port(1, &[3], &[1, 2]), port(2, &[2], &[1])]);
    let mut maps = successor(maps);
    maps.follow_ids();
    // No agent was running when the second one left.
    maps.apply([port(1, &[3], &[1])]);
    assert!(one.iter().all(|number| keeps(&maps, *number)));
    maps.forget_unclaimed();
    assert_eq!([0, 1, 2].map(|at| keeps(&maps, one[at])), [true, false, true]);
    assert!(!two.iter().any(|number| keeps(&maps, *number)), "that port is gone");
    maps.apply([port(1, &[1, 3], &[])]);
    assert_eq!(numbers(&maps, 1), [one[0], one[2]]);
    maps.apply([gone(1)]);
    maps.reclaim();
    assert_eq!((maps.stats().endpoints, maps.stats().slots), (0, 0));
}

#[test]
fn others_with_the_same_endpoints_do_not_have_a_ports_numbers_after_a_restart() {
    for (is_known, is_late) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut maps = Maps::new(Memory::new(LARGE));
        let (foreign, mut other) = port(2, &[7], &[]);
        other.serving = addresses(1, &[1]);
        if is_known {
            maps.apply([(foreign, other.clone())]);
        }
        maps.apply([port(1, &[1, 2], &[])]);
        let before = numbers(&maps, 1);
        maps.apply([port(1, &[2], &[1])]);
        let mut maps = successor(maps);
        // The other port is applied first.
        maps.apply([(foreign, other)]);
        // The endpoint stopped serving: while no agent was running, or only now.
        maps.apply([port(1, &[2], if is_late { &[1] } else { &[] })]);
        maps.forget_unclaimed();
        let name = format!("{is_known} {is_late}");
        assert_eq!([0, 1].map(|at| keeps(&maps, before[at])), [is_late, true], "{name}");
        maps.apply([port(1, &[2], &[])]);
        assert!(!keeps(&maps, before[0]), "{name}");
    }
}

#[test]
fn who_has_one_of_a_ports_frontends_does_not_have_its_numbers_after_a_restart() {
    let mut maps = Maps::new(Memory::new(LARGE));
    let both = |parked: &[u8]| {
        let (key, mut wanted) = port(1, &[2], parked);
        wanted.frontends.extend(port(2, &[2], &[]).1.frontends);
        (key, wanted)
    };
    maps.apply([port(1, &[1, 2], &[])]);
    let before = numbers(&maps, 1);
    maps.apply([both(&[1])]);
    let mut maps = successor(maps);
    let (foreign, mut other) = port(2, &[7], &[]);
    other.serving = addresses(1, &[1]);
    maps.apply([(foreign, other), port(1, &[2], &[])]);
    maps.forget_unclaimed();
    assert!(!keeps(&maps, before[0]));
}

#[test]
fn of_whom_it_cannot_be_said_whose_they_are_mean_something_else_after_a_restart() {
    let mut maps = Maps::new(Memory::new(LARGE));
    maps.apply([port(1, &[1, 2], &[])]);
    let before = numbers(&maps, 1);
    // As many other ports have come and gone.
    maps.next_service += 8_190;
    maps.apply([port(2, &[1], &[]), port(1, &[2], &[1])]);
    let mut maps = successor(maps);
    maps.apply([port(2, &[1], &[]), port(1, &[2], &[1])]);
    assert!(keeps(&maps, before[0]));
    maps.forget_unclaimed();
    assert_eq!([0, 1].map(|at| keeps(&maps, before[at])), [false, true]);
}

#[test]
fn numbers_that_are_free_are_free_after_a_restart() {
    for is_needed in [true, false] {
        let mut maps = Maps::new(Memory::new(LARGE));
        maps.apply([port(1, &[1, 2, 3], &[])]);
        maps.apply([port(1, &[3], &[])]);
        // They are reused if nothing else is free; in any case no flow stays with them after a while.
        if is_needed {
            assert!(maps.reclaim());
        } else {
            (0..2).for_each(|_| drop(maps.retry()));
        }
        let mut maps = successor(maps);
        assert_eq!(maps.stats().endpoints, 1);
        maps.apply([port(1, &[3], &[1, 2])]);
        assert_eq!(maps.stats().endpoints, 1, "nothing was parked");
        let incarnations = |maps: &Maps<Memory>| [0, 1, 2].map(|id| maps.kernel().endpoint(id).incarnation);
        let before = incarnations(&maps);
        maps.forget_unclaimed();
        assert_eq!(incarnations(&maps), before);
    }
}

#[test]
fn who_lacks_something_else_or_too_much_takes_nobodys_number() {
    let mut maps = Maps::new(Memory::new(SMALL));
    let many: Vec<u8> = (1..=20).collect();
    maps.apply([port(1, &many, &[])]);
    let before = numbers(&maps, 1);
    maps.apply([port(1, &[1], &many), balanced(&[2], 2, &[1, 2, 3])]);
    // One of 24 ids is free. Only 6 frontends fit.
    maps.apply([balanced(&[2, 3, 4, 5, 6, 7], 2, &[1, 2, 3])]);
    assert_eq!(maps.stats().waiting, 1);
    let number_of = |maps: &Maps<Memory>| before.iter().filter(|number| keeps(maps, **number)).count();
    assert_eq!(number_of(&maps), 20);
    maps.apply([balanced(&[2], 2, &[1, 2, 3])]);
    // 19 could be given up, and one is free.
    let some: Vec<u8> = (1..=24).collect();
    for (count, is_over) in [(24, true), (23, false)] {
        maps.apply([balanced(&[2], 2, &some[..count])]);
        assert_eq!((maps.stats().waiting, number_of(&maps)), if is_over { (1, 20) } else { (0, 1) });
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Ports 1 to 3 have endpoints, and others serve. The maps are so small that not all can keep their ids.
    #[test]
    fn a_number_means_the_same_as_long_as_its_endpoint_is_in_the_set_and_in_the_end_all_are_free(
        changes in prop::collection::vec(
            (1_u8..=3, prop::collection::btree_set(1_u8..12, 0..8), prop::collection::btree_set(1_u8..12, 0..12)), 1..40),
        succeeds in prop::collection::vec(any::<bool>(), 40),
    ) {
        let mut maps = Maps::new(Memory::new(SMALL));
        let mut now = BTreeMap::new();
        for ((number, endpoints, serving), succeeds) in changes.into_iter().zip(succeeds) {
            let [endpoints, serving] = [endpoints, serving].map(|all| all.into_iter().collect::<Vec<u8>>());
            let before = numbers(&maps, number);
            let wanted = port(number, &endpoints, &serving);
            now.insert(number, wanted.clone());
            maps.apply([wanted]);
            prop_assert_eq!(maps.stats().waiting, 0, "what is parked takes nobody's room");
            let after = numbers(&maps, number);
            for (address, number) in before {
                if let Some((_, same)) = after.iter().find(|(other, _)| *other == address) {
                    prop_assert_eq!(*same, number);
                }
            }
            if succeeds {
                maps = successor(maps);
                maps.apply(now.values().cloned());
                maps.forget_unclaimed();
                maps.retry();
                prop_assert_eq!(numbers(&maps, number), after);
            }
            let all = [1, 2, 3].map(|port| numbers(&maps, port)).concat();
            prop_assert!(all.iter().all(|number| keeps(&maps, *number)));
        }
        maps.apply([1, 2, 3].map(gone));
        maps.forget_unclaimed();
        maps.reclaim();
        let Stats { frontends, sets, endpoints, slots, .. } = maps.stats();
        prop_assert_eq!((frontends, sets, endpoints, slots), (0, 0, 0, 0));
        prop_assert!(maps.ports.is_empty());
    }
}
