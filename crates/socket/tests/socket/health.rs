//! How connections fare: what the kernel finds out about endpoints, and what becomes of that.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use sluice_socket::Attached;
use sluice_socket_maps::{Counters, Endpoint, Kernel, Totals, endpoint_flags};
use sluice_table::SocketNumber;
use socket2::{Domain, SockFilter, Socket, Type};

use crate::node::{Node, endpoint, endpoint_ip, serve, service};

/// `BPF_RET | BPF_K` of linux/filter.h.
const RETURN: u16 = 6;

const PATIENCE: Duration = Duration::from_secs(20);

/// Now, as the programs have it.
fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap() * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap()
}

/// `count` listeners of the host, and where they are.
fn listen(node: &Node, count: u8) -> (Vec<TcpListener>, Vec<SocketAddr>) {
    let listeners: Vec<TcpListener> = node.host.run(|| {
        (1..=count).map(|number| TcpListener::bind((endpoint_ip(false, number), 0)).unwrap()).collect()
    });
    let at = listeners.iter().map(|listener| listener.local_addr().unwrap()).collect();
    (listeners, at)
}

fn connect(node: &Node, to: SocketAddr) -> io::Result<TcpStream> {
    node.host.run(|| TcpStream::connect_timeout(&to, PATIENCE))
}

/// Waits for something that the kernel does when it gets to it.
pub(crate) fn until(kernel: &Attached, what: &str, is: impl Fn(&Attached) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is(kernel) {
        assert!(Instant::now() < deadline, "{what}: {:?} {:?}", kernel.endpoint(10), kernel.account(10));
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// An agent that is there for longer than a test takes, however busy the machine is.
pub(crate) fn has_agent(kernel: &mut Attached) {
    kernel.heartbeat(now_ns() + 3_600_000_000_000);
}

/// How often the first endpoint has failed since it last served.
pub(crate) fn fails(kernel: &Attached) -> u8 {
    kernel.endpoint(10).failures().count
}

fn totals(kernel: &Attached) -> Totals {
    kernel.accounts().unwrap().totals()
}

#[test]
fn what_a_connection_was_is_counted_when_it_is_over() {
    let node = Node::new();
    let mut kernel = node.attach().unwrap();
    let (listeners, at) = listen(&node, 1);
    let to = service(false, 1, 80);
    serve(&mut kernel, 1, to, &at);
    // Either side closes first.
    for (count, client_first) in [(1, true), (2, false)] {
        let mut client = connect(&node, to).unwrap();
        let (mut server, _) = listeners[0].accept().unwrap();
        client.write_all(&[1; 1000]).unwrap();
        server.read_exact(&mut [0; 1000]).unwrap();
        server.write_all(&[2; 3000]).unwrap();
        client.read_exact(&mut [0; 3000]).unwrap();
        if client_first {
            drop((client, server));
        } else {
            drop((server, client));
        }
        until(&kernel, "it is over", |kernel| kernel.account(10).closed == count);
        let account = kernel.account(10);
        assert_eq!((account.connections, account.failed), (count, 0));
        // A FIN may count as a byte.
        assert!(
            (1000 * u64::from(count)..=1001 * u64::from(count)).contains(&account.bytes_to),
            "{account:?}"
        );
        assert!(
            (3000 * u64::from(count)..=3001 * u64::from(count)).contains(&account.bytes_from),
            "{account:?}"
        );
        assert_eq!(totals(&kernel).lives.iter().sum::<u64>(), u64::from(count));
        assert!(account.duration_us > 0, "{account:?}");
    }
}

#[test]
fn an_endpoint_that_refuses_is_left_to_the_relay_until_it_has_served() {
    let node = Node::new();
    let mut kernel = node.attach().unwrap();
    let (listeners, at) = listen(&node, 1);
    let to = service(false, 1, 80);
    serve(&mut kernel, 1, to, &at);
    drop(listeners);
    assert_eq!(connect(&node, to).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    until(&kernel, "it has failed", |kernel| fails(kernel) == 1);
    assert_eq!(kernel.account(10).failed, 1);
    assert!(kernel.endpoint(10).failures().until_ns > now_ns() - 20_000_000_000);

    has_agent(&mut kernel);
    assert_eq!(connect(&node, to).unwrap_err().kind(), io::ErrorKind::NetworkUnreachable, "to the relay");
    // An agent that has died some time ago.
    kernel.heartbeat(now_ns().saturating_sub(3_000_000_000));
    let _listener = node.host.run(|| TcpListener::bind(at[0])).unwrap();
    connect(&node, to).unwrap();
    until(&kernel, "it has served", |kernel| fails(kernel) == 0);
    has_agent(&mut kernel);
    connect(&node, to).unwrap();
}

/// As a client does it that waits for many at a time, while the refusal comes in on another processor.
#[test]
fn a_refusal_is_the_endpoints_also_where_the_client_takes_the_error_first() {
    const TIMES: u32 = 20_000;
    let node = Node::new();
    let mut kernel = node.attach().unwrap();
    let (listeners, at) = listen(&node, 1);
    let to = service(false, 1, 80);
    serve(&mut kernel, 1, to, &at);
    drop(listeners);
    let (sender, sockets) = std::sync::mpsc::sync_channel::<std::sync::Arc<Socket>>(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for socket in sockets {
                while socket.take_error().unwrap().is_none() {
                    std::hint::spin_loop();
                }
            }
        });
        node.host.run(|| {
            for _ in 0..TIMES {
                let socket = std::sync::Arc::new(Socket::new(Domain::IPV4, Type::STREAM, None).unwrap());
                socket.set_nonblocking(true).unwrap();
                sender.send(std::sync::Arc::clone(&socket)).unwrap();
                let _ = socket.connect(&to.into());
            }
        });
        drop(sender);
    });
    until(&kernel, "all have failed", |kernel| {
        kernel.account(10).failed + u32::try_from(totals(kernel).aborted).unwrap() == TIMES
    });
    assert_eq!(totals(&kernel).aborted, 0);
}

#[test]
fn an_endpoint_is_left_to_the_relay_until_it_has_been_proven() {
    let node = Node::new();
    let mut kernel = node.attach().unwrap();
    let (_listeners, at) = listen(&node, 2);
    let to = service(false, 1, 80);
    serve(&mut kernel, 1, to, &at);
    let unproven = Endpoint { flags: endpoint_flags::V4 | endpoint_flags::UNPROVEN, ..endpoint(at[0]) };
    kernel.write_endpoints(10, &[unproven]);
    has_agent(&mut kernel);
    for is_left in [true, false, true, false] {
        assert_eq!(connect(&node, to).is_err(), is_left);
    }
    // With nobody there to relay it is not passed over, and a connection proves it.
    kernel.heartbeat(0);
    connect(&node, to).unwrap();
    until(&kernel, "it is proven", |kernel| kernel.endpoint(10).flags == endpoint_flags::V4);
    assert_eq!(kernel.endpoint(10).port, at[0].port().to_be_bytes());
    has_agent(&mut kernel);
    connect(&node, to).unwrap();
    connect(&node, to).unwrap();
}

#[test]
fn what_the_relay_finds_out_counts_for_the_programs_and_only_of_whom_it_is_about() {
    let node = Node::new();
    let mut kernel = node.attach().unwrap();
    let (_listeners, at) = listen(&node, 2);
    let to = service(false, 1, 80);
    serve(&mut kernel, 1, to, &at);
    let unproven = Endpoint { flags: endpoint_flags::V4 | endpoint_flags::UNPROVEN, ..endpoint(at[0]) };
    kernel.write_endpoints(10, &[unproven]);
    has_agent(&mut kernel);
    let health = kernel.health();
    let number = SocketNumber { id: 10, incarnation: 1 };
    let former = SocketNumber { incarnation: 0, ..number };
    health.has_served(former);
    assert!(health.is_in_doubt(number) && !health.is_in_doubt(former));
    health.has_served(number);
    assert!(!health.is_in_doubt(number));
    assert_eq!(kernel.endpoint(10), endpoint(at[0]), "address and port are what they were");
    for _ in 0..2 {
        connect(&node, to).unwrap();
    }

    health.has_failed(former);
    assert!(!health.is_in_doubt(number));
    for times in 1..=2 {
        health.has_failed(number);
        assert_eq!((fails(&kernel), health.is_in_doubt(number)), (times, true));
    }
    for is_left in [true, false, true, false] {
        assert_eq!(connect(&node, to).is_err(), is_left);
    }
    // With nobody there to relay it is passed over.
    kernel.heartbeat(0);
    let before = kernel.account(11).connections;
    assert!(kernel.endpoint(10).failures().until_ns > now_ns(), "for two seconds");
    for _ in 0..4 {
        connect(&node, to).unwrap();
    }
    assert_eq!(kernel.account(11).connections, before + 4);
    health.has_served(number);
    assert_eq!(kernel.endpoint(10), endpoint(at[0]));
    // A number that is none.
    health.has_failed(SocketNumber { id: u32::MAX, incarnation: 1 });
    assert!(!health.is_in_doubt(SocketNumber { id: 1000, incarnation: 0 }));
}

#[test]
fn silence_is_an_endpoints_fault_and_a_client_that_gives_up_is_not() {
    let node = Node::new();
    let mut kernel = node.attach().unwrap();
    let (_listeners, at) = listen(&node, 1);
    let to = service(false, 1, 80);
    serve(&mut kernel, 1, to, &at);
    node.host
        .nft_file("add table ip t\nadd chain ip t c { type filter hook input priority 0; policy drop; }")
        .unwrap();
    let given_up = |after| node.host.run(|| TcpStream::connect_timeout(&to, after)).unwrap_err();
    assert_eq!(given_up(Duration::from_millis(50)).kind(), io::ErrorKind::TimedOut);
    // One that does not even wait, and one that resets what there is not yet.
    for lingers in [None, Some(Duration::ZERO)] {
        node.host.run(|| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.set_nonblocking(true).unwrap();
            socket.set_linger(lingers).unwrap();
            assert!(socket.connect(&to.into()).is_err(), "it is being made");
        });
    }
    // One that thinks better of it.
    node.host.run(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        assert!(socket.connect(&to.into()).is_err(), "it is being made");
        let _ = socket.shutdown(std::net::Shutdown::Both);
        assert_eq!(socket.peer_addr().unwrap_err().kind(), io::ErrorKind::NotConnected);
    });
    until(&kernel, "they were given up", |kernel| totals(kernel).aborted == 4);
    assert_eq!(fails(&kernel), 0);
    // The first packet is sent again after a second.
    std::thread::scope(|scope| {
        scope.spawn(|| given_up(Duration::from_secs(3)));
        until(&kernel, "a packet was sent again", |kernel| totals(kernel).timeouts == 1);
    });
    assert_eq!((fails(&kernel), kernel.account(10).failed), (1, 0));
}

#[test]
fn an_endpoint_that_was_reached_until_now_is_in_doubt_once_it_is_silent() {
    let node = Node::new();
    let mut kernel = node.attach().unwrap();
    let (_listeners, at) = listen(&node, 1);
    let to = service(false, 1, 80);
    serve(&mut kernel, 1, to, &at);
    connect(&node, to).unwrap();
    node.host
        .nft_file("add table ip t\nadd chain ip t c { type filter hook input priority 0; policy drop; }")
        .unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| connect(&node, to));
        until(&kernel, "it has failed with the first packet that was sent again", |kernel| {
            fails(kernel) == 1
        });
        assert_eq!(totals(&kernel).timeouts, 1);
        node.host.nft_file("delete table ip t").unwrap();
    });
}

/// Connects without hearing what is answered, as any process may; until the first packet was sent again in vain.
fn hear_nothing(node: &Node, to: SocketAddr) {
    node.host.run(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        // Of each packet, 0 bytes are let in.
        socket.attach_filter(&[SockFilter::new(RETURN, 0, 0, 0)]).unwrap();
        socket.set_tcp_user_timeout(Some(Duration::from_millis(1))).unwrap();
        assert_eq!(socket.connect(&to.into()).unwrap_err().kind(), io::ErrorKind::TimedOut);
    });
}

#[test]
fn a_client_that_hears_nothing_does_not_put_an_endpoint_in_doubt_that_others_are_served_by() {
    let node = Node::new();
    let mut kernel = node.attach().unwrap();
    let (listeners, at) = listen(&node, 1);
    let to = service(false, 1, 80);
    serve(&mut kernel, 1, to, &at);
    has_agent(&mut kernel);
    let number = SocketNumber { id: 10, incarnation: 1 };
    let health = kernel.health();
    // While it goes on others are served: whoever is in doubt would be left to the relay, which is not there.
    let are_served = || {
        health.has_served(number);
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                hear_nothing(&node, to);
                is_over.store(true, Ordering::Relaxed);
            });
            let mut served = Ok(());
            while served.is_ok() && !is_over.load(Ordering::Relaxed) {
                served = connect(&node, to).map(drop);
                served.is_ok().then(|| listeners[0].accept().unwrap());
                // Not so many that ports are short.
                std::thread::sleep(Duration::from_millis(10));
            }
            served.and_then(|()| connect(&node, to).map(drop)).is_ok()
        })
    };
    // A machine that is busy may have stopped this for a second.
    assert!((0..5).any(|_| are_served()));
    assert!(totals(&kernel).timeouts > 0 && kernel.account(10).failed > 0);
    // Nobody else is served.
    hear_nothing(&node, to);
    assert!(fails(&kernel) > 0);
}

/// As a client sees it whose packets no router brings so far (`IP_TTL`), or that a firewall sends away.
#[test]
fn who_is_told_that_an_endpoint_cannot_be_reached_puts_it_in_doubt_only_if_nobody_else_reaches_it() {
    let node = Node::new();
    let mut kernel = node.attach().unwrap();
    let (listeners, at) = listen(&node, 2);
    let to = service(false, 1, 80);
    // Nobody has this address. That is known at once, and not in the middle of a call, when the kernel would wait for more.
    let nowhere: SocketAddr = "10.77.0.2:80".parse().unwrap();
    node.host.ip_batch("link add v0 type veth peer name v1\nlink set v1 up\nlink set v0 up\n").unwrap();
    node.host.ip_batch("addr add 10.77.0.1/24 dev v0\n").unwrap();
    for (setting, value) in [("mcast_solicit", "1"), ("retrans_time_ms", "20")] {
        node.host.set(&format!("net/ipv4/neigh/v0/{setting}"), value).unwrap();
    }
    serve(&mut kernel, 1, to, &at[..1]);
    let connect_at = |kernel: &mut Attached, endpoint_at| {
        kernel.write_endpoints(10, &[endpoint(endpoint_at)]);
        connect(&node, to).map_err(|error| error.kind())
    };
    // A machine that is busy may stop this for a second.
    let is_kept = (0..5).any(|_| {
        let before = kernel.account(10).failed;
        connect_at(&mut kernel, at[0]).unwrap();
        assert_eq!(connect_at(&mut kernel, nowhere).unwrap_err(), io::ErrorKind::HostUnreachable);
        until(&kernel, "it has failed", |kernel| kernel.account(10).failed == before + 1);
        fails(&kernel) == 0
    });
    assert!(is_kept, "others are served");
    let deadline = Instant::now() + PATIENCE;
    while fails(&kernel) == 0 {
        assert!(Instant::now() < deadline, "nobody else is served");
        assert_eq!(connect_at(&mut kernel, nowhere).unwrap_err(), io::ErrorKind::HostUnreachable);
    }
    // A refusal counts at once.
    connect_at(&mut kernel, at[0]).unwrap();
    until(&kernel, "it has served", |kernel| fails(kernel) == 0);
    drop(listeners);
    assert_eq!(connect_at(&mut kernel, at[1]).unwrap_err(), io::ErrorKind::ConnectionRefused);
    until(&kernel, "it has refused", |kernel| fails(kernel) == 1);
}

/// `MSG_FASTOPEN` and `MSG_DONTWAIT` of send(2).
const FAST_OPEN: i32 = 0x2000_0000;
const DO_NOT_WAIT: i32 = 0x40;

/// A socket that may share its port.
fn socket(to: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket
}

#[test]
fn connections_that_never_came_about_are_not_open_and_those_that_did_are_until_they_are_over() {
    for v6 in [false, true] {
        let node = Node::new();
        let mut kernel = node.attach().unwrap();
        // Data may go with the first packet without a cookie.
        node.host.run(|| std::fs::write("/proc/sys/net/ipv4/tcp_fastopen", "7")).unwrap();
        let listener = node.host.run(|| TcpListener::bind((endpoint_ip(v6, 1), 0)).unwrap());
        let refusing = node.host.run(|| TcpListener::bind((endpoint_ip(v6, 1), 0)).unwrap());
        let silent = node.host.run(|| TcpListener::bind((endpoint_ip(v6, 2), 0)).unwrap());
        let away: SocketAddr = if v6 { "[fd55::1]:80" } else { "10.55.0.1:80" }.parse().unwrap();
        let at = |listener: &TcpListener| listener.local_addr().unwrap();
        let [served, no_route, refused, unanswered] = [1, 2, 3, 4].map(|number| service(v6, number, 80));
        for (set, to, endpoint) in [
            (1, served, at(&listener)),
            (2, no_route, away),
            (3, refused, at(&refusing)),
            (4, unanswered, at(&silent)),
        ] {
            serve(&mut kernel, set, to, &[endpoint]);
        }
        drop(refusing);
        let drop_it = format!(
            "add table inet t\nadd chain inet t c {{ type filter hook input priority 0; }}\n\
             add rule inet t c {} daddr {} tcp flags syn drop",
            if v6 { "ip6" } else { "ip" },
            endpoint_ip(v6, 2)
        );
        node.host.nft_file(&drop_it).unwrap();
        let fast = |to: SocketAddr, flags| {
            node.host.run(|| {
                let socket = socket(to);
                socket.send_to_with_flags(b"x", &to.into(), FAST_OPEN | flags).map(|_| socket)
            })
        };

        assert_eq!(connect(&node, no_route).unwrap_err().kind(), io::ErrorKind::NetworkUnreachable);
        assert_eq!(fast(no_route, 0).unwrap_err().kind(), io::ErrorKind::NetworkUnreachable);
        assert_eq!(connect(&node, refused).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(fast(refused, 0).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        until(&kernel, "they were refused", |kernel| kernel.account(30).failed == 2);
        // Closed at once.
        node.host.run(|| {
            let socket = socket(unanswered);
            socket.set_nonblocking(true).unwrap();
            assert!(socket.connect(&unanswered.into()).is_err(), "it is being made");
        });
        // What it would send is taken, or not.
        drop(fast(unanswered, DO_NOT_WAIT));
        until(&kernel, "they were given up", |kernel| totals(kernel).aborted == 2);
        assert_eq!([10, 20, 30, 40].map(|id| kernel.account(id).connections), [0; 4]);

        let one = node.host.run(|| {
            let socket = socket(served);
            socket.connect(&served.into()).unwrap();
            socket
        });
        let two = fast(served, 0).unwrap();
        // From the port of the first to the same endpoint.
        node.host.run(|| {
            let socket = socket(served);
            let port = one.local_addr().unwrap().as_socket().unwrap().port();
            let any: SocketAddr = (if v6 { "::" } else { "0.0.0.0" }.parse::<IpAddr>().unwrap(), port).into();
            socket.bind(&any.into()).unwrap();
            let taken = socket.connect(&served.into()).unwrap_err();
            assert_eq!(taken.kind(), io::ErrorKind::AddrNotAvailable);
        });
        until(&kernel, "two are open", |kernel| kernel.account(10).connections == 2);
        assert_eq!(kernel.account(10).closed, 0);
        drop((one, two, listener));
        until(&kernel, "they are over", |kernel| kernel.account(10).closed == 2);
        assert_eq!([10, 20, 30, 40].map(|id| kernel.account(id).connections), [2, 0, 0, 0]);
        assert_eq!(totals(&kernel).lives.iter().sum::<u64>(), 2);
    }
}
