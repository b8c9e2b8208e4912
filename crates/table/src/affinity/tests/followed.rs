//! Session affinity with a follower that translates clients as well.

use std::collections::BTreeMap;

use super::*;
use crate::policy::SetName;

/// The set in which all clients of these tests are translated.
const CLUSTER: Led = Led::NOWHERE.and_in(SetName::Cluster);

/// A follower with room for a limited number of clients. Its clock is the scene's.
#[derive(Debug, Default)]
struct Programs {
    /// By the client's last byte: the endpoint, and the second of the latest connection.
    led: Mutex<BTreeMap<u8, (u16, u64)>>,
    now: AtomicU64,
    room: AtomicUsize,
    asked: AtomicUsize,
    adopted: AtomicUsize,
}

impl Programs {
    fn new(affinity: &Affinity) -> Arc<Self> {
        let programs = Arc::new(Self { room: AtomicUsize::new(usize::MAX), ..Self::default() });
        affinity.set_follower(Some(Arc::new(Box::new(Arc::clone(&programs)))));
        programs
    }

    /// A client connects and is translated.
    fn lead(&self, client: u8, at: u64) {
        self.led.lock().unwrap().get_mut(&client).unwrap().1 = at;
    }

    fn led(&self) -> Vec<(u8, u16)> {
        self.led.lock().unwrap().iter().map(|(client, (endpoint, _))| (*client, *endpoint)).collect()
    }
}

fn last_byte(client: IpAddr) -> u8 {
    let IpAddr::V4(ip) = client else { return 0 };
    ip.octets()[3]
}

impl Follower for Arc<Programs> {
    fn follow(&self, client: Client, upstream: &Upstream, led: Led) -> Led {
        let mut programs = self.led.lock().unwrap();
        let client = last_byte(client.ip);
        let former = programs.remove(&client);
        assert_eq!(led != Led::NOWHERE, former.is_some(), "it is known here what they know");
        let has_room = programs.len() < self.room.load(Ordering::Relaxed);
        if !has_room {
            return Led::NOWHERE;
        }
        programs.insert(client, (upstream.address().port(), self.now.load(Ordering::Relaxed)));
        CLUSTER
    }

    fn adopt(&self, set: SetName) {
        assert_eq!(set, SetName::Cluster);
        self.adopted.fetch_add(1, Ordering::Relaxed);
    }

    fn forget(&self, client: IpAddr, led: Led) {
        assert_eq!((led, self.led.lock().unwrap().remove(&last_byte(client)).is_some()), (CLUSTER, true));
    }

    fn idle(&self, client: IpAddr, led: Led) -> Option<Duration> {
        assert_eq!(led, CLUSTER);
        self.asked.fetch_add(1, Ordering::Relaxed);
        let led = self.led.lock().unwrap();
        let (_, at) = led.get(&last_byte(client))?;
        Some(Duration::from_secs(self.now.load(Ordering::Relaxed).saturating_sub(*at)))
    }
}

impl Scene {
    /// Like [`Scene::connect`], with the follower's clock set to the same time.
    fn connect_with(&self, programs: &Programs, client: u8, at: u64) -> u16 {
        programs.now.store(at, Ordering::Relaxed);
        self.connect(client, at)
    }

    fn expire_with(&self, programs: &Programs, at: u64) {
        programs.now.store(at, Ordering::Relaxed);
        self.affinity.expire(Some(TIMEOUT), self.start + Duration::from_secs(at));
    }
}

#[test]
fn a_client_is_led_to_the_endpoint_that_it_has_here() {
    let scene = Scene::new(100);
    let programs = Programs::new(&scene.affinity);
    assert_eq!([scene.connect(1, 0), scene.connect(2, 0)], [1, 2]);
    assert_eq!(programs.led(), [(1, 1), (2, 2)]);
    scene.unusable.set(1);
    assert_eq!(scene.connect(1, 1), 3);
    assert_eq!(programs.led(), [(1, 3), (2, 2)], "it has moved");
    // A client from outside is not reported to the follower.
    let outside = Client { ip: [10, 1, 0, 9].into(), origin: Origin::Outside };
    let outside = Asking { client: outside, now: scene.start };
    let first = || scene.upstreams.first().cloned();
    assert!(scene.affinity.pick(outside, TIMEOUT, |_| true, first).is_some());
    assert_eq!(programs.led(), [(1, 3), (2, 2)]);
}

#[test]
fn a_client_that_is_led_is_not_idle() {
    let scene = Scene::new(100);
    let programs = Programs::new(&scene.affinity);
    (1..=3).for_each(|client| _ = scene.connect_with(&programs, client, 0));
    programs.lead(1, 90);
    programs.lead(2, 60);
    assert_eq!(programs.asked.load(Ordering::Relaxed), 0, "nobody asks about a client that is not idle here");
    // A relayed connection.
    assert_eq!(scene.connect_with(&programs, 1, 150), 1);
    // A client that is neither translated nor relayed only takes memory.
    scene.expire_with(&programs, 155);
    assert_eq!(programs.led(), [(1, 1), (2, 2)], "3 was idle");
    assert_eq!(scene.affinity.len(), 2);
    assert_eq!(scene.connect_with(&programs, 2, 161), 1, "2 is idle by now, and is given the next one");
    scene.expire_with(&programs, 261);
    assert!(programs.led().is_empty() && scene.affinity.is_empty() && scene.affinity.queue().is_empty());
}

#[test]
fn a_client_that_is_forgotten_is_not_led_any_more() {
    let scene = Scene::new(2);
    let programs = Programs::new(&scene.affinity);
    assert_eq!([scene.connect(1, 0), scene.connect(2, 0)], [1, 2]);
    programs.now.store(10, Ordering::Relaxed);
    programs.lead(1, 10);
    assert_eq!(scene.connect_with(&programs, 3, 11), 3);
    assert_eq!(programs.led(), [(1, 1), (3, 3)], "there is room for two, and 1 was led of late");
    scene.upstreams[0].end_tenure();
    scene.expire_with(&programs, 12);
    assert_eq!(programs.led(), [(3, 3)], "its endpoint has left");
    scene.affinity.set_follower(None);
    let Scene { affinity, .. } = scene;
    drop(affinity);
    assert_eq!(
        programs.led(),
        [(3, 3)],
        "the service port is gone, and whoever ends its last session has nothing to tell"
    );
}

#[test]
fn others_take_the_place_of_those_who_lead() {
    let scene = Scene::new(100);
    let former = Programs::new(&scene.affinity);
    assert_eq!([scene.connect(1, 0), scene.connect(2, 0)], [1, 2]);
    let latter = Programs::new(&scene.affinity);
    assert_eq!((scene.connect(1, 1), former.led(), latter.led()), (1, vec![(2, 2)], vec![(1, 1)]));
    scene.affinity.set_follower(None);
    assert_eq!((scene.connect(1, 2), latter.led()), (1, vec![]));
    scene.affinity.expire(None, scene.start);
    assert!(former.led().is_empty());
}

#[test]
fn where_there_is_no_room_a_client_is_kept_here_only() {
    let scene = Scene::new(100);
    let programs = Programs::new(&scene.affinity);
    programs.room.store(1, Ordering::Relaxed);
    assert_eq!([scene.connect(1, 0), scene.connect(2, 0), scene.connect(2, 1)], [1, 2, 2]);
    assert_eq!(programs.led(), [(1, 1)]);
    programs.room.store(2, Ordering::Relaxed);
    assert_eq!((scene.connect(2, 2), programs.led()), (2, vec![(1, 1), (2, 2)]));
}

#[test]
fn clients_that_were_led_before_are_remembered_unless_they_are_known() {
    let scene = Scene::new(100);
    let adopt = |client: u8, upstream: usize| {
        let client = [10, 1, 0, client].into();
        let (set, idle) = (SetName::Cluster, Duration::from_secs(10));
        let adopted = Adopted { client, set, upstream: &scene.upstreams[upstream], idle };
        scene.affinity.adopt(&adopted, TIMEOUT, scene.start)
    };
    assert!(!adopt(1, 0), "nobody would lead it");
    assert_eq!(scene.connect(1, 0), 1);
    let programs = Programs::new(&scene.affinity);
    programs.led.lock().unwrap().extend([(2, (3, 0))]);
    assert_eq!([adopt(1, 2), adopt(2, 2)], [false, true], "what is known here counts");
    assert_eq!(programs.adopted.load(Ordering::Relaxed), 1);
    // A client that was translated before goes on as the table says.
    assert_eq!([scene.connect(1, 1), scene.connect(2, 1)], [1, 3]);
    assert_eq!([adopt(1, 2), adopt(2, 2)], [true, true]);
    assert_eq!((programs.adopted.load(Ordering::Relaxed), programs.led()), (1, vec![(1, 1), (2, 3)]));
    scene.expire_with(&programs, 101);
    assert!(programs.led().is_empty());
}

#[test]
fn what_is_led_in_another_set_too_is_adopted_if_it_leads_to_the_same_endpoint() {
    let upstreams = upstreams(2);
    let programs: SharedFollower = Arc::new(Box::<Arc<Counted>>::default());
    let mut binding = Binding::new(Arc::clone(&upstreams[0]), Instant::now());
    let adopted = |upstream| Adopted {
        client: [10, 1, 0, 1].into(),
        set: SetName::Local,
        upstream,
        idle: Duration::ZERO,
    };
    assert!(!binding.adopt(&adopted(&upstreams[0])));
    (binding.told, binding.led) = (Some(programs), CLUSTER);
    assert!(!binding.adopt(&adopted(&upstreams[1])));
    assert!(binding.adopt(&adopted(&upstreams[0])));
    assert_eq!(binding.led, CLUSTER.and_in(SetName::Local));
}

/// A follower that checks whether anybody waits during its calls.
#[derive(Debug, Default)]
struct Counted {
    of: OnceLock<std::sync::Weak<Affinity>>,
    calls: AtomicUsize,
}

impl Counted {
    fn call(&self) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        if let Some(affinity) = self.of.get().and_then(std::sync::Weak::upgrade) {
            assert!(affinity.queue.try_lock().is_ok(), "a system call would have all new clients wait");
        }
    }
}

impl Follower for Arc<Counted> {
    fn follow(&self, _: Client, _: &Upstream, _: Led) -> Led {
        self.call();
        CLUSTER
    }

    fn adopt(&self, _: SetName) {}

    fn forget(&self, _: IpAddr, _: Led) {
        self.call();
    }

    fn idle(&self, _: IpAddr, _: Led) -> Option<Duration> {
        self.call();
        Some(Duration::ZERO)
    }
}

#[test]
fn nobody_waits_for_the_queue_while_others_are_told() {
    let (affinity, upstreams) = (Arc::new(Affinity::new(Budget::new(10))), upstreams(1));
    let counted = Arc::<Counted>::default();
    counted.of.set(Arc::downgrade(&affinity)).unwrap();
    affinity.set_follower(Some(Arc::new(Box::new(Arc::clone(&counted)))));
    let start = Instant::now();
    let pick = |client, at| {
        let now = start + Duration::from_secs(at);
        affinity.pick(asking([10, 1, 0, client], now), TIMEOUT, |_| true, || upstreams.first().cloned());
    };
    let calls = || counted.calls.swap(0, Ordering::Relaxed);
    (0..10).for_each(|client| pick(client, 0));
    assert_eq!(calls(), 10, "one each");
    // Some are evicted, others get a second chance.
    (10..20).for_each(|client| pick(client, 1));
    assert!(calls() >= 20);
    // The idle ones are asked for, and forgotten.
    (20..30).for_each(|client| pick(client, 500));
    assert!(calls() >= 20);
    upstreams[0].end_tenure();
    affinity.expire(Some(TIMEOUT), start);
    assert_eq!((calls(), affinity.len()), (10, 0));
}
