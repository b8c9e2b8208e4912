//! Which sockets are translated, and those that are ended.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use sluice_socket::{Attached, Census, Endable, EndedSockets, Translated};
use sluice_socket_maps::protocol;
use sluice_sys::bpf::netns_cookie;
use sluice_testbed::lab::{Names, Namespace};
use socket2::SockRef;

use crate::node::{Node, endpoint_ip, mapped, serve, service};

/// A process of a pod: by those its namespace is found.
pub(crate) struct Process(Child);

impl Process {
    pub(crate) fn of(namespace: &Namespace) -> Self {
        let cat = || Command::new("cat").stdin(Stdio::piped()).spawn();
        Self(namespace.run(cat).unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}

#[test]
fn sockets_of_all_namespaces_are_listed() {
    let node = Node::new();
    let mut kernel = node.attach().unwrap();
    let census = kernel.census().unwrap();
    assert_eq!(census.list().unwrap(), []);
    for (set, v6) in [(1, false), (2, true)] {
        let listener = node.pod.run(|| TcpListener::bind((endpoint_ip(v6, 1), 0)).unwrap());
        let at = listener.local_addr().unwrap();
        let to = service(v6, 1, 80);
        serve(&mut kernel, set, to, &[at]);
        for (number, to_here) in [(1, to), (2, mapped(to))] {
            let tcp = node.pod.run(|| TcpStream::connect(to_here).unwrap());
            let any: SocketAddr = if to_here.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().unwrap();
            let udp = node.host.run(|| UdpSocket::bind(any).unwrap());
            node.host.run(|| udp.connect(to_here)).unwrap();
            let mut listed = census.list().unwrap();
            // Connections of TCP end by and by.
            let mine = [tcp.local_addr().unwrap().port(), udp.local_addr().unwrap().port()];
            listed.retain(|socket| socket.protocol == protocol::UDP || mine.contains(&socket.local.port()));
            listed.sort_by_key(|socket| socket.protocol);
            let expected = [
                (protocol::TCP, netns_cookie(tcp.as_fd()).unwrap(), tcp.local_addr().unwrap()),
                (protocol::UDP, netns_cookie(udp.as_fd()).unwrap(), udp.local_addr().unwrap()),
            ];
            assert_eq!(listed.len(), 2, "of socket {number}");
            for (listed, (protocol, namespace, local)) in listed.into_iter().zip(expected) {
                let Translated { cookie, since_ns, .. } = listed;
                let expected = Translated {
                    namespace,
                    cookie,
                    protocol,
                    is_v6: to_here.is_ipv6(),
                    local: SocketAddr::new(local.ip().to_canonical(), local.port()),
                    device: 0,
                    service: to,
                    endpoint: at,
                    id: set * 10,
                    incarnation: 1,
                    since_ns,
                };
                assert_eq!(listed, expected);
            }
        }
    }
}

#[test]
fn datagram_sockets_that_nobody_could_end_are_left_alone_when_they_connect() {
    let node = Node::new();
    let mut kernel = node.attach().unwrap();
    let census = kernel.census().unwrap();
    let endable = node.host.run(Endable::probe);
    assert_eq!(endable, Endable { of_node: true, of_pods: true }, "this test runs as root");
    for (set, v6) in [(1, false), (2, true)] {
        let at: SocketAddr = (endpoint_ip(v6, 1), 7).into();
        let to = service(v6, 1, 80);
        serve(&mut kernel, set, to, &[at]);
        for (of_node, of_pods) in [(true, true), (true, false), (false, false)] {
            census.set_endable(Endable { of_node, of_pods });
            for (namespace, is_led) in [(&node.host, of_node), (&node.pod, of_pods)] {
                let any = if v6 { "[::]:0" } else { "0.0.0.0:0" };
                let socket = namespace.run(|| UdpSocket::bind(any).unwrap());
                // What is left alone may have no route.
                let _ = namespace.run(|| socket.connect(to));
                // A process that another test is just starting may have those of before for a moment.
                let port = socket.local_addr().unwrap().port();
                let mut listed = census.list().unwrap().into_iter();
                let is_here = listed.any(|socket| (socket.endpoint, socket.local.port()) == (at, port));
                assert_eq!(is_here, is_led, "{to} {of_node} {of_pods}");
                // Sockets that are not connected are decided about in any case.
                let unconnected = namespace.run(|| UdpSocket::bind(any).unwrap());
                namespace.run(|| unconnected.send_to(b"a", to)).unwrap();
            }
        }
    }
}

#[test]
fn connected_datagram_sockets_of_an_endpoint_that_went_are_ended_and_no_others() {
    let node = Node::new();
    let mut kernel = node.attach().unwrap();
    let _processes = [&node.host, &node.pod].map(Process::of);
    let census = kernel.census().unwrap();
    for (set, v6) in [(1, false), (2, true)] {
        let listeners = [1, 2].map(|number| {
            node.pod.run(|| {
                let tcp = TcpListener::bind((endpoint_ip(v6, number), 0)).unwrap();
                let udp = UdpSocket::bind(tcp.local_addr().unwrap()).unwrap();
                (tcp, udp)
            })
        });
        let at = listeners.each_ref().map(|(tcp, _)| tcp.local_addr().unwrap());
        let to = service(v6, 1, 80);
        serve(&mut kernel, set, to, &at);
        let mut connections = [(); 2].map(|()| node.pod.run(|| TcpStream::connect(to).unwrap()));
        let udp = |namespace: &Namespace, to: SocketAddr| {
            namespace.run(|| {
                let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                let socket = UdpSocket::bind(any).unwrap();
                socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                socket.connect(to).unwrap();
                socket
            })
        };
        // By turns: one of each pair is the first endpoint's.
        let pairs = [(&node.host, to), (&node.pod, to), (&node.pod, mapped(to))]
            .map(|(namespace, to)| [(); 2].map(|()| udp(namespace, to)));

        assert_eq!(census.end_datagram_sockets(|_| false).unwrap(), EndedSockets::default());
        let ended = census.end_datagram_sockets(|socket| socket.endpoint == at[0]).unwrap();
        assert_eq!(ended, EndedSockets { ended: 3, ..EndedSockets::default() });
        for [ended, other] in &pairs {
            // One call has the error. It is without a peer from then on.
            assert_eq!(ended.recv(&mut [0; 8]).unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
            assert_eq!(ended.peer_addr().unwrap_err().kind(), io::ErrorKind::NotConnected);
            assert!(other.peer_addr().is_ok());
        }
        for ((listener, _), connection) in listeners.iter().zip(&mut connections) {
            let (mut server, _) = listener.accept().unwrap();
            connection.write_all(b"on").unwrap();
            server.read_exact(&mut [0; 2]).unwrap();
        }
    }
}

#[test]
fn a_namespace_without_a_process_is_found_by_its_name_wherever_that_is() {
    let (node, kernel, census, to) = serving_one();
    let socket = node.pod.run(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    node.pod.run(|| socket.connect(to)).unwrap();
    let ended = census.end_datagram_sockets(|_| true).unwrap();
    assert_eq!(ended, EndedSockets { unreached: 1, ..EndedSockets::default() });
    let names = Names::new().unwrap();
    names.add(&node.pod).unwrap();
    let census = kernel.census().unwrap().with_names_in(&[names.path().into()]);
    let ended = census.end_datagram_sockets(|_| true).unwrap();
    assert_eq!(ended, EndedSockets { ended: 1, ..EndedSockets::default() });
    assert_eq!(socket.peer_addr().unwrap_err().kind(), io::ErrorKind::NotConnected);
}

/// As a pod may use up all that it may choose from.
#[test]
fn a_namespace_without_a_free_port_is_found_all_the_same() {
    let (node, _kernel, census, to) = serving_one();
    let _process = Process::of(&node.pod);
    let range = "/proc/sys/net/ipv4/ip_local_port_range";
    let _taken = node.pod.run(|| {
        std::fs::write(range, "40000 40001").unwrap();
        [40_000, 40_001].map(|port| UdpSocket::bind(("::", port)).unwrap())
    });
    assert!(node.pod.run(|| UdpSocket::bind("0.0.0.0:0")).is_err());
    let socket = node.pod.run(|| UdpSocket::bind("0.0.0.0:30000").unwrap());
    node.pod.run(|| socket.connect(to)).unwrap();
    let ended = census.end_datagram_sockets(|_| true).unwrap();
    assert_eq!(ended, EndedSockets { ended: 1, ..EndedSockets::default() });
}

/// Binds a socket to an interface, as any process may.
fn bind_to_device(socket: &UdpSocket, name: &str) {
    SockRef::from(socket).bind_device(Some(name.as_bytes())).unwrap();
}

#[test]
fn a_datagram_socket_that_is_bound_to_an_interface_is_ended_whenever_it_was_bound() {
    let node = Node::new();
    let mut kernel = node.attach().unwrap();
    let _process = Process::of(&node.pod);
    let census = kernel.census().unwrap();
    for (set, v6) in [(1, false), (2, true)] {
        let at: SocketAddr = (endpoint_ip(v6, 1), 7).into();
        let to = service(v6, 1, 80);
        serve(&mut kernel, set, to, &[at]);
        let sockets: Vec<UdpSocket> = [(to, false), (to, true), (mapped(to), false), (mapped(to), true)]
            .map(|(to, is_connected_first)| {
                node.pod.run(|| {
                    let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
                    if is_connected_first {
                        socket.connect(to).unwrap();
                    }
                    bind_to_device(&socket, "lo");
                    if !is_connected_first {
                        socket.connect(to).unwrap();
                    }
                    socket
                })
            })
            .into();
        let ended = census.end_datagram_sockets(|socket| socket.endpoint == at).unwrap();
        assert_eq!(ended, EndedSockets { ended: 4, ..EndedSockets::default() });
        for socket in sockets {
            socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            assert_eq!(socket.recv(&mut [0; 8]).unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
        }
    }
}

/// A node, what is attached there, its census, and a Service with one endpoint.
fn serving_one() -> (Node, Attached, Census, SocketAddr) {
    let node = Node::new();
    let mut kernel = node.attach().unwrap();
    let census = kernel.census().unwrap();
    let to = service(false, 1, 80);
    serve(&mut kernel, 1, to, &[(endpoint_ip(false, 1), 7).into()]);
    (node, kernel, census, to)
}

#[test]
fn a_socket_that_the_kernel_does_not_find_has_not_been_ended_and_one_that_was_closed_has() {
    let (node, _kernel, census, to) = serving_one();
    let connect = || {
        node.host.run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.connect(to).unwrap();
            socket
        })
    };
    let (bound, mut closed) = (connect(), Some(connect()));
    let port = bound.local_addr().unwrap().port();
    node.host.ip_batch("link add one type veth peer name two").unwrap();
    let mut names = ["one", "two"];
    // Whenever it is looked at it is about to be bound to something else.
    let ended = node.host.run(|| {
        census.end_datagram_sockets(|socket| {
            drop(closed.take());
            if socket.local.port() == port {
                names.rotate_left(1);
                bind_to_device(&bound, names[0]);
            }
            true
        })
    });
    assert_eq!(ended.unwrap(), EndedSockets { ended: 1, missed: 1, ..EndedSockets::default() });
    assert!(bound.peer_addr().is_ok());
    let ended = node.host.run(|| census.end_datagram_sockets(|_| true));
    assert_eq!(ended.unwrap(), EndedSockets { ended: 1, ..EndedSockets::default() });
    assert_eq!(bound.peer_addr().unwrap_err().kind(), io::ErrorKind::NotConnected);
}

#[test]
fn a_look_at_datagram_sockets_is_at_no_others() {
    let node = Node::new();
    let mut kernel = node.attach().unwrap();
    let census = kernel.census().unwrap();
    for (set, v6) in [(1, false), (2, true)] {
        let listener = node.host.run(|| TcpListener::bind((endpoint_ip(v6, 1), 0)).unwrap());
        let to = service(v6, 1, 80);
        serve(&mut kernel, set, to, &[listener.local_addr().unwrap()]);
        let connections: Vec<TcpStream> =
            node.host.run(|| (0..100).map(|_| TcpStream::connect(to).unwrap()).collect());
        let any = if v6 { "[::]:0" } else { "0.0.0.0:0" };
        let socket = node.host.run(|| UdpSocket::bind(any).unwrap());
        node.host.run(|| socket.connect(to)).unwrap();
        let mut seen = Vec::new();
        let ended = census.end_datagram_sockets(|socket| {
            seen.push((socket.protocol, socket.local.port()));
            false
        });
        assert_eq!(ended.unwrap(), EndedSockets::default());
        seen.retain(|(protocol, _)| *protocol == protocol::TCP);
        assert_eq!(seen, [], "beside {} connections", connections.len());
        assert!(census.list().unwrap().len() > connections.len());
    }
}

#[test]
fn more_sockets_than_the_kernel_writes_at_a_time_are_ended() {
    const COUNT: usize = 400;
    let (node, _kernel, census, to) = serving_one();
    let connect = |_| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect(to).unwrap();
        socket
    };
    let sockets: Vec<UdpSocket> = node.host.run(|| (0..COUNT).map(connect).collect());
    let ended = node.host.run(|| census.end_datagram_sockets(|_| true));
    assert_eq!(ended.unwrap(), EndedSockets { ended: COUNT, ..EndedSockets::default() });
    assert!(sockets.iter().all(|socket| socket.peer_addr().is_err()));
}
