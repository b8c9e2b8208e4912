//! All objects and their recent changes: for reads at a revision, and for watches.
//!
//! One counter numbers all writes to all resources. The history is bounded: reads and watches from before it
//! are refused with 410.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use serde_json::Value;

use super::object::{Key, Object};
use super::resource::Resource;
use super::selector::Scope;
use super::status::Status;

/// The objects of all resources.
#[derive(Debug)]
pub(crate) struct Store {
    revision: u64,
    /// Reads and watches from earlier revisions are refused.
    compacted: u64,
    /// The latest change that is no longer in the history.
    forgotten: u64,
    window: usize,
    objects: HashMap<Resource, BTreeMap<Key, Arc<Object>>>,
    history: VecDeque<Arc<Change>>,
    /// The revision of the latest write to each resource.
    written: HashMap<Resource, u64>,
}

/// One write to one object.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) kind: ChangeKind,
    /// The object after the write, or its last state if it was deleted.
    pub(crate) object: Arc<Object>,
    pub(crate) before: Option<Arc<Object>>,
}

impl Change {
    pub(crate) fn revision(&self) -> u64 {
        self.object.revision()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChangeKind {
    Added,
    Modified,
    Deleted,
}

/// A part of a list.
#[derive(Debug, Default)]
pub(crate) struct Page {
    pub(crate) items: Vec<Arc<Object>>,
    /// The last object examined, if there are more after it.
    pub(crate) last: Option<Key>,
    /// The number of objects after it, matching or not.
    pub(crate) remaining: usize,
}

impl Store {
    /// An empty store, whose history holds `window` changes.
    pub(crate) fn new(window: usize) -> Self {
        Self {
            revision: 1,
            compacted: 1,
            forgotten: 1,
            window,
            objects: HashMap::new(),
            history: VecDeque::new(),
            written: HashMap::new(),
        }
    }

    /// The revision of the latest write.
    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    /// Whether a resource was written to after a revision.
    pub(crate) fn is_written_after(&self, resource: Resource, revision: u64) -> bool {
        self.written.get(&resource).is_some_and(|written| *written > revision)
    }

    pub(crate) fn get(&self, resource: Resource, key: &Key) -> Option<&Arc<Object>> {
        self.objects.get(&resource)?.get(key)
    }

    pub(crate) fn all(&self, resource: Resource) -> impl Iterator<Item = &Arc<Object>> {
        self.objects.get(&resource).into_iter().flat_map(BTreeMap::values)
    }

    /// Writes an object, new or not. `value` has neither `apiVersion` nor `kind`.
    pub(crate) fn put(&mut self, resource: Resource, key: Key, value: Value) -> Arc<Object> {
        self.revision += 1;
        self.written.insert(resource, self.revision);
        let object = Object::new(resource, value, self.revision);
        let before = self.objects.entry(resource).or_default().insert(key, Arc::clone(&object));
        let kind = if before.is_some() { ChangeKind::Modified } else { ChangeKind::Added };
        self.remember(Change { kind, object: Arc::clone(&object), before });
        object
    }

    /// Removes an object, and returns its last state.
    pub(crate) fn remove(&mut self, resource: Resource, key: &Key) -> Option<Arc<Object>> {
        let before = self.objects.get_mut(&resource)?.remove(key)?;
        self.revision += 1;
        self.written.insert(resource, self.revision);
        let object = before.at(self.revision);
        self.remember(Change { kind: ChangeKind::Deleted, object, before: Some(Arc::clone(&before)) });
        Some(before)
    }

    fn remember(&mut self, change: Change) {
        self.history.push_back(Arc::new(change));
        while self.history.len() > self.window {
            if let Some(oldest) = self.history.pop_front() {
                self.forgotten = oldest.revision();
                self.compacted = oldest.revision();
            }
        }
    }

    /// Forgets all history, so that all earlier revisions are too old.
    pub(crate) fn compact(&mut self) {
        if let Some(last) = self.history.back() {
            self.forgotten = last.revision();
        }
        self.history.clear();
        // As if an unrelated resource had been written just before the compaction.
        self.revision += 1;
        self.compacted = self.revision;
    }

    /// Whether a watch may start after this revision.
    pub(crate) fn check_not_compacted(&self, revision: u64) -> Result<(), Status> {
        if revision < self.compacted {
            let message = format!("too old resource version: {revision} ({})", self.compacted);
            return Err(Status::expired(message));
        }
        Ok(())
    }

    /// The changes to a resource after one revision and up to another, oldest first, at most `limit`.
    ///
    /// # Errors
    /// 410 if some of them are forgotten.
    pub(crate) fn changes(
        &self,
        resource: Resource,
        after: u64,
        up_to: u64,
        limit: usize,
    ) -> Result<Vec<Arc<Change>>, Status> {
        if after < self.forgotten {
            let message = format!("too old resource version: {after} ({})", self.forgotten);
            return Err(Status::expired(message));
        }
        let start = self.history.partition_point(|change| change.revision() <= after);
        let changes = self.history.range(start..).take_while(|change| change.revision() <= up_to);
        let changes = changes.filter(|change| change.object.resource() == resource);
        Ok(changes.take(limit).map(Arc::clone).collect())
    }

    /// At most `limit` matching objects after the key `after`, all at one revision.
    pub(crate) fn page(
        &self,
        resource: Resource,
        scope: &Scope,
        revision: u64,
        after: Option<&Key>,
        limit: usize,
    ) -> Page {
        let changed_since = self.as_of(resource, revision);
        let start = match (after, &scope.namespace) {
            (Some(after), _) => Bound::Excluded(after.clone()),
            (None, Some(namespace)) => Bound::Included(Key::new(namespace, "")),
            (None, None) => Bound::Unbounded,
        };
        let range = (start, Bound::Unbounded);
        let current =
            self.objects.get(&resource).into_iter().flat_map(|objects| objects.range(range.clone()));
        if changed_since.is_empty() {
            return collect(current, scope, limit);
        }
        let mut then: BTreeMap<&Key, &Arc<Object>> = current.collect();
        for (key, before) in changed_since.range(range) {
            match before {
                Some(object) => then.insert(key, object),
                None => then.remove(key),
            };
        }
        collect(then.into_iter(), scope, limit)
    }

    /// The state at a revision of the objects that have changed since then.
    fn as_of(&self, resource: Resource, revision: u64) -> BTreeMap<Key, Option<Arc<Object>>> {
        let later = self.history.iter().rev().take_while(|change| change.revision() > revision);
        later
            .filter(|change| change.object.resource() == resource)
            .map(|change| (change.object.key(), change.before.clone()))
            .collect()
    }
}

fn collect<'a>(
    objects: impl Iterator<Item = (&'a Key, &'a Arc<Object>)>,
    scope: &Scope,
    limit: usize,
) -> Page {
    let mut objects = objects
        .take_while(|(key, _)| scope.namespace.as_ref().is_none_or(|namespace| key.namespace == *namespace));
    let mut page = Page::default();
    for (key, object) in objects.by_ref() {
        if scope.matches(object) {
            page.items.push(Arc::clone(object));
        }
        if page.items.len() == limit {
            page.last = Some(key.clone());
            break;
        }
    }
    page.remaining = objects.count();
    if page.remaining == 0 {
        page.last = None;
    }
    page
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn put(store: &mut Store, name: &str, mark: u32) -> u64 {
        let value = json!({ "metadata": { "name": name, "namespace": "default" }, "mark": mark });
        store.put(Resource::Services, Key::new("default", name), value).revision()
    }

    fn marks(store: &Store, revision: u64, after: Option<&str>, limit: usize) -> (Vec<u64>, usize) {
        let after = after.map(|name| Key::new("default", name));
        let page = store.page(Resource::Services, &Scope::default(), revision, after.as_ref(), limit);
        (page.items.iter().map(|object| object.value()["mark"].as_u64().unwrap()).collect(), page.remaining)
    }

    #[test]
    fn a_page_shows_the_objects_as_of_its_revision() {
        let mut store = Store::new(100);
        put(&mut store, "a", 1);
        put(&mut store, "b", 2);
        let then = put(&mut store, "c", 3);
        put(&mut store, "b", 20);
        put(&mut store, "b", 21);
        put(&mut store, "bb", 4);
        store.remove(Resource::Services, &Key::new("default", "c"));
        assert_eq!(marks(&store, store.revision(), None, 9), (vec![1, 21, 4], 0));
        assert_eq!(marks(&store, then, None, 2), (vec![1, 2], 1));
        assert_eq!(marks(&store, then, Some("b"), 2), (vec![3], 0));
    }

    #[test]
    fn a_watch_gets_every_change_or_410() {
        let mut store = Store::new(3);
        let start = store.revision();
        for mark in 0..3 {
            put(&mut store, "a", mark);
        }
        let kinds = |store: &Store, after| {
            let changes = store.changes(Resource::Services, after, u64::MAX, 9)?;
            Ok::<_, Status>(changes.iter().map(|change| change.kind).collect::<Vec<_>>())
        };
        assert_eq!(
            kinds(&store, start).unwrap(),
            [ChangeKind::Added, ChangeKind::Modified, ChangeKind::Modified]
        );
        store.remove(Resource::Services, &Key::new("default", "a"));
        assert_eq!(kinds(&store, start).unwrap_err().code, 410);
        assert!(store.check_not_compacted(start).is_err());
        assert!(store.check_not_compacted(start + 1).is_ok());
        assert_eq!(kinds(&store, start + 3).unwrap(), [ChangeKind::Deleted]);
        assert!(store.changes(Resource::Nodes, start + 1, u64::MAX, 9).unwrap().is_empty());
    }

    #[test]
    fn a_compaction_makes_every_known_revision_too_old_but_ends_no_watch_that_is_up_to_date() {
        let mut store = Store::new(9);
        let revision = put(&mut store, "a", 1);
        store.compact();
        assert!(store.check_not_compacted(revision).is_err());
        assert!(store.check_not_compacted(store.revision()).is_ok());
        assert!(store.changes(Resource::Services, revision, u64::MAX, 9).unwrap().is_empty());
        assert!(store.changes(Resource::Services, revision - 1, u64::MAX, 9).is_err());
    }
}
