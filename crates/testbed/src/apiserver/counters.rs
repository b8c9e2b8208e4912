//! Counters of requests, connections and open watches.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use tokio::sync::watch;

use super::resource::Resource;

/// The verb of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verb {
    /// Reads one object.
    Get,
    /// Reads many objects.
    List,
    /// Follows changes from a revision on.
    Watch,
    /// Creates an object.
    Create,
    /// Replaces a whole object.
    Update,
    /// Changes a part of an object.
    Patch,
    /// Deletes one object.
    Delete,
    /// Deletes many objects.
    DeleteCollection,
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
            Self::DeleteCollection => "deletecollection",
        })
    }
}

/// Counters since the start of the server. They include failed requests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// Accepted connections, with or without TLS.
    pub connections: u64,
    /// All requests, including those for no resource (discovery, health).
    pub all_requests: u64,
    /// Compressed responses.
    pub compressed: u64,
    requests: BTreeMap<(Verb, Resource), u64>,
    open_watches: BTreeMap<Resource, usize>,
}

impl Counters {
    /// Requests of one kind.
    pub fn requests(&self, verb: Verb, resource: Resource) -> u64 {
        self.requests.get(&(verb, resource)).copied().unwrap_or(0)
    }

    /// Watches of a resource that are open now.
    pub fn open_watches(&self, resource: Resource) -> usize {
        self.open_watches.get(&resource).copied().unwrap_or(0)
    }

    pub(crate) fn count_request(&mut self, of: Option<(Verb, Resource)>) {
        self.all_requests += 1;
        if let Some(of) = of {
            *self.requests.entry(of).or_default() += 1;
        }
    }
}

/// Counts a watch as open for as long as it lives.
#[derive(Debug)]
pub(crate) struct OpenWatch {
    counters: Arc<watch::Sender<Counters>>,
    resource: Resource,
}

impl OpenWatch {
    pub(crate) fn new(counters: &Arc<watch::Sender<Counters>>, resource: Resource) -> Self {
        counters.send_modify(|counters| *counters.open_watches.entry(resource).or_default() += 1);
        Self { counters: Arc::clone(counters), resource }
    }
}

impl Drop for OpenWatch {
    fn drop(&mut self) {
        self.counters.send_modify(|counters| {
            if let Some(open) = counters.open_watches.get_mut(&self.resource) {
                *open -= 1;
            }
        });
    }
}
