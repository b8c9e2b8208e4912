//! The addresses that a route makes local to this node: `ip route add local ADDRESS dev lo`, as Google's guest
//! agent does for load balancers' addresses. They include the interfaces' addresses.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use netlink_packet_core::{NLM_F_DUMP, NetlinkBuffer, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::io::Errno;
use tracing::{debug, warn};

use super::Error;
use super::netlink::{Netlink, groups};

/// A device was removed (rtnetlink(7)).
const LOCAL: u8 = 255;

/// A device is gone (rtnetlink(7)).
const RTM_DELLINK: u16 = 17;

/// The minimum interval between two lists: a device is removed with each pod.
const PAUSE: Duration = Duration::from_secs(1);

/// Follows the addresses. Whole networks that a route makes local are not included.
#[derive(Debug)]
pub struct LocalRoutes {
    kernel: Netlink,
    notices: Netlink,
    /// Some may have been removed.
    is_stale: bool,
    /// Whether the last attempt to list them has failed.
    is_failing: bool,
    listed: Option<Instant>,
    addresses: BTreeSet<IpAddr>,
}

impl LocalRoutes {
    /// Starts to follow the addresses.
    ///
    /// # Errors
    /// The system cannot open sockets.
    pub fn watch() -> Result<Self, Error> {
        // The kernel sends no notice about IPv4 routes that it removes with their device.
        let notices = Netlink::notices(groups::ROUTE | groups::LINK).map_err(Error::Netlink)?;
        let kernel = Netlink::route().map_err(Error::Netlink)?;
        // A node may have very many routes in other tables.
        kernel.filter_dumps();
        let (is_stale, is_failing) = (true, false);
        Ok(Self { kernel, notices, is_stale, is_failing, listed: None, addresses: BTreeSet::new() })
    }

    /// All addresses, sorted, if they have changed since the last call. Cheap without relevant notices: other
    /// routes are ignored, new addresses need no list, and removed ones cause at most one list per second.
    ///
    /// IPv6 link-local addresses, which come with each pod, are left out.
    pub fn changed(&mut self, now: Instant) -> Option<Vec<IpAddr>> {
        let mut has_changed = self.take_notices();
        if self.is_stale && self.listed.is_none_or(|listed| now >= listed + PAUSE) {
            self.listed = Some(now);
            match self.list() {
                Ok(addresses) => {
                    (self.is_stale, self.is_failing) = (false, false);
                    has_changed |= addresses != self.addresses;
                    self.addresses = addresses;
                }
                Err(error) if std::mem::replace(&mut self.is_failing, true) => debug!("{error}"),
                Err(error) => warn!("{error}; it is tried again"),
            }
        }
        has_changed.then(|| self.addresses.iter().copied().collect())
    }

    /// Whether an address was added.
    fn take_notices(&mut self) -> bool {
        let (mut is_new, mut is_stale) = (false, false);
        let addresses = &mut self.addresses;
        let taken = self.notices.take_notices(|notice| match read(notice) {
            Some(RouteNetlinkMessage::NewRoute(route)) => {
                is_new |= address(&route).is_some_and(|ip| addresses.insert(ip));
            }
            // Another route may still make it local.
            Some(RouteNetlinkMessage::DelRoute(route)) => is_stale |= address(&route).is_some(),
            Some(RouteNetlinkMessage::DelLink(_)) => is_stale = true,
            _ => {}
        });
        self.is_stale |= is_stale || taken.is_err();
        is_new
    }

    fn list(&mut self) -> Result<BTreeSet<IpAddr>, Error> {
        let mut addresses = BTreeSet::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut wanted = RouteMessage::default();
            (wanted.header.address_family, wanted.header.table) = (family, LOCAL);
            let request = RouteNetlinkMessage::GetRoute(wanted);
            let listed = self.kernel.request(request, NLM_F_DUMP, |message| {
                if let RouteNetlinkMessage::NewRoute(route) = message {
                    addresses.extend(address(&route));
                }
            });
            match listed {
                // ENOENT: the table is created with the first address.
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(Error::Addresses(error)),
            }
        }
        Ok(addresses)
    }
}

/// Parses a notice about the table of local addresses, or about a removed device. There may be very many about
/// other routes.
fn read(notice: NetlinkBuffer<&[u8]>) -> Option<RouteNetlinkMessage> {
    // `struct rtmsg`: the table is its fifth byte.
    if notice.message_type() != RTM_DELLINK && notice.payload().get(4) != Some(&LOCAL) {
        return None;
    }
    match NetlinkMessage::deserialize(notice.into_inner()).ok()?.payload {
        NetlinkPayload::InnerMessage(message) => Some(message),
        _ => None,
    }
}

/// The single address that a route makes local.
fn address(route: &RouteMessage) -> Option<IpAddr> {
    if (route.header.table, route.header.kind) != (LOCAL, RouteType::Local) {
        return None;
    }
    let ip = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
        RouteAttribute::Destination(RouteAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
        _ => None,
    })?;
    let (whole, is_link_local) = match ip {
        IpAddr::V4(_) => (32, false),
        IpAddr::V6(ip) => (128, ip.is_unicast_link_local()),
    };
    (route.header.destination_prefix_length == whole && !is_link_local).then_some(ip)
}
