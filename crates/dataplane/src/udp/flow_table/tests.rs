//! One rule of the flow table at a time; the simulation beside it tries them together.

use super::*;

const IDLE: Duration = Duration::from_secs(30);
const EXCHANGE_IDLE: Duration = Duration::from_secs(5);
const ALL: usize = usize::MAX;

struct Fixture {
    table: FlowTable<&'static str>,
    start: Instant,
}

fn fixture(capacity: usize) -> Fixture {
    let capacity = NonZeroUsize::new(capacity).unwrap();
    let limits = FlowLimits { capacity, idle: IDLE, exchange_idle: EXCHANGE_IDLE };
    Fixture { table: FlowTable::new(limits), start: Instant::now() }
}

fn key(client: u16) -> FlowKey {
    FlowKey { client: ([10, 1, 0, 1], client).into(), destination: "10.96.0.10:53".parse().unwrap() }
}

impl Fixture {
    fn at(&self, millis: u64) -> Instant {
        self.start + Duration::from_millis(millis)
    }

    fn open(&mut self, client: u16, at: u64) -> FlowId {
        let (id, displaced) = self.table.opened(key(client), "here", 1, self.at(at));
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

    /// The clients of the flows that are idle by then.
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
    assert_eq!(f.expired(78_999, ALL), []);
    assert_eq!(f.expired(79_000, ALL), [1]);
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
    let (id, displaced) = f.table.opened(key(4), "here", 1, f.at(2));
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
    let (second, displaced) = f.table.opened(key(1), "there", 1, f.at(1));
    let displaced = displaced.unwrap();
    assert_eq!((displaced.id, displaced.cause), (first, Cause::Replaced));
    assert_eq!(f.forwards(1, 2), Some(second));
}

#[test]
fn a_sweep_ends_what_is_not_valid_in_bounded_steps() {
    let mut f = fixture(100);
    for client in 0..10 {
        let upstream = if client % 2 == 0 { "going" } else { "staying" };
        f.table.opened(key(client), upstream, 1, f.start);
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
    let limits =
        FlowLimits { capacity: NonZeroUsize::MIN, idle: Duration::MAX, exchange_idle: Duration::MAX };
    let mut table = FlowTable::new(limits);
    let now = Instant::now();
    table.opened(key(1), (), 1, now);
    assert_eq!(table.next_deadline(), None);
    assert_eq!(table.expire(now + IDLE * 1000, ALL, &mut |_| panic!("it never ends")), 0);
}
