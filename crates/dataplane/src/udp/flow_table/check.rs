//! The invariants of the flow table.

use super::{Class, FlowTable, Lack};

impl<U> FlowTable<U> {
    /// Panics in debug builds if the table is inconsistent. It checks sizes after every transition and, while
    /// there are few flows, every link as well, so that a debug build can still handle many flows.
    pub(super) fn check(&mut self) {
        const EVERY_LINK_UP_TO: usize = 64;
        if !cfg!(debug_assertions) {
            return;
        }
        let len = self.len();
        assert!(len <= self.capacity(), "{len} flows, {} allowed", self.capacity());
        assert_eq!(len, self.ids.len(), "every flow has a key and every key a flow");
        assert_eq!(len, self.queues.holders(Lack::Place), "every flow is in one queue");
        assert!(self.clients.len() <= len, "every client has a flow");
        assert_eq!(len as u64, self.counters.opened - self.counters.ended(), "what opened lives or ended");
        if len > EVERY_LINK_UP_TO {
            return;
        }
        let mut of_clients = 0;
        let kinds = [true, false].into_iter().flat_map(|port| Class::ALL.map(|class| (port, class)));
        for (has_port, class) in kinds.clone() {
            let queue = self.queues.of(has_port).of(class);
            let walked = queue.walk(&mut self.flows);
            assert_eq!(walked.len(), queue.len(), "links agree in both directions");
            let mut before = None;
            for id in walked {
                let Some(entry) = self.flows.get(id) else { unreachable!("a walk yields slots in use") };
                assert_eq!(self.ids.get(&entry.flow.key), Some(&id), "a key leads to its flow");
                let client_key = self.clients.get(entry.client).map(|client| client.client_key);
                assert_eq!(
                    client_key.and_then(|it| self.clients.find(it)),
                    Some(entry.client),
                    "whose it is"
                );
                assert_eq!((entry.flow.has_port, entry.class), (has_port, class), "a flow is in its queue");
                assert_eq!(class, entry.flow.class(), "its queue is up to date");
                let order = Some((entry.used, entry.flow.last_used));
                assert!(before < order, "a queue is in the order of use");
                assert!(Some(entry.flow.last_used) <= self.latest, "no flow was used in the future");
                before = order;
            }
        }
        for id in self.clients.ids() {
            let Some(client) = self.clients.get_mut(id) else { unreachable!("it was just there") };
            for (has_port, class) in kinds.clone() {
                let mut before = None;
                for flow in client.queues.of(has_port).of(class).walk(&mut self.flows) {
                    let Some(entry) = self.flows.get(flow) else {
                        unreachable!("a walk yields slots in use")
                    };
                    let is_in_its_queue = (entry.flow.has_port, entry.class) == (has_port, class);
                    assert!(entry.client == id && is_in_its_queue && before < Some(entry.used));
                    before = Some(entry.used);
                    of_clients += 1;
                }
            }
        }
        assert_eq!(of_clients, len, "every flow is in one queue of its client");
    }
}
