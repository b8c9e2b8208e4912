//! Urgent bytes come as such and at their place, whoever sends them.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv6Addr, Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::mpsc;

use sluice_model::Protocol;
use sluice_tests::backend::Backend;
use sluice_tests::{PATIENCE, World, free_port, loopback_address};
use socket2::SockRef;

use super::client::connect;

/// Who sends, and over which family: from the client and to it.
fn ways() -> impl Iterator<Item = (bool, IpAddr)> {
    let families = [loopback_address().into(), Ipv6Addr::LOCALHOST.into()];
    families.into_iter().flat_map(|ip| [(true, ip), (false, ip)])
}

fn world(ip: IpAddr, backend: &Backend) -> World {
    World::at((ip, free_port(ip)).into(), Protocol::Tcp, &[backend.address], World::CONFIG)
}

/// Says that what comes now is to be read in line, urgent or not.
fn begin(mut stream: &TcpStream) {
    SockRef::from(stream).set_out_of_band_inline(true).unwrap();
    stream.write_all(b"?").unwrap();
}

fn send(mut stream: &TcpStream, chunk: usize, is_urgent: bool) -> io::Result<()> {
    stream.write_all(&vec![b'.'; chunk])?;
    if is_urgent {
        assert_eq!(SockRef::from(stream).send_out_of_band(b"!")?, 1);
    }
    Ok(())
}

#[test]
fn urgent_bytes_arrive_as_such_both_ways() {
    const ROUNDS: usize = 20;
    /// One after the other: of two that are close to each other TCP keeps the later one's place only.
    fn send_each(mut stream: &TcpStream, chunk: usize) -> io::Result<()> {
        for _ in 0..ROUNDS {
            stream.read_exact(&mut [0])?;
            send(stream, chunk, true)?;
        }
        stream.read_exact(&mut [0])
    }
    fn receive_each(mut stream: &TcpStream, chunk: usize) {
        begin(stream);
        for round in 0..ROUNDS {
            stream.read_exact(&mut vec![0; chunk]).unwrap();
            let mut byte = [0];
            assert_eq!(stream.peek(&mut byte).unwrap(), 1);
            let at_mark = sluice_sys::tcp::is_at_urgent_mark(stream.as_fd()).unwrap();
            assert_eq!((byte[0], at_mark), (b'!', true), "round {round}, of chunks of {chunk} bytes");
            stream.read_exact(&mut byte).unwrap();
            stream.write_all(&byte).unwrap();
        }
    }
    for ((client_sends, ip), chunk) in ways().flat_map(|way| [3, 200_000].map(|chunk| (way, chunk))) {
        let backend = Backend::accepting_at(ip, move |stream| {
            if client_sends {
                receive_each(&stream, chunk);
            } else {
                // The client says what went wrong.
                let _ = send_each(&stream, chunk);
            }
        });
        let world = world(ip, &backend);
        let client = connect(&world);
        if client_sends {
            let sent = send_each(&client, chunk);
            assert!(sent.is_ok(), "to {ip}, chunks of {chunk} bytes: {sent:?}");
        } else {
            receive_each(&client, chunk);
        }
    }
}

#[test]
fn no_byte_is_lost_around_urgent_ones_that_are_close_to_each_other_both_ways() {
    let send_all = |mut stream: &TcpStream, chunk, rounds| {
        stream.read_exact(&mut [0])?;
        (0..rounds).try_for_each(|round| send(stream, chunk, round % 2 == 0))?;
        stream.shutdown(Shutdown::Write)
    };
    let receive_all = |mut stream: &TcpStream| {
        begin(stream);
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        got
    };
    for ((client_sends, ip), (chunk, rounds)) in
        ways().flat_map(|way| [(3, 40), (200_000, 30)].map(|size| (way, size)))
    {
        let (report, reports) = mpsc::channel();
        let backend = Backend::accepting_at(ip, move |stream| {
            if client_sends {
                report.send(receive_all(&stream)).unwrap();
            } else {
                // The client says what went wrong.
                let _ = send_all(&stream, chunk, rounds);
            }
        });
        let world = world(ip, &backend);
        let client = connect(&world);
        let got = if client_sends {
            send_all(&client, chunk, rounds).unwrap();
            reports.recv_timeout(PATIENCE).unwrap()
        } else {
            receive_all(&client)
        };
        let wanted = [&vec![b'.'; chunk][..], b"!", &vec![b'.'; chunk]].concat().repeat(rounds / 2);
        let context = format!("client sends: {client_sends}, {ip}, chunks of {chunk} bytes");
        assert!(got == wanted, "{context}: {} of {} bytes", got.len(), wanted.len());
    }
}
