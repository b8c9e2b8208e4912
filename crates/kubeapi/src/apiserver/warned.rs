//! What was said to be wrong with objects, so that each is said once. Goes when the object does, or is well.

use std::collections::HashMap;

use sluice_model::ObjectRef;

/// What was last said, by the object's name; those whose name is not known are one.
#[derive(Debug, Default)]
pub(super) struct Warned(HashMap<Option<ObjectRef>, String>);

impl Warned {
    /// Whether this is to be said of an object: something is wrong, and it is not what was last said. Nothing is wrong when
    /// `what` is empty.
    pub(super) fn is_news(&mut self, name: Option<&ObjectRef>, what: &str) -> bool {
        if what.is_empty() {
            // Most clusters have none.
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

    /// Whether anything was last said to be wrong with it.
    pub(super) fn has(&self, name: &Option<ObjectRef>) -> bool {
        self.0.contains_key(name)
    }

    /// Forgets objects that are not there any more.
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
