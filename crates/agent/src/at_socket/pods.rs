//! The annotations of this node's pods and of the cluster's namespaces: they say whose connections are relayed
//! although they could be translated.
//!
//! A pod's own annotation counts; if it has none, that of its namespace. A pod is recognised by its addresses,
//! because the apiserver knows no other name of a network namespace.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sluice_model::{Change, Namespace, Object, ObjectName, ObjectRef, Pod};
use sluice_socket::Fate;

use super::news::News;

/// The known annotations. The controller updates them, and the thread that enters network namespaces asks for
/// them.
#[derive(Debug)]
pub struct Pods {
    known: Mutex<Known>,
    /// Readable if something has changed since the last look.
    news: News,
}

#[derive(Debug, Default)]
struct Known {
    pods: HashMap<ObjectName, Pod>,
    /// All namespaces, with their annotations.
    namespaces: HashMap<Arc<str>, Option<bool>>,
    /// Whether `fates` is out of date.
    is_stale: bool,
    fates: HashMap<IpAddr, Fate>,
}

impl Pods {
    /// Starts with nothing known.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub fn new() -> io::Result<Self> {
        Ok(Self { known: Mutex::default(), news: News::new()? })
    }

    /// Takes in changes of pods and namespaces; ignores others.
    pub(crate) fn note(&self, change: &Change) {
        match change {
            Change::Apply(Object::Pod(pod)) => self.lock().set_pod(pod),
            Change::Delete(ObjectRef::Pod(name)) => {
                let mut known = self.lock();
                known.is_stale |= known.pods.remove(name).is_some();
            }
            Change::Apply(Object::Namespace(namespace)) => self.lock().set_namespace(namespace),
            Change::Delete(ObjectRef::Namespace(name)) => {
                let mut known = self.lock();
                known.is_stale |= known.namespaces.remove(name).is_some();
            }
            _ => {}
        }
    }

    /// Wakes the waiting thread if what has been noted changes a fate.
    pub(crate) fn settle(&self) {
        let mut known = self.lock();
        if std::mem::take(&mut known.is_stale) {
            let fates = known.fates();
            if fates != known.fates {
                known.fates = fates;
                self.news.tell();
            }
        }
    }

    /// The descriptor to wait for.
    pub(super) fn news(&self) -> BorrowedFd<'_> {
        self.news.as_fd()
    }

    /// Marks the begin of a look: later changes are news.
    pub(super) fn begin_look(&self) {
        self.news.take();
    }

    /// What becomes of the sockets in a network namespace with these addresses. If they belong to two pods, the
    /// namespace is left alone if either pod is to be.
    pub(crate) fn fate(&self, addresses: &[IpAddr]) -> Fate {
        let known = self.lock();
        let fates = || addresses.iter().filter_map(|ip| known.fates.get(ip).copied());
        match fates().find(|fate| *fate == Fate::LeftAlone) {
            Some(left_alone) => left_alone,
            None => fates().find(|fate| *fate == Fate::Led).unwrap_or(Fate::Unknown),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn set_pod(&mut self, pod: &Pod) {
        let before = self.pods.insert(pod.name.clone(), pod.clone());
        self.is_stale |= before.as_ref() != Some(pod);
    }

    fn set_namespace(&mut self, namespace: &Namespace) {
        let before = self.namespaces.insert(Arc::clone(&namespace.name), namespace.at_sockets);
        self.is_stale |= before != Some(namespace.at_sockets);
    }

    /// The fate of each address. While an address passes from one pod to another, both have it.
    fn fates(&self) -> HashMap<IpAddr, Fate> {
        let mut fates = HashMap::new();
        for pod in self.pods.values() {
            let fate = match pod.at_sockets {
                Some(is_led) => of(is_led),
                // The namespace's annotation is not known yet.
                None => match self.namespaces.get(&pod.name.namespace) {
                    Some(said) => of(said.unwrap_or(true)),
                    None => Fate::Unknown,
                },
            };
            for ip in &pod.addresses {
                let known = fates.entry(*ip).or_insert(fate);
                if fate == Fate::LeftAlone || *known == Fate::Unknown {
                    *known = fate;
                }
            }
        }
        fates
    }
}

fn of(is_led: bool) -> Fate {
    if is_led { Fate::Led } else { Fate::LeftAlone }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    fn pod(name: &str, addresses: &[&str], at_sockets: Option<bool>) -> Change {
        let addresses = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
        Change::Apply(Pod { name: ObjectName::new("shop", name), addresses, at_sockets }.into())
    }

    fn namespace(name: &str, at_sockets: Option<bool>) -> Change {
        Change::Apply(Namespace { name: name.into(), at_sockets }.into())
    }

    /// Notes the changes; returns whether they were news.
    fn tell(pods: &Pods, changes: &[Change]) -> bool {
        changes.iter().for_each(|change| pods.note(change));
        pods.settle();
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let ready = poll(&mut [PollFd::new(&pods.news, PollFlags::IN)], Some(&now)).unwrap();
        pods.begin_look();
        ready == 1
    }

    fn fate(pods: &Pods, addresses: &[&str]) -> Fate {
        pods.fate(&addresses.iter().map(|ip| ip.parse().unwrap()).collect::<Vec<_>>())
    }

    #[test]
    fn a_pods_own_annotation_counts_before_that_of_its_namespace() {
        let pods = Pods::new().unwrap();
        let all = [
            pod("silent", &["10.1.0.1", "fd00::1"], None),
            pod("yes", &["10.1.0.2"], Some(true)),
            pod("no", &["10.1.0.3"], Some(false)),
        ];
        assert!(tell(&pods, &all));
        let fates =
            || ["10.1.0.1", "fd00::1", "10.1.0.2", "10.1.0.3"].map(|ip| fate(&pods, &["127.0.0.1", ip]));
        use Fate::{Led, LeftAlone, Unknown};
        assert_eq!(fates(), [Unknown, Unknown, Led, LeftAlone], "what its namespace says is not known");
        for (said, silent) in [(None, Led), (Some(false), LeftAlone), (Some(true), Led)] {
            tell(&pods, &[namespace("shop", said), namespace("other", Some(false))]);
            assert_eq!(fates(), [silent, silent, Led, LeftAlone]);
        }
        assert_eq!(fate(&pods, &["10.1.0.4"]), Unknown);
        assert_eq!(fate(&pods, &[]), Unknown);
        assert_eq!(fate(&pods, &["10.1.0.2", "10.1.0.3"]), LeftAlone, "one that says that it is both");
    }

    #[test]
    fn only_what_makes_a_difference_is_news() {
        let pods = Pods::new().unwrap();
        let web = |name: &str, is_led| pod(name, &["10.1.0.1"], Some(is_led));
        assert!(!tell(&pods, &[namespace("shop", None)]));
        assert!(!tell(&pods, &[pod("new", &[], None)]), "it has no address");
        assert!(tell(&pods, &[web("a", true)]));
        assert!(!tell(&pods, &[web("a", true)]));
        // Another pod with the same address: the first one is going, and the second one is to be left alone.
        assert!(tell(&pods, &[web("b", false)]));
        assert_eq!(fate(&pods, &["10.1.0.1"]), Fate::LeftAlone);
        let gone = |name: &str| Change::Delete(ObjectRef::Pod(ObjectName::new("shop", name)));
        assert!(!tell(&pods, &[gone("a")]));
        assert!(tell(&pods, &[gone("b")]));
        assert_eq!(fate(&pods, &["10.1.0.1"]), Fate::Unknown);
        let none = Change::Delete(ObjectRef::Namespace("shop".into()));
        assert!(!tell(&pods, &[gone("b"), none]));
        let known = pods.lock();
        assert_eq!((known.pods.len(), known.namespaces.len(), known.fates.len()), (1, 0, 0));
    }
}
