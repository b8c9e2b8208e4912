//! Which flow gives up its ephemeral port to a new flow.

use super::*;

/// A table with sixteen ports, of which a client may have twelve and is large with three.
fn sixteen() -> Fixture {
    with_shares(Shares::of(1_000, 75), Shares::of(16, 75), 1_000)
}

impl Fixture {
    /// Opens a flow with a port.
    fn open_with_port(&mut self, key: FlowKey, at: u64) -> FlowId {
        let (id, displaced) = self.table.opened(key, of(key), "here", true, 1, self.at(at));
        assert!(displaced.is_none());
        id
    }

    /// Opens conversations of one client, each with a port.
    fn open_streams_with_ports(&mut self, client: u16, ports: std::ops::Range<u16>, at: u64) -> Vec<FlowId> {
        let open = |port| {
            let key = key_of(client, port);
            let id = self.open_with_port(key, at);
            let flow = self.table.flow(id).unwrap();
            (flow.replies, flow.is_stream) = (1, true);
            let action = self.table.on_client_datagrams(key, 1, self.at(at), |_| true);
            assert!(matches!(action, Action::Forward(_)));
            id
        };
        ports.map(open).collect()
    }

    /// The flow that gives up its port to a new flow of a client.
    fn leaves_its_port_to(&mut self, client: u16, at: u64) -> Option<FlowKey> {
        let ended = self.table.make_room(of(key_of(client, 0)), Lack::Port, self.at(at))?;
        assert_eq!(ended.cause, Cause::EvictedForPort);
        assert!(ended.flow.has_port, "it had one to leave");
        Some(ended.flow.key())
    }
}

#[test]
fn no_flow_ends_for_a_port_that_has_none() {
    let mut f = sixteen();
    let others: Vec<_> = (1..=40).map(|client| f.open_of(key_of(client, 53), 0).0).collect();
    // Without ports, some of these would be the first to be evicted: they are exchanges.
    others.iter().step_by(2).for_each(|&id| f.replied(id, 0));
    let now = 10_000;
    let streams = f.open_streams_with_ports(0, 0..3, now);
    assert_eq!(f.table.with_port(), 3);
    let left = [41, 1, 0].map(|client| f.leaves_its_port_to(client, now));
    assert_eq!(left, [0, 1, 2].map(|port| Some(key_of(0, port))));
    assert!(!streams.iter().any(|&id| f.lives(id)));
    assert_eq!(f.leaves_its_port_to(41, now), None, "nobody could help");
    assert!(others.iter().all(|&id| f.lives(id)));
    let FlowCounters { evicted, over_share, evicted_for_port, .. } = f.table.counters();
    assert_eq!((evicted, over_share, evicted_for_port), (0, 0, 3));
}

#[test]
fn a_client_with_more_than_its_share_of_ports_leaves_its_own_to_itself_and_to_others() {
    let mut f = sixteen();
    let now = 10_000;
    let quiet = f.open_with_port(key_of(1, 53), now);
    f.open_streams_with_ports(0, 0..15, now);
    for port in 15..500 {
        assert_eq!(f.leaves_its_port_to(0, now).map(|key| key.client.ip()), Some(key_of(0, 0).client.ip()));
        f.open_streams_with_ports(0, port..port + 1, now + u64::from(port));
    }
    for client in 2..=4 {
        let left = f.leaves_its_port_to(client, now + 1_000);
        assert_eq!(left.map(|key| key.client.ip()), Some(key_of(0, 0).client.ip()));
        f.open_with_port(key_of(client, 53), now + 1_000);
    }
    assert!(f.lives(quiet));
    assert_eq!(f.table.largest(Lack::Port), Some((of(key_of(0, 0)), 12)));
}

#[test]
fn a_newcomer_takes_the_port_of_whoever_has_most_however_little_others_have_been_answered() {
    let mut f = sixteen();
    let now = 10_000;
    let questions: Vec<_> = (1..=4).map(|client| f.open_with_port(key_of(client, 53), now)).collect();
    // Not more than their shares.
    f.open_streams_with_ports(0, 0..7, now);
    f.open_streams_with_ports(20, 0..5, now);
    let mut left = Vec::new();
    for client in 5..=12 {
        left.extend(f.leaves_its_port_to(client, now));
        f.open_streams_with_ports(client, 0..1, now + 3_000);
    }
    let count = |client| left.iter().filter(|key| key.client.ip() == key_of(client, 0).client.ip()).count();
    assert_eq!((count(0), count(20)), (5, 3), "both are no longer large");
    assert!(questions.iter().all(|&id| f.lives(id)));
    assert_eq!(f.leaves_its_port_to(13, now + 3_000), Some(key_of(1, 53)), "then as anywhere");
}

#[test]
fn an_answered_question_leaves_its_port_before_a_conversation_of_whoever_has_most() {
    let mut f = sixteen();
    let now = 10_000;
    f.open_streams_with_ports(0, 0..12, now);
    let exchange = f.open_with_port(key_of(1, 53), now);
    f.replied(exchange, now);
    assert_eq!(f.leaves_its_port_to(2, now), Some(key_of(0, 0)), "something may follow it");
    assert_eq!(f.leaves_its_port_to(2, now + 250), Some(key_of(1, 53)));
    // But not before one of its own.
    let exchange = f.open_with_port(key_of(1, 53), now);
    f.replied(exchange, now);
    assert_eq!(f.leaves_its_port_to(0, now + 500), Some(key_of(0, 1)));
    assert!(f.lives(exchange));
}
