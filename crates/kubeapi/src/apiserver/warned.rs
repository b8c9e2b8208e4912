//! The last warning about each object, so that it is logged once. It is forgotten when the object is gone or valid.

use std::collections::HashMap;

use sluice_model::ObjectRef;

/// The last warnings, by the object's name; all objects without a readable name share one.
#[derive(Debug, Default)]
pub(super) struct Warned(HashMap<Option<ObjectRef>, String>);

impl Warned {
    /// Whether to log this about an object: something is wrong, and it was not the last warning. An empty `what`
    /// means that nothing is wrong.
    pub(super) fn is_news(&mut self, name: Option<&ObjectRef>, what: &str) -> bool {
        if what.is_empty() {
            // Most clusters have no such objects.
            if !self.0.is_empty() {
                self.0.remove(&name.cloned());
            }
            return false;
        }
        let is_news = self.0.get(&name.cloned()).is_none_or(|said| said != what);
        if is_news {
            self.0.insert(name.cloned(), what.to_owned());
        }
        is_news
    }

    /// Whether the last word about it was a warning.
    pub(super) fn has(&self, name: &Option<ObjectRef>) -> bool {
        self.0.contains_key(name)
    }

    /// Forgets objects that are gone.
    pub(super) fn retain(&mut self, is_there: impl Fn(&Option<ObjectRef>) -> bool) {
        self.0.retain(|name, _| is_there(name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_said_once_and_forgotten_with_its_object() {
        let mut warned = Warned::default();
        let [a, b] = ["a", "b"].map(|name| ObjectRef::Node(name.into()));
        assert!(warned.is_news(Some(&a), "bad"));
        assert!(!warned.is_news(Some(&a), "bad"));
        assert!(warned.is_news(Some(&a), "worse"));
        assert!(warned.is_news(Some(&b), "bad") && warned.is_news(None, "bad"));
        assert!(!warned.is_news(Some(&b), ""), "it is well");
        assert!(!warned.has(&Some(b)) && warned.has(&None));
        warned.retain(Option::is_none);
        assert!(!warned.has(&Some(a.clone())) && warned.has(&None));
        assert!(warned.is_news(Some(&a), "worse"), "it is another one");
    }
}
