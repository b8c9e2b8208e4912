//! The health of endpoints in socket mode, shared with BPF programs, which see how translated connections
//! end. An endpoint is unverified (*in doubt*) if it is new there, or has failed since its last success.
//! Programs leave connections to it to the relay. The relay tries unverified endpoints first, tries another
//! one if they fail, and reports the result to the programs.

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sluice_model::FrontendKind;

use crate::policy::SetName;
use crate::{Origin, Upstream};

/// The id by which the programs know an endpoint of a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SocketNumber {
    /// The endpoint's id, which is later reused for others.
    pub id: u32,
    /// How often the id was assigned; 0 only after it has wrapped around.
    pub incarnation: u32,
}

/// The health of endpoints as the BPF programs record it. Workers call it, so it must not block.
///
/// Calls with an id that stands for another endpoint by now have no effect.
pub trait SocketHealth: Debug + Send + Sync {
    /// Whether the programs leave connections to the endpoint to the relay, for as long as there is one.
    fn is_in_doubt(&self, number: SocketNumber) -> bool;

    /// Records that a connect to the endpoint has succeeded.
    fn has_served(&self, number: SocketNumber);

    /// Records that the endpoint has refused a connect, or did not answer.
    fn has_failed(&self, number: SocketNumber);
}

/// A [`SocketHealth`] that service ports share. Behind a thin pointer, so that each of them can swap it.
pub type SharedHealth = Arc<Box<dyn SocketHealth>>;

/// The ids of one endpoint: one for each set that it may be in.
#[derive(Debug, Default)]
pub(crate) struct SocketNumbers([AtomicU64; 2]);

impl SocketNumbers {
    /// The value that stands for no id.
    const NONE: u64 = 0;

    fn of(&self, set: SetName) -> &AtomicU64 {
        let [cluster, local] = &self.0;
        match set {
            SetName::Cluster => cluster,
            SetName::Local => local,
        }
    }

    pub(crate) fn set(&self, set: SetName, number: Option<SocketNumber>) {
        let word = number.map_or(Self::NONE, |SocketNumber { id, incarnation }| {
            u64::from(incarnation) << 32 | u64::from(id)
        });
        self.of(set).store(word, Ordering::Relaxed);
    }

    pub(crate) fn get(&self, set: SetName) -> Option<SocketNumber> {
        let word = self.of(set).load(Ordering::Relaxed);
        let [a, b, c, d, e, f, g, h] = word.to_le_bytes();
        let number = SocketNumber {
            id: u32::from_le_bytes([a, b, c, d]),
            incarnation: u32::from_le_bytes([e, f, g, h]),
        };
        (word != Self::NONE).then_some(number)
    }
}

/// Whether programs may translate connections of such clients, given that this one was not translated. Other
/// connections have no need to verify endpoints.
pub(crate) fn may_be_decided_there(kind: FrontendKind, origin: Origin) -> bool {
    // Without a local detector, pods have origin `Outside`. At other kinds of frontends endpoints see the
    // node's address, unless the client is a process of the node.
    kind == FrontendKind::ClusterIp || origin == Origin::Node
}

/// Reports the result of a connect to the programs.
pub(crate) fn tell(health: &dyn SocketHealth, upstream: &Upstream, has_served: bool) {
    for number in [SetName::Cluster, SetName::Local].into_iter().filter_map(|set| upstream.socket_number(set))
    {
        if has_served {
            health.has_served(number);
        } else {
            health.has_failed(number);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeSet;
    use std::sync::Mutex;
    use std::sync::atomic::AtomicBool;
    use std::time::Instant;

    use sluice_model::{Family, ObjectName, Protocol, ServicePortName};

    use super::*;
    use crate::affinity::Budget;
    use crate::backends::{Facts, PortRules};
    use crate::{Client, Heard, Selection, ServicePort};

    /// The unverified endpoints, by id.
    #[derive(Debug, Default)]
    pub(crate) struct Doubts(pub(crate) Mutex<BTreeSet<u32>>);

    impl SocketHealth for Doubts {
        fn is_in_doubt(&self, number: SocketNumber) -> bool {
            self.0.lock().unwrap().contains(&number.id)
        }
        fn has_served(&self, number: SocketNumber) {
            self.0.lock().unwrap().remove(&number.id);
        }
        fn has_failed(&self, number: SocketNumber) {
            self.0.lock().unwrap().insert(number.id);
        }
    }

    impl SocketHealth for Arc<Doubts> {
        fn is_in_doubt(&self, number: SocketNumber) -> bool {
            (**self).is_in_doubt(number)
        }
        fn has_served(&self, number: SocketNumber) {
            (**self).has_served(number);
        }
        fn has_failed(&self, number: SocketNumber) {
            (**self).has_failed(number);
        }
    }

    impl Doubts {
        fn of(ids: impl IntoIterator<Item = u32>) -> Arc<Self> {
            Arc::new(Self(Mutex::new(ids.into_iter().collect())))
        }

        fn ids(&self) -> BTreeSet<u32> {
            self.0.lock().unwrap().clone()
        }
    }

    fn shared(doubts: &Arc<Doubts>) -> SharedHealth {
        Arc::new(Box::new(Arc::clone(doubts)))
    }

    /// Gives each endpoint its port as its id.
    fn number(port: &ServicePort) {
        for upstream in port.backends().cluster().upstreams() {
            let number = SocketNumber { id: upstream.address().port().into(), incarnation: 1 };
            upstream.set_socket_number(SetName::Cluster, Some(number));
        }
    }

    /// A service port with endpoints 1 to 4, which differ in their ports and ids.
    fn port() -> (Arc<ServicePort>, Arc<Doubts>) {
        let service = ObjectName::new("default", "web");
        let name = ServicePortName { service, port: "http".into(), protocol: Protocol::Tcp };
        let port = ServicePort::new(name, Family::V4, Budget::new(10));
        let at = |number: u16| ([10, 1, 0, 1], number).into();
        let mut roster = port.roster();
        drop(roster.take_over(port.shared_name(), (1..=4).map(at)));
        let upstreams = roster.current().to_vec();
        drop(roster);
        let rules = PortRules { passive_health: true, ..PortRules::default() };
        port.publish(upstreams, Vec::new(), Facts::default(), rules);
        let doubts = Arc::<Doubts>::default();
        port.share_health(&shared(&doubts));
        number(&port);
        (Arc::new(port), doubts)
    }

    fn select(port: &Arc<ServicePort>, kind: FrontendKind, client: u8) -> Selection {
        let client = Client { ip: [10, 244, 1, client].into(), origin: Origin::LocalPod };
        Selection::new(port, kind, client, None, Instant::now()).unwrap()
    }

    /// The endpoints that connections are led to first; all connections are established.
    fn connect(port: &Arc<ServicePort>, kind: FrontendKind, times: usize) -> Vec<u16> {
        let connect = |_| {
            let mut selection = select(port, kind, 1);
            let upstream = selection.next(Instant::now()).unwrap();
            drop(selection.connected(&upstream, Instant::now()));
            upstream.address().port()
        };
        (0..times).map(connect).collect()
    }

    #[test]
    fn those_in_doubt_come_first_for_clients_that_are_decided_about_at_their_sockets() {
        let (port, doubts) = port();
        assert_eq!(connect(&port, FrontendKind::ClusterIp, 3), [1, 2, 3]);
        doubts.0.lock().unwrap().extend([2, 3]);
        assert_eq!(connect(&port, FrontendKind::ClusterIp, 3), [2, 3, 2], "4 is due; then they have served");
        doubts.0.lock().unwrap().insert(2);
        assert_eq!(connect(&port, FrontendKind::NodePort, 3), [3, 4, 1], "it may have been led here anyway");
        assert_eq!(connect(&port, FrontendKind::NodePort, 1), [2]);
        assert!(doubts.0.lock().unwrap().is_empty(), "whoever has connected to it");
    }

    #[test]
    fn whoever_keeps_an_endpoint_is_not_asked_to_find_out_about_another_one() {
        let (port, doubts) = port();
        let affinity = Some(std::time::Duration::from_secs(100));
        let rules = PortRules { affinity, ..PortRules::default() };
        port.publish(port.endpoints(), Vec::new(), Facts::default(), rules);
        assert_eq!(connect(&port, FrontendKind::ClusterIp, 2), [1, 1]);
        doubts.0.lock().unwrap().insert(2);
        assert_eq!(connect(&port, FrontendKind::ClusterIp, 2), [1, 1]);
    }

    #[test]
    fn whoever_fails_is_in_doubt_and_asked_again_until_it_is_passed_over() {
        let (port, doubts) = port();
        for client in 1..=3 {
            let mut selection = select(&port, FrontendKind::ClusterIp, client);
            let first = selection.next(Instant::now()).unwrap();
            assert_eq!(first.address().port(), 1, "client {client}");
            selection.fail(&first, Heard::Refusal, Instant::now());
            assert_eq!(*doubts.0.lock().unwrap(), BTreeSet::from([1]));
            let other = selection.next(Instant::now()).unwrap();
            assert_ne!(other.address().port(), 1);
            drop(selection.connected(&other, Instant::now()));
        }
        assert!(!connect(&port, FrontendKind::ClusterIp, 8).contains(&1), "three clients were refused");
        assert_eq!(*doubts.0.lock().unwrap(), BTreeSet::from([1]));
    }

    #[test]
    fn others_may_take_the_place_of_those_that_health_was_shared_with() {
        let (port, former) = port();
        let latter = Doubts::of([2]);
        let words = shared(&latter);
        port.share_health(&words);
        let numbers =
            || port.endpoints().iter().map(|u| u.socket_number(SetName::Cluster)).collect::<Vec<_>>();
        assert_eq!(numbers(), [None; 4], "what a number has meant to the former says nothing");
        number(&port);
        port.share_health(&words);
        assert!(numbers().iter().all(Option::is_some), "they are the same");
        former.0.lock().unwrap().insert(3);
        assert_eq!(connect(&port, FrontendKind::ClusterIp, 3), [2, 2, 3], "in doubt, and then due");
        assert_eq!((latter.ids(), former.ids()), (BTreeSet::new(), BTreeSet::from([3])));
        let mut selection = select(&port, FrontendKind::ClusterIp, 1);
        let failed = selection.next(Instant::now()).unwrap();
        selection.fail(&failed, Heard::Refusal, Instant::now());
        assert_eq!(latter.ids(), BTreeSet::from([4]));
        assert_eq!(Arc::strong_count(&former), 1, "nothing of the former stays");
    }

    #[test]
    fn workers_go_on_while_others_take_their_place() {
        let (port, _) = port();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        assert_eq!(connect(&port, FrontendKind::ClusterIp, 10).len(), 10);
                    }
                });
            }
            for _ in 0..1_000 {
                let doubts = Doubts::of(1..=4);
                port.share_health(&shared(&doubts));
                number(&port);
                connect(&port, FrontendKind::ClusterIp, 4);
            }
            done.store(true, Ordering::Relaxed);
        });
        let last = Doubts::of(1..=4);
        port.share_health(&shared(&last));
        number(&port);
        connect(&port, FrontendKind::ClusterIp, 4);
        assert_eq!(last.ids(), BTreeSet::new());
    }

    #[test]
    fn numbers_are_of_a_set_and_go() {
        let numbers = SocketNumbers::default();
        let (one, other) =
            (SocketNumber { id: 0, incarnation: 1 }, SocketNumber { id: 7, incarnation: 1 << 31 });
        numbers.set(SetName::Cluster, Some(one));
        assert_eq!((numbers.get(SetName::Cluster), numbers.get(SetName::Local)), (Some(one), None));
        numbers.set(SetName::Local, Some(other));
        numbers.set(SetName::Cluster, None);
        assert_eq!((numbers.get(SetName::Cluster), numbers.get(SetName::Local)), (None, Some(other)));
    }
}
