//! Namespaces that the apiserver has forbidden to write Events in. What may be written at all (`series`) bounds how many they are.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How long nothing is written in a namespace after the apiserver has forbidden it there. Then it may have been allowed.
const FORBIDDEN: Duration = Duration::from_secs(600);

/// Until when it is so, by namespace. For as long again it is remembered that it was.
#[derive(Debug, Default)]
pub(super) struct Forbidden(HashMap<String, Instant>);

impl Forbidden {
    /// Whether nothing is to be written there now.
    pub(super) fn is_so(&self, namespace: &str, now: Instant) -> bool {
        self.0.get(namespace).is_some_and(|until| now < *until)
    }

    /// It has been forbidden there. Returns whether it is the only one of late.
    pub(super) fn add(&mut self, namespace: String, now: Instant) -> bool {
        self.0.retain(|_, until| now < *until + FORBIDDEN);
        let is_first = self.0.is_empty();
        self.0.insert(namespace, now + FORBIDDEN);
        is_first
    }

    /// It has been allowed there. Returns whether it was forbidden before.
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
