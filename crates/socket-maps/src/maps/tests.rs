use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use proptest::prelude::*;
use sluice_model::Protocol;
use sluice_table::SharedHealth;

use super::*;
use crate::adopt::Contents;
use crate::{Account, Capacity, Memory, Picked};

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
        is_random: false,
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
    let [one, two] = [0, 1].map(|at| addresses(1, &[1, 2])[at]);
    assert_eq!(maps.members(PortKey(1)).collect::<Vec<_>>(), [(one, 0), (two, 1)]);
    let account = Account { connections: 7, ..Account::default() };
    maps.kernel_mut().set_account(0, account);
    maps.apply([balanced(&[1], 1, &[2])]);
    assert_eq!(maps.take_id_changes(), [IdChange::Left(0)]);
    assert_eq!(maps.members(PortKey(1)).collect::<Vec<_>>(), [(two, 1)]);
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

    // A set that grows beyond what there is must not go on with what it had.
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
    maps.reclaim();
    let Stats { frontends, sets, endpoints, slots, .. } = maps.stats();
    assert_eq!((frontends, sets, endpoints, slots), (0, 0, 0, 0));
    assert!(maps.ports.is_empty() && maps.placed.is_empty() && maps.touched.is_empty());
    let barriers = maps.kernel().writes().barriers;
    assert!((1..1_000).contains(&barriers), "{barriers}: when there is no room, and not at each change");
}

/// A successor of the agent whose maps these are.
fn successor(maps: Maps<Memory>) -> Maps<Memory> {
    Maps::adopt(maps.kernel).unwrap()
}

#[test]
fn a_successor_takes_over_turns_and_numbers_and_forgets_what_is_gone() {
    let mut maps = Maps::new(Memory::new(LARGE));
    maps.apply([balanced(&[1, 2], 1, &[1, 2, 3]), balanced(&[3], 2, &[1, 2]), balanced(&[4], 3, &[])]);
    assert_eq!(picks(&mut maps, 1, 2), ends(1, &[1, 2]));
    let (writes, before) = (maps.kernel().writes(), maps.stats());
    let mut maps = successor(maps);
    assert_eq!(picks(&mut maps, 1, 1), ends(1, &[3]), "served on before anything is known");
    // Its own numbers of ports; one port is gone, one has changed.
    let (_, same) = balanced(&[1, 2], 1, &[1, 2, 3]);
    let (_, changed) = balanced(&[3], 2, &[2, 3]);
    maps.apply([(PortKey(70), same.clone()), (PortKey(71), changed)]);
    maps.forget_unclaimed();
    let after = maps.kernel().writes();
    assert_eq!((after.endpoints - writes.endpoints, after.published - writes.published), (1, 1));
    assert_eq!((after.sets, after.put, after.removed), (writes.sets, writes.put, writes.removed + 1));
    assert_eq!(picks(&mut maps, 2, 2), ends(1, &[1, 2]), "turns go on");
    assert_eq!(picks(&mut maps, 4, 1), [Picked::Untranslated]);
    maps.reclaim();
    assert_eq!((maps.stats().sets, maps.stats().endpoints), (before.sets, before.endpoints));
    maps.apply([(PortKey(70), Port::default()), (PortKey(71), Port::default())]);
    maps.reclaim();
    assert_eq!((maps.stats().endpoints, maps.stats().slots, maps.stats().frontends), (0, 0, 0));
}

#[test]
fn a_successor_knows_which_endpoints_are_in_doubt() {
    let mut maps = Maps::new(Memory::new(LARGE));
    maps.apply([balanced(&[1], 1, &[1, 2, 3])]);
    let number = |maps: &Maps<Memory>, endpoint| {
        let (at, key) = (addresses(1, &[endpoint])[0], PortKey(1));
        maps.numbers(key, SetName::Cluster).find(|(address, _)| *address == at).unwrap().1
    };
    let health = maps.kernel().health();
    for endpoint in [1, 2] {
        health.has_served(number(&maps, endpoint));
    }
    health.has_failed(number(&maps, 2));
    let mut maps = successor(maps);
    maps.apply([balanced(&[1], 1, &[1, 2, 3, 4])]);
    let doubts = [1, 2, 3, 4].map(|endpoint| maps.kernel().health().is_in_doubt(number(&maps, endpoint)));
    assert_eq!(doubts, [false, true, true, true]);
}

#[test]
fn a_set_is_not_taken_over_while_frontends_of_others_lead_to_it() {
    let mut maps = Maps::new(Memory::new(LARGE));
    maps.apply([balanced(&[1, 2], 1, &[1])]);
    let mut maps = successor(maps);
    // While nobody was there frontend 1 has become another Service's.
    let (key, port) = balanced(&[1], 5, &[7]);
    assert!(maps.try_port(key, &port, false).is_ok());
    assert_eq!(picks(&mut maps, 2, 1), ends(1, &[1]));
    maps.apply([balanced(&[2], 1, &[1])]);
    maps.forget_unclaimed();
    assert_eq!((picks(&mut maps, 1, 1), picks(&mut maps, 2, 1)), (ends(5, &[7]), ends(1, &[1])));
}

fn base_of(contents: &Contents) -> usize {
    Desc::unpack(contents.sets[0].desc).base.try_into().unwrap()
}

#[test]
fn contents_that_make_no_sense_are_emptied() {
    type Damage = fn(&mut Contents);
    #[rustfmt::skip]
    let damages: [(&str, Damage); 6] = [
        ("a set that is none",          |c| c.frontends[0].1.node.set = 1 << 30),
        ("a verdict that is none",      |c| c.frontends[0].1.pod.verdict = 9),
        ("slots beyond the end",        |c| c.sets[0].desc = Desc { base: 999, count: 9, rotation: 0 }.pack()),
        ("an endpoint that is none",    |c| { let base = base_of(c); c.slots[base] = u32::MAX; }),
        ("an endpoint of two sets",     |c| { let base = base_of(c); c.slots[base] = c.slots[base + 1]; }),
        ("a rotation beyond the count", |c| c.sets[0].desc |= 0xffff),
    ];
    for (name, damage) in damages {
        let mut maps = Maps::new(Memory::new(LARGE));
        maps.apply([balanced(&[1], 1, &[1, 2])]);
        let mut contents = maps.kernel().contents().unwrap();
        damage(&mut contents);
        assert!(Found::read(&contents, LARGE).is_none(), "{name}");
        let damaged = Damaged { memory: maps.kernel, contents };
        let mut maps = Maps::adopt(damaged).unwrap();
        assert_eq!(maps.kernel.memory.pick(frontend(1), true), Picked::Untranslated, "{name}");
        maps.apply([balanced(&[1], 1, &[2])]);
        assert_eq!(maps.kernel.memory.pick(frontend(1), true), ends(1, &[2])[0], "{name}");
    }
}

/// Maps that say something else than they have.
struct Damaged {
    memory: Memory,
    contents: Contents,
}

impl Living for Damaged {
    fn contents(&self) -> io::Result<Contents> {
        Ok(self.contents.clone())
    }
}

/// Maps that fail as often as they are told to.
struct Failing {
    memory: Memory,
    failures: VecDeque<bool>,
}

impl Failing {
    fn fails(&mut self) -> io::Result<()> {
        if self.failures.pop_front() == Some(true) { Err(io::ErrorKind::OutOfMemory.into()) } else { Ok(()) }
    }
}

macro_rules! delegate {
    ($($kind:ty),*) => { $(impl Kernel for $kind {
        fn write_endpoints(&mut self, first: u32, endpoints: &[Endpoint]) { self.memory.write_endpoints(first, endpoints) }
        fn renew_endpoint(&mut self, id: u32, incarnation: u32) { self.memory.renew_endpoint(id, incarnation) }
        fn account(&self, id: u32) -> Account { self.memory.account(id) }
        fn clear_account(&mut self, id: u32) { self.memory.clear_account(id) }
        fn write_slots(&mut self, first: u32, ids: &[u32]) { self.memory.write_slots(first, ids) }
        fn write_set(&mut self, id: u32, set: Set) { self.memory.write_set(id, set) }
        fn publish(&mut self, id: u32, desc: u64) { self.memory.publish(id, desc) }
        fn write_flags(&mut self, id: u32, flags: u32) { self.memory.write_flags(id, flags) }
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
        fn beat(&mut self) { self.memory.beat() }
        fn capacity(&self) -> Capacity { self.memory.capacity() }
    })* };
}
delegate!(Failing, Damaged);

impl Damaged {
    #[expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "as the others")]
    fn fails(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A reader between two of its steps.
#[derive(Debug)]
struct Walk {
    frontend: u8,
    at: At,
    /// Whom its frontend has belonged to since it began: it may have read any of them.
    owners: BTreeSet<u8>,
    /// Where it may end: at all that these had since then.
    allowed: BTreeSet<SocketAddr>,
}

#[derive(Debug, Clone, Copy)]
enum At {
    Start,
    Set(u32),
    Slot(u32),
    Endpoint(u32),
}

/// What readers and the writer share.
#[derive(Debug, Default)]
struct Truth {
    /// Whom each frontend belongs to, and what each port has: before and after, while the writer is at it.
    owners: BTreeMap<u8, BTreeSet<u8>>,
    versions: BTreeMap<u8, BTreeSet<SocketAddr>>,
    wrong: Vec<String>,
    walks: Vec<Walk>,
    finished: usize,
}

/// Ports with their frontends and endpoints.
type Ports = BTreeMap<u8, (BTreeSet<u8>, Vec<u8>)>;

impl Truth {
    /// The writer begins to make it so.
    fn becomes(&mut self, ports: &Ports) {
        for (port, (frontends, endpoints)) in ports {
            self.versions.entry(*port).or_default().extend(addresses(*port, endpoints));
            for frontend in frontends {
                self.owners.entry(*frontend).or_default().insert(*port);
            }
        }
        for walk in &mut self.walks {
            walk.owners.extend(self.owners.get(&walk.frontend).into_iter().flatten());
            walk.allowed.extend(walk.owners.iter().filter_map(|owner| self.versions.get(owner)).flatten());
        }
    }

    /// It is so.
    fn is(&mut self, ports: &Ports) {
        self.owners.clear();
        self.versions.clear();
        self.becomes(ports);
    }
}

/// Maps that readers look at between any two writes.
struct Watched {
    memory: Memory,
    truth: Rc<RefCell<Truth>>,
    /// Which reader moves next, from the test's numbers.
    turns: VecDeque<u8>,
}

impl Watched {
    fn fails(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Lets readers move, as many as the numbers say.
    fn interleave(&mut self) {
        for _ in 0..3 {
            let Some(turn) = self.turns.pop_front() else { return };
            self.turns.push_back(turn.wrapping_mul(31).wrapping_add(7));
            let truth = Rc::clone(&self.truth);
            let mut truth = truth.borrow_mut();
            if turn % 3 == 0 && truth.walks.len() < 8 {
                let frontend = turn % 4 + 1;
                let owners = truth.owners.get(&frontend).cloned().unwrap_or_default();
                let versions = owners.iter().filter_map(|owner| truth.versions.get(owner));
                let allowed = versions.flatten().copied().collect();
                truth.walks.push(Walk { frontend, at: At::Start, owners, allowed });
            } else if !truth.walks.is_empty() {
                let at = usize::from(turn) % truth.walks.len();
                self.step(&mut truth, at);
            }
        }
    }

    fn step(&mut self, truth: &mut Truth, at: usize) {
        let walk = &mut truth.walks[at];
        let key = FrontendKey::from(frontend(walk.frontend));
        let next = match walk.at {
            At::Start => match self.memory.frontend(key) {
                Some(value) if value.node.verdict == verdict::BALANCE => Some(At::Set(value.node.set)),
                _ => None,
            },
            At::Set(id) => {
                let turn = self.memory.turn(id);
                Desc::unpack(self.memory.set(id).desc).slot(turn).map(At::Slot)
            }
            At::Slot(slot) => Some(At::Endpoint(self.memory.slot(slot).0)),
            At::Endpoint(id) => {
                let found = self.memory.endpoint(id).address();
                if !walk.allowed.contains(&found) {
                    truth.wrong.push(format!("{walk:?} got {found}"));
                }
                None
            }
        };
        match next {
            Some(next) => truth.walks[at].at = next,
            None => {
                truth.walks.swap_remove(at);
                truth.finished += 1;
            }
        }
    }

    fn finish_all(&mut self) {
        let truth = Rc::clone(&self.truth);
        let mut truth = truth.borrow_mut();
        while !truth.walks.is_empty() {
            self.step(&mut truth, 0);
        }
    }
}

impl Kernel for Watched {
    fn write_endpoints(&mut self, first: u32, endpoints: &[Endpoint]) {
        for (at, endpoint) in (first..).zip(endpoints) {
            self.memory.write_endpoints(at, &[*endpoint]);
            self.interleave();
        }
    }
    fn account(&self, id: u32) -> Account {
        self.memory.account(id)
    }
    fn clear_account(&mut self, id: u32) {
        self.memory.clear_account(id);
    }
    fn renew_endpoint(&mut self, id: u32, incarnation: u32) {
        self.memory.renew_endpoint(id, incarnation);
        self.interleave();
    }
    fn write_slots(&mut self, first: u32, ids: &[u32]) {
        for (at, id) in (first..).zip(ids) {
            self.memory.write_slots(at, &[*id]);
            self.interleave();
        }
    }
    fn write_set(&mut self, id: u32, set: Set) {
        self.memory.write_set(id, set);
        self.interleave();
    }
    fn publish(&mut self, id: u32, desc: u64) {
        self.memory.publish(id, desc);
        self.interleave();
    }
    fn write_flags(&mut self, id: u32, flags: u32) {
        self.memory.write_flags(id, flags);
        self.interleave();
    }
    fn cursor(&self, id: u32) -> u64 {
        self.memory.cursor(id)
    }
    fn barrier(&mut self) -> io::Result<()> {
        self.finish_all();
        self.memory.barrier()
    }
    fn put_frontends(&mut self, entries: &[(FrontendKey, FrontendValue)]) -> io::Result<()> {
        for entry in entries {
            self.memory.put_frontends(&[*entry])?;
            self.interleave();
        }
        Ok(())
    }
    fn remove_frontends(&mut self, keys: &[FrontendKey]) -> io::Result<()> {
        for key in keys {
            self.memory.remove_frontends(&[*key])?;
            self.interleave();
        }
        self.fails()
    }
    fn health(&self) -> SharedHealth {
        self.memory.health()
    }
    fn beat(&mut self) {
        self.memory.beat();
    }
    fn capacity(&self) -> Capacity {
        self.memory.capacity()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Frontends 1 to 4 change hands between ports, ports change their endpoints, and the maps are so small that
    /// numbers and ranges are used again and again.
    #[test]
    fn no_reader_sees_what_never_was(
        changes in prop::collection::vec((1_u8..=4, 1_u8..=4, prop::collection::btree_set(1_u8..12, 0..6)), 1..60),
        turns in prop::collection::vec(any::<u8>(), 1..20),
    ) {
        let truth = Rc::new(RefCell::new(Truth::default()));
        let watched = Watched { memory: Memory::new(SMALL), truth: Rc::clone(&truth), turns: turns.into() };
        let mut maps = Maps::new(watched);
        let mut ports = Ports::new();
        for (port, number, endpoints) in changes {
            // The frontend goes to this port, which has these endpoints from now on.
            let mut touched = BTreeSet::from([port]);
            for (other, (frontends, _)) in &mut ports {
                if frontends.remove(&number) {
                    touched.insert(*other);
                }
            }
            let (frontends, now) = ports.entry(port).or_default();
            frontends.insert(number);
            *now = endpoints.into_iter().collect();
            truth.borrow_mut().becomes(&ports);
            let changed: Vec<(PortKey, Port)> = touched.iter().map(|port| {
                let (frontends, endpoints) = &ports[port];
                let frontends: Vec<u8> = frontends.iter().copied().collect();
                balanced(&frontends, *port, endpoints)
            }).collect();
            maps.apply(changed);
            let mut truth = truth.borrow_mut();
            truth.is(&ports);
            prop_assert_eq!(&truth.wrong, &Vec::<String>::new());
        }
        maps.kernel_mut().finish_all();
        prop_assert_eq!(&truth.borrow().wrong, &Vec::<String>::new());
        let stats = maps.stats();
        // All of it is gone with its ports.
        maps.apply(ports.keys().map(|port| (PortKey((*port).into()), Port::default())));
        maps.reclaim();
        let Stats { frontends, sets, endpoints, slots, .. } = maps.stats();
        prop_assert_eq!((frontends, sets, endpoints, slots), (0, 0, 0, 0), "{:?}", stats);
    }

    /// Whatever calls the kernel refuses, what it has in the end is right, or nothing.
    #[test]
    fn what_the_kernel_refuses_is_made_good(
        changes in prop::collection::vec((1_u8..=4, prop::collection::btree_set(1_u8..12, 0..6)), 1..40),
        failures in prop::collection::vec(any::<bool>(), 0..40),
    ) {
        let mut maps = Maps::new(Failing { memory: Memory::new(SMALL), failures: failures.into() });
        let mut now = BTreeMap::new();
        for (port, endpoints) in changes {
            let endpoints: Vec<u8> = endpoints.into_iter().collect();
            maps.apply([balanced(&[port], port, &endpoints)]);
            now.insert(port, endpoints);
        }
        maps.kernel_mut().failures.clear();
        maps.retry();
        maps.retry();
        for (port, endpoints) in now {
            let found = maps.kernel_mut().memory.pick(frontend(port), true);
            match endpoints.as_slice() {
                [] => prop_assert_eq!(found, Picked::Refused),
                some => prop_assert!(ends(port, some).contains(&found), "{found:?}"),
            }
        }
    }
}
