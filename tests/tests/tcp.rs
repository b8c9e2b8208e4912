//! TCP through the proxy, from real clients to real servers.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::num::NonZeroU32;
use std::sync::Mutex;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use sha2::{Digest, Sha256};
use sluice_dataplane::Config;
use sluice_model::Protocol;
use sluice_tests::backend::Backend;
use sluice_tests::{PATIENCE, World, wait};
use socket2::{Domain, SockRef, Socket, Type};

fn connect(world: &World) -> TcpStream {
    let stream = TcpStream::connect(world.frontend).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
}

/// Sends `bytes` pseudo-random bytes and closes that side; returns their hash.
fn send_random(mut stream: &TcpStream, seed: u64, bytes: usize) -> Vec<u8> {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut hash = Sha256::new();
    let mut chunk = vec![0; 1 << 20];
    let mut left = bytes;
    while left > 0 {
        let length = left.min(chunk.len());
        random.fill(&mut chunk[..length]);
        hash.update(&chunk[..length]);
        stream.write_all(&chunk[..length]).unwrap();
        left -= length;
    }
    stream.shutdown(Shutdown::Write).unwrap();
    hash.finalize().to_vec()
}

/// Reads to the end; returns how many bytes there were and their hash.
fn receive_all(mut stream: &TcpStream) -> (usize, Vec<u8>) {
    let mut hash = Sha256::new();
    let mut chunk = vec![0; 1 << 20];
    let mut total = 0;
    loop {
        match stream.read(&mut chunk).unwrap() {
            0 => return (total, hash.finalize().to_vec()),
            n => {
                hash.update(&chunk[..n]);
                total += n;
            }
        }
    }
}

#[test]
fn a_gibibyte_each_way_at_once_is_byte_exact_and_goes_through_splice() {
    const BYTES: usize = 1 << 30;
    let (report, reports) = mpsc::channel();
    let report = Mutex::new(report);
    let backend = Backend::tcp(move |stream| {
        let (sent, received) = std::thread::scope(|scope| {
            let sender = scope.spawn(|| send_random(&stream, 2, BYTES));
            let received = receive_all(&stream);
            (sender.join().unwrap(), received)
        });
        report.lock().unwrap().send((sent, received)).unwrap();
        Ok(())
    });
    let world = World::new(Protocol::Tcp, &[backend.address]);
    let client = connect(&world);
    let (sent, received) = std::thread::scope(|scope| {
        let sender = scope.spawn(|| send_random(&client, 1, BYTES));
        let received = receive_all(&client);
        (sender.join().unwrap(), received)
    });
    let (backend_sent, backend_received) = reports.recv_timeout(PATIENCE).unwrap();
    assert_eq!(received, (BYTES, backend_sent));
    assert_eq!(backend_received, (BYTES, sent));

    let stats = world.proxy.stats();
    assert_eq!(stats.bytes_spliced + stats.bytes_copied, 2 * BYTES as u64);
    assert!(stats.bytes_spliced > BYTES as u64 * 2 / 10 * 9, "bulk goes through splice: {stats:?}");
    assert_eq!(stats.pipe_fallbacks, 0);
}

#[test]
fn ten_thousand_short_connections_are_exactly_even_and_without_an_error() {
    const CLIENTS: usize = 4;
    const EACH: usize = 2_500;
    let backends: Vec<Backend> = (0..5).map(|_| Backend::echo()).collect();
    let world = World::new(Protocol::Tcp, &backends.iter().map(|b| b.address).collect::<Vec<_>>());
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                for n in 0..EACH as u64 {
                    let mut stream = connect(&world);
                    stream.write_all(&n.to_be_bytes()).unwrap();
                    let mut answer = [0; 8];
                    stream.read_exact(&mut answer).unwrap();
                    assert_eq!(u64::from_be_bytes(answer), n);
                }
            });
        }
    });
    let served: Vec<usize> = backends.iter().map(Backend::served).collect();
    assert_eq!(served, [CLIENTS * EACH / 5; 5]);
    let stats = world.proxy.stats();
    assert_eq!((stats.tcp_retries, stats.tcp_unroutable, stats.tcp_all_endpoints_failed), (0, 0, 0));
    wait::until("every session has ended", || world.proxy.stats().tcp_active == 0);
}

#[test]
fn without_a_pipe_to_be_had_bulk_is_copied_and_arrives_all_the_same() {
    const BYTES: usize = 32 << 20;
    let backend = Backend::echo();
    // Enough descriptors for the frontend and the session alone.
    let config = Config { workers: 1, descriptors: 3, ..World::CONFIG };
    let world = World::with_config(Protocol::Tcp, &[backend.address], config);
    let client = connect(&world);
    let (sent, received) = std::thread::scope(|scope| {
        let sender = scope.spawn(|| send_random(&client, 4, BYTES));
        let received = receive_all(&client);
        (sender.join().unwrap(), received)
    });
    assert_eq!(received, (BYTES, sent));
    let stats = world.proxy.stats();
    assert_eq!((stats.bytes_spliced, stats.bytes_copied), (0, 2 * BYTES as u64));
    assert!(stats.pipe_fallbacks > 0);
}

#[test]
fn bulk_does_not_starve_small_exchanges_of_the_same_worker() {
    let bulk = Backend::tcp(|mut stream| {
        let chunk = vec![0; 1 << 20];
        loop {
            stream.write_all(&chunk)?;
        }
    });
    let echo = Backend::echo();
    let config = Config { workers: 1, ..World::CONFIG };
    let mut world = World::with_config(Protocol::Tcp, &[bulk.address], config);
    let echo = world.add_service("echo", &[echo.address]);
    let mut bulk = connect(&world);
    let reader = std::thread::spawn(move || while bulk.read(&mut vec![0; 1 << 20]).is_ok_and(|n| n > 0) {});
    wait::until("bulk is under way", || world.proxy.stats().bytes_spliced > 100 << 20);
    for _ in 0..200 {
        let mut stream = TcpStream::connect(echo).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0]).unwrap();
    }
    let before = world.proxy.stats().bytes_spliced;
    wait::until("bulk still is under way", || world.proxy.stats().bytes_spliced > before + (10 << 20));
    drop(world);
    reader.join().unwrap();
}

#[test]
fn small_exchanges_are_copied_and_use_no_pipe() {
    let backend = Backend::echo();
    let world = World::new(Protocol::Tcp, &[backend.address]);
    let mut stream = connect(&world);
    for _ in 0..100 {
        stream.write_all(b"ping").unwrap();
        stream.read_exact(&mut [0; 4]).unwrap();
    }
    assert_eq!(world.proxy.stats().bytes_spliced, 0);
}

#[test]
fn a_half_closed_connection_still_carries_the_answer() {
    let backend = Backend::tcp(|mut stream| {
        let mut request = Vec::new();
        stream.read_to_end(&mut request)?;
        request.reverse();
        stream.write_all(&request)
    });
    let world = World::new(Protocol::Tcp, &[backend.address]);
    let mut stream = connect(&world);
    stream.write_all(b"abc").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, b"cba");
}

#[test]
fn a_half_closed_connection_that_stands_still_is_cut_off_and_a_moving_one_is_not() {
    const IDLE: Duration = Duration::from_millis(500);
    let talking = Backend::tcp(|mut stream| {
        loop {
            stream.write_all(b".")?;
            std::thread::park_timeout(IDLE / 10);
        }
    });
    let silent = Backend::tcp(|mut stream| {
        stream.read_to_end(&mut Vec::new())?;
        loop {
            std::thread::park();
        }
    });
    let config = Config { half_closed_idle: IDLE, ..World::CONFIG };
    let mut world = World::with_config(Protocol::Tcp, &[talking.address], config);
    let silent = world.add_service("silent", &[silent.address]);

    let mut moving = connect(&world);
    moving.shutdown(Shutdown::Write).unwrap();
    let mut standing = TcpStream::connect(silent).unwrap();
    standing.set_read_timeout(Some(PATIENCE)).unwrap();
    standing.shutdown(Shutdown::Write).unwrap();
    assert_eq!(standing.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(world.proxy.stats().tcp_half_closed_timeouts, 1);
    moving.read_exact(&mut [0; 30]).unwrap();
    assert_eq!(world.proxy.stats().tcp_half_closed_timeouts, 1);
}

#[test]
fn ipv6_is_served_like_ipv4() {
    let ip = IpAddr::from(Ipv6Addr::LOCALHOST);
    let backend = Backend::accepting_at(ip, |mut stream| stream.write_all(b"6").unwrap());
    let frontend = (ip, sluice_tests::free_port(ip)).into();
    let world = World::at(frontend, Protocol::Tcp, &[backend.address], World::CONFIG);
    let mut answer = String::new();
    connect(&world).read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "6");
}

#[test]
fn an_endpoint_that_closes_its_side_first_still_receives() {
    let (report, reports) = mpsc::channel();
    let report = Mutex::new(report);
    let backend = Backend::tcp(move |mut stream| {
        stream.write_all(b"hello")?;
        stream.shutdown(Shutdown::Write)?;
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest)?;
        report.lock().unwrap().send(rest).unwrap();
        Ok(())
    });
    let world = World::new(Protocol::Tcp, &[backend.address]);
    let mut stream = connect(&world);
    let mut greeting = Vec::new();
    stream.read_to_end(&mut greeting).unwrap();
    assert_eq!(greeting, b"hello");
    stream.write_all(b"late").unwrap();
    drop(stream);
    assert_eq!(reports.recv_timeout(PATIENCE).unwrap(), b"late");
}

#[test]
fn a_reset_by_the_endpoint_reaches_the_client_as_a_reset_after_the_data() {
    let backend = Backend::tcp(|mut stream| {
        stream.write_all(b"so far")?;
        stream.read_exact(&mut [0; 2])?;
        reset(stream);
        Ok(())
    });
    let world = World::new(Protocol::Tcp, &[backend.address]);
    let mut stream = connect(&world);
    let mut got = [0; 6];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"so far");
    stream.write_all(b"go").unwrap();
    let error = stream.read(&mut got).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    wait::until("the session is counted as reset", || world.proxy.stats().tcp_resets == 1);
}

#[test]
fn a_reset_by_the_client_reaches_the_endpoint_as_a_reset() {
    let (report, reports) = mpsc::channel();
    let report = Mutex::new(report);
    let backend = Backend::tcp(move |mut stream| {
        stream.read_exact(&mut [0; 2])?;
        stream.write_all(b"k")?;
        let result = stream.read(&mut [0; 1]).map_err(|error| error.kind());
        report.lock().unwrap().send(result).unwrap();
        Ok(())
    });
    let world = World::new(Protocol::Tcp, &[backend.address]);
    let mut stream = connect(&world);
    stream.write_all(b"go").unwrap();
    stream.read_exact(&mut [0; 1]).unwrap();
    reset(stream);
    assert_eq!(reports.recv_timeout(PATIENCE).unwrap(), Err(ErrorKind::ConnectionReset));
}

/// A backend that reports how each connection ends, after the client's FIN.
fn reporting_after_the_fin() -> (Backend, mpsc::Receiver<io::Result<()>>) {
    let (report, reports) = mpsc::channel();
    let report = Mutex::new(report);
    let backend = Backend::tcp(move |mut stream| {
        stream.read_to_end(&mut Vec::new())?;
        let poll = rustix::event::PollFlags::HUP | rustix::event::PollFlags::ERR;
        let timeout = PATIENCE.try_into().unwrap();
        rustix::event::poll(&mut [rustix::event::PollFd::new(&stream, poll)], Some(&timeout))?;
        let result = stream.take_error().and_then(|error| error.map_or(Ok(()), Err));
        report.lock().unwrap().send(result).unwrap();
        Ok(())
    });
    (backend, reports)
}

#[test]
fn a_reset_that_comes_after_the_client_s_fin_ends_the_session() {
    let (backend, reports) = reporting_after_the_fin();
    let world = World::new(Protocol::Tcp, &[backend.address]);
    let stream = connect(&world);
    stream.shutdown(Shutdown::Write).unwrap();
    wait::until("the endpoint is connected", || backend.served() == 1);
    reset(stream);
    assert!(reports.recv_timeout(PATIENCE).unwrap().is_err(), "the endpoint sees a reset");
    wait::until("the session has ended", || world.proxy.stats().tcp_active == 0);
    assert_eq!(world.proxy.stats().tcp_resets, 1);
}

#[test]
fn a_reset_that_comes_after_the_endpoint_s_fin_ends_the_session() {
    let (go, wait_for_it) = mpsc::channel();
    let wait_for_it = Mutex::new(wait_for_it);
    let backend = Backend::tcp(move |stream| {
        stream.shutdown(Shutdown::Write)?;
        wait_for_it.lock().unwrap().recv().unwrap();
        reset(stream);
        Ok(())
    });
    let world = World::new(Protocol::Tcp, &[backend.address]);
    let mut stream = connect(&world);
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    go.send(()).unwrap();
    wait::until("the client is reset", || matches!(stream.take_error(), Ok(Some(_))));
    wait::until("the session has ended", || world.proxy.stats().tcp_active == 0);
}

#[test]
fn what_the_proxy_cuts_off_is_reset_on_both_sides() {
    let (report, reports) = mpsc::channel();
    let report = Mutex::new(report);
    let backend = Backend::tcp(move |mut stream| {
        stream.write_all(b"half of it")?;
        let result = stream.read(&mut [0; 1]).map_err(|error| error.kind());
        report.lock().unwrap().send(result).unwrap();
        Ok(())
    });
    let world = World::new(Protocol::Tcp, &[backend.address]);
    let mut stream = connect(&world);
    stream.read_exact(&mut [0; 10]).unwrap();
    drop(world);
    assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(reports.recv_timeout(PATIENCE).unwrap(), Err(ErrorKind::ConnectionReset));
}

#[test]
fn urgent_bytes_arrive_as_such_and_none_is_lost_around_them() {
    for (chunk, rounds) in [(3, 40), (200_000, 30)] {
        let backend = Backend::tcp(move |stream| {
            let socket = SockRef::from(&stream);
            for round in 0..rounds {
                (&stream).write_all(&vec![b'.'; chunk])?;
                if round % 2 == 0 {
                    assert_eq!(socket.send_out_of_band(b"!")?, 1);
                }
            }
            Ok(())
        });
        let world = World::new(Protocol::Tcp, &[backend.address]);
        let mut stream = connect(&world);
        let socket = SockRef::from(&stream);
        socket.set_out_of_band_inline(true).unwrap();
        let wanted = rounds * chunk + rounds / 2;
        let (mut got, mut urgent, mut buffer) = (0, 0, vec![0; 65_536]);
        loop {
            let at_mark = sluice_sys::tcp::is_at_urgent_mark(std::os::fd::AsFd::as_fd(&stream)).unwrap();
            let read = stream.read(&mut buffer).unwrap();
            if read == 0 {
                break;
            }
            urgent += usize::from(at_mark && buffer[0] == b'!');
            got += read;
        }
        assert_eq!(got, wanted, "of chunks of {chunk} bytes");
        // Of two that are close to each other TCP keeps the later one's place only.
        assert!(urgent > 0, "none was urgent, of chunks of {chunk} bytes");
    }
}

#[test]
fn a_client_that_leaks_connections_leaves_some_for_others() {
    const ATTEMPTS: usize = 40;
    let backend = Backend::echo();
    // Of which an eighth is UDP's: 28 sessions.
    let config = Config { workers: 1, descriptors: 64, client_share: Config::CLIENT_SHARE, ..World::CONFIG };
    let world = World::with_config(Protocol::Tcp, &[backend.address], config);
    let exchange = |mut stream: &TcpStream| -> io::Result<()> {
        stream.write_all(b"x")?;
        stream.read_exact(&mut [0])
    };
    let streams: Vec<TcpStream> = (0..ATTEMPTS).map(|_| connect(&world)).collect();
    let served = streams.iter().filter(|stream| exchange(stream).is_ok()).count();
    assert!((20..=22).contains(&served), "three quarters of 28 are its share, not {served}");
    assert_eq!(world.proxy.stats().tcp_over_share, (ATTEMPTS - served) as u64);

    let other = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    other.bind(&SocketAddr::from((sluice_tests::loopback_address(), 0)).into()).unwrap();
    other.connect(&world.frontend.into()).unwrap();
    exchange(&other.into()).unwrap();
    assert_eq!(
        streams.iter().filter(|stream| exchange(stream).is_ok()).count(),
        served,
        "the old is untouched"
    );
    assert_eq!(world.proxy.stats().tcp_over_limit, 0);
}

#[test]
fn connections_that_have_ended_leave_no_deadline_behind() {
    let backend = Backend::tcp(|mut stream| {
        stream.read_to_end(&mut Vec::new())?;
        stream.write_all(b"x")
    });
    let world = World::new(Protocol::Tcp, &[backend.address]);
    for _ in 0..500 {
        let mut stream = connect(&world);
        stream.shutdown(Shutdown::Write).unwrap();
        stream.read_exact(&mut [0]).unwrap();
    }
    wait::until("no session is left, and no deadline", || {
        let stats = world.proxy.stats();
        (stats.tcp_active, stats.deadlines) == (0, 0)
    });
}

#[test]
fn what_was_sent_before_a_reset_arrives_even_in_bulk() {
    // As much as the sockets on the way take without anybody reading; the reset comes behind it.
    const BYTES: usize = 1 << 20;
    let backend = Backend::tcp(|mut stream| {
        stream.write_all(&vec![7; BYTES])?;
        wait::until("the kernel has taken and delivered it all", || {
            sluice_sys::tcp::unacknowledged_bytes(std::os::fd::AsFd::as_fd(&stream)).unwrap() == 0
        });
        reset(stream);
        Ok(())
    });
    let world = World::new(Protocol::Tcp, &[backend.address]);
    let mut stream = connect(&world);
    let mut total = 0;
    let mut chunk = vec![0; 65_536];
    let end = loop {
        match stream.read(&mut chunk) {
            Ok(0) => panic!("a clean end after a reset"),
            Ok(n) => total += n,
            Err(error) => break error.kind(),
        }
    };
    assert_eq!((total, end), (BYTES, ErrorKind::ConnectionReset));
}

#[test]
fn a_slow_reader_holds_the_sender_back_and_loses_nothing() {
    const BYTES: usize = 64 << 20;
    let (report, reports) = mpsc::channel();
    let report = Mutex::new(report);
    let backend = Backend::tcp(move |stream| {
        let hash = send_random(&stream, 3, BYTES);
        report.lock().unwrap().send(hash).unwrap();
        Ok(())
    });
    let world = World::new(Protocol::Tcp, &[backend.address]);
    let stream = connect(&world);
    let moved = || {
        let stats = world.proxy.stats();
        stats.bytes_copied + stats.bytes_spliced
    };
    // Not reading: the proxy must come to a halt long before everything was moved.
    let mut last = (moved(), Instant::now());
    wait::until("bytes stop moving while nobody reads", || {
        let now = moved();
        if now != last.0 || now == 0 {
            last = (now, Instant::now());
        }
        last.1.elapsed() > Duration::from_millis(200)
    });
    assert!(moved() < BYTES as u64 / 2, "{} of {BYTES} bytes were taken in with nobody reading", moved());
    let (total, hash) = receive_all(&stream);
    assert_eq!(total, BYTES);
    assert_eq!(hash, reports.recv_timeout(PATIENCE).unwrap());
}

#[test]
fn random_short_writes_and_reads_arrive_in_order() {
    let backend = Backend::echo();
    let world = World::new(Protocol::Tcp, &[backend.address]);
    for seed in 0..20 {
        let stream = connect(&world);
        stream.set_nodelay(true).unwrap();
        let mut random = SmallRng::seed_from_u64(seed);
        let mut sent = vec![0; random.random_range(1..400_000)];
        random.fill(&mut sent[..]);
        let received = std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut rest = &sent[..];
                while !rest.is_empty() {
                    // Mostly single bytes, now and then a lot.
                    let piece = if random.random_ratio(1, 50) { 65_536 } else { random.random_range(1..4) };
                    let (now, later) = rest.split_at(piece.min(rest.len()));
                    (&stream).write_all(now).unwrap();
                    rest = later;
                }
                stream.shutdown(Shutdown::Write).unwrap();
            });
            let mut random = SmallRng::seed_from_u64(!seed);
            let mut received = Vec::new();
            let mut chunk = [0; 4096];
            loop {
                let length = random.random_range(1..=chunk.len());
                match (&stream).read(&mut chunk[..length]).unwrap() {
                    0 => break received,
                    n => received.extend_from_slice(&chunk[..n]),
                }
            }
        });
        assert!(received == sent, "seed {seed}: {} bytes came back of {}", received.len(), sent.len());
    }
}

#[test]
fn single_byte_segments_in_bulk_mode_do_not_stall_behind_a_full_pipe() {
    let backend = Backend::echo();
    let world = World::new(Protocol::Tcp, &[backend.address]);
    let mut stream = connect(&world);
    stream.set_nodelay(true).unwrap();
    // Into bulk mode first, then one-byte segments, more than any pipe has slots.
    let mut sent = vec![1; 4 << 20];
    std::thread::scope(|scope| {
        let mut writer = stream.try_clone().unwrap();
        let sent = &sent;
        scope.spawn(move || {
            writer.write_all(sent).unwrap();
            for byte in 0..2_000_u32 {
                writer.write_all(&byte.to_be_bytes()[3..]).unwrap();
            }
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        let mut expected = sent.clone();
        expected.extend((0..2_000_u32).map(|byte| byte.to_be_bytes()[3]));
        assert!(received == expected);
    });
    sent.clear();
    assert!(world.proxy.stats().bytes_spliced > 0);
}

#[test]
fn a_dead_endpoint_is_retried_elsewhere_before_the_client_notices() {
    let alive = Backend::echo();
    let dead = Backend::echo().address;
    let world = World::new(Protocol::Tcp, &[dead, alive.address]);
    for _ in 0..100 {
        let mut stream = connect(&world);
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0]).unwrap();
    }
    assert_eq!(alive.served(), 100);
    assert!(world.proxy.stats().tcp_retries > 0);
}

/// A listener whose queue is full: connecting to it gets no answer at all.
fn silent_endpoint() -> (Socket, Vec<Socket>, SocketAddr) {
    let address = SocketAddr::from((sluice_tests::loopback_address(), 0));
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener.bind(&address.into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap().as_socket().unwrap();
    let mut fillers = Vec::new();
    loop {
        let filler = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        match filler.connect_timeout(&address.into(), Duration::from_millis(300)) {
            Ok(()) => fillers.push(filler),
            Err(_) => return (listener, fillers, address),
        }
        assert!(fillers.len() < 100, "a queue of length 0 does not fill");
    }
}

#[test]
fn an_endpoint_that_does_not_answer_is_given_up_and_the_next_one_serves() {
    let (_listener, _fillers, silent) = silent_endpoint();
    let alive = Backend::echo();
    let world = World::new(Protocol::Tcp, &[silent, alive.address]);
    for _ in 0..4 {
        let mut stream = connect(&world);
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0]).unwrap();
    }
    assert_eq!(alive.served(), 4);
}

#[test]
fn a_client_that_dies_mid_connect_leaves_nothing_behind() {
    let (_listener, _fillers, silent) = silent_endpoint();
    let world = World::new(Protocol::Tcp, &[silent]);
    let stream = connect(&world);
    wait::until("the session is connecting", || world.proxy.stats().tcp_active == 1);
    reset(stream);
    wait::until("the session has ended", || world.proxy.stats().tcp_active == 0);
    assert_eq!(world.proxy.stats().tcp_client_gone, 1);
}

#[test]
fn when_every_endpoint_refuses_the_client_is_reset() {
    let dead = [Backend::echo().address, Backend::echo().address];
    let world = World::new(Protocol::Tcp, &dead);
    let mut stream = connect(&world);
    let error = stream.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(world.proxy.stats().tcp_all_endpoints_failed, 1);
}

#[test]
fn an_endpoint_whose_queue_is_full_for_long_serves_the_client_in_the_end() {
    let (listener, fillers, slow) = silent_endpoint();
    let world = World::new(Protocol::Tcp, &[slow]);
    let begun = Instant::now();
    let mut stream = connect(&world);
    // Longer than any relay's connect timeout: the kernel goes on sending the SYN.
    wait::until("much time has passed", || begun.elapsed() > Duration::from_secs(4));
    for _ in &fillers {
        drop(listener.accept().unwrap());
    }
    let (accepted, _) = listener.accept().unwrap();
    accepted.send(b"at last").unwrap();
    let mut got = [0; 7];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"at last");
    assert_eq!(world.proxy.stats().tcp_retries, 0);
}

#[test]
fn a_client_waiting_for_a_silent_endpoint_gets_the_one_that_comes_instead() {
    let (_listener, _fillers, silent) = silent_endpoint();
    let mut world = World::new(Protocol::Tcp, &[silent]);
    let mut stream = connect(&world);
    wait::until("the session is connecting", || world.proxy.stats().tcp_active == 1);
    let alive = Backend::echo();
    world.set_endpoints(&[alive.address]);
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
    assert_eq!(alive.served(), 1);
}

#[test]
fn a_hundred_open_connections_outlive_their_endpoint_s_removal() {
    let (old, new) = (Backend::echo(), Backend::echo());
    let mut world = World::new(Protocol::Tcp, &[old.address]);
    let mut streams: Vec<TcpStream> = (0..100).map(|_| connect(&world)).collect();
    let exchange = |stream: &mut TcpStream| -> io::Result<()> {
        stream.write_all(b"x")?;
        stream.read_exact(&mut [0])
    };
    streams.iter_mut().for_each(|stream| exchange(stream).unwrap());
    world.set_endpoints(&[new.address]);
    exchange(&mut connect(&world)).unwrap();
    assert_eq!((old.served(), new.served()), (100, 1));
    streams.iter_mut().for_each(|stream| exchange(stream).unwrap());

    world.delete_service();
    streams.iter_mut().for_each(|stream| exchange(stream).unwrap());
}

#[test]
fn without_endpoints_connections_are_refused_and_with_one_again_served() {
    let backend = Backend::echo();
    let mut world = World::new(Protocol::Tcp, &[backend.address]);
    connect(&world);
    for _ in 0..20 {
        world.set_endpoints(&[]);
        let error = TcpStream::connect(world.frontend).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        world.set_endpoints(&[backend.address]);
        let mut stream = connect(&world);
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0]).unwrap();
    }
    world.delete_service();
    assert_eq!(TcpStream::connect(world.frontend).unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn a_taken_port_stops_nobody_else_and_is_served_once_it_is_free() {
    let backend = Backend::echo();
    let mut world = World::new(Protocol::Tcp, &[]);
    let taken = TcpListener::bind(world.frontend).unwrap();
    world.set_endpoints(&[backend.address]);
    drop(taken);
    wait::until("the frontend is served", || {
        world.proxy.tick();
        TcpStream::connect(world.frontend).is_ok()
    });
}

#[test]
fn two_services_that_are_each_other_s_endpoints_do_not_go_round_in_circles() {
    let mut world = World::new(Protocol::Tcp, &[]);
    let other = world.add_service("other", &[world.frontend]);
    world.set_endpoints(&[other]);
    for frontend in [world.frontend, other] {
        let mut stream = TcpStream::connect(frontend).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
    assert_eq!(world.proxy.stats().endpoint_loops, 2);
    assert_eq!(world.proxy.stats().tcp_accepted, 2);
}

#[test]
fn over_the_limit_new_connections_are_reset_and_old_ones_go_on() {
    let backend = Backend::echo();
    // Two are for UDP, and two for the frontend.
    let world =
        World::with_config(Protocol::Tcp, &[backend.address], Config { descriptors: 24, ..World::CONFIG });
    let mut old: Vec<TcpStream> = (0..10).map(|_| connect(&world)).collect();
    for stream in &mut old {
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0]).unwrap();
    }
    let mut new = connect(&world);
    assert_eq!(new.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(world.proxy.stats().tcp_over_limit, 1);
    for stream in &mut old {
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0]).unwrap();
    }
    old.pop();
    wait::until("a place has become free", || {
        let mut stream = connect(&world);
        stream.write_all(b"x").is_ok() && stream.read_exact(&mut [0]).is_ok()
    });
}

#[test]
fn a_service_whose_endpoints_all_refuse_costs_few_attempts() {
    let dead: Vec<_> = (0..200).map(|_| Backend::echo().address).collect();
    let world = World::new(Protocol::Tcp, &dead);
    for _ in 0..10 {
        let error = connect(&world).read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
    let stats = world.proxy.stats();
    assert_eq!(stats.tcp_all_endpoints_failed, 10);
    assert!(stats.tcp_retries <= 3 * 10, "{}", stats.tcp_retries);
}

/// Annotation `sluice.dev/max-connections`.
#[test]
fn what_is_over_a_services_limit_is_reset_and_counted_and_the_others_go_on() {
    let alive = Backend::echo();
    let mut world = World::new(Protocol::Tcp, &[alive.address]);
    world.edit(|service| service.max_connections = NonZeroU32::new(2));
    let exchange = |stream: &mut TcpStream| {
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0]).unwrap();
    };
    let mut open = [connect(&world), connect(&world)];
    open.iter_mut().for_each(exchange);
    let error = connect(&world).read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(world.proxy.stats().tcp_over_service_limit, 1);
    open.iter_mut().for_each(exchange);
    let [first, _second] = open;
    drop(first);
    wait::until("its session has ended", || world.proxy.stats().tcp_active == 1);
    exchange(&mut connect(&world));
}
