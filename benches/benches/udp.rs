//! UDP through the proxy, compared with a direct exchange.
//!
//! * `udp_exchange`: one datagram there and back, one at a time.
//! * `udp_pipeline`: many at a time, answered one by one.
//!
//! Client, proxy and endpoint share the machine's cores, so the proxy's cost counts in full.

#![expect(clippy::expect_used, reason = "a benchmark that cannot run has failed")]

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use sluice_model::Protocol;
use sluice_tests::World;
use sluice_tests::backend::Backend;

/// Number of datagrams in flight: few enough for any socket buffer.
const PIPELINE: u64 = 64;

/// Without it, a lost datagram would block the benchmark.
const TIMEOUT: Duration = Duration::from_secs(5);

fn client(address: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind(("127.0.0.1", 0)).expect("a port is free");
    socket.connect(address).expect("loopback is reachable");
    socket.set_read_timeout(Some(TIMEOUT)).expect("a timeout that is not zero");
    socket
}

fn exchange(client: &UdpSocket, datagrams: u64, question: &[u8]) {
    let mut answer = [0; 2_048];
    for _ in 0..datagrams {
        client.send(question).expect("the endpoint is there");
    }
    for _ in 0..datagrams {
        client.recv(&mut answer).expect("no datagram is lost");
    }
}

fn udp(criterion: &mut Criterion) {
    let echo = Backend::udp(<[u8]>::to_vec);
    let world = World::new(Protocol::Udp, &[echo.address]);
    let paths = [("direct", echo.address), ("sluice", world.frontend)];

    let mut group = criterion.benchmark_group("udp_exchange");
    for (path, address) in paths {
        let client = client(address);
        group.bench_function(BenchmarkId::from_parameter(path), |bencher| {
            bencher.iter(|| exchange(&client, 1, &[7; 64]));
        });
    }
    group.finish();

    let mut group = criterion.benchmark_group("udp_pipeline");
    group.throughput(Throughput::Elements(PIPELINE));
    for (path, address) in paths {
        let client = client(address);
        group.bench_function(BenchmarkId::from_parameter(path), |bencher| {
            bencher.iter(|| exchange(&client, PIPELINE, &[7; 1_200]));
        });
    }
    group.finish();
}

criterion_group!(benches, udp);
criterion_main!(benches);
