//! Policy rules of others that match packets' marks: the only place where the kernel shows which marks others use.

use std::fmt;

use netlink_packet_core::NLM_F_DUMP;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::rule::{RuleAttribute, RuleHeader, RuleMessage};
use sluice_model::Family;

use super::Error;
use super::marks::{CAPTURED, MASK, is_taken_for_ours};
use super::netlink::Netlink;
use super::routing::{ROUTING_TABLE, address_family, is_family_missing};

/// A policy rule that matches the mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MarkRule {
    /// The family of its packets.
    pub family: Family,
    /// Its priority.
    pub priority: u32,
    /// The mark.
    pub mark: u32,
    /// The bits of the mark that are compared.
    pub mask: u32,
}

impl MarkRule {
    /// Whether packets with such a mark would be mistaken for ours, or ours for them.
    pub fn clashes(&self) -> bool {
        is_taken_for_ours(self.mark & self.mask)
    }
}

/// `fwmark 0x20/0xff, IPv4 priority 100`
impl fmt::Display for MarkRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { family, priority, mark, mask } = self;
        write!(f, "fwmark {mark:#x}/{mask:#x}, {family} priority {priority}")
    }
}

/// All such rules except our own, in the families that the kernel supports. Needs no capability.
///
/// # Errors
/// The kernel does not answer.
pub fn others_mark_rules() -> Result<Vec<MarkRule>, Error> {
    let mut kernel = Netlink::route().map_err(Error::Netlink)?;
    let mut rules = Vec::new();
    for family in [Family::V4, Family::V6] {
        let mut message = RuleMessage::default();
        message.header = RuleHeader { family: address_family(family), ..RuleHeader::default() };
        let listed = kernel.request(RouteNetlinkMessage::GetRule(message), NLM_F_DUMP, |answer| {
            if let RouteNetlinkMessage::NewRule(rule) = answer {
                rules.extend(mark_rule(family, &rule.attributes));
            }
        });
        match listed {
            Err(error) if family == Family::V6 && is_family_missing(error) => {}
            listed => listed.map_err(Error::Rules)?,
        }
    }
    Ok(rules)
}

/// A rule, if it is somebody else's and matches the mark.
fn mark_rule(family: Family, attributes: &[RuleAttribute]) -> Option<MarkRule> {
    let mut rule = MarkRule { family, priority: 0, mark: 0, mask: 0 };
    let mut table = 0;
    for attribute in attributes {
        match attribute {
            RuleAttribute::Priority(priority) => rule.priority = *priority,
            RuleAttribute::FwMark(mark) => rule.mark = *mark,
            RuleAttribute::FwMask(mask) => rule.mask = *mask,
            RuleAttribute::Table(number) => table = *number,
            _ => {}
        }
    }
    let is_our_own = (rule.mark, rule.mask, table) == (CAPTURED, MASK, ROUTING_TABLE);
    (rule.mask != 0 && !is_our_own).then_some(rule)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(mark: u32, mask: u32, table: u32) -> Option<MarkRule> {
        use RuleAttribute::{FwMark, FwMask, Priority, Table};
        mark_rule(Family::V4, &[Priority(7), FwMark(mark), FwMask(mask), Table(table)])
    }

    #[test]
    fn rules_of_others_that_go_by_the_mark() {
        assert_eq!(rule(0x10, 0x30, ROUTING_TABLE), None, "our own");
        assert_eq!(mark_rule(Family::V6, &[RuleAttribute::Table(254)]), None, "not by the mark");
        let wanted = MarkRule { family: Family::V4, priority: 7, mark: 0x10, mask: 0x30 };
        assert_eq!(rule(0x10, 0x30, 100), Some(wanted), "as ours, but elsewhere");
    }

    #[test]
    fn marks_that_clash_with_ours() {
        let clashes = |mark, mask| rule(mark, mask, 100).unwrap().clashes();
        for (mark, mask) in
            [(0x10, u32::MAX), (0x1010, 0xffff), (0x20, 0xff), (0x30, 0x30), (0x1_0020, u32::MAX)]
        {
            assert!(clashes(mark, mask), "{mark:#x}/{mask:#x}");
        }
        // wg-quick, NordVPN, `fwmark 100`, Tailscale, Cilium, Calico, and one that does not compare our bits.
        let others = [
            (0xca6c, u32::MAX),
            (0xe1f1, u32::MAX),
            (100, u32::MAX),
            (0x8_0000, 0xff_0000),
            (0x200, 0xf00),
            (0x4_0000, 0xffff_0000),
            (0x110, 0xf00),
        ];
        for (mark, mask) in others {
            assert!(!clashes(mark, mask), "{mark:#x}/{mask:#x}");
        }
    }
}
