//! What programs see that read the maps during changes.

use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;

use super::*;

/// A reader between two of its steps.
#[derive(Debug)]
struct Walk {
    frontend: u8,
    at: At,
    /// The ports that its frontend has belonged to since the walk began: it may have read any of them.
    owners: BTreeSet<u8>,
    /// The endpoints at which it may end: all that these ports have had since then.
    allowed: BTreeSet<SocketAddr>,
}

#[derive(Debug, Clone, Copy)]
enum At {
    Start,
    Set(u32),
    Slot(u32),
    Endpoint(u32),
}

/// The state that readers and the writer share.
#[derive(Debug, Default)]
struct Truth {
    /// The port of each frontend, and the endpoints of each port: before and after the current change.
    owners: BTreeMap<u8, BTreeSet<u8>>,
    versions: BTreeMap<u8, BTreeSet<SocketAddr>>,
    wrong: Vec<String>,
    walks: Vec<Walk>,
    finished: usize,
}

/// Ports with their frontends and endpoints.
type Ports = BTreeMap<u8, (BTreeSet<u8>, Vec<u8>)>;

impl Truth {
    /// The writer begins to change the ports to this.
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

    /// The change is complete.
    fn is(&mut self, ports: &Ports) {
        self.owners.clear();
        self.versions.clear();
        self.becomes(ports);
    }
}

/// Maps that readers read between any two writes.
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

    /// Moves readers as the numbers say.
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
    fn end_flows(&mut self, id: u32) {
        self.memory.end_flows(id);
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
    fn write_affinity(&mut self, id: u32, affinity: SetAffinity) -> bool {
        let has_room = self.memory.write_affinity(id, affinity);
        self.interleave();
        has_room
    }
    fn leave(&mut self, id: u32) {
        self.memory.leave(id);
        self.interleave();
    }
    fn clients(&self) -> SharedClients {
        self.memory.clients()
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
    fn forget_sources(&mut self) {
        self.memory.forget_sources();
    }
    fn take_over(&mut self) -> io::Result<()> {
        self.memory.take_over()
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

    /// Frontends 1 to 4 move between ports, ports change their endpoints, and the maps are so small that ids
    /// and ranges are reused again and again.
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
            // From now on, the frontend belongs to this port, which has these endpoints.
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
        // Everything is removed with its ports.
        maps.apply(ports.keys().map(|port| (PortKey((*port).into()), Port::default())));
        maps.reclaim();
        let Stats { frontends, sets, endpoints, slots, .. } = maps.stats();
        prop_assert_eq!((frontends, sets, endpoints, slots), (0, 0, 0, 0), "{:?}", stats);
    }
}
