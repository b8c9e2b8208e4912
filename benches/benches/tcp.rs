//! TCP through the proxy, compared with a direct connection.
//!
//! * `tcp_throughput`: one connection, from endpoint to client, at full speed.
//! * `tcp_exchange`: one byte there and back on an open connection.
//! * `tcp_connection`: connect, one byte there and back, close.
//!
//! Client, proxy and endpoint share the machine's cores, so the proxy's cost counts in full.

#![expect(clippy::expect_used, reason = "a benchmark that cannot run has failed")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use sluice_model::Protocol;
use sluice_tests::World;
use sluice_tests::backend::Backend;

const BULK: u64 = 256 << 20;

/// A server that answers each 8-byte request for N bytes with N bytes.
fn source() -> Backend {
    let chunk = vec![7; 1 << 20];
    Backend::tcp(move |mut stream| {
        let mut request = [0; 8];
        loop {
            stream.read_exact(&mut request)?;
            let mut left = u64::from_be_bytes(request);
            while left > 0 {
                let length = left.min(chunk.len() as u64);
                stream.write_all(chunk.get(..usize::try_from(length).unwrap_or(0)).unwrap_or_default())?;
                left -= length;
            }
        }
    })
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("somebody listens");
    stream.set_nodelay(true).expect("an option of every TCP socket");
    stream
}

fn exchange(stream: &mut TcpStream) {
    stream.write_all(b"x").expect("the connection is open");
    stream.read_exact(&mut [0]).expect("the connection is open");
}

fn tcp(criterion: &mut Criterion) {
    let source = source();
    let echo = Backend::echo();
    // All connections on one thread, one after the other: starting threads would take most of the time.
    let once = Backend::accepting(|mut stream| {
        let mut byte = [0];
        let _ = stream.read_exact(&mut byte).and_then(|()| stream.write_all(&byte));
    });
    let to_source = World::new(Protocol::Tcp, &[source.address]);
    let to_echo = World::new(Protocol::Tcp, &[echo.address]);
    let to_once = World::new(Protocol::Tcp, &[once.address]);

    let mut group = criterion.benchmark_group("tcp_throughput");
    group.throughput(Throughput::Bytes(BULK)).sample_size(10);
    for (path, address) in [("direct", source.address), ("sluice", to_source.frontend)] {
        let mut stream = connect(address);
        let mut buffer = vec![0; 1 << 20];
        group.bench_function(BenchmarkId::from_parameter(path), |bencher| {
            bencher.iter(|| {
                stream.write_all(&BULK.to_be_bytes()).expect("the connection is open");
                let mut left = BULK;
                while left > 0 {
                    left -= stream.read(&mut buffer).expect("the connection is open") as u64;
                }
            });
        });
    }
    group.finish();

    let mut group = criterion.benchmark_group("tcp_exchange");
    for (path, address) in [("direct", echo.address), ("sluice", to_echo.frontend)] {
        let mut stream = connect(address);
        group.bench_function(BenchmarkId::from_parameter(path), |bencher| {
            bencher.iter(|| exchange(&mut stream));
        });
    }
    group.finish();

    let mut group = criterion.benchmark_group("tcp_connection");
    for (path, address) in [("direct", once.address), ("sluice", to_once.frontend)] {
        group.bench_function(BenchmarkId::from_parameter(path), |bencher| {
            bencher.iter(|| exchange(&mut connect(address)));
        });
    }
    group.finish();
}

criterion_group!(benches, tcp);
criterion_main!(benches);
