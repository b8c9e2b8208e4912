use std::collections::BTreeSet;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Sender};

use sluice_capture::Change as CaptureChange;
use sluice_dataplane::Config;
use sluice_model::{Node, ObjectName, Service, ServicePort};
use sluice_table::WriterConfig;

use super::*;
use crate::at_socket;
use crate::controller::{Controller, Feed};

/// A capture whose first `steps` steps each see another change while they are under way.
struct Restless {
    steps: u16,
    feed: Arc<OnceLock<Feed>>,
    programming: Arc<Programming>,
    looks: Arc<AtomicU64>,
    began: Option<Instant>,
    seen: Sender<Seen>,
}

/// What is seen while a step is under way.
#[derive(Debug)]
struct Seen {
    /// Whether a change still waits that came before the previous step.
    has_old: bool,
    /// How often this agent has checked whether another one still holds socket mode.
    looks: u64,
}

impl Capture for Restless {
    fn change(&mut self, _: CaptureChange<'_>, now: Instant) {
        let oldest = self.programming.pending_for(now);
        let step = Seen {
            has_old: self.began.is_some_and(|began| oldest > Some(now.duration_since(began))),
            looks: self.looks.load(Ordering::SeqCst),
        };
        self.began = Some(now);
        self.seen.send(step).unwrap();
        if let Some(left) = self.steps.checked_sub(1) {
            self.steps = left;
            block_on(self.feed.get().unwrap().take(vec![service(left)])).unwrap();
        }
    }

    fn keep(&mut self, _: Instant) {}
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
}

/// A Service whose port differs from those of other numbers.
fn service(number: u16) -> Change {
    let ports =
        vec![ServicePort { name: "".into(), protocol: Protocol::Tcp, port: 1 + number, node_port: None }];
    let ip = IpAddr::from([10, 0, 0, 1]);
    Change::Apply(Service::new(ObjectName::new("default", "web"), vec![ip], ports).into())
}

/// A proxy on the node `here`.
fn proxy() -> Proxy {
    let dataplane = Config {
        workers: 1,
        descriptors: 1_024,
        client_share: 100,
        udp_idle: Config::UDP_IDLE,
        half_closed_idle: Config::HALF_CLOSED_IDLE,
        connection_log: None,
        service_times: false,
        marks: None,
    };
    Proxy::start(ProxyConfig::bind(WriterConfig::new("here"), dataplane)).unwrap()
}

/// What such a capture sees in each of its steps.
fn restless(steps: u16) -> (Vec<Seen>, Controller) {
    let mut proxy = proxy();
    let (mode, looks) = at_socket::tests::busy(&mut proxy.writer);
    proxy.at_socket = mode;
    let (feed, (seen, steps_seen)) = (Arc::<OnceLock<Feed>>::default(), mpsc::channel());
    let programming = Arc::clone(proxy.programming());
    let capture = Restless { steps, feed: Arc::clone(&feed), programming, looks, began: None, seen };
    proxy.capture = Background::start(Box::new(capture)).unwrap();
    let controller = Controller::start(proxy).unwrap();
    feed.set(controller.feed().clone()).unwrap();
    block_on(controller.feed().apply(vec![service(steps)])).unwrap();
    let seen = steps_seen.iter().take(usize::from(steps) + 1).collect();
    block_on(controller.feed().settled()).unwrap();
    (seen, controller)
}

/// A capture whose steps wait until they may go on; in the first, another change comes.
struct Held {
    feed: Arc<OnceLock<Feed>>,
    is_first: bool,
    may_go_on: mpsc::Receiver<()>,
}

impl Capture for Held {
    fn change(&mut self, _: CaptureChange<'_>, _: Instant) {
        let _ = self.may_go_on.recv();
        if std::mem::take(&mut self.is_first) {
            block_on(self.feed.get().unwrap().take(vec![service(2)])).unwrap();
        }
    }

    fn keep(&mut self, _: Instant) {}
}

#[test]
fn who_waits_for_what_came_before_does_not_wait_for_what_came_after() {
    let mut proxy = proxy();
    let (feed, (go_on, may_go_on)) = (Arc::<OnceLock<Feed>>::default(), mpsc::channel());
    let capture = Held { feed: Arc::clone(&feed), is_first: true, may_go_on };
    proxy.capture = Background::start(Box::new(capture)).unwrap();
    let controller = Controller::start(proxy).unwrap();
    feed.set(controller.feed().clone()).unwrap();
    block_on(controller.feed().take(vec![service(1)])).unwrap();
    let settled = async {
        let settled = tokio::time::timeout(Duration::from_secs(60), controller.feed().settled());
        // In this order: the question comes before there is more to do.
        tokio::join!(settled, async { go_on.send(()).unwrap() }).0
    };
    assert_eq!(block_on(settled).ok(), Some(Ok(())), "the second step still takes its time");
    drop(go_on);
    block_on(controller.feed().settled()).unwrap();
    assert_eq!(controller.programming().pending_for(Instant::now()), None);
}

#[test]
fn where_each_step_finds_something_new_nothing_waits_for_longer_than_since_the_step_before() {
    let (seen, controller) = restless(20);
    assert_eq!(seen.len(), 21);
    assert!(seen.iter().all(|step| !step.has_old), "{seen:?}");
    assert_eq!(controller.programming().pending_for(Instant::now()), None);
}

#[test]
fn where_each_step_finds_something_new_socket_mode_is_taken_over_all_the_same() {
    let (seen, _controller) = restless(3);
    let looks: Vec<u64> = seen.iter().map(|step| step.looks).collect();
    assert_eq!(looks[..2], [1, 2], "as soon as there is a step that is done: {looks:?}");
}

#[test]
fn where_pods_have_their_addresses_is_what_this_nodes_object_says_last() {
    let mut proxy = proxy();
    let observer = proxy.observer();
    assert_eq!(*observer.node_pod_cidrs(), []);
    let cidr = |n: u8| IpNet::new([10, 244, n, 0].into(), 24).unwrap();
    let node = |name: &str, n| {
        let node = Node {
            name: name.into(),
            zone: None,
            addresses: vec![],
            pod_cidrs: vec![cidr(n)],
            eligible: true,
        };
        Change::Apply(node.into())
    };
    for (change, wanted) in [(node("here", 1), 1), (node("there", 2), 1), (node("here", 3), 3)] {
        proxy.take(vec![change]);
        assert_eq!(*observer.node_pod_cidrs(), [cidr(wanted)]);
    }
    proxy.shut_down(Duration::ZERO);
}

#[test]
fn when_the_apiservers_addresses_change_frontends_are_judged_again_although_no_object_changes() {
    let proxy = proxy();
    let observer = proxy.observer();
    let controller = Controller::start(proxy).unwrap();
    let (ip, port) = (IpAddr::from([192, 0, 2, 9]), 6443);
    let ports = vec![ServicePort { name: "".into(), protocol: Protocol::Tcp, port, node_port: None }];
    let web = Service::new(ObjectName::new("default", "web"), vec![[10, 0, 0, 1].into()], ports);
    let web = Service { external_ips: vec![ip], ..web };
    block_on(controller.feed().apply(vec![Change::Apply(web.into())])).unwrap();
    assert_eq!(observer.table().routes().len(), 2);
    for (addresses, routes) in [(vec![(ip, port).into()], 1), (vec![], 2)] {
        let left_out =
            addresses.iter().map(|address| Frontend { address: *address, protocol: Protocol::Tcp });
        let left_out: BTreeSet<Frontend> = left_out.collect();
        block_on(controller.feed().set_apiservers(addresses)).unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        while *observer.left_out() != left_out || observer.table().routes().len() != routes {
            assert!(Instant::now() < deadline, "{left_out:?}");
            std::thread::yield_now();
        }
    }
}
