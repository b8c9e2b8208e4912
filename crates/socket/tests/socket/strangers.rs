//! Whose sockets are decided about: pods' are known by the names of their network namespaces, and strangers' left alone.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::Instant;

use sluice_socket::{Attached, Fate, Judge, Known, Namespaces};
use sluice_socket_maps::{Kernel, meta_flags};
use sluice_testbed::lab::{Names, Namespace, PATIENCE};

use crate::node::{Node, endpoint_ip, serve, service};

/// A socket that connects, and one that sends, are led to the endpoint: no packet could get to the Service.
fn is_translated(namespace: &Namespace, to: SocketAddr) -> bool {
    namespace.run(|| {
        let bind = || UdpSocket::bind("0.0.0.0:0").unwrap();
        let both = [bind().connect(to).is_ok(), bind().send_to(b"who", to).is_ok()];
        assert_eq!(both[0], both[1]);
        both[0]
    })
}

/// A namespace with its loopback interface.
fn namespace(name: &str) -> Namespace {
    let namespace = Namespace::new(name).unwrap();
    namespace.ip("link set lo up").unwrap();
    namespace
}

fn namespaces(node: &Node, kernel: &Attached, directories: &[PathBuf]) -> io::Result<Namespaces> {
    node.host.run(|| kernel.namespaces(directories))
}

fn look(node: &Node, namespaces: &mut Namespaces) -> Known {
    node.host.run(|| namespaces.look(None)).unwrap()
}

fn some(known: usize) -> Known {
    Known::Some { known, left_out: 0, kept_out: 0 }
}

/// Programs at the node's sockets, and a Service that they translate to an endpoint.
fn served(node: &Node) -> (Attached, SocketAddr) {
    let mut kernel = node.attach().unwrap();
    let to = service(false, 1, 53);
    serve(&mut kernel, 1, to, &[(endpoint_ip(false, 1), 53).into()]);
    (kernel, to)
}

#[test]
fn sockets_where_no_name_is_are_left_alone_while_an_agent_lives() {
    let node = Node::new();
    let names = Names::new().unwrap();
    let directories = [names.path().to_owned(), "/nowhere/at/all".into()];
    let (mut kernel, to) = served(&node);
    let stranger = namespace("stranger");
    let translated = || [&node.host, &node.pod, &stranger].map(|client| is_translated(client, to));
    let mut known = namespaces(&node, &kernel, &directories).unwrap();
    kernel.beat();
    assert_eq!(translated(), [true; 3], "it has not looked");

    names.add(&node.host).unwrap();
    names.add(&node.pod).unwrap();
    assert_eq!(look(&node, &mut known), some(1), "the node is no pod");
    kernel.beat();
    assert_eq!(translated(), [true, true, false]);
    kernel.heartbeat(0);
    assert_eq!(translated(), [true; 3], "there is no relay");
    names.remove(&node.pod).unwrap();
    names.add(&stranger).unwrap();
    assert_eq!(look(&node, &mut known), some(1));
    kernel.beat();
    assert_eq!(translated(), [true, false, true]);

    // The next agent finds what this one has left, as its pins are where they were.
    drop((kernel, known));
    let mut kernel = node.attach().unwrap();
    kernel.beat();
    assert_eq!(translated(), [true, false, true]);
    let flags = |kernel: &Attached| kernel.meta().flags & meta_flags::KNOWN_ONLY;
    let mut known = namespaces(&node, &kernel, &directories).unwrap();
    assert_eq!((look(&node, &mut known), flags(&kernel)), (some(1), meta_flags::KNOWN_ONLY));
    kernel.beat();
    assert_eq!(translated(), [true, false, true]);
    // One that cannot tell pods from others takes all for pods.
    let mut known = namespaces(&node, &kernel, &directories[1..]).unwrap();
    assert_eq!((look(&node, &mut known), flags(&kernel)), (Known::All, 0));
    assert!(
        look(&node, &mut namespaces(&node, &kernel, &directories).unwrap()) == some(1) && flags(&kernel) != 0
    );
    namespaces(&node, &kernel, &[]).unwrap_err();
    assert_eq!(flags(&kernel), 0);
    kernel.beat();
    assert_eq!(translated(), [true; 3]);
}

#[test]
fn a_pod_is_known_by_itself_whatever_its_name_and_inode_meant_before() {
    let node = Node::new();
    let names = Names::new().unwrap();
    let (mut kernel, to) = served(&node);
    let mut known = namespaces(&node, &kernel, &[names.path().into()]).unwrap();
    for _ in 0..10 {
        let pod = namespace("pod");
        names.add(&pod).unwrap();
        assert_eq!(look(&node, &mut known), some(1));
        kernel.beat();
        assert!(is_translated(&pod, to));
        names.remove(&pod).unwrap();
    }
    // As where a container runtime has the names elsewhere.
    assert_eq!(look(&node, &mut known), Known::All);
}

#[test]
fn a_pod_is_judged_by_its_addresses_once_it_has_some_and_keeps_what_it_was_while_nobody_knows() {
    let node = Node::new();
    let names = Names::new().unwrap();
    let (mut kernel, to) = served(&node);
    let mut known = namespaces(&node, &kernel, &[names.path().into()]).unwrap();
    let [left, led] = ["left", "led"].map(namespace);
    [&left, &led].into_iter().for_each(|pod| names.add(pod).unwrap());
    let address = |ip: &str| -> IpAddr { ip.parse().unwrap() };
    let judge = |addresses: &[IpAddr]| match addresses {
        all if all.contains(&address("10.1.0.1")) => Fate::LeftAlone,
        all if all.contains(&address("fd00::1:2")) => Fate::Led,
        _ => Fate::Unknown,
    };
    let translated = || [&left, &led].map(|pod| is_translated(pod, to));
    type Says<'a> = &'a (dyn Fn(&[IpAddr]) -> Fate + Sync);
    let look = |kernel: &mut Attached, known: &mut Namespaces, fate: Option<Says<'_>>| {
        let judge = fate.map(|fate| Judge { fate, is_binding: true });
        let Known::Some { known, left_out: 0, kept_out } = node.host.run(|| known.look(judge)).unwrap()
        else {
            panic!("others")
        };
        kernel.beat();
        (known, kept_out, translated())
    };
    assert_eq!(
        look(&mut kernel, &mut known, Some(&judge)),
        (0, 2, [false; 2]),
        "they have no addresses so far"
    );
    left.ip("addr add 10.1.0.1/32 dev lo").unwrap();
    led.ip("addr add fd00::1:2/128 dev lo nodad").unwrap();
    assert_eq!(look(&mut kernel, &mut known, Some(&judge)), (1, 1, [false, true]));
    // Without an agent, one that is to be left alone is.
    kernel.heartbeat(0);
    assert_eq!(translated(), [false, true]);
    // They are deleted, and end: nobody knows them any more. So it is for the next agent.
    let nobody = |_: &[IpAddr]| Fate::Unknown;
    assert_eq!(look(&mut kernel, &mut known, Some(&nobody)), (1, 1, [false, true]));
    let mut next = namespaces(&node, &kernel, &[names.path().into()]).unwrap();
    assert_eq!(look(&mut kernel, &mut next, Some(&nobody)), (1, 1, [false, true]));
    let other = |addresses: &[IpAddr]| match judge(addresses) {
        Fate::Led => Fate::LeftAlone,
        Fate::LeftAlone => Fate::Led,
        Fate::Unknown => Fate::Unknown,
    };
    assert_eq!(look(&mut kernel, &mut next, Some(&other)), (1, 1, [true, false]));
    // Nobody asks what they want.
    assert_eq!(look(&mut kernel, &mut next, None), (2, 0, [true; 2]));
    [&left, &led].into_iter().for_each(|pod| names.remove(pod).unwrap());
    assert_eq!(
        look(&mut kernel, &mut next, Some(&judge)),
        (0, 0, [false; 2]),
        "there are no pods, which is not to say that all are"
    );
}

#[test]
fn a_pod_that_has_been_judged_is_judged_again_as_its_addresses_may_change() {
    let node = Node::new();
    let names = Names::new().unwrap();
    let (mut kernel, to) = served(&node);
    let mut known = namespaces(&node, &kernel, &[names.path().into()]).unwrap();
    let outside: IpAddr = "172.16.5.5".parse().unwrap();
    let fate = |addresses: &[IpAddr]| if addresses.contains(&outside) { Fate::LeftAlone } else { Fate::Led };
    let judge = Judge { fate: &fate, is_binding: false };
    let look = |known: &mut Namespaces| node.host.run(|| known.look(Some(judge))).unwrap();
    assert_eq!(look(&mut known), Known::All, "nothing has a name, and nobody must be heard");
    let pod = namespace("pod");
    // The node itself is not judged.
    node.host.ip("addr add 172.16.5.5/32 dev lo").unwrap();
    [&node.host, &pod].into_iter().for_each(|one| names.add(one).unwrap());
    assert_eq!(look(&mut known), some(1));
    let (stopped, _stop) = io::pipe().unwrap();
    for (change, wanted, is_led) in
        [("add", Known::Some { known: 0, left_out: 0, kept_out: 1 }, false), ("del", some(1), true)]
    {
        pod.ip(&format!("addr {change} 172.16.5.5/32 dev lo")).unwrap();
        let deadline = Instant::now() + PATIENCE;
        while look(&mut known) != wanted {
            assert!(Instant::now() < deadline, "it is not judged again: {change}");
            assert!(!known.wait(stopped.as_fd(), &[], PATIENCE).unwrap());
        }
        kernel.beat();
        assert_eq!(is_translated(&pod, to), is_led);
    }
}

#[test]
fn a_name_that_comes_or_goes_ends_the_waiting() {
    let node = Node::new();
    let names = Names::new().unwrap();
    let kernel = node.attach().unwrap();
    let mut known = namespaces(&node, &kernel, &[names.path().into()]).unwrap();
    assert_eq!(look(&node, &mut known), Known::All);
    let (stopped, stop) = io::pipe().unwrap();
    let mut until = |wanted| {
        let deadline = Instant::now() + PATIENCE;
        while look(&node, &mut known) != wanted {
            assert!(!known.wait(stopped.as_fd(), &[], PATIENCE).unwrap());
            assert!(Instant::now() < deadline, "nothing has ended it");
        }
    };
    let link = names.path().join("link");
    std::thread::scope(|scope| {
        let others = scope.spawn(|| names.add(&node.pod).unwrap());
        until(some(1));
        others.join().unwrap();
        let others = scope.spawn(|| names.remove(&node.pod).unwrap());
        until(Known::All);
        others.join().unwrap();
        // A name need not be a mount.
        let others = scope.spawn(|| symlink(node.pod.path(), &link).unwrap());
        until(some(1));
        others.join().unwrap();
        let others = scope.spawn(|| fs::remove_file(&link).unwrap());
        until(Known::All);
        others.join().unwrap();
    });
    drop(stop);
    assert!(known.wait(stopped.as_fd(), &[], PATIENCE).unwrap());
}
