//! How many connections each client has to each endpoint from this node's own address and ports, and whether
//! it may have one more.
//!
//! Towards one endpoint that sees the node's address there are as many ports as
//! `net.ipv4.ip_local_port_range` has (tcp(7)). One client that holds its connections open must not take all
//! of them from the others. What it may hold depends on what is left, as in
//! [`client_sessions`](super::client_sessions). Ports in TIME_WAIT are not known here. Pure.

use std::collections::HashMap;
use std::net::SocketAddr;

use crate::client::ClientKey;

/// The connections of one worker.
#[derive(Debug)]
pub(crate) struct PortShares {
    /// No entry is zero, here and below, so the number of sessions bounds the maps.
    held: HashMap<SocketAddr, usize, foldhash::fast::RandomState>,
    of_clients: HashMap<(SocketAddr, ClientKey), usize, foldhash::fast::RandomState>,
    /// In percent of the available ports.
    share: usize,
    /// This worker's part of the ports towards one endpoint: the kernel spreads connections over all workers.
    ports: usize,
}

impl PortShares {
    /// With a share of `percent` of `ports`, which are divided among the workers; 100 means no limit.
    pub(crate) fn new(percent: u8, ports: usize, workers: usize) -> Self {
        Self {
            held: HashMap::default(),
            of_clients: HashMap::default(),
            share: usize::from(percent),
            ports: ports / workers.max(1),
        }
    }

    /// Whether a client may have one more connection to an endpoint.
    pub(crate) fn admits(&self, endpoint: SocketAddr, client: ClientKey) -> bool {
        let Some(count) = self.of_clients.get(&(endpoint, client)) else { return true };
        let held = self.held.get(&endpoint).copied().unwrap_or(0);
        let free = self.ports.saturating_sub(held);
        let others = 100_usize.saturating_sub(self.share);
        count.saturating_mul(others) <= free.saturating_mul(self.share)
    }

    /// The client with the most connections to an endpoint, and their number. Iterates over all clients.
    pub(crate) fn largest(&self, endpoint: SocketAddr) -> Option<(ClientKey, usize)> {
        let of_endpoint = self.of_clients.iter().filter(|((other, _), _)| *other == endpoint);
        of_endpoint.max_by_key(|(_, count)| **count).map(|((_, client), count)| (*client, *count))
    }

    pub(crate) fn add(&mut self, endpoint: SocketAddr, client: ClientKey) {
        *self.held.entry(endpoint).or_default() += 1;
        *self.of_clients.entry((endpoint, client)).or_default() += 1;
    }

    pub(crate) fn remove(&mut self, endpoint: SocketAddr, client: ClientKey) {
        take_one(&mut self.held, endpoint);
        take_one(&mut self.of_clients, (endpoint, client));
    }
}

fn take_one<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, usize, foldhash::fast::RandomState>, key: K) {
    if let Some(count) = counts.get_mut(&key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(number: u8) -> ClientKey {
        ClientKey::Address([192, 0, 2, number].into())
    }

    fn endpoint(number: u8) -> SocketAddr {
        ([10, 244, 2, number], 80).into()
    }

    /// Opens connections for as long as the client is allowed to. Returns their number.
    fn open_all(shares: &mut PortShares, endpoint: SocketAddr, client: ClientKey) -> usize {
        let mut opened = 0;
        while opened < 10_000 && shares.admits(endpoint, client) {
            shares.add(endpoint, client);
            opened += 1;
        }
        opened
    }

    #[test]
    fn a_client_leaves_some_ports_towards_an_endpoint_to_others_and_has_as_many_towards_another_one() {
        let mut shares = PortShares::new(75, 1_000, 1);
        assert_eq!(open_all(&mut shares, endpoint(1), client(1)), 751);
        assert_eq!(shares.largest(endpoint(1)), Some((client(1), 751)));
        let others = open_all(&mut shares, endpoint(1), client(2));
        assert!((180..190).contains(&others), "{others}");
        assert!(shares.admits(endpoint(1), client(3)) && !shares.admits(endpoint(1), client(1)));
        assert_eq!(open_all(&mut shares, endpoint(2), client(1)), 751);
        assert_eq!(open_all(&mut PortShares::new(75, 1_000, 4), endpoint(1), client(1)), 188, "its part");
        assert_eq!(open_all(&mut PortShares::new(100, 10, 1), endpoint(1), client(1)), 10_000, "no bound");
    }

    #[test]
    fn what_ended_does_not_count_and_is_forgotten() {
        let mut shares = PortShares::new(75, 4, 1);
        let opened = open_all(&mut shares, endpoint(1), client(1));
        shares.remove(endpoint(1), client(1));
        assert!(shares.admits(endpoint(1), client(1)));
        (1..opened).for_each(|_| shares.remove(endpoint(1), client(1)));
        assert!(shares.held.is_empty() && shares.of_clients.is_empty());
        assert_eq!(shares.largest(endpoint(1)), None);
    }
}
