//! What programs see that look at their sockets closely, and whom else there is on a node.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recvfrom};
use sluice_socket::{Config, Programs};
use sluice_socket_maps::{Kernel, protocol, verdict};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::node::{Node, both, endpoint_ip, key, remove_pinned, serve, service};

const PATIENCE: Duration = Duration::from_secs(20);

/// `MSG_FASTOPEN` of linux/socket.h.
const FASTOPEN: i32 = 0x2000_0000;

fn tcp(v6: bool) -> Socket {
    Socket::new(if v6 { Domain::IPV6 } else { Domain::IPV4 }, Type::STREAM, None).unwrap()
}

#[test]
fn a_pod_with_a_proxy_that_it_redirects_to_is_left_alone_while_that_listens() {
    let node = Node::new();
    let mut kernel = node.attach().unwrap();
    for v6 in [false, true] {
        let (to, any) =
            if v6 { (service(true, 1, 80), "[::]:0") } else { (service(false, 1, 80), "0.0.0.0:0") };
        let endpoints = node.host.run(|| TcpListener::bind((endpoint_ip(v6, 1), 0)).unwrap());
        let in_pod = node.pod.run(|| TcpListener::bind((endpoint_ip(v6, 1), 0)).unwrap());
        for (set, at) in [(1, &endpoints), (2, &in_pod)] {
            serve(&mut kernel, set, to, &[at.local_addr().unwrap()]);
            let namespace = if set == 1 { &node.host } else { &node.pod };
            // A pod that has a proxy and one of the node's own processes that happens to listen there.
            let proxy = namespace.run(|| TcpListener::bind(any).unwrap());
            let port = proxy.local_addr().unwrap().port();
            for ports in [[port, 0], [0, port]] {
                kernel.set_sidecar_ports(ports);
                let connect = || namespace.run(|| TcpStream::connect_timeout(&to, PATIENCE)).map(drop);
                let send = || namespace.run(|| UdpSocket::bind(any).unwrap().send_to(b"ask", to)).map(drop);
                let refused = service(v6, 9, 80);
                kernel.put_frontends(&[(key(refused, protocol::UDP), both(verdict::REFUSE))]).unwrap();
                let refusal = namespace.run(|| UdpSocket::bind(any).unwrap().send_to(b"ask", refused));
                let refusal = refusal.unwrap_err().kind();
                if set == 1 {
                    connect().unwrap();
                    send().unwrap();
                    assert_eq!(refusal, io::ErrorKind::ConnectionRefused);
                } else {
                    // Nothing leads there but the programs.
                    for result in [connect(), send()] {
                        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::NetworkUnreachable, "{to}");
                    }
                    assert_eq!(refusal, io::ErrorKind::NetworkUnreachable);
                }
            }
            drop(proxy);
            namespace.run(|| TcpStream::connect_timeout(&to, PATIENCE)).unwrap();
        }
    }
}

#[test]
fn two_services_with_one_endpoint_cannot_be_reached_from_one_port() {
    let node = Node::new();
    let mut kernel = node.attach().unwrap();
    let listener = node.host.run(|| TcpListener::bind((endpoint_ip(false, 1), 0)).unwrap());
    let at = [listener.local_addr().unwrap()];
    let (one, other) = (service(false, 1, 80), service(false, 2, 80));
    serve(&mut kernel, 1, one, &at);
    serve(&mut kernel, 2, other, &at);
    node.host.run(|| {
        let first = tcp(false);
        first.set_reuse_address(true).unwrap();
        first.bind(&"0.0.0.0:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        let port = first.local_addr().unwrap().as_socket().unwrap().port();
        first.connect(&one.into()).unwrap();
        let second = tcp(false);
        second.set_reuse_address(true).unwrap();
        second.bind(&SocketAddr::from(([0, 0, 0, 0], port)).into()).unwrap();
        let refused = second.connect(&other.into()).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AddrNotAvailable, "both are one connection to the kernel");
        // With a port that the kernel chooses there is no such thing.
        tcp(false).connect(&other.into()).unwrap();
    });
}

/// A socket gets its port after the program has chosen: kube-proxy's NAT would choose another port.
#[test]
fn where_no_port_is_free_towards_an_endpoint_the_connection_fails_even_if_another_endpoint_could_be_reached()
{
    let node = Node::new();
    let mut kernel = node.attach().unwrap();
    let listeners: Vec<_> = [1, 2]
        .map(|number| node.host.run(|| TcpListener::bind((endpoint_ip(false, number), 0)).unwrap()))
        .into();
    let at: Vec<_> = listeners.iter().map(|listener| listener.local_addr().unwrap()).collect();
    let (one, both) = (service(false, 1, 80), service(false, 2, 80));
    serve(&mut kernel, 1, one, &at[..1]);
    serve(&mut kernel, 2, both, &at);
    node.host.set("net/ipv4/ip_local_port_range", "50000 50001").unwrap();
    let connect = |to| node.host.run(|| TcpStream::connect_timeout(&to, PATIENCE));
    let _taken = [connect(one).unwrap(), connect(one).unwrap()];
    // The turns of both.
    assert_eq!(connect(both).unwrap_err().kind(), io::ErrorKind::AddrNotAvailable);
    let other = connect(both).unwrap();
    assert_eq!(listeners[1].accept().unwrap().1, other.local_addr().unwrap());
    assert_eq!(connect(both).unwrap_err().kind(), io::ErrorKind::AddrNotAvailable);
}

/// Programs run for what is received, and not for what the kernel says of what was sent.
#[test]
fn an_error_in_the_error_queue_has_the_endpoints_address() {
    let node = Node::new();
    let mut kernel = node.attach().unwrap();
    let to = service(false, 1, 53);
    // Nobody is there any more.
    let at = node.host.run(|| UdpSocket::bind((endpoint_ip(false, 1), 0)).unwrap().local_addr().unwrap());
    serve(&mut kernel, 1, to, &[at]);
    for is_connected in [false, true] {
        let client = node.host.run(|| UdpSocket::bind("0.0.0.0:0").unwrap());
        setsockopt(&client, sockopt::Ipv4RecvErr, &true).unwrap();
        if is_connected {
            node.host.run(|| client.connect(to).unwrap());
            client.send(b"ask").unwrap();
        } else {
            client.send_to(b"ask", to).unwrap();
        }
        let deadline = Instant::now() + PATIENCE;
        let from = loop {
            match recvfrom(&client, &mut [0; 64], RecvFlags::ERRQUEUE) {
                Ok((_, _, from)) => break from,
                Err(Errno::AGAIN) if Instant::now() < deadline => std::thread::yield_now(),
                Err(error) => panic!("{error}"),
            }
        };
        assert_eq!(from.map(|from| SocketAddr::try_from(from).unwrap()), Some(at), "{is_connected}");
    }
}

#[test]
fn no_redirection_is_to_be_seen_and_a_fast_open_is_led_on_or_refused_like_any_other() {
    let node = Node::new();
    let mut kernel = node.attach().unwrap();
    for v6 in [false, true] {
        let listener = node.host.run(|| TcpListener::bind((endpoint_ip(v6, 1), 0)).unwrap());
        let (to, refused) = (service(v6, 1, 80), service(v6, 2, 80));
        serve(&mut kernel, 1, to, &[listener.local_addr().unwrap()]);
        kernel.put_frontends(&[(key(refused, protocol::TCP), both(verdict::REFUSE))]).unwrap();
        node.host.run(|| {
            let client = tcp(v6);
            assert_eq!(client.send_to_with_flags(b"early", &to.into(), FASTOPEN).unwrap(), 5);
            assert_eq!(client.peer_addr().unwrap().as_socket(), Some(to));
            let asked = if v6 { client.original_dst_v6() } else { client.original_dst_v4() };
            assert!(asked.is_err(), "SO_ORIGINAL_DST knows of no redirection: {asked:?}");
            let sent = tcp(v6).send_to_with_flags(b"early", &refused.into(), FASTOPEN).unwrap_err();
            assert_eq!(sent.kind(), io::ErrorKind::ConnectionRefused);
        });
        let mut early = [0; 5];
        io::Read::read_exact(&mut listener.accept().unwrap().0, &mut early).unwrap();
        assert_eq!(&early, b"early");
    }
}

/// A limit: the program that says the peer runs for the MPTCP socket, what remembers it is at the TCP socket below.
#[test]
fn an_mptcp_socket_is_led_on_and_sees_the_endpoint_as_its_peer() {
    let node = Node::new();
    let mut kernel = node.attach().unwrap();
    let listener = node.host.run(|| TcpListener::bind((endpoint_ip(false, 1), 0)).unwrap());
    let (at, to) = (listener.local_addr().unwrap(), service(false, 1, 80));
    serve(&mut kernel, 1, to, &[at]);
    node.host.run(|| {
        let client = match Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP)) {
            Ok(client) => client,
            Err(error) => {
                let lacks = [Errno::PROTONOSUPPORT, Errno::NOPROTOOPT, Errno::INVAL];
                assert!(Errno::from_io_error(&error).is_some_and(|errno| lacks.contains(&errno)), "{error}");
                return sluice_sys::skipped(format_args!("this kernel has no MPTCP: {error}"));
            }
        };
        client.connect(&to.into()).unwrap();
        let peer = client.peer_addr().as_ref().map(SockAddr::as_socket).unwrap();
        assert_eq!(peer, Some(at));
        let (_, from) = listener.accept().unwrap();
        assert_eq!(client.local_addr().unwrap().as_socket(), Some(from));
    });
}

#[test]
fn programs_at_a_cgroup_below_run_first_and_both_have_a_say() {
    let node = Node::new();
    let mut above = node.attach().unwrap();
    let inner = node.config.cgroup.join("inner");
    fs::create_dir(&inner).unwrap();
    fs::write(inner.join("cgroup.type"), "threaded").unwrap();
    let config = Config {
        cgroup: inner.clone(),
        pins: node.config.pins.with_file_name("inner"),
        ..node.config.clone()
    };
    let mut below = node.host.run(|| Programs::attach(&config)).unwrap();
    let listener = node.host.run(|| TcpListener::bind((endpoint_ip(false, 1), 0)).unwrap());
    let at = [listener.local_addr().unwrap()];
    let [theirs, ours, refused] = [1, 2, 3].map(|number| service(false, number, 80));
    // What the one below makes of it is a Service of the other's.
    serve(&mut below, 1, theirs, &[ours]);
    serve(&mut above, 1, ours, &at);
    serve(&mut above, 2, refused, &at);
    below.put_frontends(&[(key(refused, protocol::TCP), both(verdict::REFUSE))]).unwrap();
    node.host.run(|| {
        fs::write(inner.join("cgroup.threads"), "0").unwrap();
        let connect = |to: SocketAddr| TcpStream::connect_timeout(&to, PATIENCE);
        assert_eq!(
            connect(theirs).unwrap().peer_addr().unwrap(),
            ours,
            "the last to be asked knows what it led on"
        );
        assert_eq!(connect(ours).unwrap().peer_addr().unwrap(), ours);
        assert_eq!(connect(refused).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        fs::write(node.config.cgroup.join("cgroup.threads"), "0").unwrap();
        assert!(connect(theirs).is_err());
        connect(refused).unwrap();
    });
    drop(below);
    assert!(remove_pinned(&config.pins));
    fs::remove_dir(&inner).unwrap();
}
