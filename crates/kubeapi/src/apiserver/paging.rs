//! The size of the pages of a list, and how often a page is requested again.

/// How often a page other than the first is requested again before everything is listed anew. An apiserver can
/// continue a list for five minutes, and that is how long so many delays take.
const RETRIES: usize = 10;

/// The size of pages, kept from one list to the next.
#[derive(Debug)]
pub(super) struct Paging {
    /// The configured number of objects per page; 0 requests all at once.
    usual: usize,
    /// The current number, reduced after pages that were too large.
    page: usize,
    /// This attempt requests everything at once.
    is_whole: bool,
    /// How often the current page has failed.
    failures: usize,
}

impl Paging {
    pub(super) fn new(usual: usize) -> Self {
        Self { usual, page: usual, is_whole: false, failures: 0 }
    }

    /// The number of objects to request; `None` means all.
    pub(super) fn limit(&self) -> Option<usize> {
        (!self.is_whole && self.page > 0).then_some(self.page)
    }

    /// Notes that a page is too large to receive. Returns whether a smaller one can be requested.
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

    /// Notes that a page other than the first has failed. Returns whether to request it again.
    pub(super) fn page_failed(&mut self) -> bool {
        self.failures += 1;
        self.failures <= RETRIES
    }

    /// Notes that a page has arrived.
    pub(super) fn page_came(&mut self) {
        self.failures = 0;
    }

    /// Notes that a list has failed. `has_expired`: there were too many changes between two pages. Then the next
    /// attempt requests everything at once; if that fails as well, lists are paged again.
    pub(super) fn failed(&mut self, has_expired: bool) {
        self.is_whole = has_expired && !self.is_whole;
        self.failures = 0;
    }

    /// Notes that a list is complete.
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
