//! Changes that the kernel fails to make.

use std::collections::VecDeque;

use super::*;

/// Maps whose calls fail as the test says.
struct Failing {
    memory: Memory,
    failures: VecDeque<bool>,
}

impl Failing {
    fn fails(&mut self) -> io::Result<()> {
        if self.failures.pop_front() == Some(true) { Err(io::ErrorKind::OutOfMemory.into()) } else { Ok(()) }
    }
}

delegate!(Failing);

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Whichever calls fail, the maps end with correct contents, or none.
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
