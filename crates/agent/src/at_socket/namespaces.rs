//! Tells the programs which network namespaces are pods', as these come and go. Sockets in other namespaces are
//! left alone: containers within pods may belong to clusters that have their own Services at the same
//! addresses.
//!
//! It runs on a thread of its own, which enters one namespace after the other to learn about it.

use std::collections::HashSet;
use std::io::{self, PipeReader, PipeWriter};
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use sluice_socket::{Attached, Fate, Judge, Known, Namespaces, is_local};
use tracing::{info, warn};

use super::AtSocketConfig;
use super::detector::Detector;
use super::pods::Pods;

/// How often it looks without being woken: not every change wakes it.
const PERIOD: Duration = Duration::from_secs(60);

/// How long it rests after a look, because changes come by the dozen.
const PAUSE: Duration = Duration::from_millis(10);

/// How long to wait before a retry.
const RETRY: Duration = Duration::from_secs(1);

/// What is known, for other threads.
#[derive(Debug, Default)]
pub(crate) struct Names {
    told: Mutex<Told>,
    /// The detector, if pods are judged by their addresses.
    detector: Option<Arc<Detector>>,
    /// Addresses of the namespaces that the detector has left to the relay.
    outside: Mutex<HashSet<IpAddr>>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
enum Told {
    /// Nothing is known yet.
    #[default]
    Nothing,
    /// Only the node's own sockets are translated.
    Node,
    /// The same, because pods that are to be left alone cannot be told from others.
    NodeAlone(String),
    /// Sockets in all namespaces are translated, as configured.
    Every,
    /// Sockets in all namespaces are translated, because pods' namespaces cannot be told from others.
    All(String),
    /// Sockets in so many namespaces are translated. `outside` is an address of a namespace that the detector
    /// has left to the relay, and which it does not match.
    Some { known: usize, left_out: usize, kept_out: usize, outside: Option<IpAddr> },
    /// The last look failed; what was known before stands.
    Failed(String),
}

impl Names {
    fn new(detector: Option<Arc<Detector>>) -> Self {
        Self { detector, ..Self::default() }
    }

    fn get(&self) -> Told {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces what is known; returns what was known before.
    fn set(&self, told: Told) -> Told {
        std::mem::replace(&mut *self.told.lock().unwrap_or_else(PoisonError::into_inner), told)
    }

    /// Remembers all addresses of the namespaces that the detector has left to the relay. Returns the first
    /// that it does not match.
    fn set_outside(&self, outside: HashSet<IpAddr>) -> Option<IpAddr> {
        let detector = self.detector.as_ref()?;
        let is_outside = |ip: &IpAddr| detector.fate(&[*ip]) == Fate::LeftAlone;
        let first = outside.iter().copied().filter(is_outside).min();
        *self.outside.lock().unwrap_or_else(PoisonError::into_inner) = outside;
        first
    }

    /// Whether this is an address of a namespace that is left to the relay because the detector does not match
    /// it.
    pub(crate) fn is_outside(&self, ip: IpAddr) -> bool {
        self.outside.lock().unwrap_or_else(PoisonError::into_inner).contains(&ip)
    }

    /// Whether there is a detector that is not used, because pods' namespaces cannot be told from others.
    pub(crate) fn ignores_detector(&self) -> bool {
        self.detector.is_some() && matches!(self.get(), Told::Every | Told::All(_))
    }

    /// How many namespaces are known to be pods'; 0 if all are taken for pods'.
    pub(crate) fn known(&self) -> usize {
        if let Told::Some { known, .. } = self.get() { known } else { 0 }
    }

    /// How many are left to the relay because their pods ask for it, or because that is not known.
    pub(crate) fn kept_out(&self) -> usize {
        if let Told::Some { kept_out, .. } = self.get() { kept_out } else { 0 }
    }

    /// Where sockets are translated, in words.
    pub(crate) fn words(&self) -> String {
        self.words_of_whom() + &self.words_of_detector()
    }

    /// A remark for a detector that is not used.
    fn words_of_detector(&self) -> String {
        match &self.detector {
            Some(detector) if self.ignores_detector() => format!(
                "; endpoints see the own address of pods outside of {}, too, as pods cannot be told apart",
                detector.what()
            ),
            _ => String::new(),
        }
    }

    fn words_of_whom(&self) -> String {
        match self.get() {
            Told::Nothing => "in the network namespaces of the node and of pods".to_owned(),
            Told::Node => "in the node's network namespace alone (--socket-host-only)".to_owned(),
            Told::NodeAlone(why) => format!("in the node's network namespace alone, as {why}"),
            Told::Every => "in all network namespaces".to_owned(),
            Told::All(why) => format!("in all network namespaces, as {why}"),
            Told::Some { known, left_out, kept_out, outside } => {
                let others = [(left_out, "have no room"), (kept_out, "are left to the relay")];
                let others = others.into_iter().filter(|(number, _)| *number > 0);
                let others: String = others.map(|(number, why)| format!("; {number} more {why}")).collect();
                let outside = outside.zip(self.detector.as_ref());
                let outside =
                    outside.map(|(ip, detector)| format!(" ({ip} is outside of {})", detector.what()));
                let outside = outside.unwrap_or_default();
                format!("in the network namespaces of the node and of {known} pods{others}{outside}")
            }
            Told::Failed(why) => format!("in network namespaces that were known before, as {why}"),
        }
    }
}

/// The watcher's thread, which runs as long as this is held.
#[derive(Debug)]
pub(super) struct Watcher {
    names: Arc<Names>,
    stop: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Starts the thread, and waits until the present namespaces are known. If they cannot be, sockets in all
    /// namespaces are translated.
    ///
    /// # Errors
    /// The system refuses the thread.
    pub(super) fn start(programs: &Attached, config: &AtSocketConfig) -> io::Result<Self> {
        let names = Arc::new(Names::new(config.detector.clone()));
        // Pods' sockets are not translated anyway.
        let directories: &[_] = if config.host_only { &[] } else { &config.namespaces };
        let namespaces = programs.namespaces(directories);
        let pods = config.pods.clone();
        let (stop, thread) = match namespaces {
            Ok(namespaces) => {
                let (stopped, stop) = io::pipe()?;
                let (begun, has_begun) = sync_channel(1);
                let names = Arc::clone(&names);
                let builder = std::thread::Builder::new().name("socket-names".to_owned());
                let thread =
                    builder.spawn(move || follow(namespaces, &stopped, &begun, &names, pods.as_deref()))?;
                // It ends earlier only by a bug, which the panic message has reported.
                let _ = has_begun.recv();
                (Some(stop), Some(thread))
            }
            Err(why) => {
                tell(
                    &names,
                    match directories {
                        _ if config.host_only => Told::Node,
                        _ if config.pods.is_some() => Told::NodeAlone(why.to_string()),
                        [] => Told::Every,
                        _ => Told::All(why.to_string()),
                    },
                );
                (None, None)
            }
        };
        Ok(Self { names, stop, thread })
    }

    /// What is known.
    pub(super) fn names(&self) -> &Arc<Names> {
        &self.names
    }

    /// Whether only the node's own sockets are translated.
    pub(super) fn is_node_alone(&self) -> bool {
        matches!(self.names.get(), Told::Node | Told::NodeAlone(_))
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stop = None;
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// What becomes of a namespace by its pods' annotations and by its addresses, as far as either counts.
fn fate(pods: Option<&Pods>, detector: Option<&Detector>, addresses: &[IpAddr]) -> Fate {
    let fates = [pods.map(|pods| pods.fate(addresses)), detector.map(|detector| detector.fate(addresses))];
    let is_one = |wanted| fates.contains(&Some(wanted));
    match () {
        () if is_one(Fate::LeftAlone) => Fate::LeftAlone,
        () if is_one(Fate::Unknown) => Fate::Unknown,
        () => Fate::Led,
    }
}

/// Looks whenever there may be something new, until the other end of `stopped` is closed.
fn follow(
    mut namespaces: Namespaces,
    stopped: &PipeReader,
    begun: &SyncSender<()>,
    names: &Names,
    pods: Option<&Pods>,
) {
    let detector = names.detector.as_deref();
    let outside = Mutex::new(HashSet::new());
    let judge = |addresses: &[IpAddr]| {
        if detector.is_some_and(|detector| detector.fate(addresses) == Fate::LeftAlone) {
            let others = addresses.iter().filter(|ip| !is_local(ip));
            outside.lock().unwrap_or_else(PoisonError::into_inner).extend(others);
        }
        fate(pods, detector, addresses)
    };
    let counts = pods.is_some() || detector.is_some();
    // If annotations count, no namespace is a pod's before it has been judged.
    let judge = counts.then_some(Judge { fate: &judge, is_binding: pods.is_some() });
    let news: Vec<BorrowedFd<'_>> =
        pods.map(Pods::news).into_iter().chain(detector.map(Detector::news)).collect();
    loop {
        pods.inspect(|pods| pods.begin_look());
        detector.inspect(|detector| detector.begin_look());
        let looked = namespaces.look(judge);
        let longest = if looked.is_ok() { PERIOD } else { RETRY };
        let outside = std::mem::take(&mut *outside.lock().unwrap_or_else(PoisonError::into_inner));
        // A failed look has not seen all namespaces.
        let outside = if looked.is_ok() { names.set_outside(outside) } else { None };
        tell(
            names,
            match looked {
                Ok(Known::Some { known, left_out, kept_out }) => {
                    Told::Some { known, left_out, kept_out, outside }
                }
                Ok(Known::All) => Told::All(
                    "none has a name where those of pods should have one (--socket-namespaces)".to_owned(),
                ),
                Err(error) => Told::Failed(error.to_string()),
            },
        );
        // Only the first look is waited for.
        let _ = begun.try_send(());
        std::thread::sleep(PAUSE);
        // If waiting fails, it looks again.
        if namespaces.wait(stopped.as_fd(), &news, longest).unwrap_or(false) {
            return;
        }
    }
}

/// Publishes what is known, and logs what is new.
fn tell(names: &Names, told: Told) {
    let before = names.set(told.clone());
    let words = names.words();
    match (before, told) {
        // As configured, or nothing new.
        (_, Told::Nothing | Told::Node | Told::Every)
        | (Told::All(_), Told::All(_))
        | (Told::NodeAlone(_), Told::NodeAlone(_))
        | (Told::Failed(_), Told::Failed(_))
        | (
            Told::Some { left_out: 0, outside: Some(_), .. },
            Told::Some { left_out: 0, outside: Some(_), .. },
        )
        | (Told::Some { left_out: 0, .. }, Told::Some { left_out: 0, outside: None, .. })
        | (Told::Some { left_out: 1.., .. }, Told::Some { left_out: 1.., .. }) => {}
        // A namespace has become known.
        (_, Told::Some { left_out: 0, .. }) => info!("connections are decided at sockets {words}"),
        (_, Told::Some { .. }) => warn!(
            "connections are decided at sockets {words}, and are relayed: name the directory of those of pods alone \
             (--socket-namespaces)"
        ),
        (_, Told::All(_)) => warn!(
            "connections are decided at sockets {}: those of clusters within pods, too, whatever they have at these \
             addresses{}",
            names.words_of_whom(),
            names.words_of_detector()
        ),
        (_, Told::NodeAlone(_)) => warn!(
            "connections are decided at sockets {words}: without that it cannot be told which pods are annotated to be left \
             alone (--socket-pod-annotations)"
        ),
        (_, Told::Failed(_)) => warn!("connections are decided at sockets {words}; this is tried again"),
    }
}

#[cfg(test)]
mod tests {
    use sluice_model::{Change, Namespace, Object, ObjectName, Pod};

    use super::*;

    fn some(known: usize, left_out: usize, kept_out: usize, outside: Option<&str>) -> Told {
        Told::Some { known, left_out, kept_out, outside: outside.map(|ip| ip.parse().unwrap()) }
    }

    fn detector(cidr: &str) -> Arc<Detector> {
        Arc::new(Detector::of_cluster(vec![cidr.parse().unwrap()]).unwrap())
    }

    #[test]
    fn whose_sockets_are_decided_about_is_told_in_words_and_as_a_number() {
        let cases = [
            (Told::Node, "in the node's network namespace alone (--socket-host-only)", 0),
            (Told::Every, "in all network namespaces", 0),
            (Told::All("it takes a right".into()), "all network namespaces, as it takes a right", 0),
            (some(3, 0, 0, None), "the network namespaces of the node and of 3 pods", 3),
            (
                some(8, 2, 1, None),
                "of the node and of 8 pods; 2 more have no room; 1 more are left to the relay",
                8,
            ),
            (Told::NodeAlone("no right".into()), "in the node's network namespace alone, as no right", 0),
            (Told::Failed("no memory".into()), "network namespaces that were known before, as no memory", 0),
        ];
        let names = Names::default();
        for (told, words, known) in cases {
            tell(&names, told);
            assert!(names.words().ends_with(words), "{}", names.words());
            assert_eq!(names.known(), known);
        }
    }

    #[test]
    fn what_the_detector_does_is_told_in_words() {
        let names = Names::new(Some(detector("10.244.0.0/16")));
        let ignored = "; endpoints see the own address of pods outside of --cluster-cidr, too, as pods cannot be told apart";
        let all = format!("in all network namespaces, as it takes a right{ignored}");
        let cases = [
            (Told::Every, format!("in all network namespaces{ignored}")),
            (Told::All("it takes a right".into()), all),
            (some(3, 0, 0, None), "in the network namespaces of the node and of 3 pods".to_owned()),
            (
                some(3, 0, 2, Some("172.16.5.5")),
                "in the network namespaces of the node and of 3 pods; 2 more are left to the relay (172.16.5.5 is outside \
                 of --cluster-cidr)"
                    .to_owned(),
            ),
        ];
        for (told, words) in cases {
            tell(&names, told.clone());
            assert_eq!(names.words(), words);
            assert_eq!(names.ignores_detector(), matches!(told, Told::Every | Told::All(_)));
        }
    }

    #[test]
    fn addresses_that_the_detector_leaves_to_the_relay_are_known_until_the_next_look() {
        let ip = |text: &str| -> IpAddr { text.parse().unwrap() };
        let names = Names::new(Some(detector("10.244.0.0/16")));
        let all = ["10.244.1.5", "172.16.5.6", "172.16.5.5", "fd00::5"].map(ip);
        assert_eq!(names.set_outside(all.into()), Some(ip("172.16.5.5")));
        assert_eq!(all.map(|ip| names.is_outside(ip)), [true; 4], "the whole namespace is left to the relay");
        assert_eq!(names.set_outside(HashSet::new()), None);
        assert_eq!(all.map(|ip| names.is_outside(ip)), [false; 4]);
    }

    #[test]
    fn a_pod_is_decided_about_if_its_annotations_and_its_addresses_agree() {
        use Fate::{Led, LeftAlone, Unknown};
        let pods = Pods::new().unwrap();
        let pod = |name: &str, ip: &str, at_sockets| {
            let addresses = vec![ip.parse().unwrap()];
            let name = ObjectName::new("shop", name);
            pods.note(&Change::Apply(Object::from(Pod { name, addresses, at_sockets })));
        };
        pods.note(&Change::Apply(Object::from(Namespace { name: "shop".into(), at_sockets: None })));
        pod("inside", "10.244.1.1", None);
        pod("kept-out", "10.244.1.2", Some(false));
        pod("outside", "172.16.5.5", Some(true));
        pods.settle();
        let detector = detector("10.244.0.0/16");
        let both = [Some(&pods), None].map(|pods| {
            ["10.244.1.1", "10.244.1.2", "10.244.1.3", "172.16.5.5", "172.16.5.6", "127.0.0.1"]
                .map(|ip| fate(pods, Some(&detector), &[ip.parse().unwrap()]))
        });
        assert_eq!(both[0], [Led, LeftAlone, Unknown, LeftAlone, LeftAlone, Unknown]);
        assert_eq!(both[1], [Led, Led, Led, LeftAlone, LeftAlone, Unknown]);
        assert_eq!(fate(None, None, &[]), Led);
    }
}
