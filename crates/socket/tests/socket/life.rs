//! What outlives an agent, and what does not.

use std::fs;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
use sluice_socket::{Config, Endable, EndedSockets, Error, Programs, Removed, remove, remove_held};
use sluice_socket_maps::{Capacity, Kernel, Living, protocol};
use sluice_sys::bpf::{self, MapSpec};
use sluice_testbed::lab::Cgroup;

use crate::census::Process;
use crate::node::{CAPACITY, Node, balance, desc, endpoint_ip, key, remove_pinned, serve, service};

const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn at(count: u8) -> Vec<SocketAddr> {
    (1..=count).map(|number| (endpoint_ip(false, number), 53).into()).collect()
}

/// Whether a socket that connects there is translated: no packet could get there.
pub(crate) fn is_translated(node: &Node, to: SocketAddr) -> bool {
    node.host.run(|| UdpSocket::bind("0.0.0.0:0").unwrap().connect(to).is_ok())
}

/// Waits until no more programs are attached: the kernel detaches what is not pinned any more when it gets to it.
pub(crate) fn until_attached(node: &Node, count: usize) {
    let deadline = Instant::now() + PATIENCE;
    while node.programs().lines().count() > count {
        assert!(Instant::now() < deadline, "{}", node.programs());
    }
}

#[test]
fn translation_goes_on_without_an_agent_and_the_next_one_finds_all_as_it_was() {
    let node = Node::new();
    let mut kernel = node.attach().unwrap();
    assert!(kernel.is_fresh());
    let to = service(false, 1, 53);
    serve(&mut kernel, 1, to, &at(3));
    assert!(is_translated(&node, to));
    let frontends = |mut all: Vec<_>| {
        all.sort_by_key(|(key, _)| *key);
        all
    };
    let before = frontends(kernel.frontends().unwrap());
    let contents = kernel.contents().unwrap();
    drop(kernel);
    for turn in 2..4 {
        assert!(is_translated(&node, to), "there is no agent");
        let kernel = node.attach().unwrap();
        assert!(!kernel.is_fresh());
        assert_eq!(kernel.cursor(1), turn, "turns go on");
        assert_eq!(frontends(kernel.frontends().unwrap()), before);
        assert_eq!(kernel.contents().unwrap().endpoints, contents.endpoints);
        assert_eq!(kernel.contents().unwrap().slots, contents.slots);
        assert_eq!(
            (kernel.set(1).desc, kernel.slot(11), kernel.endpoint(12).incarnation),
            (desc(10, 3, 0), 11, 1)
        );
        assert_eq!(before[0], (key(to, protocol::TCP), balance(1)));
    }
}

#[test]
fn an_upgrade_under_load_leaves_nothing_untranslated() {
    let node = Node::new();
    let mut kernel = node.attach().unwrap();
    let to = service(false, 1, 53);
    serve(&mut kernel, 1, to, &at(3));
    drop(kernel);
    let programs = node.programs();
    let (done, connects) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            node.host.run(|| {
                while !done.load(Ordering::Relaxed) {
                    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                    socket.connect(to).expect("it is translated");
                    connects.fetch_add(1, Ordering::Relaxed);
                }
            });
        });
        for _ in 0..5 {
            let before = connects.load(Ordering::Relaxed);
            node.attach().unwrap();
            while connects.load(Ordering::Relaxed) == before && !client.is_finished() {
                std::thread::yield_now();
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    let after = node.programs();
    assert_eq!(after.lines().count(), programs.lines().count());
    assert_ne!(after, programs, "they are others");
}

/// What an agent has in a cluster.
fn with_an_agents_rights<T: Send>(node: &Node, work: impl FnOnce() -> T + Send) -> T {
    node.host.run(|| {
        let rights = CapabilitySet::BPF | CapabilitySet::NET_ADMIN | CapabilitySet::PERFMON;
        let none = CapabilitySet::empty();
        set_capabilities(None, CapabilitySets { effective: rights, permitted: rights, inheritable: none })
            .unwrap();
        work()
    })
}

#[test]
fn to_attach_and_to_take_over_takes_three_capabilities_and_to_remove_none() {
    let node = Node::new();
    let to = service(false, 1, 53);
    for is_first in [true, false] {
        let mut kernel = with_an_agents_rights(&node, || Programs::attach(&node.config)).unwrap();
        kernel.census().unwrap().set_endable(Endable { of_node: true, of_pods: false });
        assert_eq!(kernel.is_fresh(), is_first);
        serve(&mut kernel, 1, to, &at(1));
        assert!(is_translated(&node, to));
    }
    let removed = node.host.run(|| {
        set_capabilities(
            None,
            CapabilitySets {
                effective: CapabilitySet::empty(),
                permitted: CapabilitySet::empty(),
                inheritable: CapabilitySet::empty(),
            },
        )
        .unwrap();
        remove(&node.config.pins)
    });
    let removed = removed.unwrap();
    assert!(removed.was_there);
    let left = removed.left.expect("who has no rights does not see sockets");
    assert!(left.starts_with("sockets cannot be listed"), "{left}");
    until_attached(&node, 0);
    assert!(!is_translated(&node, to));
}

#[test]
fn what_an_agent_holds_can_be_taken_away_from_it() {
    let node = Node::new();
    let mut kernel = node.attach().unwrap();
    let links = kernel.links();
    let to = service(false, 1, 53);
    serve(&mut kernel, 1, to, &at(1));
    assert!(is_translated(&node, to));
    let programs = node.programs().lines().count();
    assert_eq!(links.missing().count(), 0);
    assert!(remove_held(&node.config.pins).unwrap().was_there);
    assert_eq!(links.missing().count(), programs);
    until_attached(&node, 0);
    assert!(!is_translated(&node, to));
    // It may go on as if nothing had happened.
    kernel.remove_frontends(&[key(to, protocol::UDP)]).unwrap();
    assert!(!remove_held(&node.config.pins).unwrap().was_there);
    // Another one has them then, beside it.
    let mut next = node.attach().unwrap();
    assert!(next.is_fresh());
    serve(&mut next, 1, to, &at(1));
    assert_eq!((links.missing().count(), next.links().missing().count()), (programs, 0), "those are others");
    links.detach();
    drop((kernel, links));
    assert_eq!(node.programs().lines().count(), programs);
    assert!(is_translated(&node, to));
    assert_eq!(remove(&node.config.pins).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
}

#[test]
fn programs_whose_pins_somebody_hides_are_missed_and_can_be_detached() {
    let node = Node::new();
    let mut kernel = node.attach().unwrap();
    let links = kernel.links();
    let to = service(false, 1, 53);
    serve(&mut kernel, 1, to, &at(1));
    let programs = node.programs().lines().count();
    assert_eq!(links.missing().count(), 0);
    let hiding = Hiding::below(node.config.pins.parent().unwrap());
    assert_eq!(links.missing().count(), programs);
    assert!(!remove_held(&node.config.pins).unwrap().was_there);
    assert!(is_translated(&node, to), "nobody finds them, and they go on");
    // Those of another agent are others.
    let mut next = node.attach().unwrap();
    assert_eq!(links.missing().count(), programs);
    assert_eq!(node.programs().lines().count(), 2 * programs);
    links.detach();
    until_attached(&node, programs);
    assert!(!is_translated(&node, to));
    serve(&mut next, 1, to, &at(1));
    assert!(is_translated(&node, to));
    drop((next, hiding));
    assert_eq!(links.missing().count(), programs, "they are found again, and do nothing");
}

/// A second bpffs over the first.
struct Hiding<'a>(&'a Path);

impl<'a> Hiding<'a> {
    fn below(path: &'a Path) -> Self {
        bpf::mount_bpffs(path).unwrap();
        Self(path)
    }
}

impl Drop for Hiding<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0).status();
    }
}

#[test]
fn a_second_agent_is_refused_and_so_is_removal() {
    let node = Node::new();
    let kernel = node.attach().unwrap();
    let refused = node.attach_at_once().unwrap_err();
    assert!(matches!(&refused, Error::Busy(path) if *path == node.config.pins), "{refused}");
    assert_eq!(remove(&node.config.pins).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
    drop(kernel);
    node.attach().unwrap();
}

#[test]
fn removal_leaves_nothing() {
    let node = Node::new();
    let mut kernel = node.attach().unwrap();
    let to = service(false, 1, 53);
    serve(&mut kernel, 1, to, &at(1));
    drop(kernel);
    assert_ne!(node.programs(), "");
    assert!(remove_pinned(&node.config.pins));
    until_attached(&node, 0);
    assert!(!is_translated(&node, to));
    assert!(!node.config.pins.exists());
    assert!(!remove(&node.config.pins).unwrap().was_there, "there was nothing");
}

#[test]
fn another_capacity_or_a_lost_map_makes_new_maps() {
    let mut node = Node::new();
    let mut kernel = node.attach().unwrap();
    let to = service(false, 1, 53);
    serve(&mut kernel, 1, to, &at(1));
    drop(kernel);
    assert!(!Programs::would_begin_anew(&node.config));
    node.config.capacity = Capacity { sets: 200, slots: 2000, endpoints: 2000, ..CAPACITY };
    assert!(Programs::would_begin_anew(&node.config) && is_translated(&node, to), "it has not begun");
    let mut kernel = node.attach().unwrap();
    assert!(kernel.is_fresh() && !Programs::would_begin_anew(&node.config));
    assert!(!is_translated(&node, to), "they are empty");
    serve(&mut kernel, 150, to, &at(1));
    assert!(is_translated(&node, to));
    drop(kernel);
    fs::remove_file(node.pins().join("slots")).unwrap();
    assert!(Programs::would_begin_anew(&node.config));
    assert!(node.attach().unwrap().is_fresh());
    assert!(!node.attach().unwrap().is_fresh());
}

#[test]
fn a_link_that_is_lost_is_made_anew_and_the_maps_stay() {
    let node = Node::new();
    let mut kernel = node.attach().unwrap();
    let to = service(false, 1, 53);
    serve(&mut kernel, 1, to, &at(1));
    drop(kernel);
    fs::remove_file(node.pins().join("link_sluice_connect4")).unwrap();
    until_attached(&node, 8);
    assert!(!is_translated(&node, to));
    let kernel = node.attach().unwrap();
    assert!(!kernel.is_fresh());
    assert!(is_translated(&node, to));
    assert_eq!((node.programs().lines().count(), kernel.links().missing().count()), (9, 0));
}

#[test]
fn what_has_another_layout_goes_on_until_everything_is_in_the_new_maps() {
    let node = Node::new();
    let mut kernel = node.attach().unwrap();
    let to = service(false, 1, 53);
    serve(&mut kernel, 1, to, &at(1));
    drop(kernel);
    let other = node.config.pins.join("v1");
    fs::rename(node.pins(), &other).unwrap();

    let mut kernel = node.attach().unwrap();
    assert!(kernel.is_fresh());
    assert!(is_translated(&node, to), "by what is in the other maps");
    assert_eq!(node.programs().lines().count(), 18);
    serve(&mut kernel, 1, to, &at(1));
    assert!(is_translated(&node, to));
    assert_eq!(kernel.cursor(1), 0);
    kernel.take_over().unwrap();
    assert!(is_translated(&node, to) && !other.exists());
    until_attached(&node, 9);
    let before = kernel.cursor(1);
    assert!(is_translated(&node, to));
    assert_eq!(kernel.cursor(1), before + 1);
    kernel.take_over().unwrap();
}

/// A socket of a pod that was connected to a Service whose endpoint goes in some way: who uses it learns so.
struct Connected(UdpSocket);

impl Connected {
    fn to(node: &Node, to: SocketAddr) -> Self {
        let socket = node.pod.run(|| UdpSocket::bind("0.0.0.0:0").unwrap());
        node.pod.run(|| socket.connect(to)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(socket)
    }

    fn has_ended(&self) -> bool {
        self.0.peer_addr().is_err()
            && self.0.recv(&mut [0; 8]).unwrap_err().kind() == io::ErrorKind::ConnectionAborted
    }
}

#[test]
fn new_maps_know_the_sockets_that_were_connected_by_the_former_ones_and_no_numbers_of_these() {
    let mut node = Node::new();
    let _process = Process::of(&node.pod);
    let mut kernel = node.attach().unwrap();
    let to = service(false, 1, 53);
    let first = kernel.endpoint(999).incarnation;
    serve(&mut kernel, 1, to, &at(1));
    let socket = Connected::to(&node, to);
    drop(kernel);
    node.config.capacity = Capacity { sets: 200, ..CAPACITY };
    let kernel = node.attach().unwrap();
    assert!(kernel.is_fresh());
    assert!(kernel.endpoint(999).incarnation > first);
    assert!(!socket.has_ended(), "its endpoint may go on");
    // That is to say, the endpoint is another one.
    let ended = node.host.run(|| kernel.census().unwrap().end_datagram_sockets(|_| true)).unwrap();
    assert_eq!(ended, EndedSockets { ended: 1, ..EndedSockets::default() });
    assert!(socket.has_ended());
}

#[test]
fn connected_datagram_sockets_that_nobody_would_look_after_any_more_are_ended() {
    let node = Node::new();
    let process = Process::of(&node.pod);
    let to = service(false, 1, 53);
    let serving = || {
        let mut kernel = node.attach().unwrap();
        serve(&mut kernel, 1, to, &at(1));
        kernel
    };
    // With an agent, and without.
    let kernel = serving();
    let socket = Connected::to(&node, to);
    assert_eq!(remove_held(&node.config.pins).unwrap(), Removed { was_there: true, left: None });
    assert!(socket.has_ended());
    drop(kernel);
    drop(serving());
    let socket = Connected::to(&node, to);
    assert!(remove_pinned(&node.config.pins));
    assert!(socket.has_ended());
    // By what has another layout.
    drop(serving());
    let socket = Connected::to(&node, to);
    fs::rename(node.pins(), node.config.pins.join("v1")).unwrap();
    let mut kernel = serving();
    let mine = Connected::to(&node, to);
    assert!(!socket.has_ended());
    kernel.take_over().unwrap();
    assert!(socket.has_ended());
    assert!(mine.has_ended(), "what was attached first has connected it");
    let mine = Connected::to(&node, to);
    assert!(!mine.has_ended());
    // A pod that cannot be found.
    drop(process);
    let left = remove_held(&node.config.pins).unwrap().left.unwrap();
    assert!(left.starts_with("1 are in network namespaces"), "{left}");
}

#[test]
fn what_others_have_pinned_there_is_named() {
    let node = Node::new();
    drop(node.attach().unwrap());
    let spec =
        MapSpec { name: "sets", kind: 2, key_size: 4, value_size: 48, max_entries: 100, flags: 0, btf: None };
    let other = bpf::create_map(&spec).unwrap();
    for (name, replaced) in [("sets", true), ("link_sluice_connect4", true), ("link_sluice_connect4", false)]
    {
        let path = node.pins().join(name);
        fs::remove_file(&path).unwrap();
        if replaced {
            bpf::pin(other.as_fd(), &path).unwrap();
        } else {
            // The kernel takes a program of connect4 for a link of connect6.
            fs::rename(node.pins().join("link_sluice_connect6"), &path).unwrap();
        }
        let refused = node.attach().unwrap_err();
        assert!(matches!(&refused, Error::Foreign { path: named, .. } if *named == path), "{refused}");
        remove(&node.config.pins).unwrap();
        drop(node.attach().unwrap());
    }
}

#[test]
fn a_cgroup_that_is_gone_is_noticed() {
    let mut node = Node::new();
    // The thread is in it until it is dropped; then it is gone.
    let gone = Cgroup::enter().unwrap();
    let here = std::mem::replace(&mut node.config.cgroup, gone.path().into());
    let mut kernel = node.attach().unwrap();
    let to = service(false, 1, 53);
    serve(&mut kernel, 1, to, &at(1));
    assert!(is_translated(&node, to));
    let links = kernel.links();
    assert_eq!(links.missing().count(), 0);
    drop(gone);
    let deadline = Instant::now() + PATIENCE;
    while links.missing().count() < 9 {
        assert!(Instant::now() < deadline, "{:?}", links.missing().collect::<Vec<_>>());
    }
    drop(kernel);
    node.config.cgroup = here;
    let refused = Programs::attach(&Config { cgroup: "/proc".into(), ..node.config.clone() }).unwrap_err();
    assert!(matches!(refused, Error::NoCgroup { .. }), "{refused}");
    drop(node.attach().unwrap());
    assert_eq!(node.programs().lines().count(), 9);
}

#[test]
fn pins_outside_of_a_bpffs_are_refused() {
    let mut node = Node::new();
    let elsewhere = tempfile::tempdir().unwrap();
    node.config.pins = elsewhere.path().join("sluice");
    let refused = node.attach().unwrap_err();
    assert!(matches!(refused, Error::NoBpffs { .. }), "{refused}");
    assert!(remove(elsewhere.path()).is_err());
    assert!(elsewhere.path().exists());
}

#[test]
fn pins_are_found_wherever_they_are() {
    let node = Node::new();
    let is_found = || sluice_socket::pinned().unwrap().contains(&node.config.pins);
    assert!(!is_found());
    drop(node.attach().unwrap());
    assert!(is_found());
    assert!(remove_pinned(&node.config.pins));
    assert!(!is_found());
}
