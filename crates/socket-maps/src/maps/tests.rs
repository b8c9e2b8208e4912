//! The contents of maps in plain memory after changes.

use proptest::prelude::*;
use sluice_model::{Frontend, Protocol};
use sluice_table::{AtSocket, SharedHealth, SocketOutcomes};

use super::*;
use crate::adopt::Contents;
use crate::affinity::{SetAffinity, SharedClients};
use crate::desc::Desc;
use crate::layout::{Endpoint, FrontendValue, Set, set_flags, verdict};
use crate::{Capacity, Memory, Picked};

/// Delegates a kernel's calls to its memory, unless they fail.
macro_rules! delegate {
    ($($kind:ty),*) => { $(impl Kernel for $kind {
        fn write_endpoints(&mut self, first: u32, endpoints: &[Endpoint]) { self.memory.write_endpoints(first, endpoints) }
        fn renew_endpoint(&mut self, id: u32, incarnation: u32) { self.memory.renew_endpoint(id, incarnation) }
        fn end_flows(&mut self, id: u32) { self.memory.end_flows(id) }
        fn account(&self, id: u32) -> Account { self.memory.account(id) }
        fn clear_account(&mut self, id: u32) { self.memory.clear_account(id) }
        fn write_slots(&mut self, first: u32, ids: &[u32]) { self.memory.write_slots(first, ids) }
        fn write_set(&mut self, id: u32, set: Set) { self.memory.write_set(id, set) }
        fn publish(&mut self, id: u32, desc: u64) { self.memory.publish(id, desc) }
        fn write_flags(&mut self, id: u32, flags: u32) { self.memory.write_flags(id, flags) }
        fn write_affinity(&mut self, id: u32, affinity: SetAffinity) -> bool { self.memory.write_affinity(id, affinity) }
        fn leave(&mut self, id: u32) { self.memory.leave(id) }
        fn clients(&self) -> SharedClients { self.memory.clients() }
        fn cursor(&self, id: u32) -> u64 { self.memory.cursor(id) }
        fn barrier(&mut self) -> io::Result<()> { self.fails()?; self.memory.barrier() }
        fn put_frontends(&mut self, entries: &[(FrontendKey, FrontendValue)]) -> io::Result<()> {
            self.fails()?;
            self.memory.put_frontends(entries)
        }
        fn remove_frontends(&mut self, keys: &[FrontendKey]) -> io::Result<()> {
            self.fails()?;
            self.memory.remove_frontends(keys)
        }
        fn health(&self) -> SharedHealth { self.memory.health() }
        fn forget_sources(&mut self) { self.memory.forget_sources() }
        fn take_over(&mut self) -> io::Result<()> { self.memory.take_over() }
        fn beat(&mut self) { self.memory.beat() }
        fn capacity(&self) -> Capacity { self.memory.capacity() }
    })* };
}

mod parked;
mod readers;
mod refusing;
mod successor;

const SMALL: Capacity = Capacity { frontends: 6, sets: 6, slots: 64, endpoints: 24 };
const LARGE: Capacity = Capacity { frontends: 100, sets: 100, slots: 1_000, endpoints: 1_000 };

fn frontend(number: u8) -> Frontend {
    Frontend::new([10, 96, 0, number].into(), 80, Protocol::Tcp)
}

/// The endpoints with these last bytes, of the port with this number.
fn addresses(port: u8, endpoints: &[u8]) -> Vec<SocketAddr> {
    endpoints.iter().map(|endpoint| ([10, 1, port, *endpoint], 8080).into()).collect()
}

fn balanced(frontends: &[u8], port: u8, endpoints: &[u8]) -> (PortKey, Port) {
    let outcome = match endpoints {
        [] => AtSocket::Refuse,
        _ => AtSocket::Balance(SetName::Cluster),
    };
    let outcomes = SocketOutcomes { node: outcome, pod: outcome };
    let frontends = frontends.iter().map(|number| (frontend(*number), outcomes)).collect();
    (PortKey(port.into()), Port { frontends, cluster: addresses(port, endpoints), ..Port::default() })
}

fn picks(maps: &mut Maps<Memory>, number: u8, times: usize) -> Vec<Picked> {
    (0..times).map(|_| maps.kernel_mut().pick(frontend(number), true)).collect()
}

fn ends(port: u8, endpoints: &[u8]) -> Vec<Picked> {
    addresses(port, endpoints).into_iter().map(Picked::Endpoint).collect()
}

/// The maps of a successor of this agent.
fn successor(maps: Maps<Memory>) -> Maps<Memory> {
    Maps::adopt(maps.kernel).unwrap()
}

#[test]
fn endpoints_take_turns_and_whoever_was_due_is_next() {
    let mut maps = Maps::new(Memory::new(LARGE));
    maps.apply([balanced(&[1, 2], 1, &[1, 2, 3])]);
    assert_eq!(picks(&mut maps, 1, 4), ends(1, &[1, 2, 3, 1]));
    maps.apply([balanced(&[1, 2], 1, &[1, 2, 3, 4])]);
    assert_eq!(picks(&mut maps, 2, 4), ends(1, &[2, 3, 4, 1]), "frontends share turns");
    maps.apply([balanced(&[1, 2], 1, &[1, 3, 4])]);
    assert_eq!(picks(&mut maps, 1, 3), ends(1, &[3, 4, 1]));
    assert_eq!((maps.stats().sets, maps.stats().frontends), (1, 2));
}

#[test]
fn what_says_how_clients_keep_endpoints_is_let_go_of_with_its_set() {
    let mut maps = Maps::new(Memory::new(LARGE));
    let (key, mut port) = balanced(&[1], 1, &[1, 2]);
    port.affinity = Some(std::time::Duration::from_secs(1));
    maps.apply([(key, port)]);
    assert_ne!(maps.kernel().set(0).affinity, 0);
    maps.apply([(key, Port::default())]);
    assert_eq!(maps.kernel().set(0).affinity, 0, "and not only when its number is wanted");
}

#[test]
fn who_comes_and_goes_does_not_use_up_what_says_how_clients_keep_endpoints() {
    let mut maps = Maps::new(Memory::new(LARGE));
    let (key, mut port) = balanced(&[1], 1, &[1, 2]);
    port.affinity = Some(std::time::Duration::from_secs(1));
    let most = LARGE.sets / 4;
    for turn in 0..most + 2 {
        maps.apply([(key, port.clone())]);
        assert_eq!(maps.with_clients().len(), 1, "turn {turn}");
        maps.apply([(key, Port::default())]);
    }
    // If no room for affinity is left, no clients are reported for the set, and the next change tries again.
    let many = (0..most + 1).map(|number| {
        let number = u8::try_from(number).unwrap();
        let (key, port) = balanced(&[number], number, &[1]);
        (key, Port { affinity: Some(std::time::Duration::from_secs(1)), ..port })
    });
    let many: Vec<_> = many.collect();
    maps.apply(many.iter().cloned());
    assert_eq!((maps.with_clients().len(), maps.stats().failures), (most as usize, 1));
    let told: Vec<PortKey> = maps.with_clients().into_values().map(|(key, _)| key).collect();
    let left = many.iter().find(|(key, _)| !told.contains(key)).unwrap();
    maps.apply([(told[0], Port::default())]);
    maps.apply([left.clone()]);
    assert!(maps.with_clients().into_values().any(|(key, _)| key == left.0));
}

#[test]
fn a_change_of_endpoints_writes_what_changed() {
    let mut maps = Maps::new(Memory::new(LARGE));
    maps.apply((1..=20).map(|port| balanced(&[port], port, &[1, 2, 3])));
    let before = maps.kernel().writes();
    maps.apply([balanced(&[5], 5, &[1, 2, 3, 4])]);
    let after = maps.kernel().writes();
    assert_eq!(after.endpoints - before.endpoints, 1);
    assert_eq!((after.slots - before.slots, after.published - before.published), (4, 1));
    assert_eq!((after.sets, after.put, after.barriers), (before.sets, before.put, before.barriers));
    maps.apply([balanced(&[5], 5, &[4, 3, 2, 1, 1])]);
    assert_eq!(maps.kernel().writes(), after, "the same in another order");
}

#[test]
fn outcomes_differ_by_who_connects() {
    let mut maps = Maps::new(Memory::new(LARGE));
    let outcomes = SocketOutcomes { node: AtSocket::Balance(SetName::Cluster), pod: AtSocket::Relay };
    let local = SocketOutcomes { node: AtSocket::Balance(SetName::Local), pod: AtSocket::Refuse };
    let port = Port {
        frontends: vec![(frontend(1), outcomes), (frontend(2), local), (frontend(3), SocketOutcomes::RELAY)],
        cluster: addresses(1, &[1, 2]),
        local: addresses(1, &[2]),
        ..Port::default()
    };
    maps.apply([(PortKey(1), port)]);
    let mut pick = |number, is_node| maps.kernel_mut().pick(frontend(number), is_node);
    assert_eq!([pick(1, true), pick(1, true)], ends(1, &[1, 2])[..]);
    assert_eq!([pick(2, true), pick(2, true)], ends(1, &[2, 2])[..]);
    assert_eq!([pick(1, false), pick(2, false)], [Picked::Untranslated, Picked::Refused]);
    assert_eq!(maps.stats().frontends, 2, "what is the same as none is none");
}

#[test]
fn how_endpoints_are_chosen_may_change_and_a_successor_knows_it() {
    let mut maps = Maps::new(Memory::new(LARGE));
    let random = |is_random| {
        let (key, port) = balanced(&[1], 1, &[1, 2]);
        (key, Port { is_random, ..port })
    };
    let flags = |maps: &Maps<Memory>| {
        let value = maps.kernel().frontend(frontend(1).into()).unwrap();
        maps.kernel().set(value.pod.set).flags
    };
    maps.apply([random(true)]);
    assert_eq!(flags(&maps), set_flags::RANDOM);
    maps.apply([random(false)]);
    assert_eq!(flags(&maps), 0);
    maps.apply([random(true)]);
    let mut maps = successor(maps);
    let writes = maps.kernel().writes();
    maps.apply([random(true)]);
    assert_eq!((flags(&maps), maps.kernel().writes()), (set_flags::RANDOM, writes));
    maps.apply([random(false)]);
    assert_eq!(flags(&maps), 0);
}

#[test]
fn a_frontend_changes_hands_within_one_step() {
    let mut maps = Maps::new(Memory::new(LARGE));
    maps.apply([balanced(&[1], 1, &[1])]);
    for (giver, taker) in [(1, 2), (2, 1)] {
        maps.apply([balanced(&[], giver, &[1]), balanced(&[1], taker, &[1])]);
        assert_eq!(picks(&mut maps, 1, 1), ends(taker, &[1]));
    }
    maps.apply([balanced(&[1], 2, &[1]), balanced(&[], 1, &[1])]);
    assert_eq!(picks(&mut maps, 1, 1), ends(2, &[1]), "in the other order");
}

#[test]
fn flows_to_an_endpoint_that_went_choose_anew_and_connections_still_count() {
    for protocol in [Protocol::Udp, Protocol::Tcp] {
        let mut maps = Maps::new(Memory::new(LARGE));
        let port = |endpoints: &[u8]| {
            let (key, mut port) = balanced(&[1], 1, endpoints);
            port.frontends[0].0.protocol = protocol;
            (key, port)
        };
        maps.apply([port(&[1, 2])]);
        let incarnations = |maps: &Maps<Memory>| [0, 1].map(|id| maps.kernel().endpoint(id).incarnation);
        let change = u32::from(protocol == Protocol::Udp);
        assert_eq!(incarnations(&maps), [1, 1]);
        maps.apply([port(&[2])]);
        assert_eq!(incarnations(&maps), [1 + change, 1], "{protocol}");
        maps.apply([port(&[])]);
        assert_eq!(incarnations(&maps), [1 + change; 2], "{protocol}");
        // A program may have picked one just before, and begun a flow just after.
        (0..5).for_each(|_| drop(maps.retry()));
        assert_eq!(incarnations(&maps), [1 + 2 * change; 2], "{protocol}");
        maps.apply([port(&[1, 2])]);
        maps.apply([port(&[])]);
        maps.reclaim();
        maps.apply([port(&[1, 2])]);
        let before = incarnations(&maps);
        (0..5).for_each(|_| drop(maps.retry()));
        assert_eq!(incarnations(&maps), before, "what is in use by now stays");
    }
}

#[test]
fn whoever_keeps_accounts_is_told_what_each_number_means() {
    let mut maps = Maps::new(Memory::new(LARGE));
    maps.follow_ids();
    maps.apply([balanced(&[1], 1, &[1, 2])]);
    assert_eq!(maps.take_id_changes(), []);
    let ids = |maps: &Maps<Memory>| {
        let numbers = maps.numbers(PortKey(1), SetName::Cluster);
        numbers.map(|(address, number)| (address, number.id)).collect::<Vec<_>>()
    };
    let [one, two] = [0, 1].map(|at| addresses(1, &[1, 2])[at]);
    assert_eq!(ids(&maps), [(one, 0), (two, 1)]);
    let account = Account { connections: 7, ..Account::default() };
    maps.kernel_mut().set_account(0, account);
    maps.apply([balanced(&[1], 1, &[2])]);
    assert_eq!(maps.take_id_changes(), [IdChange::Left(0)]);
    assert_eq!(ids(&maps), [(two, 1)]);
    maps.reclaim();
    maps.apply([balanced(&[1], 1, &[2, 3])]);
    assert_eq!(maps.take_id_changes(), [IdChange::Freed(0, account)], "before it means something else");
    assert_eq!(maps.kernel().account(0), Account::default());

    let mut maps = successor(maps);
    maps.follow_ids();
    maps.apply([balanced(&[1], 1, &[2])]);
    assert_eq!(maps.take_id_changes(), [IdChange::Found(1), IdChange::Found(0), IdChange::Left(0)]);
    maps.apply([balanced(&[], 1, &[])]);
    assert_eq!(maps.take_id_changes(), [IdChange::Left(1)]);
}

#[test]
fn what_does_not_fit_is_untranslated_until_there_is_room() {
    let mut maps = Maps::new(Memory::new(SMALL));
    maps.apply((1..=7).map(|port| balanced(&[port], port, &[1, 2])));
    assert_eq!((maps.stats().frontends, maps.stats().waiting), (6, 1));
    assert_eq!(picks(&mut maps, 7, 1), [Picked::Untranslated]);
    let failures = maps.stats().failures;
    maps.retry();
    assert_eq!(maps.stats().failures, failures, "nothing has changed: it is not tried");
    maps.apply([balanced(&[], 3, &[])]);
    maps.retry();
    assert_eq!((picks(&mut maps, 7, 2), maps.stats().waiting), (ends(7, &[1, 2]), 0));

    // A set that grows beyond the capacity must not stay as it was.
    let many: Vec<u8> = (1..=30).collect();
    maps.apply([balanced(&[1], 1, &many)]);
    assert_eq!(picks(&mut maps, 1, 1), [Picked::Untranslated]);
    maps.apply([balanced(&[1], 1, &[9])]);
    assert_eq!(picks(&mut maps, 1, 1), ends(1, &[9]));
}

#[test]
fn churn_leaves_nothing_behind() {
    let mut maps = Maps::new(Memory::new(SMALL));
    for round in 0..2_000_u32 {
        let byte = |n: u32| u8::try_from(n % 251).unwrap() + 1;
        let endpoints: Vec<u8> = (0..round % 5).map(|n| byte(round + n * 7)).collect();
        maps.apply([balanced(&[byte(round % 3)], byte(round % 2), &endpoints)]);
        if round % 10 == 9 {
            maps.apply([balanced(&[], 1, &[]), balanced(&[], 2, &[])]);
        }
        assert_eq!(maps.stats().waiting, 0, "round {round}");
    }
    // With or without a barrier since.
    let used = maps.stats();
    assert_eq!((used.sets, used.endpoints, used.slots), (0, 0, 0));
    maps.reclaim();
    let Stats { frontends, sets, endpoints, slots, .. } = maps.stats();
    assert_eq!((frontends, sets, endpoints, slots), (0, 0, 0, 0));
    assert!(maps.ports.is_empty() && maps.placed.is_empty() && maps.touched.is_empty());
    let barriers = maps.kernel().writes().barriers;
    assert!((1..1_000).contains(&barriers), "{barriers}: when there is no room, and not at each change");
}
