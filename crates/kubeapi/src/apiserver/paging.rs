//! How many objects of a list are asked for at a time, and how often.

/// How often a page after the first one is asked for again, before everything is listed anew. An apiserver knows for five minutes
/// how a list goes on, and that is how long so many delays last.
const RETRIES: usize = 10;

/// The size of pages, from one list to the next.
#[derive(Debug)]
pub(super) struct Paging {
    /// Objects per page, as it is to be; 0 is all of them in one.
    usual: usize,
    /// As it is, since pages were too large.
    page: usize,
    /// This attempt asks for everything at once.
    is_whole: bool,
    /// How often the page has failed that is asked for.
    failures: usize,
}

impl Paging {
    pub(super) fn new(usual: usize) -> Self {
        Self { usual, page: usual, is_whole: false, failures: 0 }
    }

    /// How many objects to ask for; none is all.
    pub(super) fn limit(&self) -> Option<usize> {
        (!self.is_whole && self.page > 0).then_some(self.page)
    }

    /// What came is too large to take. Whether a smaller page can be had, which is to be asked for next.
    pub(super) fn too_large(&mut self) -> bool {
        match (std::mem::take(&mut self.is_whole), self.page) {
            (true, page) => page > 0,
            (false, 0 | 1) => false,
            (false, page) => {
                self.page = page / 2;
                true
            }
        }
    }

    /// A page has failed that others came before. Whether it is asked for again.
    pub(super) fn page_failed(&mut self) -> bool {
        self.failures += 1;
        self.failures <= RETRIES
    }

    /// A page is there.
    pub(super) fn page_came(&mut self) {
        self.failures = 0;
    }

    /// A list has failed. Where `has_expired` says that there were too many changes between two pages the next attempt asks
    /// for everything at once, and only that: if it fails as well there are pages again.
    pub(super) fn failed(&mut self, has_expired: bool) {
        self.is_whole = has_expired && !self.is_whole;
        self.failures = 0;
    }

    /// A list is complete.
    pub(super) fn done(&mut self) {
        *self = Self::new(self.usual);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_is_too_large_is_asked_for_by_halves_down_to_one_object() {
        let mut paging = Paging::new(5);
        let mut limits = vec![paging.limit()];
        while paging.too_large() {
            limits.push(paging.limit());
        }
        assert_eq!(limits, [Some(5), Some(2), Some(1)]);
        paging.failed(false);
        assert_eq!(paging.limit(), Some(1), "it would be too large again");
        paging.done();
        assert_eq!(paging.limit(), Some(5));
        assert!(!Paging::new(0).too_large(), "without pages there is none that is smaller");
    }

    #[test]
    fn everything_at_once_is_for_one_attempt() {
        let mut paging = Paging::new(5);
        paging.failed(true);
        assert_eq!(paging.limit(), None);
        assert!(paging.too_large());
        assert_eq!(paging.limit(), Some(5), "it is too large: pages again, of the usual size");

        for has_expired in [true, false] {
            paging.failed(true);
            assert_eq!(paging.limit(), None);
            paging.failed(has_expired);
            assert_eq!(paging.limit(), Some(5), "it has failed");
        }
    }
}
