//! The policy rules and routes by which captured packets are delivered on this node.
//!
//! `ip rule add fwmark 0x10/0x30 lookup 7583 priority 90` and
//! `ip route add local default dev lo table 7583`, for both families. Their protocol is `kernel`, since
//! systemd-networkd removes what it does not know unless it is the kernel's.

use std::time::Instant;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
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

/// Priority of the policy rule that leads there for captured packets: after the kernel's own table of local
/// addresses (0), before what others add (from 100 on, mostly).
pub const RULE_PRIORITY: u32 = 90;

/// The loopback interface is the first one of each network namespace: LOOPBACK_IFINDEX.
const LOOPBACK: u32 = 1;

/// What there is to be, in this order.
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

/// Keeps rules and routes.
#[derive(Debug)]
pub(super) struct Routing {
    kernel: Netlink,
    notices: Netlink,
    has_ipv6: bool,
}

impl Routing {
    /// Gets ready; changes nothing yet.
    ///
    /// # Errors
    /// The system has no sockets to give.
    pub(super) fn open() -> Result<Self, Error> {
        let wanted = groups::LINK | groups::ADDRESS | groups::ROUTE | groups::RULE;
        let notices = Netlink::notices(wanted).map_err(Error::Netlink)?;
        Ok(Self { kernel: Netlink::route().map_err(Error::Netlink)?, notices, has_ipv6: true })
    }

    /// Whether anything about routing has changed since the last call, by whomever.
    pub(super) fn has_changed(&mut self) -> bool {
        self.notices.has_notices()
    }

    /// Adds what is missing; returns what that was.
    ///
    /// Adding is the way to look: what is there already is not added again, and the kernel says so.
    ///
    /// # Errors
    /// The kernel does not let us. A machine without IPv6 is none.
    pub(super) fn ensure(&mut self, lines: &mut Lines, now: Instant) -> Result<Vec<Item>, Error> {
        let mut added = Vec::new();
        let mut has_ipv6 = true;
        for item in ITEMS {
            match self.kernel.request(item.add(), NLM_F_CREATE | NLM_F_EXCL, |_| {}) {
                Ok(()) => added.push(item),
                Err(Errno::EXIST) => {}
                Err(error) if item.family == Family::V6 && is_family_missing(error) => has_ipv6 = false,
                Err(error) => return Err(Error::Routing { item: item.to_string(), error }),
            }
        }
        if self.has_ipv6 && !has_ipv6 && lines.admit(now) {
            info!("this machine has no IPv6: Services are served over IPv4 only");
        }
        self.has_ipv6 = has_ipv6;
        Ok(added)
    }
}

/// Removes them; returns what there was.
///
/// # Errors
/// The kernel does not let us.
pub(super) fn remove() -> Result<Vec<Item>, Error> {
    let mut kernel = Netlink::route().map_err(Error::Netlink)?;
    let mut removed = Vec::new();
    // Rules first: without them nothing looks at the routes.
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

/// IPv6 is not in the kernel, or it is switched off for the loopback interface (EACCES).
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
