//! The work of the table's writer: one endpoint change, one Service change, a complete build.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use sluice_benches::cluster::{self, Cluster};
use sluice_model::{Change, ObjectRef};

const SERVICES: u32 = 10_000;
const ENDPOINTS: u32 = 10;

/// Adds or removes an endpoint in one of 10,000 Services. The change is live when `apply` returns.
fn endpoint_change(criterion: &mut Criterion) {
    let mut cluster = Cluster::new(SERVICES, ENDPOINTS);
    let mut n = 0;
    criterion.bench_function("table_change/one_endpoint", |bencher| {
        let next = || {
            n += 1;
            cluster::endpoint_change(n, SERVICES, ENDPOINTS)
        };
        bencher.iter_batched(next, |change| cluster.writer.apply(change), BatchSize::SmallInput);
    });
}

/// Adds a Service and removes it again. Each copies the map of frontends.
fn service_change(criterion: &mut Criterion) {
    let mut cluster = Cluster::new(SERVICES, ENDPOINTS);
    criterion.bench_function("table_change/one_service", |bencher| {
        let mut is_there = false;
        let next = || {
            is_there = !is_there;
            let service = cluster::service(SERVICES);
            if is_there {
                Change::Apply(service.into())
            } else {
                Change::Delete(ObjectRef::Service(service.name))
            }
        };
        bencher.iter_batched(
            next,
            |change| {
                cluster.writer.apply(change);
                let mut plan = cluster.writer.plan();
                cluster.writer.publish(&mut plan);
                cluster.writer.finish(&mut plan);
            },
            BatchSize::SmallInput,
        );
    });
}

/// Builds the table from all objects of a cluster, as after a start.
fn full_build(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("table_change");
    group.sample_size(20);
    let objects = cluster::objects(SERVICES, ENDPOINTS);
    group.bench_function("full_build", |bencher| {
        bencher.iter_batched(
            || objects.clone(),
            |objects| black_box(Cluster::of(objects)),
            BatchSize::PerIteration,
        );
    });
}

criterion_group!(benches, endpoint_change, service_change, full_build);
criterion_main!(benches);
