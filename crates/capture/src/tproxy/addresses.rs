//! The addresses of the node's interfaces.

use std::collections::BTreeSet;
use std::net::IpAddr;

use netlink_packet_core::NLM_F_DUMP;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use tracing::{debug, info, warn};

use super::Error;
use super::netlink::{Netlink, groups};

/// Follows the addresses.
#[derive(Debug)]
pub struct NodeAddresses {
    kernel: Netlink,
    notices: Netlink,
    is_stale: bool,
    /// Whether the last attempt to list them has failed.
    is_failing: bool,
    addresses: BTreeSet<IpAddr>,
}

impl NodeAddresses {
    /// Starts to follow the addresses.
    ///
    /// # Errors
    /// The system cannot open sockets.
    pub fn watch() -> Result<Self, Error> {
        let notices = Netlink::notices(groups::ADDRESS).map_err(Error::Netlink)?;
        let kernel = Netlink::route().map_err(Error::Netlink)?;
        Ok(Self { kernel, notices, is_stale: true, is_failing: false, addresses: BTreeSet::new() })
    }

    /// All addresses, sorted, if they have changed since the last call. Cheap if there are no notices.
    ///
    /// They include every scope and every interface, as in kube-proxy, also loopback; but no IPv6 link-local
    /// addresses: those mean nothing without their interface, and come and go with each pod.
    pub fn changed(&mut self) -> Option<Vec<IpAddr>> {
        self.is_stale |= self.notices.has_notices();
        if !self.is_stale {
            return None;
        }
        match self.list() {
            Ok(addresses) => {
                self.is_stale = false;
                if std::mem::take(&mut self.is_failing) {
                    info!("the addresses of the node can be listed again");
                }
                if addresses == self.addresses {
                    return None;
                }
                self.addresses = addresses;
                Some(self.addresses.iter().copied().collect())
            }
            Err(error) => {
                if std::mem::replace(&mut self.is_failing, true) {
                    debug!("{error}");
                } else {
                    warn!("{error}; it is tried again");
                }
                None
            }
        }
    }

    fn list(&mut self) -> Result<BTreeSet<IpAddr>, Error> {
        let mut addresses = BTreeSet::new();
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let listed = self.kernel.request(request, NLM_F_DUMP, |message| {
            if let RouteNetlinkMessage::NewAddress(message) = message {
                addresses.extend(address(&message));
            }
        });
        listed.map_err(Error::Addresses)?;
        Ok(addresses)
    }
}

/// The node's own address: a point-to-point interface also has that of its peer.
fn address(message: &AddressMessage) -> Option<IpAddr> {
    let mut address = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => {
                address = Some(*ip);
                break;
            }
            AddressAttribute::Address(ip) => address = Some(*ip),
            _ => {}
        }
    }
    address.filter(|ip| !matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local()))
}
