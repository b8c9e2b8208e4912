//! The listeners for captured packets: one for each origin of clients and each family.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rustix::io::Errno;
use sluice_capture::tproxy::{Ports, marks};
use sluice_dataplane::{Dataplane, Marks};
use sluice_model::mend_of_shortage;
use sluice_table::Origin;
use tracing::{error, info, warn};

/// The marks by which the capture's rules recognise our sockets.
pub(crate) const MARKS: Marks = Marks { downstream: marks::DOWNSTREAM, upstream: marks::UPSTREAM };

/// Loopback addresses, because no one else can send to them.
const ADDRESSES: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// The listeners, open and closed.
#[derive(Debug)]
pub(crate) struct CaptureListeners {
    ports: Ports,
    closed: Vec<(SocketAddr, Origin)>,
    /// Whether the log has said that one cannot be opened.
    is_blocked: bool,
    /// Whether the log has said that there is no IPv6.
    lacks_v6: bool,
}

/// What deserves a line in the log.
#[derive(Debug)]
enum News {
    Blocked(SocketAddr, io::Error),
    NoV6,
    V6,
    AllOpen,
}

impl CaptureListeners {
    /// All listeners, closed.
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
        Self { ports, closed, is_blocked: false, lacks_v6: false }
    }

    /// Closes all listeners, because another agent has the same.
    pub(crate) fn close(&mut self, dataplane: &Dataplane) {
        dataplane.stop_accepting();
        *self = Self { lacks_v6: self.lacks_v6, ..Self::new(self.ports) };
    }

    /// Opens all listeners at other ports. The present ones stay open until all are closed, because the kernel
    /// hands packets to them until its rules have changed. Returns whether the new ones are open; if not, the
    /// present ones stay in use.
    pub(crate) fn move_to(&mut self, ports: Ports, dataplane: &Dataplane) -> bool {
        let mut moved = Self { lacks_v6: self.lacks_v6, ..Self::new(ports) };
        moved.open(dataplane);
        let are_open = moved.are_open();
        if are_open {
            *self = moved;
        }
        are_open
    }

    /// Whether all captured packets are taken.
    pub(crate) fn are_open(&self) -> bool {
        self.closed.iter().all(|(address, _)| address.is_ipv6() && self.lacks_v6)
    }

    /// Opens the closed listeners; to be repeated as long as some are closed.
    pub(crate) fn open(&mut self, dataplane: &Dataplane) {
        for news in self.open_with(|address, origin| dataplane.open_captured(address, origin)) {
            match news {
                News::Blocked(address, error) => error!(
                    "cannot listen on {address}, so that part of the traffic to Services is lost: {error}: {}; \
                     it is tried again",
                    mend(&error)
                ),
                News::NoV6 => warn!("this machine has no IPv6: Services are served over IPv4 only"),
                News::V6 => info!("this machine has IPv6 now: Services are served over it"),
                News::AllOpen => info!("all of the traffic to Services is taken"),
            }
        }
    }

    fn open_with(&mut self, open: impl Fn(SocketAddr, Origin) -> io::Result<()>) -> Vec<News> {
        let mut blocked = None;
        let mut lacks_v6 = false;
        self.closed.retain(|(address, origin)| {
            let Err(error) = open(*address, *origin) else { return false };
            if address.is_ipv6() && is_family_missing(&error) {
                // Nothing comes in over IPv6 then, but IPv6 may be switched on later.
                lacks_v6 = true;
            } else {
                blocked.get_or_insert((*address, error));
            }
            true
        });
        let had_no_v6 = std::mem::replace(&mut self.lacks_v6, lacks_v6);
        let was_blocked = std::mem::replace(&mut self.is_blocked, blocked.is_some());
        let mut news = Vec::new();
        match (had_no_v6, lacks_v6) {
            (false, true) => news.push(News::NoV6),
            (true, false) if blocked.is_none() => news.push(News::V6),
            _ => {}
        }
        match blocked {
            Some((address, error)) if !was_blocked => news.push(News::Blocked(address, error)),
            None if was_blocked => news.push(News::AllOpen),
            _ => {}
        }
        news
    }
}

fn is_family_missing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw_os_error),
        Some(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL)
    )
}

fn mend(error: &io::Error) -> &'static str {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::ADDRINUSE) => "another program has the port; choose others with --tproxy-port",
        Some(Errno::PERM | Errno::ACCESS) => "run with CAP_NET_ADMIN",
        _ => mend_of_shortage(error).unwrap_or("the system does not allow it"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: &[&str] = &[];

    /// What is logged if opening fails with these errors, for IPv4 and IPv6.
    fn said(listeners: &mut CaptureListeners, v4: Option<Errno>, v6: Option<Errno>) -> Vec<&'static str> {
        let open = |address: SocketAddr, _| match if address.is_ipv4() { v4 } else { v6 } {
            None => Ok(()),
            Some(error) => Err(error.into()),
        };
        let name = |news: &News| match news {
            News::Blocked(..) => "blocked",
            News::NoV6 => "no IPv6",
            News::V6 => "IPv6",
            News::AllOpen => "all open",
        };
        listeners.open_with(open).iter().map(name).collect()
    }

    #[test]
    fn those_of_ipv6_open_once_there_is_ipv6_and_each_change_is_said_once() {
        let mut listeners = CaptureListeners::new(Ports::from_first(10_265));
        for missing in [Errno::ADDRNOTAVAIL, Errno::AFNOSUPPORT] {
            let mut listeners = CaptureListeners::new(Ports::from_first(10_265));
            assert_eq!(said(&mut listeners, None, Some(missing)), ["no IPv6"]);
            assert_eq!(said(&mut listeners, None, Some(missing)), NONE);
        }
        assert_eq!(said(&mut listeners, None, Some(Errno::ADDRNOTAVAIL)), ["no IPv6"]);
        assert_eq!(listeners.closed.len(), 3, "those of IPv4 are open");
        assert!(listeners.are_open(), "nobody comes by the others");
        assert_eq!(said(&mut listeners, None, None), ["IPv6"]);
        assert!(listeners.closed.is_empty());
        assert_eq!(said(&mut listeners, None, None), NONE);
    }

    #[test]
    fn what_is_in_the_way_is_said_once_each_time() {
        let mut listeners = CaptureListeners::new(Ports::from_first(10_265));
        let taken = Some(Errno::ADDRINUSE);
        assert!(!listeners.are_open());
        assert_eq!(said(&mut listeners, taken, Some(Errno::ADDRNOTAVAIL)), ["no IPv6", "blocked"]);
        assert_eq!(said(&mut listeners, taken, Some(Errno::ADDRNOTAVAIL)), NONE);
        assert_eq!(said(&mut listeners, None, Some(Errno::ADDRNOTAVAIL)), ["all open"]);
        assert_eq!(said(&mut listeners, None, Some(Errno::ADDRNOTAVAIL)), NONE);
        assert_eq!(said(&mut listeners, None, taken), ["blocked"]);
        assert!(!listeners.are_open());
        assert_eq!(said(&mut listeners, None, None), ["all open"]);
        assert_eq!(said(&mut listeners, Some(Errno::MFILE), taken), NONE, "nothing is left to open");
    }
}
