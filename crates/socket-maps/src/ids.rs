//! Allocates the ids of an array.

/// Ids below a bound. Returned ids are given first, so arrays stay dense.
#[derive(Debug)]
pub(crate) struct Ids {
    bound: u32,
    /// No id from here on was ever given.
    next: u32,
    free: Vec<u32>,
}

impl Ids {
    pub(crate) fn new(bound: u32) -> Self {
        Self { bound, next: 0, free: Vec::new() }
    }

    /// The same, with some ids given; `None` if one is out of bounds or repeated.
    pub(crate) fn with_given(bound: u32, mut given: Vec<u32>) -> Option<Self> {
        given.sort_unstable();
        let is_twice = given.windows(2).any(|pair| pair.first() == pair.last());
        let next = given.last().map_or(Some(0), |last| last.checked_add(1))?;
        if is_twice || next > bound {
            return None;
        }
        let mut given = given.into_iter().peekable();
        let free = (0..next).filter(|id| given.next_if_eq(id).is_none()).collect();
        Some(Self { bound, next, free })
    }

    pub(crate) fn give(&mut self) -> Option<u32> {
        if let Some(id) = self.free.pop() {
            return Some(id);
        }
        let id = self.next;
        (id < self.bound).then(|| {
            self.next += 1;
            id
        })
    }

    pub(crate) fn take_back(&mut self, id: u32) {
        debug_assert!(id < self.next && !self.free.contains(&id), "{id} was not given");
        self.free.push(id);
    }

    /// How many ids are given.
    pub(crate) fn given(&self) -> usize {
        // An id has 32 bits, and `usize` has at least as many.
        (self.next as usize).saturating_sub(self.free.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_given_once_and_no_more_than_there_are() {
        let mut ids = Ids::new(3);
        assert_eq!([ids.give(), ids.give(), ids.give(), ids.give()], [Some(0), Some(1), Some(2), None]);
        ids.take_back(1);
        assert_eq!((ids.given(), ids.give(), ids.give()), (2, Some(1), None));
    }

    #[test]
    fn those_that_are_in_use_stay_so() {
        let mut ids = Ids::with_given(5, vec![3, 1]).unwrap();
        let mut rest: Vec<u32> = std::iter::from_fn(|| ids.give()).collect();
        rest.sort_unstable();
        assert_eq!((rest, ids.given()), (vec![0, 2, 4], 5));
        assert!(Ids::with_given(5, vec![5]).is_none() && Ids::with_given(5, vec![1, 1]).is_none());
    }
}
