//! Sockets that are bound to a device: what a process of the node sends through one comes to no relay.

use std::net::{SocketAddr, TcpListener};

use sluice_socket_maps::{Endpoint, Kernel, SetAffinity, endpoint_flags};
use sluice_testbed::lab::Namespace;
use socket2::{Domain, Socket, Type};

use crate::connected_udp::add_addresses;
use crate::health::has_agent;
use crate::node::{Node, endpoint, endpoint_ip, serve, service};

fn listen(namespace: &Namespace, at: SocketAddr) -> TcpListener {
    namespace.run(|| TcpListener::bind(at)).unwrap()
}

#[test]
fn one_of_the_node_is_led_on_where_others_are_the_relays() {
    for v6 in [false, true] {
        let node = Node::new();
        let mut kernel = node.attach().unwrap();
        has_agent(&mut kernel);
        for (set, is_kept) in [(1, false), (2, true)] {
            let to = service(v6, set, 80);
            for (namespace, is_led) in [(&node.host, true), (&node.pod, false)] {
                add_addresses(namespace, &[to.ip()]);
                let relay = listen(namespace, to);
                let served = listen(namespace, (endpoint_ip(v6, set), 0).into());
                let at = served.local_addr().unwrap();
                serve(&mut kernel, set.into(), to, &[at]);
                // Nobody has connected to it yet, and so the relay has those who do.
                let unproven =
                    Endpoint { flags: endpoint(at).flags | endpoint_flags::UNPROVEN, ..endpoint(at) };
                kernel.write_endpoints(u32::from(set) * 10, &[unproven]);
                if is_kept {
                    kernel.write_affinity(set.into(), SetAffinity { number: 7, timeout_ms: 60_000 });
                }
                let client = namespace.run(|| {
                    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
                    socket.bind_device(Some(b"lo")).unwrap();
                    socket.connect(&to.into()).unwrap();
                    socket
                });
                assert_eq!(client.peer_addr().unwrap().as_socket(), Some(to));
                let (comes_to, other) = if is_led { (&served, &relay) } else { (&relay, &served) };
                let (_, from) = comes_to.accept().unwrap();
                assert_eq!(client.local_addr().unwrap().as_socket().unwrap().port(), from.port());
                other.set_nonblocking(true).unwrap();
                other.accept().expect_err("nobody comes there");
            }
        }
    }
}
