//! Whose flows they are: those of each client address, and which clients have more than their share. Pure.

use std::collections::HashMap;
use std::net::IpAddr;

use super::flow_class::ClassQueues;
use super::flow_queue::Chain;
use crate::token::{SlotId, Slots};

/// Names a client for as long as it has flows.
pub(super) type ClientId = SlotId;

/// A client address that has flows.
#[derive(Debug)]
pub(super) struct FlowClient {
    ip: IpAddr,
    pub(super) queues: ClassQueues,
}

/// All of them of one worker: no more than it has flows.
#[derive(Debug)]
pub(super) struct FlowClients {
    ids: HashMap<IpAddr, ClientId, foldhash::fast::RandomState>,
    clients: Slots<FlowClient>,
    /// How many flows a client may have before its own make room first.
    share: usize,
    /// Who has more: no more than there are shares in the whole.
    over_share: Vec<ClientId>,
}

impl FlowClients {
    pub(super) fn new(share: usize) -> Self {
        Self { ids: HashMap::default(), clients: Slots::default(), share, over_share: Vec::new() }
    }

    /// The client of this address, if it has flows.
    pub(super) fn find(&self, ip: IpAddr) -> Option<ClientId> {
        self.ids.get(&ip).copied()
    }

    /// The client of this address, which is about to have one flow more.
    pub(super) fn found_or_new(&mut self, ip: IpAddr) -> ClientId {
        let clients = &mut self.clients;
        *self.ids.entry(ip).or_insert_with(|| {
            clients.insert_with(|_| FlowClient { ip, queues: ClassQueues::new(Chain::Client) })
        })
    }

    pub(super) fn get_mut(&mut self, id: ClientId) -> Option<&mut FlowClient> {
        self.clients.get_mut(id)
    }

    /// How many flows a client has.
    pub(super) fn flows(&mut self, id: ClientId) -> usize {
        self.clients.get_mut(id).map_or(0, |client| client.queues.len())
    }

    /// A client has one flow more, or less.
    pub(super) fn changed(&mut self, id: ClientId) {
        let flows = self.flows(id);
        let listed = self.over_share.iter().position(|&other| other == id);
        match (flows > self.share, listed) {
            (true, None) => self.over_share.push(id),
            (false, Some(at)) => drop(self.over_share.swap_remove(at)),
            _ => {}
        }
        if flows == 0
            && let Some(client) = self.clients.remove(id)
        {
            self.ids.remove(&client.ip);
        }
    }

    /// Somebody who has more than its share; this client if it has.
    pub(super) fn over_share(&self, preferred: Option<ClientId>) -> Option<ClientId> {
        preferred.filter(|id| self.over_share.contains(id)).or_else(|| self.over_share.first().copied())
    }

    /// All of them; for checks.
    pub(super) fn ids(&self) -> Vec<ClientId> {
        self.clients.ids()
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.clients.len()
    }
}
