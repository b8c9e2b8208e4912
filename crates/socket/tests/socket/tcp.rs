//! TCP: who is connected to whom.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use sluice_socket_maps::{Kernel, protocol, verdict};
use sluice_testbed::lab::Namespace;

use crate::node::{Node, both, endpoint_ip, key, mapped, serve, service};

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
        let unreachable = connect(&node.pod, service(v6, 3, 80)).unwrap_err().kind();
        assert_eq!(unreachable, io::ErrorKind::NetworkUnreachable, "there is no frontend");
        assert_eq!(connect(&node.pod, relayed).unwrap_err().kind(), unreachable);
        kernel.remove_frontends(&[key(refused, protocol::TCP)]).unwrap();
        assert_eq!(connect(&node.pod, refused).unwrap_err().kind(), unreachable);
    }
}
