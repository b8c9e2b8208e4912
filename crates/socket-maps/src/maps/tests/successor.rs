//! How an agent takes over the maps of an earlier one.

use super::*;

#[test]
fn a_successor_takes_over_turns_and_numbers_and_forgets_what_is_gone() {
    let mut maps = Maps::new(Memory::new(LARGE));
    maps.apply([balanced(&[1, 2], 1, &[1, 2, 3]), balanced(&[3], 2, &[1, 2]), balanced(&[4], 3, &[])]);
    assert_eq!(picks(&mut maps, 1, 2), ends(1, &[1, 2]));
    let (writes, before) = (maps.kernel().writes(), maps.stats());
    let mut maps = successor(maps);
    assert_eq!(picks(&mut maps, 1, 1), ends(1, &[3]), "served on before anything is known");
    // It numbers ports differently; one port is gone, one has changed.
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
    // While no agent was running, frontend 1 has moved to another Service.
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

/// Maps that report other contents than they have.
struct Damaged {
    memory: Memory,
    contents: Contents,
}

impl Living for Damaged {
    fn contents(&self) -> io::Result<Contents> {
        Ok(self.contents.clone())
    }
}

delegate!(Damaged);

impl Damaged {
    #[expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "as the others")]
    fn fails(&mut self) -> io::Result<()> {
        Ok(())
    }
}
