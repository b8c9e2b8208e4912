//! The policy rules and routes that deliver captured packets on this node.
//!
//! `ip rule add fwmark 0x10/0x30 lookup 7583 priority 90` and `ip route add local default dev lo table 7583`,
//! for both families. Their protocol is `kernel`, because systemd-networkd removes unknown ones unless they are
//! the kernel's.

use std::time::Instant;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleHeader, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::io::Errno;
use sluice_model::Family;
use tracing::info;

use super::Error;
use super::lines::Lines;
use super::marks::{CAPTURED, MASK};
use super::netlink::{Netlink, groups};

/// Routing table that delivers all packets on this node.
pub const ROUTING_TABLE: u32 = 7583;

/// Priority of the policy rule that leads captured packets there: after the kernel's own table of local
/// addresses (0), before the rules of others (usually from 100 on).
pub const RULE_PRIORITY: u32 = 90;

/// The loopback interface is the first one of each network namespace: LOOPBACK_IFINDEX.
const LOOPBACK: u32 = 1;

/// The wanted rules and routes, in this order.
const ITEMS: [Item; 4] = [
    Item { part: Part::Route, family: Family::V4 },
    Item { part: Part::Rule, family: Family::V4 },
    Item { part: Part::Route, family: Family::V6 },
    Item { part: Part::Rule, family: Family::V6 },
];

/// A policy rule or a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Item {
    part: Part,
    family: Family,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Rule,
    Route,
}

/// `the IPv4 policy rule`
impl std::fmt::Display for Item {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let part = match self.part {
            Part::Rule => "policy rule",
            Part::Route => "route",
        };
        write!(f, "{} {part}", self.family)
    }
}

impl Item {
    fn add(self) -> RouteNetlinkMessage {
        match self.part {
            Part::Rule => RouteNetlinkMessage::NewRule(rule(self.family)),
            Part::Route => RouteNetlinkMessage::NewRoute(route(self.family)),
        }
    }

    fn delete(self) -> RouteNetlinkMessage {
        match self.part {
            Part::Rule => RouteNetlinkMessage::DelRule(rule(self.family)),
            Part::Route => RouteNetlinkMessage::DelRoute(route(self.family)),
        }
    }
}

/// Maintains rules and routes.
#[derive(Debug)]
pub(super) struct Routing {
    kernel: Netlink,
    notices: Netlink,
    has_ipv6: bool,
}

impl Routing {
    /// Prepares; changes nothing yet.
    ///
    /// # Errors
    /// The system cannot open sockets.
    pub(super) fn open() -> Result<Self, Error> {
        let wanted = groups::LINK | groups::ADDRESS | groups::ROUTE | groups::RULE;
        let notices = Netlink::notices(wanted).map_err(Error::Netlink)?;
        let kernel = Netlink::route().map_err(Error::Netlink)?;
        // A node may have very many routes, of which one matters.
        kernel.filter_dumps();
        Ok(Self { kernel, notices, has_ipv6: true })
    }

    /// Whether anybody has changed the routing since the last call.
    pub(super) fn has_changed(&mut self) -> bool {
        self.notices.has_notices()
    }

    /// Adds missing items, and replaces another route in the place of ours. Returns the added items, and the
    /// first failure. A machine without IPv6 is no failure.
    ///
    /// Adding is the check: the kernel refuses to add an existing item and reports that.
    pub(super) fn ensure(&mut self, lines: &mut Lines, now: Instant) -> (Vec<Item>, Result<(), Error>) {
        let (mut added, mut outcome) = (Vec::new(), Ok(()));
        let mut has_ipv6 = true;
        for item in ITEMS {
            match self.ensure_item(item) {
                Ok(true) => added.push(item),
                Ok(false) => {}
                Err(error) if item.family == Family::V6 && is_family_missing(error) => has_ipv6 = false,
                Err(error) => {
                    outcome = outcome.and(Err(Error::Routing { item: item.to_string(), error }));
                }
            }
        }
        if self.has_ipv6 && !has_ipv6 && lines.admit(now) {
            info!("this machine has no IPv6: Services are served over IPv4 only");
        }
        self.has_ipv6 = has_ipv6;
        (added, outcome)
    }

    /// Adds an item if it is missing; returns whether it had to be added.
    fn ensure_item(&mut self, item: Item) -> Result<bool, Errno> {
        match self.kernel.request(item.add(), NLM_F_CREATE | NLM_F_EXCL, |_| {}) {
            Ok(()) => return Ok(true),
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
        // A rule is identified by all of its fields, a route only by its place.
        if item.part == Part::Rule || !self.has_others_route(item.family)? {
            return Ok(false);
        }
        self.kernel.request(item.add(), NLM_F_CREATE | NLM_F_REPLACE, |_| {})?;
        Ok(true)
    }

    /// Whether another route is in the place of ours.
    fn has_others_route(&mut self, family: Family) -> Result<bool, Errno> {
        let mut wanted = RouteMessage::default();
        wanted.header.address_family = address_family(family);
        wanted.attributes = vec![RouteAttribute::Table(ROUTING_TABLE)];
        let mut found = Vec::new();
        let outcome =
            self.kernel.request(RouteNetlinkMessage::GetRoute(wanted), NLM_F_DUMP, |answer| match answer {
                RouteNetlinkMessage::NewRoute(route) if is_in_our_place(&route) => {
                    found.push(is_ours(&route));
                }
                _ => {}
            });
        match outcome {
            // The table does not exist any more: the next check adds the route.
            Ok(()) | Err(Errno::NOENT) => Ok(!found.is_empty() && !found.contains(&true)),
            Err(error) => Err(error),
        }
    }
}

/// Whether a route is for all destinations, in our table.
fn is_in_our_place(route: &RouteMessage) -> bool {
    let is_in_table = route.attributes.contains(&RouteAttribute::Table(ROUTING_TABLE));
    // The kernel's default for a route without priority, in IPv4 and IPv6.
    let priority = |attribute: &RouteAttribute| match attribute {
        RouteAttribute::Priority(priority) => Some(*priority),
        _ => None,
    };
    let priority = route.attributes.iter().find_map(priority).unwrap_or(0);
    is_in_table && route.header.destination_prefix_length == 0 && matches!(priority, 0 | 1024)
}

/// Whether it delivers packets on this node.
fn is_ours(route: &RouteMessage) -> bool {
    route.header.kind == RouteType::Local && route.attributes.contains(&RouteAttribute::Oif(LOOPBACK))
}

/// Removes rules and routes; returns those that existed.
///
/// # Errors
/// The kernel does not allow it.
pub(super) fn remove() -> Result<Vec<Item>, Error> {
    let mut kernel = Netlink::route().map_err(Error::Netlink)?;
    let mut removed = Vec::new();
    // Rules first: without them nothing uses the routes.
    for item in ITEMS.into_iter().rev() {
        match kernel.request(item.delete(), 0, |_| {}) {
            Ok(()) => removed.push(item),
            Err(Errno::NOENT | Errno::SRCH) => {}
            Err(error) if item.family == Family::V6 && is_family_missing(error) => {}
            Err(error) => return Err(Error::Routing { item: item.to_string(), error }),
        }
    }
    Ok(removed)
}

/// Whether the kernel has no IPv6, or it is disabled for the loopback interface (EACCES).
pub(super) fn is_family_missing(error: Errno) -> bool {
    matches!(error, Errno::AFNOSUPPORT | Errno::OPNOTSUPP | Errno::ACCESS)
}

pub(super) fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

fn rule(family: Family) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header =
        RuleHeader { family: address_family(family), action: RuleAction::ToTable, ..RuleHeader::default() };
    message.attributes = vec![
        RuleAttribute::Priority(RULE_PRIORITY),
        RuleAttribute::FwMark(CAPTURED),
        RuleAttribute::FwMask(MASK),
        RuleAttribute::Table(ROUTING_TABLE),
        RuleAttribute::Protocol(RouteProtocol::Kernel),
    ];
    message
}

fn route(family: Family) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: address_family(family),
        protocol: RouteProtocol::Kernel,
        scope: RouteScope::Host,
        kind: RouteType::Local,
        ..RouteHeader::default()
    };
    message.attributes = vec![RouteAttribute::Table(ROUTING_TABLE), RouteAttribute::Oif(LOOPBACK)];
    message
}
