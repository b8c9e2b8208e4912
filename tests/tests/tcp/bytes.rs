//! Bytes arrive, all of them, in order, whatever their number and pace.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use sluice_dataplane::Config;
use sluice_model::Protocol;
use sluice_tests::backend::Backend;
use sluice_tests::{PATIENCE, World, wait};

use super::client::{connect, receive_all, send_random};

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
