//! Which sockets are translated, and those that are ended.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use sluice_socket::{Endable, Ended, Translated};
use sluice_socket_maps::protocol;
use sluice_sys::bpf::netns_cookie;
use sluice_testbed::lab::Namespace;

use crate::node::{Node, endpoint_ip, mapped, serve, service};

/// A process of a pod: by those its namespace is found.
struct Process(Child);

impl Process {
    fn of(namespace: &Namespace) -> Self {
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
                let led = census.list().unwrap().into_iter().filter(|socket| socket.endpoint == at).count();
                assert_eq!(led, usize::from(is_led), "{to} {of_node} {of_pods}");
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

        assert_eq!(census.end_datagram_sockets(|_| false).unwrap(), Ended::default());
        let ended = census.end_datagram_sockets(|socket| socket.endpoint == at[0]).unwrap();
        assert_eq!(ended, Ended { ended: 3, ..Ended::default() });
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
