//! The sockets that captured packets are handed over at: for each origin of clients and each family.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rustix::io::Errno;
use sluice_capture::tproxy::{Ports, marks};
use sluice_dataplane::{Dataplane, Marks};
use sluice_table::Origin;
use tracing::{error, info, warn};

/// What the capture's rules know our sockets by.
pub(crate) const MARKS: Marks = Marks { downstream: marks::DOWNSTREAM, upstream: marks::UPSTREAM };

/// Loopback addresses: no one else can send anything there.
const ADDRESSES: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// The doors and which of them are open.
#[derive(Debug)]
pub(crate) struct Doors {
    closed: Vec<(SocketAddr, Origin)>,
    has_complained: bool,
}

impl Doors {
    /// All of them, closed.
    pub(crate) fn new(ports: Ports) -> Self {
        let origins = [
            (ports.outside, Origin::Outside),
            (ports.local_pod, Origin::LocalPod),
            (ports.node, Origin::Node),
        ];
        let closed = origins
            .into_iter()
            .flat_map(|(port, origin)| ADDRESSES.map(|ip| (SocketAddr::new(ip, port), origin)))
            .collect();
        Self { closed, has_complained: false }
    }

    /// Opens those that are closed; to be tried again for as long as some are.
    pub(crate) fn open(&mut self, dataplane: &Dataplane) {
        if self.closed.is_empty() {
            return;
        }
        let mut complaints = Vec::new();
        self.closed.retain(|(address, origin)| match dataplane.open_captured(*address, *origin) {
            Ok(()) => false,
            // No IPv6 on this machine: nothing comes in by that door.
            Err(error) if address.is_ipv6() && is_family_missing(&error) => false,
            Err(error) => {
                complaints.push((*address, error));
                true
            }
        });
        match complaints.first() {
            Some((address, error)) if !std::mem::replace(&mut self.has_complained, true) => error!(
                "cannot listen on {address}, so that part of the traffic to Services is lost: {error}: {}; \
                 it is tried again",
                mend(error)
            ),
            None if self.has_complained => info!("all of the traffic to Services is taken"),
            _ => {}
        }
    }
}

fn is_family_missing(error: &std::io::Error) -> bool {
    let is_missing = matches!(
        error.raw_os_error().map(Errno::from_raw_os_error),
        Some(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL)
    );
    if is_missing {
        warn!("this machine has no IPv6: Services are served over IPv4 only");
    }
    is_missing
}

fn mend(error: &std::io::Error) -> &'static str {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::ADDRINUSE) => "another program has the port; choose others with --tproxy-port",
        Some(Errno::PERM | Errno::ACCESS) => "run with CAP_NET_ADMIN",
        Some(Errno::MFILE | Errno::NFILE) => "file descriptors have run out; raise the limit (ulimit -n)",
        _ => "the system does not allow it",
    }
}
