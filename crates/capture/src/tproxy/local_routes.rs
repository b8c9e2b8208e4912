//! The addresses that are this node's by a route: `ip route add local ADDRESS dev lo`, as the agent of Google's machines
//! has load balancers' addresses. What an interface has is among them.

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

/// RT_TABLE_LOCAL: the kernel's own table, which it asks first.
const LOCAL: u8 = 255;

/// A device is gone (rtnetlink(7)).
const RTM_DELLINK: u16 = 17;

/// The shortest time between two lists: a device goes with each pod.
const PAUSE: Duration = Duration::from_secs(1);

/// Follows them. Whole networks that are local by a route are not among them.
#[derive(Debug)]
pub struct LocalRoutes {
    kernel: Netlink,
    notices: Netlink,
    /// Some may be gone.
    is_stale: bool,
    /// Whether the last attempt to list them has failed.
    is_failing: bool,
    listed: Option<Instant>,
    addresses: BTreeSet<IpAddr>,
}

impl LocalRoutes {
    /// Begins to follow them.
    ///
    /// # Errors
    /// The system has no sockets to give.
    pub fn watch() -> Result<Self, Error> {
        // The kernel gives no notice of IPv4 routes that it removes with their device.
        let notices = Netlink::notices(groups::ROUTE | groups::LINK).map_err(Error::Netlink)?;
        let kernel = Netlink::route().map_err(Error::Netlink)?;
        // A node may have very many routes in other tables.
        kernel.filter_dumps();
        let (is_stale, is_failing) = (true, false);
        Ok(Self { kernel, notices, is_stale, is_failing, listed: None, addresses: BTreeSet::new() })
    }

    /// All of them, sorted, if they are not those of the last call. Cheap where there is no news: other routes are none, new
    /// addresses need no list, and for those that are gone there is one a second at the most.
    ///
    /// Without IPv6 link-local addresses, which each pod brings along.
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

    /// Whether one is new.
    fn take_notices(&mut self) -> bool {
        let (mut is_new, mut is_stale) = (false, false);
        let addresses = &mut self.addresses;
        let taken = self.notices.take_notices(|notice| match read(notice) {
            Some(RouteNetlinkMessage::NewRoute(route)) => {
                is_new |= address(&route).is_some_and(|ip| addresses.insert(ip));
            }
            // Another route may lead to it.
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
                // ENOENT: the table is made with the first address.
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(Error::Addresses(error)),
            }
        }
        Ok(addresses)
    }
}

/// A notice, if it is about the table of local addresses, or of a device that is gone: of other routes there may be very many.
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

/// The one address that a route delivers here.
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
