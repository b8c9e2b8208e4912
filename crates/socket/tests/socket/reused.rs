//! TCP sockets that are used again once their connection is over: what they do then is nobody's.

use std::net::{SocketAddr, TcpListener};

use rustix::net::connect_unspec;
use sluice_socket_maps::Counters;
use socket2::{Domain, Socket, Type};

use crate::health::{fails, has_agent, until};
use crate::node::{Node, endpoint_ip, serve, service};

/// Shares its port with others.
fn socket(v6: bool) -> Socket {
    let socket = Socket::new(if v6 { Domain::IPV6 } else { Domain::IPV4 }, Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket
}

/// Of the family, with a port.
fn any(v6: bool, port: u16) -> SocketAddr {
    let any = if v6 { "[::]:0" } else { "0.0.0.0:0" };
    SocketAddr::new(any.parse::<SocketAddr>().unwrap().ip(), port)
}

#[test]
fn a_socket_that_listens_later_closes_no_more_connections_than_it_has_made() {
    for v6 in [false, true] {
        let node = Node::new();
        let mut kernel = node.attach().unwrap();
        let listener = node.host.run(|| TcpListener::bind((endpoint_ip(v6, 1), 0)).unwrap());
        let to = service(v6, 1, 80);
        serve(&mut kernel, 1, to, &[listener.local_addr().unwrap()]);
        node.host.run(|| {
            let socket = socket(v6);
            for _ in 0..2 {
                socket.connect(&to.into()).unwrap();
                connect_unspec(&socket).unwrap();
                for _ in 0..3 {
                    socket.listen(1).unwrap();
                    socket.shutdown(std::net::Shutdown::Read).unwrap();
                }
            }
        });
        until(&kernel, "both are over", |kernel| kernel.account(10).closed >= 2);
        let account = kernel.account(10);
        assert_eq!((account.connections, account.closed, account.failed), (2, 2, 0));
        assert_eq!(kernel.accounts().unwrap().totals().lives.iter().sum::<u64>(), 2);
    }
}

#[test]
fn where_the_node_has_no_port_left_the_endpoint_has_not_failed() {
    for v6 in [false, true] {
        let node = Node::new();
        let mut kernel = node.attach().unwrap();
        has_agent(&mut kernel);
        let listener = node.host.run(|| TcpListener::bind((endpoint_ip(v6, 1), 0)).unwrap());
        let to = service(v6, 1, 80);
        serve(&mut kernel, 1, to, &[listener.local_addr().unwrap()]);
        node.host.run(|| {
            let socket = socket(v6);
            socket.connect(&to.into()).unwrap();
            connect_unspec(&socket).unwrap();
            // Another one has the only port that this one may have.
            let other = self::socket(v6);
            other.connect(&to.into()).unwrap();
            let port = other.local_addr().unwrap().as_socket().unwrap().port();
            socket.bind(&any(v6, port).into()).unwrap();
            let taken = socket.connect(&to.into()).unwrap_err();
            assert_eq!(taken.kind(), std::io::ErrorKind::AddrNotAvailable);
        });
        until(&kernel, "both are over", |kernel| kernel.account(10).closed >= 2);
        let account = kernel.account(10);
        assert_eq!((account.connections, account.closed, account.failed), (2, 2, 0));
        assert_eq!(fails(&kernel), 0, "it is not in doubt");
    }
}
