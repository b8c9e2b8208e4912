//! Namespaces in which the apiserver has forbidden to write Events. Their number is bounded by the Events that
//! may be written at all (`series`).

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How long nothing is written in a namespace after the apiserver has forbidden it. It may be allowed by then.
const FORBIDDEN: Duration = Duration::from_secs(600);

/// Until when each namespace counts as forbidden. It is remembered for as long again.
#[derive(Debug, Default)]
pub(super) struct Forbidden(HashMap<String, Instant>);

impl Forbidden {
    /// Whether nothing may be written in the namespace now.
    pub(super) fn is_so(&self, namespace: &str, now: Instant) -> bool {
        self.0.get(namespace).is_some_and(|until| now < *until)
    }

    /// Adds a namespace. Returns whether it is the only one at present.
    pub(super) fn add(&mut self, namespace: String, now: Instant) -> bool {
        self.0.retain(|_, until| now < *until + FORBIDDEN);
        let is_first = self.0.is_empty();
        self.0.insert(namespace, now + FORBIDDEN);
        is_first
    }

    /// Removes a namespace in which a write has succeeded. Returns whether it was forbidden before.
    pub(super) fn remove(&mut self, namespace: &str) -> bool {
        self.0.remove(namespace).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_long_ago_does_not_keep_another_from_being_the_first() {
        let start = Instant::now();
        let mut forbidden = Forbidden::default();
        assert!(forbidden.add("a".to_owned(), start));
        assert!(!forbidden.add("b".to_owned(), start));
        let after = start + FORBIDDEN;
        assert!(forbidden.is_so("a", after - Duration::from_secs(1)) && !forbidden.is_so("a", after));
        assert!(!forbidden.add("a".to_owned(), after), "it is tried again, and is no news");
        let late = after + 2 * FORBIDDEN;
        assert!(forbidden.add("b".to_owned(), late), "the others ran out, and were not tried since");
        assert!(forbidden.remove("b") && !forbidden.remove("a"));
    }
}
