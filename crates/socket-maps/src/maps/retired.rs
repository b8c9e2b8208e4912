//! Parts of the maps that wait for a barrier before they can be reused.

use super::sets::{Members, SetState};
use crate::layout::protocol;
use crate::ranges::Range;

/// Unused parts that a program may still use.
#[derive(Debug, Default)]
pub(super) struct Retired {
    pub(super) sets: Vec<u32>,
    pub(super) ranges: Vec<Range>,
    pub(super) endpoints: Vec<u32>,
    /// The endpoints with which flows of unconnected sockets may stay until their incarnation changes.
    pub(super) flowing: Vec<u32>,
}

impl Retired {
    pub(super) fn is_empty(&self) -> bool {
        self.sets.is_empty() && self.ranges.is_empty() && self.endpoints.is_empty()
    }

    pub(super) fn slots(&self) -> usize {
        self.ranges.iter().map(|range| range.len() as usize).sum()
    }

    pub(super) fn append(&mut self, other: &mut Self) {
        self.sets.append(&mut other.sets);
        self.ranges.append(&mut other.ranges);
        self.endpoints.append(&mut other.endpoints);
        self.flowing.append(&mut other.flowing);
    }

    pub(super) fn add_members(&mut self, members: &Members) {
        self.ranges.push(members.range);
        self.add_endpoints(members.protocol, members.list.iter().map(|(_, id)| *id));
    }

    pub(super) fn add_endpoints(&mut self, protocol: u8, ids: impl Iterator<Item = u32>) {
        let before = self.endpoints.len();
        self.endpoints.extend(ids);
        // Not for TCP: the end of a connection is counted only while the id's incarnation is the same.
        if protocol == protocol::UDP {
            self.flowing.extend(self.endpoints.iter().skip(before));
        }
    }

    pub(super) fn add_set(&mut self, set: &SetState) {
        self.sets.push(set.id);
        self.add_members(&set.members);
    }
}
