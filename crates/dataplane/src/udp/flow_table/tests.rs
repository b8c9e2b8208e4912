//! Tests of one rule of the flow table at a time; the simulation tests them in combination.

use std::num::NonZeroUsize;
use std::time::Duration;

use super::super::flow_class::Timeouts;
use super::super::flow_limits::Shares;
use super::*;

const IDLE: Duration = Duration::from_secs(30);
const TIMEOUTS: Timeouts =
    Timeouts { idle: IDLE, stream: Duration::from_secs(120), exchange: Duration::from_secs(5) };
const ALL: usize = usize::MAX;

struct Fixture {
    table: FlowTable<&'static str>,
    start: Instant,
}

fn fixture(capacity: usize) -> Fixture {
    shared(capacity, capacity)
}

fn shared(capacity: usize, client_share: usize) -> Fixture {
    with_shares(Shares { share: client_share, large: capacity / 8 }, Shares::of(usize::MAX, 100), capacity)
}

fn with_shares(places: Shares, ports: Shares, capacity: usize) -> Fixture {
    let capacity = NonZeroUsize::new(capacity).unwrap();
    let limits = FlowLimits { capacity, places, ports, timeouts: TIMEOUTS };
    Fixture { table: FlowTable::new(limits), start: Instant::now() }
}

fn key(client: u16) -> FlowKey {
    FlowKey { client: ([10, 1, 0, 1], client).into(), destination: "10.96.0.10:53".parse().unwrap() }
}

/// The key of a flow of another client; [`key`] belongs to client 0.
fn key_of(client: u16, port: u16) -> FlowKey {
    let [high, low] = client.to_be_bytes();
    FlowKey { client: ([10, 1, high, low.wrapping_add(1)], port).into(), ..key(port) }
}

/// The client that a flow counts for.
fn of(key: FlowKey) -> ClientKey {
    ClientKey::Address(key.client.ip())
}

impl Fixture {
    fn at(&self, millis: u64) -> Instant {
        self.start + Duration::from_millis(millis)
    }

    fn open(&mut self, client: u16, at: u64) -> FlowId {
        let (id, displaced) = self.table.opened(key(client), of(key(client)), "here", false, 1, self.at(at));
        assert!(displaced.is_none());
        id
    }

    fn forwards(&mut self, client: u16, at: u64) -> Option<FlowId> {
        match self.table.on_client_datagrams(key(client), 1, self.at(at), |_| true) {
            Action::Forward(id) => Some(id),
            Action::Open(ended) => {
                assert!(ended.is_none());
                None
            }
        }
    }

    /// The clients of the flows that have expired by then.
    fn expired(&mut self, at: u64, limit: usize) -> Vec<u16> {
        let mut clients = Vec::new();
        let now = self.at(at);
        self.table.expire(now, limit, &mut |ended| {
            assert_eq!(ended.cause, Cause::Idle);
            clients.push(ended.flow.key().client.port());
        });
        clients
    }

    fn deadline(&mut self) -> Option<u64> {
        let deadline = self.table.next_deadline()?;
        Some(u64::try_from((deadline - self.start).as_millis()).unwrap())
    }
}

#[test]
fn a_flow_is_found_by_client_and_destination_both() {
    let mut f = fixture(10);
    assert_eq!(f.forwards(1, 0), None);
    let id = f.open(1, 0);
    assert_eq!(f.forwards(1, 1), Some(id));
    assert_eq!(f.forwards(2, 1), None);
    let elsewhere = FlowKey { destination: "10.96.0.11:53".parse().unwrap(), ..key(1) };
    let action = f.table.on_client_datagrams(elsewhere, 1, f.start, |_| true);
    assert!(matches!(action, Action::Open(None)));
}

#[test]
fn a_flow_expires_when_it_was_idle_in_both_directions_and_not_a_moment_sooner() {
    let mut f = fixture(10);
    let id = f.open(1, 0);
    f.open(2, 10_000);
    assert_eq!(f.deadline(), Some(30_000));
    assert!(f.table.on_replies(id, 2, f.at(20_000)).is_some());
    assert_eq!(f.deadline(), Some(40_000));
    assert_eq!(f.expired(39_999, ALL), []);
    assert_eq!(f.expired(40_000, ALL), [2]);
    assert!(f.forwards(1, 49_000).is_some());
    // Now it is a conversation.
    assert_eq!(f.expired(168_999, ALL), []);
    assert_eq!(f.expired(169_000, ALL), [1]);
    assert_eq!((f.deadline(), f.table.len()), (None, 0));
}

#[test]
fn answered_one_shots_end_sooner_while_more_than_half_of_the_table_is_taken() {
    let mut f = fixture(4);
    let exchanges = [1, 2].map(|client| f.open(client, 0));
    for id in exchanges {
        f.table.on_replies(id, 1, f.at(0));
    }
    assert_eq!(f.deadline(), Some(30_000), "half full is not more than half");
    assert_eq!(f.expired(6_000, ALL), []);
    f.open(3, 6_000);
    assert_eq!(f.deadline(), Some(5_000));
    assert_eq!(f.expired(6_000, ALL), [1], "then the table is half full again");
    assert_eq!(f.deadline(), Some(30_000));
}

#[test]
fn what_is_no_answered_one_shot_has_the_whole_time_even_under_pressure() {
    let mut f = fixture(4);
    let [_unanswered, twice_asked, twice_answered, _] = [1, 2, 3, 4].map(|client| f.open(client, 0));
    f.table.on_replies(twice_asked, 1, f.at(0));
    assert_eq!(f.deadline(), Some(5_000));
    f.forwards(2, 0);
    assert_eq!(f.deadline(), Some(30_000));
    f.table.on_replies(twice_answered, 2, f.at(0));
    assert_eq!(f.expired(29_999, ALL), []);
    assert_eq!(f.expired(30_000, ALL), [1, 4, 2, 3]);
}

#[test]
fn expiry_does_no_more_at_a_time_than_it_may() {
    let mut f = fixture(10);
    for client in 0..10 {
        f.open(client, u64::from(client));
    }
    assert_eq!(f.expired(60_000, 4), [0, 1, 2, 3]);
    assert_eq!(f.deadline(), Some(30_004));
    assert_eq!(f.expired(60_000, 4), [4, 5, 6, 7]);
    assert_eq!(f.expired(60_000, 4), [8, 9]);
}

#[test]
fn at_capacity_a_new_flow_takes_the_place_of_the_least_recently_used() {
    let mut f = fixture(3);
    let ids = [1, 2, 3].map(|client| f.open(client, 0));
    assert!(f.forwards(1, 1).is_some());
    f.table.on_replies(ids[1], 1, f.at(1));
    let (id, displaced) = f.table.opened(key(4), of(key(4)), "here", false, 1, f.at(2));
    let displaced = displaced.unwrap();
    assert_eq!((displaced.id, displaced.cause), (ids[2], Cause::Evicted));
    assert_eq!(f.table.len(), 3);
    assert_eq!(f.table.counters().evicted, 1);
    assert_ne!(id, ids[2], "the slot is the same, the flow is not");
    assert_eq!(id.index, ids[2].index);
    assert!(f.table.on_replies(ids[2], 1, f.at(2)).is_none());
    assert!(f.table.close(ids[2]).is_none());
}

#[test]
fn a_client_turned_away_costs_nobody_a_flow() {
    let mut f = fixture(1);
    let id = f.open(1, 0);
    assert_eq!(f.forwards(2, 1), None);
    assert_eq!(f.forwards(1, 2), Some(id));
}

#[test]
fn a_flow_whose_upstream_is_not_valid_ends_at_the_next_datagram() {
    let mut f = fixture(3);
    let id = f.open(1, 0);
    let action = f.table.on_client_datagrams(key(1), 1, f.start, |flow| flow.upstream != "here");
    let Action::Open(Some(ended)) = action else { panic!("{action:?}") };
    assert_eq!((ended.id, ended.cause, ended.flow.upstream), (id, Cause::Gone, "here"));
    assert_eq!(f.forwards(1, 0), None);
    assert_eq!(f.table.counters(), FlowCounters { opened: 1, gone: 1, ..Default::default() });
}

#[test]
fn opening_a_flow_again_hands_back_the_one_before() {
    let mut f = fixture(1);
    let first = f.open(1, 0);
    let (second, displaced) = f.table.opened(key(1), of(key(1)), "there", false, 1, f.at(1));
    let displaced = displaced.unwrap();
    assert_eq!((displaced.id, displaced.cause), (first, Cause::Replaced));
    assert_eq!(f.forwards(1, 2), Some(second));
}

#[test]
fn a_sweep_ends_what_is_not_valid_in_bounded_steps() {
    let mut f = fixture(100);
    for client in 0..10 {
        let upstream = if client % 2 == 0 { "going" } else { "staying" };
        f.table.opened(key(client), of(key(client)), upstream, false, 1, f.start);
    }
    f.table.request_sweep();
    f.open(99, 0);
    let (mut steps, mut gone) = (0, Vec::new());
    while f.table.sweep_pending() {
        let before = gone.len();
        f.table.sweep(3, |flow| flow.upstream != "going", &mut |ended| {
            assert_eq!(ended.cause, Cause::Gone);
            gone.push(ended.flow.key().client.port());
        });
        assert!(gone.len() - before <= 3);
        steps += 1;
    }
    gone.sort_unstable();
    assert_eq!((steps, &gone[..]), (4, &[0, 2, 4, 6, 8][..]));
    assert_eq!(f.table.len(), 6);
}

#[test]
fn time_that_goes_back_is_taken_for_the_latest() {
    let mut f = fixture(3);
    f.open(1, 10_000);
    f.open(2, 0);
    assert_eq!(f.expired(39_999, ALL), []);
    assert_eq!(f.expired(40_000, ALL), [1, 2]);
}

#[test]
fn a_timeout_without_end_has_no_deadline() {
    let limits = FlowLimits::new(NonZeroUsize::MIN, 1, 50, Duration::MAX);
    let mut table = FlowTable::new(limits);
    let now = Instant::now();
    table.opened(key(1), of(key(1)), (), false, 1, now);
    assert_eq!(table.next_deadline(), None);
    assert_eq!(table.expire(now + IDLE * 1000, ALL, &mut |_| panic!("it never ends")), 0);
}

impl Fixture {
    /// Opens a flow of any client. Returns it, and the flow whose place it took.
    fn open_of(&mut self, key: FlowKey, at: u64) -> (FlowId, Option<(FlowKey, Cause)>) {
        let (id, displaced) = self.table.opened(key, of(key), "here", false, 1, self.at(at));
        (id, displaced.map(|ended| (ended.flow.key(), ended.cause)))
    }

    fn replied(&mut self, id: FlowId, at: u64) {
        assert!(self.table.on_replies(id, 1, self.at(at)).is_some());
    }

    /// Opens a flow in which datagrams have passed for some seconds, until now.
    fn open_stream(&mut self, key: FlowKey, now: u64) -> FlowId {
        let (id, displaced) = self.open_of(key, now - 3_000);
        assert_eq!(displaced, None);
        for at in [now - 2_000, now] {
            let action = self.table.on_client_datagrams(key, 1, self.at(at), |_| true);
            assert!(matches!(action, Action::Forward(_)));
            self.replied(id, at);
        }
        id
    }

    fn lives(&mut self, id: FlowId) -> bool {
        self.table.flow(id).is_some()
    }
}

#[test]
fn a_conversation_that_lasted_two_seconds_may_be_silent_for_two_minutes() {
    let mut f = fixture(10);
    let talk = |f: &mut Fixture, client, at| {
        let id = f.forwards(client, at).unwrap_or_else(|| f.open(client, at));
        f.replied(id, at);
    };
    for at in [0, 1_999] {
        talk(&mut f, 1, at);
    }
    assert_eq!(f.deadline(), Some(31_999), "not yet");
    talk(&mut f, 1, 2_000);
    assert_eq!(f.deadline(), Some(122_000));
    // The first answer does not make a flow a conversation, however late it comes; an unanswered flow never
    // is one.
    let id = f.open(2, 2_000);
    f.open(3, 2_000);
    f.forwards(2, 10_000);
    f.forwards(3, 10_000);
    f.replied(id, 20_000);
    assert_eq!(f.deadline(), Some(40_000));
    assert_eq!(f.expired(40_000, ALL), [3]);
    assert_eq!(f.deadline(), Some(50_000));
    assert_eq!(f.expired(121_999, ALL), [2]);
    assert_eq!(f.expired(122_000, ALL), [1]);
}

#[test]
fn a_conversation_has_no_more_time_than_others_while_more_than_half_of_the_table_is_taken() {
    let mut f = fixture(3);
    let streams = [(1, 3_000), (2, 6_000)].map(|(port, now)| f.open_stream(key(port), now));
    assert_eq!(f.deadline(), Some(33_000));
    assert_eq!(f.expired(36_000, ALL), [1], "then the table is half full again");
    assert_eq!(f.deadline(), Some(126_000));
    assert!(f.lives(streams[1]));
}

#[test]
fn what_is_over_makes_room_first_then_the_unanswered_then_the_answered_and_conversations_last() {
    let mut f = fixture(5);
    let now = 10_000;
    f.open_stream(key(1), now);
    let ids = [2, 3, 4, 5].map(|client| f.open(client, now));
    f.replied(ids[0], now);
    f.replied(ids[1], now);
    f.forwards(3, now);
    f.forwards(4, now + 1);
    // Two flows are answered, one of them an exchange; two are not, and of these, 4 was used last.
    let (id, displaced) = f.open_of(key(6), now + 249);
    assert_eq!(displaced, Some((key(5), Cause::Evicted)), "something may follow the exchange");
    f.replied(id, now + 249);
    let victim = |f: &mut Fixture, client, at| {
        let (id, displaced) = f.open_of(key(client), at);
        // Makes the new flow a conversation at once, so that it does not affect the rest of the test.
        f.table.flow(id).unwrap().replies = 1;
        f.table.flow(id).unwrap().is_stream = true;
        f.forwards(client, at);
        displaced.unwrap().0.client.port()
    };
    assert_eq!(victim(&mut f, 7, now + 250), 2, "nothing has followed the exchange");
    assert_eq!(victim(&mut f, 8, now + 250), 4);
    assert_eq!(victim(&mut f, 9, now + 250), 6);
    assert_eq!(victim(&mut f, 10, now + 250), 3);
    assert_eq!(victim(&mut f, 11, now + 250), 1);
}

#[test]
fn a_client_with_more_than_its_share_makes_room_for_itself_and_for_others() {
    let mut f = shared(100, 50);
    let others: Vec<_> = (1..=20).map(|client| f.open_of(key_of(client, 53), 0).0).collect();
    // While there is room, shares do not apply.
    for port in 1..=80 {
        assert_eq!(f.open_of(key_of(0, port), 1).1, None);
    }
    for port in 81..=1_000 {
        assert_eq!(f.open_of(key_of(0, port), 2).1, Some((key_of(0, port - 80), Cause::OverShare)));
    }
    for client in 21..=50 {
        let (_, displaced) = f.open_of(key_of(client, 53), 3);
        assert!(
            matches!(displaced, Some((key, Cause::OverShare)) if key.client.ip() == key_of(0, 0).client.ip())
        );
    }
    assert!(others.iter().all(|&id| f.lives(id)), "others keep what they had");
    assert_eq!(f.table.counters().over_share, 920 + 30);
    let (_, displaced) = f.open_of(key_of(51, 53), 3);
    assert_eq!(displaced, Some((key_of(1, 53), Cause::Evicted)), "with its share it is one of many");
    let (_, displaced) = f.open_of(key_of(0, 1_001), 4);
    assert!(displaced.is_some_and(|(key, _)| key.client.ip() == key_of(0, 0).client.ip()), "but a large one");
}

#[test]
fn a_flood_from_many_addresses_takes_the_place_of_its_own_flows() {
    let mut f = fixture(1_000);
    let streams: Vec<_> =
        (0..100).map(|client| f.open_stream(key_of(client, 53), 3_000 + 3_000 * u64::from(client))).collect();
    let answered: Vec<_> = (100..200).map(|client| f.open_of(key_of(client, 53), 300_000).0).collect();
    for &id in &answered {
        f.replied(id, 300_000);
        f.replied(id, 300_000);
    }
    for client in 200..20_000 {
        let (_, displaced) = f.open_of(key_of(client, 53), 300_000 + u64::from(client));
        let oldest = client.checked_sub(800).map(|client| (key_of(client, 53), Cause::Evicted));
        assert_eq!(displaced, oldest.filter(|_| client >= 1_000), "the flood's oldest");
    }
    assert!(streams.iter().chain(&answered).all(|&id| f.lives(id)));
}

/// Five thousand questions a second, each from a port of its own and answered after two seconds.
#[test]
fn slow_answers_find_their_flows_however_many_are_asked_meanwhile() {
    let mut f = shared(12_000, 6_000);
    let mut waiting = std::collections::VecDeque::new();
    for n in 0..100_000_u32 {
        let at = u64::from(n) / 5;
        let [a, b, c, d] = n.to_be_bytes();
        let key = FlowKey { client: ([10, a, b, c], 1_000 + u16::from(d)).into(), ..key(0) };
        waiting.push_back((f.open_of(key, at).0, at + 2_000));
        while let Some((id, _)) = waiting.pop_front_if(|(_, due)| *due <= at) {
            assert!(f.lives(id), "question {n}");
            f.replied(id, at);
        }
        f.expired(at, ALL);
    }
}

mod ports;
