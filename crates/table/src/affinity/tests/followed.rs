//! What is remembered of clients where somebody else leads them, too.

use std::collections::BTreeMap;

use super::*;

/// Leads clients, as many as there is room for. Its clock is the scene's.
#[derive(Debug, Default)]
struct Programs {
    /// By last byte: to which endpoint, and in which second last.
    led: Mutex<BTreeMap<u8, (u16, u64)>>,
    now: AtomicU64,
    room: AtomicUsize,
    asked: AtomicUsize,
}

impl Programs {
    fn new(affinity: &Affinity) -> Arc<Self> {
        let programs = Arc::new(Self { room: AtomicUsize::new(usize::MAX), ..Self::default() });
        affinity.set_follower(Some(Arc::new(Box::new(Arc::clone(&programs)))));
        programs
    }

    /// They lead a client, by themselves.
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
    fn follow(&self, client: IpAddr, upstream: &Upstream) -> bool {
        let mut led = self.led.lock().unwrap();
        let client = last_byte(client);
        led.remove(&client);
        let has_room = led.len() < self.room.load(Ordering::Relaxed);
        if has_room {
            led.insert(client, (upstream.address().port(), self.now.load(Ordering::Relaxed)));
        }
        has_room
    }

    fn forget(&self, client: IpAddr) {
        self.led.lock().unwrap().remove(&last_byte(client));
    }

    fn idle(&self, client: IpAddr) -> Option<Duration> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let led = self.led.lock().unwrap();
        let (_, at) = led.get(&last_byte(client))?;
        Some(Duration::from_secs(self.now.load(Ordering::Relaxed).saturating_sub(*at)))
    }
}

impl Scene {
    /// As [`Scene::connect`], while those who lead clients have the same time.
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
    // One from elsewhere is nobody's to lead.
    let outside = Asking { is_inside: false, ..asking([10, 1, 0, 9], scene.start) };
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
    // The relay's.
    assert_eq!(scene.connect_with(&programs, 1, 150), 1);
    // Nobody's: the memory that it takes.
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
    let Scene { affinity, .. } = scene;
    drop(affinity);
    assert!(programs.led().is_empty(), "the service port is gone");
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
    assert_eq!(scene.connect(1, 0), 1);
    let programs = Programs::new(&scene.affinity);
    programs.led.lock().unwrap().extend([(1, (3, 0)), (2, (3, 0))]);
    for client in [1, 2] {
        let ip = [10, 1, 0, client].into();
        scene.affinity.adopt(ip, &scene.upstreams[2], Duration::from_secs(10), TIMEOUT, scene.start);
    }
    assert_eq!(programs.led(), [(1, 1), (2, 3)], "what is known here counts");
    assert_eq!([scene.connect(1, 1), scene.connect(2, 1)], [1, 3]);
    scene.expire_with(&programs, 101);
    assert!(programs.led().is_empty());
}
