//! A node as these tests have it: two namespaces, a cgroup and a bpffs, with nothing that would carry a packet to a
//! Service's address.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sluice_socket::{Attached, Config, Endable, Error, Programs, remove};
use sluice_socket_maps::{
    Capacity, Endpoint, FrontendKey, FrontendValue, Kernel, Outcome, Set, endpoint_flags, protocol, verdict,
};
use sluice_testbed::lab::{Bpffs, Cgroup, Namespace};

pub(crate) const CAPACITY: Capacity = Capacity { frontends: 1000, sets: 100, slots: 1000, endpoints: 1000 };

/// Outlives any agent; what is in it is gone with it.
pub(crate) struct Node {
    /// The host's.
    pub(crate) host: Namespace,
    /// A pod's.
    pub(crate) pod: Namespace,
    pub(crate) config: Config,
    cgroup: Cgroup,
    _bpffs: Bpffs,
}

impl Node {
    /// The calling thread gets a mount namespace of its own, and a cgroup.
    pub(crate) fn new() -> Self {
        let bpffs = Bpffs::mount().expect("these tests take root");
        let cgroup = Cgroup::enter().unwrap();
        let [host, pod] = ["host", "pod"].map(|name| {
            let namespace = Namespace::new(name).unwrap();
            namespace
                .ip_batch(
                    "link set lo up\n\
                     addr add fd00::1/128 dev lo nodad\n\
                     addr add fd00::2/128 dev lo nodad\n\
                     addr add fd00::3/128 dev lo nodad\n",
                )
                .unwrap();
            namespace
        });
        let pins = bpffs.path().join("sluice");
        let config = Config { cgroup: cgroup.path().into(), pins, capacity: CAPACITY };
        Self { host, pod, config, cgroup, _bpffs: bpffs }
    }

    /// What an agent does that nobody is in the way of. A process that another test is just starting holds the lock of one that
    /// has ended with it for a moment.
    pub(crate) fn attach(&self) -> Result<Attached, Error> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            match self.attach_at_once() {
                Err(Error::Busy(_)) if Instant::now() < deadline => std::thread::yield_now(),
                attached => return attached,
            }
        }
    }

    /// What an agent does.
    pub(crate) fn attach_at_once(&self) -> Result<Attached, Error> {
        self.host.run(|| {
            let attached = Programs::attach(&self.config)?;
            let census = attached.census().expect("descriptors are left");
            census.set_endable(Endable::probe());
            Ok(attached)
        })
    }

    /// Where the pins of this version are.
    pub(crate) fn pins(&self) -> PathBuf {
        self.config.pins.join("v6")
    }

    /// What is attached to the cgroup.
    pub(crate) fn programs(&self) -> String {
        let cgroup = self.cgroup.path().to_str().unwrap();
        let shown = self.host.output("bpftool", &["cgroup", "show", cgroup]).unwrap();
        shown.lines().filter(|line| line.contains("sluice_")).map(|line| format!("{line}\n")).collect()
    }
}

/// Removes what an agent has pinned that is not there any more. A process that another test is just starting holds its lock
/// with it for a moment.
pub(crate) fn remove_pinned(pins: &Path) -> bool {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match remove(pins) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                std::thread::yield_now();
            }
            removed => return removed.unwrap().was_there,
        }
    }
}

/// An address of an endpoint, the `number`-th.
pub(crate) fn endpoint_ip(v6: bool, number: u8) -> IpAddr {
    if v6 {
        Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number.into()).into()
    } else {
        Ipv4Addr::new(127, 0, 1, number).into()
    }
}

/// The address of a Service, which no packet can reach.
pub(crate) fn service(v6: bool, number: u8, port: u16) -> SocketAddr {
    let ip: IpAddr = if v6 {
        Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, number.into()).into()
    } else {
        Ipv4Addr::new(10, 96, 0, number).into()
    };
    SocketAddr::new(ip, port)
}

/// The same through a socket of IPv6.
pub(crate) fn mapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    }
}

pub(crate) fn key(address: SocketAddr, protocol: u8) -> FrontendKey {
    FrontendKey { addr: octets(address.ip()), port: address.port().to_be_bytes(), protocol, pad: 0 }
}

fn octets(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

pub(crate) fn endpoint(address: SocketAddr) -> Endpoint {
    Endpoint {
        addr: octets(address.ip()),
        port: address.port().to_be_bytes(),
        flags: if address.is_ipv4() { endpoint_flags::V4 } else { 0 },
        incarnation: 1,
        ..Endpoint::default()
    }
}

pub(crate) fn desc(base: u32, count: u16, rotation: u16) -> u64 {
    u64::from(base) << 32 | u64::from(count) << 16 | u64::from(rotation)
}

pub(crate) fn balance(set: u32) -> FrontendValue {
    let outcome = Outcome { set, verdict: verdict::BALANCE };
    FrontendValue { node: outcome, pod: outcome, service: set }
}

pub(crate) fn both(verdict: u8) -> FrontendValue {
    let outcome = Outcome { set: 0, verdict };
    FrontendValue { node: outcome, pod: outcome, service: 0 }
}

/// Fills set `id` with endpoints: their ids and slots are 10 times its id and on.
pub(crate) fn fill(kernel: &mut impl Kernel, id: u32, endpoints: &[SocketAddr]) {
    let first = id * 10;
    let count = u16::try_from(endpoints.len()).unwrap();
    kernel.write_endpoints(first, &endpoints.iter().map(|to| endpoint(*to)).collect::<Vec<_>>());
    kernel.write_slots(first, &(first..).take(endpoints.len()).collect::<Vec<_>>());
    kernel.write_set(id, Set { desc: desc(first, count, 0), ..Set::default() });
}

/// A Service of both protocols with these endpoints, under set `id`.
pub(crate) fn serve(kernel: &mut impl Kernel, id: u32, at: SocketAddr, endpoints: &[SocketAddr]) {
    fill(kernel, id, endpoints);
    let entries = [protocol::TCP, protocol::UDP].map(|protocol| (key(at, protocol), balance(id)));
    kernel.put_frontends(&entries).unwrap();
}
