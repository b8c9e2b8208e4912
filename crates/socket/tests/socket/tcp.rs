//! TCP: who is connected to whom.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use sluice_socket_maps::{FrontendValue, Kernel, protocol, set_flags, verdict};
use sluice_testbed::lab::Namespace;
use socket2::{Domain, Socket, Type};

use crate::node::{Node, balance, both, endpoint_ip, fill, key, mapped, serve, service};

const PATIENCE: Duration = Duration::from_secs(20);

/// Listeners of a namespace, and where they are.
fn listen(namespace: &Namespace, v6: bool, count: u8) -> (Vec<TcpListener>, Vec<SocketAddr>) {
    let listeners: Vec<TcpListener> = namespace
        .run(|| (1..=count).map(|number| TcpListener::bind((endpoint_ip(v6, number), 0)).unwrap()).collect());
    let at = listeners.iter().map(|listener| listener.local_addr().unwrap()).collect();
    (listeners, at)
}

fn connect(namespace: &Namespace, to: SocketAddr) -> io::Result<TcpStream> {
    namespace.run(|| TcpStream::connect_timeout(&to, PATIENCE))
}

#[test]
fn a_connection_goes_to_an_endpoint_and_its_peer_is_the_service() {
    let node = Node::new();
    let mut kernel = node.attach().unwrap();
    for (set, v6) in [(1, false), (2, true)] {
        let (listeners, at) = listen(&node.host, v6, 1);
        let to = service(v6, 1, 80);
        assert!(connect(&node.host, to).is_err(), "nothing is there yet");
        serve(&mut kernel, set, to, &at);
        for to in [to, mapped(to)] {
            let client = connect(&node.host, to).unwrap();
            let (server, from) = listeners[0].accept().unwrap();
            assert_eq!(client.peer_addr().unwrap(), to);
            assert_eq!(mapped(client.local_addr().unwrap()), mapped(from));
            drop(server);
        }
    }
}

#[test]
fn endpoints_take_turns() {
    let node = Node::new();
    let mut kernel = node.attach().unwrap();
    let (listeners, at) = listen(&node.pod, false, 3);
    let to = service(false, 1, 80);
    serve(&mut kernel, 1, to, &at);
    for turn in 0..12 {
        let client = connect(&node.pod, to).unwrap();
        let (_, from) = listeners[turn % 3].accept().unwrap();
        assert_eq!(client.local_addr().unwrap(), from);
    }
    assert_eq!(kernel.cursor(1), 12);
    assert_eq!(kernel.account(11).connections, 4);
}

/// What a process of the test below does.
#[test]
#[ignore = "the process of another test"]
fn connects() {
    let to: SocketAddr =
        std::env::var("SLUICE_TEST_TO").expect("another test starts this one").parse().unwrap();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| (0..175).for_each(|_| drop(TcpStream::connect_timeout(&to, PATIENCE).unwrap())));
        }
    });
}

#[test]
fn processes_on_all_cpus_share_the_turns() {
    let node = Node::new();
    let mut kernel = node.attach().unwrap();
    let (listeners, at) = listen(&node.host, false, 7);
    let to = service(false, 1, 80);
    serve(&mut kernel, 1, to, &at);
    let servers: Vec<_> = listeners
        .into_iter()
        .map(|listener| {
            std::thread::spawn(move || (0..100).map(|_| drop(listener.accept().unwrap())).count())
        })
        .collect();
    let mut processes = node.host.run(|| {
        [(); 2].map(|()| {
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "tcp::connects", "--ignored"])
                .env("SLUICE_TEST_TO", to.to_string())
                .stdout(Stdio::null())
                .spawn()
                .unwrap()
        })
    });
    for process in &mut processes {
        assert!(process.wait().unwrap().success());
    }
    // A server that was connected to less often would wait on, and this with it.
    assert_eq!((0..7).map(|id| kernel.account(10 + id).connections).collect::<Vec<_>>(), [100; 7]);
    for server in servers {
        assert_eq!(server.join().unwrap(), 100);
    }
}

#[test]
fn endpoints_may_be_chosen_by_chance() {
    const CONNECTS: u32 = 100;
    let node = Node::new();
    let mut kernel = node.attach().unwrap();
    let (_listeners, at) = listen(&node.host, false, 2);
    let to = service(false, 1, 80);
    serve(&mut kernel, 1, to, &at);
    kernel.write_flags(1, set_flags::RANDOM);
    let before = kernel.set(1);
    for _ in 0..CONNECTS {
        connect(&node.host, to).unwrap();
    }
    assert_eq!(kernel.set(1), before, "no turn was taken");
    // Six standard deviations of five connections each.
    let counts = [10, 11].map(|id| kernel.account(id).connections);
    let is_likely = counts.iter().all(|count| (20..=80).contains(count));
    assert!(counts[0] + counts[1] == CONNECTS && is_likely, "{counts:?}");
    kernel.write_flags(1, 0);
    connect(&node.host, to).unwrap();
    assert_eq!(kernel.set(1).cursor, before.cursor + 1);
}

#[test]
fn the_nodes_sockets_and_those_of_pods_may_have_different_endpoints() {
    let node = Node::new();
    let mut kernel = node.attach().unwrap();
    let (at_host, host) = listen(&node.host, false, 1);
    let (at_pod, pod) = listen(&node.pod, false, 1);
    let to = service(false, 1, 80);
    fill(&mut kernel, 1, &host);
    fill(&mut kernel, 2, &pod);
    let value = FrontendValue { node: balance(1).node, pod: balance(2).pod, service: 1 };
    kernel.put_frontends(&[(key(to, protocol::TCP), value)]).unwrap();
    for (namespace, listener) in [(&node.host, &at_host[0]), (&node.pod, &at_pod[0])] {
        let client = connect(namespace, to).unwrap();
        assert_eq!(listener.accept().unwrap().1, client.local_addr().unwrap());
    }
}

#[test]
fn the_relays_sockets_and_those_bound_to_loopback_are_left_alone() {
    let node = Node::new();
    let mut kernel = node.attach().unwrap();
    let (_listeners, at) = listen(&node.host, false, 1);
    let to = service(false, 1, 80);
    serve(&mut kernel, 1, to, &at);
    kernel.set_relay_mark(0x30);
    let with = |mark: u32, from: &str| {
        node.host.run(|| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.set_mark(mark).unwrap();
            socket.bind(&from.parse::<SocketAddr>().unwrap().into()).unwrap();
            socket.connect(&to.into())
        })
    };
    with(0x20, "0.0.0.0:0").unwrap();
    assert!(with(0x30, "0.0.0.0:0").is_err());
    assert!(with(0x1_0030, "0.0.0.0:0").is_err(), "the upper half is left to others");
    with(0xf0, "0.0.0.0:0").expect("it is somebody else's mark");
    assert!(with(0, "127.0.0.1:0").is_err());
}

#[test]
fn a_socket_that_connects_elsewhere_is_no_services_any_more() {
    let node = Node::new();
    let mut kernel = node.attach().unwrap();
    let (mut listeners, at) = listen(&node.host, false, 1);
    let to = service(false, 1, 80);
    serve(&mut kernel, 1, to, &at);
    listeners.clear();
    node.host.run(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        assert_eq!(socket.connect(&to.into()).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        let _listener = TcpListener::bind(at[0]).unwrap();
        socket.connect(&at[0].into()).unwrap();
        assert_eq!(socket.peer_addr().unwrap().as_socket(), Some(at[0]));
    });
}

#[test]
fn a_refusal_is_econnrefused_and_nothing_else_is_touched() {
    let node = Node::new();
    let mut kernel = node.attach().unwrap();
    for v6 in [false, true] {
        let (refused, relayed) = (service(v6, 1, 80), service(v6, 2, 80));
        kernel
            .put_frontends(&[
                (key(refused, protocol::TCP), both(verdict::REFUSE)),
                (key(relayed, protocol::TCP), both(verdict::RELAY)),
            ])
            .unwrap();
        for to in [refused, mapped(refused)] {
            assert_eq!(connect(&node.pod, to).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        }
        let at_once = node.pod.run(|| {
            let socket = Socket::new(Domain::for_address(refused), Type::STREAM, None).unwrap();
            socket.set_nonblocking(true).unwrap();
            socket.connect(&refused.into()).unwrap_err()
        });
        assert_eq!(at_once.kind(), io::ErrorKind::ConnectionRefused);
        let unreachable = connect(&node.pod, service(v6, 3, 80)).unwrap_err().kind();
        assert_eq!(unreachable, io::ErrorKind::NetworkUnreachable, "there is no frontend");
        assert_eq!(connect(&node.pod, relayed).unwrap_err().kind(), unreachable);
        kernel.remove_frontends(&[key(refused, protocol::TCP)]).unwrap();
        assert_eq!(connect(&node.pod, refused).unwrap_err().kind(), unreachable);
    }
}
