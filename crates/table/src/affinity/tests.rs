use std::cell::Cell;

use super::*;
use crate::Origin;
use crate::endpoint_set::tests::upstreams;

mod followed;

const TIMEOUT: Duration = Duration::from_secs(100);

/// A client of this node.
fn asking(client: [u8; 4], now: Instant) -> Asking {
    Asking { client: Client { ip: client.into(), origin: Origin::LocalPod }, now }
}

/// A map with a clock, and a round robin over endpoints with the ports 1 to 3.
struct Scene {
    affinity: Affinity,
    upstreams: Vec<Arc<Upstream>>,
    start: Instant,
    turn: Cell<usize>,
    unusable: Cell<u16>,
}

impl Scene {
    fn new(capacity: usize) -> Self {
        Self {
            affinity: Affinity::new(Budget::new(capacity)),
            upstreams: upstreams(3),
            start: Instant::now(),
            turn: Cell::new(0),
            unusable: Cell::new(0),
        }
    }

    /// The endpoint of a new connection of client `n` after `at` seconds.
    fn connect(&self, n: u8, at: u64) -> u16 {
        let is_usable = |upstream: &Arc<Upstream>| upstream.address().port() != self.unusable.get();
        let choose = || {
            (0..3)
                .map(|_| Arc::clone(&self.upstreams[self.turn.replace(self.turn.get() + 1) % 3]))
                .find(is_usable)
        };
        let now = self.start + Duration::from_secs(at);
        self.affinity.pick(asking([10, 1, 0, n], now), TIMEOUT, is_usable, choose).unwrap().address().port()
    }
}

/// Steps: `CLIENT@SECOND=ENDPOINT` connects and expects an endpoint; `down=N` makes one unusable.
type Case = (&'static str, &'static str);

const CASES: &[Case] = &[
    ("a client keeps its endpoint", "1@0=1 1@1=1 1@2=1"),
    ("clients choose by the policy", "1@0=1 2@0=2 3@0=3 4@0=1"),
    ("an idle client is forgotten", "1@0=1 1@100=2"),
    ("just before the timeout it is not", "1@0=1 1@99=1"),
    ("a new connection renews", "1@0=1 1@90=1 1@180=1 1@270=1 1@370=2"),
    ("a client whose endpoint cannot be used moves", "1@0=1 down=1 1@1=2"),
    ("and stays where it moved", "1@0=1 down=1 1@1=2 down=0 1@2=2"),
    ("other clients stay", "1@0=1 2@0=2 down=1 1@1=3 2@1=2"),
    ("moving renews", "1@0=1 down=1 1@90=2 1@180=2"),
];

#[test]
fn cases() {
    for (name, steps) in CASES {
        let scene = Scene::new(100);
        for step in steps.split_whitespace() {
            let (what, value) = step.split_once('=').unwrap();
            match what.split_once('@') {
                None => scene.unusable.set(value.parse().unwrap()),
                Some((client, at)) => {
                    let endpoint = scene.connect(client.parse().unwrap(), at.parse().unwrap());
                    assert_eq!(endpoint.to_string(), value, "{name}: {step}");
                }
            }
        }
    }
}

#[test]
fn the_clients_of_an_endpoint_go_with_it() {
    let scene = Scene::new(100);
    assert_eq!([scene.connect(1, 0), scene.connect(2, 0), scene.connect(3, 0)], [1, 2, 3]);
    scene.upstreams[1].end_tenure();
    assert_eq!([scene.connect(1, 1), scene.connect(2, 1), scene.connect(3, 1)], [1, 1, 3]);
    scene.upstreams.iter().for_each(|upstream| upstream.end_tenure());
    assert_eq!(scene.affinity.expire(Some(TIMEOUT), scene.start), 3);
    assert!(scene.affinity.is_empty() && scene.affinity.queue().is_empty());
}

#[test]
fn clients_of_an_endpoint_that_has_left_make_room_behind_one_whose_endpoint_stays() {
    let scene = Scene::new(10_000);
    let pick = |n: u16, endpoint: usize| {
        let [high, low] = n.to_be_bytes();
        let choose = || scene.upstreams.get(endpoint).cloned();
        scene.affinity.pick(asking([10, 1, high, low], scene.start), TIMEOUT, |_| true, choose).unwrap()
    };
    (0..3_000).for_each(|n| _ = pick(n, usize::from(n % 1_000 != 0)));
    let expire = || scene.affinity.expire(Some(TIMEOUT), scene.start);
    // Each client has connected only once.
    while expire() > 0 {}
    scene.upstreams[1].end_tenure();
    assert_eq!((expire(), scene.affinity.len()), (0, 3_000), "the first one's stays");
    scene.affinity.look_at_all();
    assert_eq!(expire(), 1_024, "no more than that at a time");
    while expire() > 0 {}
    assert_eq!((scene.affinity.len(), scene.affinity.queue().len()), (3, 3));
    let left: Vec<_> = scene.affinity.queue().iter().copied().collect();
    assert_eq!(
        left,
        [0, 1_000, 2_000].map(|n: u16| IpAddr::from([10, 1, n.to_be_bytes()[0], n.to_be_bytes()[1]]))
    );
    assert_eq!(expire(), 0, "each was looked at once");
}

#[test]
fn four_clients_are_looked_at_at_once_and_a_thousand_in_an_expiry() {
    let scene = Scene::new(10_000);
    let pick = |n: u16, at| {
        let [high, low] = n.to_be_bytes();
        let choose = || scene.upstreams.first().cloned();
        let now = scene.start + Duration::from_secs(at);
        scene.affinity.pick(asking([10, 1, high, low], now), TIMEOUT, |_| true, choose)
    };
    (0..3_000).for_each(|n| _ = pick(n, 0));
    // Clients that have just been renewed are examined too, but only once.
    (0..2_000).for_each(|n| _ = pick(n, 50));
    let at = |seconds| scene.start + Duration::from_secs(seconds);
    assert_eq!(scene.affinity.expire_some(Some(TIMEOUT), at(60)), 4);
    assert_eq!(scene.affinity.expire(Some(TIMEOUT), at(60)), 1_024);
    assert_eq!(scene.affinity.expire(Some(TIMEOUT), at(60)), 2_000 - 4 - 1_024);
    assert_eq!(scene.affinity.expire(Some(TIMEOUT), at(60)), 0);
    assert_eq!(scene.affinity.len(), 3_000);
    assert_eq!(scene.affinity.expire(Some(TIMEOUT), at(100)), 1_000, "those that were not renewed");
    assert_eq!(scene.affinity.len(), 2_000);
    let expiries = (0..).take_while(|_| scene.affinity.expire(Some(TIMEOUT), at(150)) > 0).count();
    assert_eq!((expiries, scene.affinity.len(), scene.affinity.queue().len()), (2, 0, 0));
}

#[test]
fn where_all_service_ports_together_have_too_many_a_flooded_one_shrinks() {
    let budget = Budget::new(4_000);
    let ports: Vec<_> = (0..6).map(|_| Affinity::new(Arc::clone(&budget))).collect();
    let (upstreams, now) = (upstreams(1), Instant::now());
    let fill = |port: &Affinity, clients: std::ops::Range<u16>| {
        for n in clients {
            let [high, low] = n.to_be_bytes();
            port.pick(asking([10, 1, high, low], now), TIMEOUT, |_| true, || upstreams.first().cloned());
        }
    };
    ports.iter().take(2).for_each(|port| fill(port, 0..10_000));
    assert_eq!(ports[0].len(), 4_000);
    assert_eq!(budget.clients.load(Ordering::Relaxed), 8_000);
    fill(&ports[4], 0..10_000);
    assert!((Budget::SHARE..=Budget::SHARE + 2).contains(&ports[4].len()), "{}", ports[4].len());
    fill(&ports[0], 10_000..20_000);
    assert!(ports[0].len() < 3_000, "it is flooded: {}", ports[0].len());
    fill(&ports[5], 0..500);
    assert_eq!((ports[5].len(), ports[5].evicted()), (500, 0), "everybody has a share");
    let queued: usize = ports.iter().map(|port| port.queue().len()).sum();
    assert_eq!(budget.clients.load(Ordering::Relaxed), queued);
    drop(ports);
    assert_eq!(budget.clients.load(Ordering::Relaxed), 0);
}

#[test]
fn a_client_is_as_large_as_documented() {
    // Plus one byte of the map, which is at least seven sixteenths full, and 17 of the queue, which is at
    // least half full.
    assert_eq!(size_of::<(IpAddr, Binding)>(), 64);
}

#[test]
fn at_the_bound_the_client_unseen_for_longest_is_evicted_and_counted() {
    let scene = Scene::new(3);
    assert_eq!([1, 2, 3].map(|client| scene.connect(client, 0)), [1, 2, 3]);
    scene.connect(1, 1);
    scene.connect(4, 2);
    assert_eq!((scene.affinity.len(), scene.affinity.evicted()), (3, 1));
    assert_eq!((scene.connect(1, 3), scene.connect(3, 3), scene.connect(4, 3)), (1, 3, 1));
    assert_eq!(scene.connect(2, 3), 2, "client 2 was forgotten: the next turn is its endpoint now");
    assert_eq!(scene.affinity.evicted(), 2);
}

#[test]
fn the_bound_holds_when_every_client_is_busy() {
    let scene = Scene::new(50);
    for round in 0..4 {
        for client in 0..200 {
            scene.connect(client, round);
            scene.connect(client, round);
            assert!(scene.affinity.len() <= 50 && scene.affinity.queue().len() <= 50);
        }
    }
    assert_eq!(scene.affinity.evicted(), 4 * 200 - 50);
}

#[test]
fn expired_clients_are_cleared_away_by_new_ones_and_are_no_evictions() {
    let scene = Scene::new(100);
    (0..20).for_each(|client| _ = scene.connect(client, 0));
    (100..110).for_each(|client| _ = scene.connect(client, 200));
    assert_eq!((scene.affinity.len(), scene.affinity.evicted()), (10, 0));
    scene.affinity.expire(Some(TIMEOUT), scene.start + Duration::from_secs(299));
    assert_eq!(scene.affinity.len(), 10);
    scene.affinity.expire(Some(TIMEOUT), scene.start + Duration::from_secs(300));
    assert!(scene.affinity.is_empty() && scene.affinity.queue().is_empty());
}

#[test]
fn nothing_is_remembered_where_there_is_no_endpoint() {
    let affinity = Affinity::new(Budget::new(10));
    let pick = affinity.pick(asking([10, 1, 0, 1], Instant::now()), TIMEOUT, |_| true, || None);
    assert!(pick.is_none() && affinity.is_empty());
}

#[test]
fn connections_of_one_client_at_the_same_time_share_an_endpoint() {
    let (affinity, upstreams) = (Affinity::new(Budget::new(1_000)), upstreams(8));
    let now = Instant::now();
    let turn = AtomicU64::new(0);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    (0..250_u8)
                        .map(|client| {
                            let choose = || {
                                let turn = turn.fetch_add(1, Ordering::Relaxed) % 8;
                                upstreams.get(usize::try_from(turn).unwrap()).cloned()
                            };
                            let asking = asking([10, 1, 0, client], now);
                            affinity.pick(asking, TIMEOUT, |_| true, choose).unwrap().address()
                        })
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        let seen: Vec<_> = workers.into_iter().map(|worker| worker.join().unwrap()).collect();
        assert!(seen.windows(2).all(|pair| pair[0] == pair[1]));
    });
    assert_eq!(turn.into_inner(), 250, "each client chose once");
}

#[test]
fn what_one_agent_remembers_the_next_one_does() {
    let (old, new) = (Scene::new(8), Scene::new(8));
    let _ = [old.connect(1, 0), old.connect(2, 40), old.connect(3, 50)];
    let now = old.start + Duration::from_secs(100);
    let kept = old.affinity.all_kept(TIMEOUT, now, 8);
    assert_eq!(kept.len(), 2, "the first one is forgotten: {kept:?}");
    assert_eq!(old.affinity.all_kept(TIMEOUT, now, 1).len(), 1);
    // This agent has already seen one of the clients itself.
    let now = new.start + Duration::from_secs(10);
    new.turn.set(2);
    assert_eq!(new.connect(3, 0), 3);
    new.turn.set(0);
    let recalled = kept.iter().filter(|kept| {
        let upstream = new.upstreams.iter().find(|upstream| upstream.address() == kept.endpoint).unwrap();
        new.affinity.recall(kept, upstream, TIMEOUT, now)
    });
    assert_eq!(recalled.count(), 1);
    assert_eq!((new.connect(2, 10), new.connect(3, 10)), (2, 3));
    // The client had been idle for 60 s when it was handed over, and has connected since.
    assert_eq!(new.connect(2, 109), 2);
}

#[test]
fn what_is_recalled_has_the_time_that_was_left_and_no_more_room_than_others() {
    let scene = Scene::new(2);
    let recall = |client: u8, idle: u64| {
        let upstream = &scene.upstreams[2];
        let idle = Duration::from_secs(idle);
        let client = [10, 1, 0, client].into();
        let kept = Kept { client, endpoint: upstream.address(), idle, is_apart: false };
        scene.affinity.recall(&kept, upstream, TIMEOUT, scene.start + Duration::from_secs(200))
    };
    assert!(!recall(1, 100), "its time is over");
    assert!(recall(1, 99) && recall(2, 0));
    assert!(!recall(3, 0), "there is no room");
    assert_eq!(scene.connect(1, 201), 1, "a second was left");
    assert_eq!(scene.connect(2, 299), 3);
}
