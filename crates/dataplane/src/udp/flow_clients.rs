//! The flows of each client, and which clients hold much of a resource. Pure.

use std::collections::HashMap;

use super::flow_class::{FlowQueues, Lack};
use super::flow_limits::{FlowLimits, Shares};
use super::flow_queue::Chain;
use crate::client::ClientKey;
use crate::token::{SlotId, Slots};

/// Identifies a client while it has flows.
pub(super) type ClientId = SlotId;

/// A client with flows.
#[derive(Debug)]
pub(super) struct FlowClient {
    pub(super) client_key: ClientKey,
    pub(super) queues: FlowQueues,
}

/// The clients of one worker: at most as many as it has flows.
#[derive(Debug)]
pub(super) struct FlowClients {
    ids: HashMap<ClientKey, ClientId, foldhash::fast::RandomState>,
    clients: Slots<FlowClient>,
    places: Holders,
    ports: Holders,
}

/// The clients that hold much of one resource.
#[derive(Debug)]
pub(super) struct Holders {
    shares: Shares,
    /// The clients above the share or the size of a large client, with what they hold. Their number is
    /// bounded by the number of such parts in the whole.
    many: Vec<(ClientId, usize)>,
}

impl FlowClients {
    pub(super) fn new(limits: &FlowLimits) -> Self {
        let (places, ports) = (Holders::new(limits.places), Holders::new(limits.ports));
        Self { ids: HashMap::default(), clients: Slots::default(), places, ports }
    }

    /// Returns this client's id, if it has flows.
    pub(super) fn find(&self, client_key: ClientKey) -> Option<ClientId> {
        self.ids.get(&client_key).copied()
    }

    /// Returns the id of this client, which is about to get one more flow.
    pub(super) fn found_or_new(&mut self, client_key: ClientKey) -> ClientId {
        let clients = &mut self.clients;
        *self.ids.entry(client_key).or_insert_with(|| {
            clients.insert_with(|_| FlowClient { client_key, queues: FlowQueues::new(Chain::Client) })
        })
    }

    pub(super) fn get(&self, id: ClientId) -> Option<&FlowClient> {
        self.clients.get(id)
    }

    pub(super) fn get_mut(&mut self, id: ClientId) -> Option<&mut FlowClient> {
        self.clients.get_mut(id)
    }

    /// Updates the holders after a client got or lost a flow.
    pub(super) fn changed(&mut self, id: ClientId) {
        let holds = |lack| self.clients.get(id).map_or(0, |client| client.queues.holders(lack));
        let (flows, ports) = (holds(Lack::Place), holds(Lack::Port));
        self.places.has(id, flows);
        self.ports.has(id, ports);
        if flows == 0
            && let Some(client) = self.clients.remove(id)
        {
            self.ids.remove(&client.client_key);
        }
    }

    /// The clients that hold much of this resource.
    pub(super) fn holders(&self, lack: Lack) -> &Holders {
        match lack {
            Lack::Place => &self.places,
            Lack::Port => &self.ports,
        }
    }

    /// All clients; for checks.
    pub(super) fn ids(&self) -> Vec<ClientId> {
        self.clients.ids()
    }

    /// Number of clients.
    pub(super) fn len(&self) -> usize {
        self.clients.len()
    }
}

impl Holders {
    const fn new(shares: Shares) -> Self {
        Self { shares, many: Vec::new() }
    }

    /// Records how much a client holds now.
    fn has(&mut self, id: ClientId, count: usize) {
        let listed = self.many.iter().position(|&(other, _)| other == id);
        let is_many = count > self.shares.share.min(self.shares.large);
        match listed {
            None if is_many => self.many.push((id, count)),
            Some(at) if is_many => self.many[at].1 = count,
            Some(at) => drop(self.many.swap_remove(at)),
            None => {}
        }
    }

    /// How much a client holds; 0 if it is not much.
    fn count(&self, id: ClientId) -> usize {
        self.many.iter().find(|(other, _)| *other == id).map_or(0, |&(_, count)| count)
    }

    /// A client above its share; `preferred` if it is one.
    pub(super) fn over_share(&self, preferred: Option<ClientId>) -> Option<ClientId> {
        let is_over = |count| count > self.shares.share;
        let first = || self.many.iter().find(|&&(_, count)| is_over(count)).map(|&(id, _)| id);
        preferred.filter(|&id| is_over(self.count(id))).or_else(first)
    }

    pub(super) fn is_large(&self, id: ClientId) -> bool {
        self.count(id) > self.shares.large
    }

    /// The client that holds most, and how much, if it is large.
    pub(super) fn largest(&self) -> Option<(ClientId, usize)> {
        let most = self.many.iter().max_by_key(|(_, count)| *count);
        most.filter(|(_, count)| *count > self.shares.large).copied()
    }
}
