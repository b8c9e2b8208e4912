//! Updating the maps of socket mode in this kernel: everything after a start, one endpoint change, and the
//! memory of the maps. Needs root; only sockets of this benchmark are translated.

#![allow(clippy::expect_used, reason = "without maps there is nothing to measure")]

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use sluice::at_socket::AtSocketConfig;
use sluice_benches::cluster::{endpoint_change, objects};
use sluice_benches::say;
use sluice_capture::socket::{AtSockets, Ledger, Sockets};
use sluice_model::{Change, Family, Frontend};
use sluice_socket::{Attached, Config, Programs, mapped_bytes, remove};
use sluice_socket_maps::Maps;
use sluice_table::{LocalPods, Writer, WriterConfig};
use sluice_testbed::lab::Cgroup;
use tempfile::TempDir;

const SERVICES: u32 = 10_000;
const ENDPOINTS: u32 = 10;

/// The maximum size of the maps in bytes with this many Services and endpoints: 12 MB, as documented in
/// docs/socket-mode.md.
const MOST_MEMORY: u64 = 12_000_000;

/// A bpffs, and an empty cgroup.
struct Place {
    cgroup: Cgroup,
    directory: TempDir,
}

impl Place {
    /// `None` if these cannot be created.
    fn new() -> Option<Self> {
        let directory = tempfile::tempdir().ok()?;
        let cgroup = Cgroup::enter().inspect_err(|error| say(&format!("not measured: {error}"))).ok()?;
        cgroup.leave().ok()?;
        sluice_sys::bpf::mount_bpffs(directory.path())
            .inspect_err(|error| say(&format!("not measured, as no bpffs can be mounted: {error}")))
            .ok()?;
        Some(Self { cgroup, directory })
    }

    fn pins(&self) -> PathBuf {
        self.directory.path().join("sluice")
    }

    /// New, empty maps, with the programs.
    fn attach(&self, endpoints: u32) -> Attached {
        let _ = remove(&self.pins());
        let capacity = AtSocketConfig::capacity_for(endpoints);
        let config = Config { cgroup: self.cgroup.path().into(), pins: self.pins(), capacity };
        Programs::attach(&config).expect("programs can be attached")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = remove(&self.pins());
        let _ = Command::new("umount").arg(self.directory.path()).status();
    }
}

/// A table like that of an agent that captures.
fn table(endpoints: u32) -> Writer {
    let local_pods = LocalPods::DetectedIn(vec![Family::V4]);
    let mut writer =
        Writer::new(WriterConfig { frontends_lead_back: false, local_pods, ..WriterConfig::new("here") });
    writer.apply_all(objects(SERVICES, endpoints).into_iter().map(Change::Apply));
    let mut plan = writer.plan();
    writer.publish(&mut plan);
    writer.finish(&mut plan);
    writer
}

fn frontends(writer: &Writer) -> Vec<Frontend> {
    writer.table().routes().iter().map(|route| route.frontend()).collect()
}

fn sockets(attached: Attached, writer: &Writer) -> Sockets<Attached> {
    let accounts = attached.accounts().expect("accounts can be read");
    let ledger = Arc::new(Ledger::new(accounts));
    Sockets::new(Maps::adopt(attached).expect("maps can be read"), writer.table(), ledger, false)
}

/// The time from a complete table until everything is in the maps, which were empty.
fn load(criterion: &mut Criterion) {
    let Some(place) = Place::new() else { return };
    let mut group = criterion.benchmark_group("socket_maps");
    group.sample_size(10);
    for (endpoints, room) in [(ENDPOINTS, AtSocketConfig::ENDPOINTS), (25, 1 << 18)] {
        let writer = table(endpoints);
        let frontends = frontends(&writer);
        group.bench_function(format!("load_{SERVICES}x{endpoints}"), |bencher| {
            bencher.iter_batched_ref(
                || sockets(place.attach(room), &writer),
                |sockets| sockets.offer(&frontends),
                BatchSize::PerIteration,
            );
        });
        let mut sockets = sockets(place.attach(room), &writer);
        sockets.offer(&frontends);
        let stats = sockets.stats();
        assert_eq!((stats.frontends, stats.waiting), (SERVICES as usize, 0), "{stats:?}");
        let memory = memory(&place.pins());
        let total: u64 = memory.values().sum();
        // Mapped memory exists from the start; the rest grows with Services.
        let least = mapped_bytes(&AtSocketConfig::capacity_for(room));
        assert!(total > least, "not all maps are counted: {memory:?}");
        if endpoints == ENDPOINTS {
            assert!(total <= MOST_MEMORY, "{total} bytes: {memory:?}");
        }
        say(&format!("{SERVICES}x{endpoints}: {total} bytes of maps: {memory:?}"));
    }
}

/// Adds or removes an endpoint in one of 10,000 Services. The change is live when `change` returns.
fn endpoint(criterion: &mut Criterion) {
    let Some(place) = Place::new() else { return };
    let mut writer = table(ENDPOINTS);
    writer.follow_changes();
    let mut sockets = sockets(place.attach(AtSocketConfig::ENDPOINTS), &writer);
    sockets.offer(&frontends(&writer));
    let mut n = 0;
    criterion.bench_function("socket_maps/one_endpoint", |bencher| {
        let next = || {
            n += 1;
            writer.apply(endpoint_change(n, SERVICES, ENDPOINTS));
            writer.take_changed()
        };
        bencher.iter_batched(next, |changed| sockets.change(&changed), BatchSize::PerIteration);
    });
}

/// The memory of each map, according to the kernel.
fn memory(pins: &Path) -> HashMap<String, u64> {
    let maps =
        fs::read_dir(pins).into_iter().flatten().flatten().flat_map(|layout| fs::read_dir(layout.path()));
    let maps = maps.flatten().flatten().filter(|map| !map.file_name().to_string_lossy().starts_with("link_"));
    let of = |map: fs::DirEntry| {
        let descriptor = sluice_sys::bpf::get(&map.path()).ok()?;
        let info = format!("/proc/self/fdinfo/{}", std::os::fd::AsRawFd::as_raw_fd(&descriptor));
        let info = fs::read_to_string(info).ok()?;
        let bytes = info.lines().find_map(|line| line.strip_prefix("memlock:"))?.trim().parse().ok()?;
        Some((map.file_name().to_string_lossy().into_owned(), bytes))
    };
    maps.filter_map(of).collect()
}

criterion_group!(benches, load, endpoint);
criterion_main!(benches);
