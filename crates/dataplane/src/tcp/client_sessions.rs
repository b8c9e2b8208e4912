//! How many sessions each client has on a worker, and whether it may have one more.
//!
//! A client that leaks connections, or opens as many as it can, must not take all of them from the others.
//! What it may hold depends on what is left. With a share of 50 % it may never hold more than is free: one
//! such client ends up with half of everything, two with a third each, and there is always room for clients
//! with few connections. (Switches share memory between their ports in the same way: dynamic thresholds,
//! Choudhury and Hahne 1998.)

use std::collections::HashMap;

use crate::client::ClientKey;

/// The sessions of one worker, by client.
#[derive(Debug)]
pub(crate) struct ClientSessions {
    /// No entry is zero, so the number of sessions bounds the map.
    counts: HashMap<ClientKey, usize, foldhash::fast::RandomState>,
    /// In percent of the available sessions.
    share: usize,
    /// Number of workers. The kernel spreads a client's connections over all of them, so each sees one part
    /// in so many.
    workers: usize,
}

impl ClientSessions {
    /// With a share of `percent`; 100 means no limit.
    pub(crate) fn new(percent: u8, workers: usize) -> Self {
        Self { counts: HashMap::default(), share: usize::from(percent), workers: workers.max(1) }
    }

    /// Whether a client may have one more session, if `free` more sessions could be opened in total.
    pub(crate) fn admits(&self, client: ClientKey, free: usize) -> bool {
        let Some(count) = self.counts.get(&client) else { return true };
        let others = 100_usize.saturating_sub(self.share);
        count.saturating_mul(self.workers).saturating_mul(others) <= free.saturating_mul(self.share)
    }

    /// How many sessions a client has on this worker.
    pub(crate) fn count(&self, client: ClientKey) -> usize {
        self.counts.get(&client).copied().unwrap_or(0)
    }

    /// The client with the most sessions on this worker, and their number. Iterates over all clients.
    pub(crate) fn largest(&self) -> Option<(ClientKey, usize)> {
        self.counts.iter().max_by_key(|(_, count)| **count).map(|(&client, &count)| (client, count))
    }

    pub(crate) fn add(&mut self, client: ClientKey) {
        *self.counts.entry(client).or_default() += 1;
    }

    pub(crate) fn remove(&mut self, client: ClientKey) {
        if let Some(count) = self.counts.get_mut(&client) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(number: u8) -> ClientKey {
        ClientKey::Address([10, 244, 0, number].into())
    }

    /// Lets clients take as many of `room` sessions as they can, one client after the other. Lists what each
    /// has.
    fn greedy(clients: u8, room: usize, percent: u8) -> Vec<usize> {
        let mut sessions = ClientSessions::new(percent, 1);
        let mut free = room;
        for number in (0..clients).cycle().take(room * usize::from(clients)) {
            if free > 0 && sessions.admits(client(number), free) {
                sessions.add(client(number));
                free -= 1;
            }
        }
        (0..clients).map(|number| sessions.count(client(number))).collect()
    }

    #[test]
    fn greedy_clients_leave_as_much_as_one_of_them_has() {
        assert_eq!(greedy(1, 1_000, 50), [501]);
        assert_eq!(greedy(2, 1_000, 50), [334, 334]);
        assert_eq!(greedy(9, 1_000, 50), [101, 100, 100, 100, 100, 100, 100, 100, 100]);
        assert_eq!(greedy(1, 1_000, 80), [801]);
        assert_eq!(greedy(1, 1_000, 100), [1_000], "no bound");
    }

    #[test]
    fn who_has_most_is_known() {
        let mut sessions = ClientSessions::new(50, 1);
        assert_eq!(sessions.largest(), None);
        [1, 2, 2, 3].into_iter().for_each(|number| sessions.add(client(number)));
        assert_eq!(sessions.largest(), Some((client(2), 2)));
    }

    #[test]
    fn whoever_has_none_may_have_one_and_what_ended_does_not_count() {
        let mut sessions = ClientSessions::new(50, 2);
        assert!(sessions.admits(client(1), 0));
        sessions.add(client(1));
        assert!(
            !sessions.admits(client(1), 1) && sessions.admits(client(1), 2) && sessions.admits(client(2), 0)
        );
        sessions.remove(client(1));
        assert!(sessions.admits(client(1), 1));
        assert_eq!((sessions.counts.len(), sessions.count(client(1))), (0, 0));
        sessions.remove(client(1));
    }
}
