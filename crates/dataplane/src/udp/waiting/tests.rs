use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

/// The size that is counted for a small question.
const QUESTION: usize = 4 + OVERHEAD;

fn ip(client: u8) -> IpAddr {
    Ipv4Addr::new(10, 244, 0, client).into()
}

fn client_key(client: u8) -> ClientKey {
    ClientKey::Address(ip(client))
}

/// The client that a flow counts for.
fn of(key: FlowKey) -> ClientKey {
    ClientKey::Address(key.client.ip())
}

fn key(client: u8, port: u16) -> FlowKey {
    FlowKey {
        client: SocketAddr::new(ip(client), port),
        destination: (Ipv4Addr::new(10, 96, 0, 10), 53).into(),
    }
}

/// The queue, and what was lost from it.
struct Room {
    waiting: Waiting<u16>,
    now: Instant,
    lost: Vec<Lost>,
}

impl Room {
    fn new(limit: usize) -> Self {
        Self { waiting: Waiting::new(limit), now: Instant::now(), lost: Vec::new() }
    }

    fn push(&mut self, key: FlowKey, number: u32) {
        self.push_all(key, &number.to_be_bytes()[..]);
    }

    fn push_all<'a>(&mut self, key: FlowKey, payload: impl Into<Payload<'a>>) {
        let Self { waiting, now, lost } = self;
        waiting.push(key, of(key), 0, payload.into(), *now, &mut |gone| lost.push(gone));
    }

    /// The flow that is served next, and the numbers of its datagrams.
    fn next(&mut self) -> Option<(FlowKey, Vec<u32>)> {
        let Self { waiting, now, lost } = self;
        let served = waiting.next(*now, &mut |gone| lost.push(gone))?;
        let number = |parcel: &Parcel| u32::from_be_bytes(parcel.payload().bytes().try_into().unwrap());
        Some((served.key, served.datagrams.iter().map(number).collect()))
    }

    fn assert_nothing_is_left(&self) {
        let waiting = &self.waiting;
        assert!(waiting.is_empty() && waiting.flows.is_empty() && waiting.clients.is_empty());
        assert!(waiting.by_size.is_empty() && waiting.size == 0);
        assert!(waiting.flows.capacity() <= 4 * KEPT && waiting.turns.capacity() <= 4 * KEPT);
    }
}

#[test]
fn a_question_is_next_but_one_however_many_flows_another_client_waits_for() {
    let mut room = Room::new(LIMIT);
    (0..5_000).for_each(|port| room.push(key(1, port), u32::from(port)));
    room.push(key(2, 1), 7);
    assert_eq!(room.next(), Some((key(1, 0), vec![0])));
    assert_eq!(room.next(), Some((key(2, 1), vec![7])));
    for port in 1..5_000 {
        assert_eq!(room.next(), Some((key(1, port), vec![u32::from(port)])));
    }
    assert_eq!(room.next(), None);
    assert_eq!(room.lost, [], "a lone client's burst has room");
    room.assert_nothing_is_left();
}

#[test]
fn clients_take_turns() {
    let mut room = Room::new(LIMIT);
    (0..3).for_each(|port| room.push(key(1, port), 0));
    (0..2).for_each(|port| room.push(key(2, port), 0));
    room.push(key(3, 0), 0);
    let order = std::iter::from_fn(|| room.next()).map(|(key, _)| key).collect::<Vec<_>>();
    assert_eq!(order, [key(1, 0), key(2, 0), key(3, 0), key(1, 1), key(2, 1), key(1, 2)]);
}

#[test]
fn there_is_room_for_all_that_the_kernel_had_room_for() {
    // The size that the kernel counts for the smallest datagram.
    const KERNEL: usize = 768;
    let mut room = Room::new(LIMIT);
    let burst = u16::try_from(LIMIT / KERNEL).unwrap();
    (0..burst).for_each(|port| room.push_all(key(1, port), &[0; KERNEL - OVERHEAD][..]));
    assert_eq!(room.lost, []);
}

#[test]
fn at_the_bound_the_client_that_has_most_loses_what_is_last() {
    let mut room = Room::new(10 * QUESTION);
    (0..10).for_each(|port| room.push(key(1, port), u32::from(port)));
    room.push(key(1, 10), 10);
    assert_eq!(room.lost, [Lost { client: client_key(1), datagrams: 1 }]);
    // Others lose nothing until they have as much as it has.
    (0..5).for_each(|port| room.push(key(2, port), 0));
    assert_eq!(room.lost, [Lost { client: client_key(1), datagrams: 1 }; 6]);
    room.push(key(2, 5), 0);
    assert_eq!(room.lost[6..], [Lost { client: client_key(2), datagrams: 1 }]);
    let served: Vec<_> =
        std::iter::from_fn(|| room.next()).filter(|(of, _)| of.client.ip() == ip(1)).collect();
    assert_eq!(served, (0..5).map(|port| (key(1, port), vec![u32::from(port)])).collect::<Vec<_>>());
    room.assert_nothing_is_left();
}

#[test]
fn a_datagram_that_is_larger_than_all_that_others_have_makes_no_room_for_itself() {
    let mut room = Room::new(10 * QUESTION);
    (0..10).for_each(|client| room.push(key(client, 1), 0));
    room.push_all(key(20, 1), &[0; 2_000][..]);
    assert_eq!(room.lost, [Lost { client: client_key(20), datagrams: 1 }]);
    assert!(!room.waiting.has_client(client_key(20)));
    // One that is larger than the limit is dropped at once.
    let mut room = Room::new(1_000);
    room.push_all(key(1, 1), &[0; 2_000][..]);
    assert_eq!(room.lost, [Lost { client: client_key(1), datagrams: 1 }]);
    room.assert_nothing_is_left();
}

#[test]
fn a_client_that_has_lost_everything_can_come_again() {
    let mut room = Room::new(4_000);
    room.push_all(key(1, 1), &[0; 3_000][..]);
    room.push_all(key(2, 1), &[0; 1_000][..]);
    assert_eq!(room.lost, [Lost { client: client_key(1), datagrams: 1 }]);
    room.push(key(1, 2), 9);
    let served = room.waiting.next(room.now, &mut |_| {}).unwrap();
    assert_eq!(served.key, key(1, 2), "it is in line once");
    assert_eq!(room.waiting.next(room.now, &mut |_| {}).unwrap().key, key(2, 1));
    assert!(room.waiting.next(room.now, &mut |_| {}).is_none());
    room.assert_nothing_is_left();
}

#[test]
fn what_comes_for_a_flow_that_waits_stays_behind_it() {
    let mut room = Room::new(LIMIT);
    let batch = u32::try_from(BATCH).unwrap();
    let many = batch + 3;
    room.push(key(1, 1), 0);
    room.push(key(1, 2), 100);
    (1..many).for_each(|number| room.push(key(1, 1), number));
    assert!(room.waiting.holds(&key(1, 1)) && !room.waiting.holds(&key(1, 3)));
    // At most one batch at a time; the rest keeps the flow's place.
    assert_eq!(room.next(), Some((key(1, 1), (0..batch).collect())));
    assert!(room.waiting.holds(&key(1, 1)));
    room.push(key(1, 1), many);
    assert_eq!(room.next(), Some((key(1, 1), (batch..=many).collect())));
    assert!(!room.waiting.holds(&key(1, 1)));
    assert_eq!(room.next(), Some((key(1, 2), vec![100])));
}

#[test]
fn nothing_waits_for_too_long() {
    let mut room = Room::new(LIMIT);
    room.push(key(1, 1), 1);
    room.push(key(1, 2), 2);
    room.push(key(2, 1), 3);
    room.now += MAX_WAIT;
    room.push(key(1, 2), 4);
    room.now += Duration::from_millis(1);
    assert_eq!(room.next(), Some((key(1, 2), vec![4])));
    assert_eq!(room.lost, [Lost { client: client_key(1), datagrams: 1 }; 2]);
    assert_eq!(room.next(), None);
    assert_eq!(room.lost[2..], [Lost { client: client_key(2), datagrams: 1 }]);
    room.assert_nothing_is_left();
}

#[test]
fn a_flow_that_waits_stays_in_its_line_whoever_its_client_counts_as_by_now() {
    let mut room = Room::new(LIMIT);
    room.push(key(1, 1), 1);
    let Room { waiting, now, .. } = &mut room;
    waiting.push(key(1, 1), client_key(2), 0, (&2_u32.to_be_bytes()[..]).into(), *now, &mut |_| {});
    assert!(!waiting.has_client(client_key(2)));
    assert_eq!(room.next(), Some((key(1, 1), vec![1, 2])));
    room.assert_nothing_is_left();
}

#[test]
fn trains_stay_trains_and_the_last_way_in_counts() {
    let mut waiting = Waiting::new(LIMIT);
    let (train, now) = ([7; 10], Instant::now());
    waiting.push(key(1, 1), client_key(1), 'a', Payload::train(&train, 4), now, &mut |_| {});
    waiting.push(key(1, 1), client_key(1), 'b', Payload::from(&[][..]), now, &mut |_| {});
    let served = waiting.next(now, &mut |_| {}).unwrap();
    assert_eq!(served.from, 'b');
    let payloads: Vec<Payload<'_>> = served.datagrams.iter().map(Parcel::payload).collect();
    assert_eq!(payloads, [Payload::train(&train, 4), Payload::from(&[][..])]);
    // If it is lost, its datagrams are counted one by one.
    let mut lost = Vec::new();
    Waiting::new(1)
        .push(key(1, 1), client_key(1), 'a', Payload::train(&train, 4), now, &mut |gone| lost.push(gone));
    assert_eq!(lost, [Lost { client: client_key(1), datagrams: 3 }]);
}

/// Random histories, each determined by its seed. Everything is served or lost, once and in order; clients
/// take turns; and no client loses anything while another one has more.
#[test]
fn every_history_is_fair() {
    for seed in 0..200 {
        let mut rng = StdRng::seed_from_u64(seed);
        let limit = rng.random_range(QUESTION..60 * QUESTION);
        let mut room = Room::new(limit);
        let (mut pushed, mut served, mut number) = (0, 0, 0);
        let mut last: HashMap<FlowKey, u32> = HashMap::new();
        let mut turns_without: HashMap<ClientKey, usize> = HashMap::new();
        for _ in 0..2_000 {
            if rng.random_bool(0.6) {
                // Some send much more than others.
                let client = rng.random_range(0..8_u8) & rng.random_range(0..8_u8);
                let before = room.lost.len();
                let most = room.waiting.by_size.last().map_or(0, |&(most, _)| most);
                room.push(key(client, rng.random_range(0..20)), number);
                (pushed, number) = (pushed + 1, number + 1);
                for gone in &room.lost[before..] {
                    let own = room.waiting.clients.get(&gone.client).map_or(0, |line| line.size);
                    assert!(own + QUESTION >= most, "seed {seed}: {gone:?} of {own}, another one has {most}");
                }
            } else if let Some((key, numbers)) = room.next() {
                served += numbers.len();
                for number in numbers {
                    assert!(last.insert(key, number).is_none_or(|before| before < number), "seed {seed}");
                }
                turns_without.remove(&of(key));
                for ip in room.waiting.clients.keys().filter(|client| **client != of(key)) {
                    let turns = turns_without.entry(*ip).or_default();
                    *turns += 1;
                    assert!(*turns <= 8, "seed {seed}: {ip} is passed over");
                }
                let waiting = &room.waiting;
                turns_without.retain(|ip, _| waiting.clients.contains_key(ip));
            } else {
                room.assert_nothing_is_left();
            }
            if rng.random_bool(0.01) {
                room.now += Duration::from_secs(3);
            }
            let waiting = &room.waiting;
            assert!(waiting.size <= limit, "seed {seed}");
            let lines: usize = waiting.clients.values().map(|line| line.size).sum();
            let flows: usize =
                waiting.flows.values().flat_map(|flow| &flow.datagrams).map(Parcel::size).sum();
            assert_eq!((lines, flows), (waiting.size, waiting.size), "seed {seed}");
            assert_eq!(waiting.turns.len(), waiting.clients.len(), "seed {seed}");
        }
        served += std::iter::from_fn(|| room.next()).map(|(_, numbers)| numbers.len()).sum::<usize>();
        assert_eq!(served + room.lost.len(), pushed, "seed {seed}");
        room.assert_nothing_is_left();
    }
}
