//! How connections end: one side first, by a reset, cut off by the proxy; and what is left of them.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::Ordering;
use std::sync::{Mutex, mpsc};
use std::time::Duration;

use sluice_dataplane::Config;
use sluice_model::Protocol;
use sluice_tests::backend::Backend;
use sluice_tests::{PATIENCE, World, wait};
use socket2::SockRef;

use super::client::{connect, reset};

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

/// A client that has ended, as its endpoint has, and has not taken this much of the answer.
fn owing(half_closed_idle: Duration) -> (World, TcpStream, [Backend; 2]) {
    let generous = Backend::tcp(|mut stream| {
        stream.read_to_end(&mut Vec::new())?;
        stream.write_all(&vec![7; OWED])
    });
    let echoing = Backend::tcp(|mut stream| {
        let mut byte = [0];
        while stream.read(&mut byte)? > 0 {
            stream.write_all(&byte)?;
        }
        Ok(())
    });
    let config = Config { half_closed_idle, workers: 1, ..World::CONFIG };
    let mut world = World::with_config(Protocol::Tcp, &[generous.address], config);
    let other = world.add_service("other", &[echoing.address]);
    let stream = connect(&world);
    SockRef::from(&stream).set_recv_buffer_size(4096).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    wait::until("all was passed on", || {
        let endpoints = world.proxy.observer().endpoints();
        endpoints
            .iter()
            .any(|(_, endpoint)| endpoint.stats().bytes_from_endpoint.load(Ordering::Relaxed) == OWED as u64)
    });
    // Whatever the worker was about to do it has done by now.
    let mut other = TcpStream::connect(other).unwrap();
    for _ in 0..10 {
        other.write_all(b".").unwrap();
        other.read_exact(&mut [0]).unwrap();
    }
    assert_eq!(world.proxy.stats().tcp_active, 2);
    drop(other);
    (world, stream, [generous, echoing])
}

/// More than is left to the kernel, and less than its sockets take.
const OWED: usize = 512 << 10;

#[test]
fn a_session_is_counted_until_what_was_sent_has_arrived() {
    let (world, mut stream, _backends) = owing(PATIENCE);
    SockRef::from(&stream).set_recv_buffer_size(OWED).unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert_eq!(rest.len(), OWED);
    wait::until("it has ended", || world.proxy.stats().tcp_active == 0);
    assert_eq!(world.proxy.stats().tcp_half_closed_timeouts, 0);
}

#[test]
fn a_client_that_does_not_take_what_is_left_is_reset_in_the_end() {
    let (world, mut stream, _backends) = owing(Duration::from_millis(500));
    wait::until("it is given up", || world.proxy.stats().tcp_active == 0);
    assert_eq!(world.proxy.stats().tcp_half_closed_timeouts, 1);
    assert_eq!(stream.read_to_end(&mut Vec::new()).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_client_that_goes_without_what_is_left_ends_the_session() {
    let (world, stream, _backends) = owing(PATIENCE * 2);
    drop(stream);
    wait::until("it has ended", || world.proxy.stats().tcp_active == 0);
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

/// A backend that reports the client's FIN of each connection, and then how it ends.
fn reporting_after_the_fin() -> (Backend, mpsc::Receiver<io::Result<()>>) {
    let (report, reports) = mpsc::channel();
    let report = Mutex::new(report);
    let backend = Backend::tcp(move |mut stream| {
        let fin = stream.read_to_end(&mut Vec::new()).map(drop);
        report.lock().unwrap().send(fin).unwrap();
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
    reports.recv_timeout(PATIENCE).unwrap().expect("the endpoint sees the FIN");
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

/// A backend that reads nothing, and reports how each connection ends.
fn deaf() -> (Backend, mpsc::Receiver<io::Result<()>>) {
    let (report, reports) = mpsc::channel();
    let report = Mutex::new(report);
    let backend = Backend::tcp(move |stream| {
        wait::until("it has ended", || wait_for_failure(&stream));
        report.lock().unwrap().send(stream.take_error().and_then(|error| error.map_or(Ok(()), Err))).unwrap();
        Ok(())
    });
    (backend, reports)
}

fn wait_for_failure(stream: &TcpStream) -> bool {
    let mut ends = [rustix::event::PollFd::new(stream, rustix::event::PollFlags::empty())];
    let at_once = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut ends, Some(&at_once)).unwrap() > 0
}

/// Writes until the sockets on the way take no more.
fn fill(stream: &TcpStream) {
    stream.set_nonblocking(true).unwrap();
    let is_full = |mut stream: &TcpStream| {
        let written = stream.write(&[7; 65_536]);
        written.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    };
    let mut last = usize::MAX;
    wait::until("nothing more is taken", || {
        let unsent = sluice_sys::tcp::unacknowledged_bytes(std::os::fd::AsFd::as_fd(stream)).unwrap();
        is_full(stream) && std::mem::replace(&mut last, unsent) == unsent
    });
}

#[test]
fn a_reset_by_the_client_is_noticed_while_the_endpoint_reads_nothing() {
    let (backend, reports) = deaf();
    let world = World::new(Protocol::Tcp, &[backend.address]);
    let stream = connect(&world);
    fill(&stream);
    reset(stream);
    assert!(reports.recv_timeout(PATIENCE).unwrap().is_err(), "the endpoint sees a reset");
    wait::until("the session has ended", || world.proxy.stats().tcp_active == 0);
    assert_eq!(world.proxy.stats().tcp_resets, 1);
}

#[test]
fn a_reset_by_the_endpoint_is_noticed_while_the_client_reads_nothing() {
    let backend = Backend::tcp(|stream| {
        fill(&stream);
        reset(stream);
        Ok(())
    });
    let world = World::new(Protocol::Tcp, &[backend.address]);
    let stream = connect(&world);
    wait::until("the client is reset", || wait_for_failure(&stream));
    wait::until("the session has ended", || world.proxy.stats().tcp_active == 0);
    assert_eq!(world.proxy.stats().tcp_resets, 1);
}
