//! Groups the datagrams of a batch by client and destination address: those of a group have one flow, and are
//! forwarded together. Pure.
//!
//! They need not be consecutive: if several clients send at the same time, as resolvers do, their datagrams
//! arrive interleaved.

use std::net::SocketAddr;

use sluice_sys::udp::{BATCH, RecvBatch};

use super::super::flow_table::FlowKey;

/// The indices of some datagrams in their batch, in order of arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Group(u64);

const _: () = assert!(BATCH <= u64::BITS as usize, "each place has a bit");

impl Iterator for Group {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let place = self.0.trailing_zeros();
        self.0 &= self.0.wrapping_sub(1);
        (place < u64::BITS).then_some(place as usize)
    }
}

/// A batch that is being grouped. It is reused for the next one, to save allocations.
#[derive(Debug, Default)]
pub(super) struct Groups {
    /// By index.
    keys: Vec<Option<FlowKey>>,
    /// Datagrams that no group contains yet.
    left: u64,
}

impl Groups {
    /// Begins with a batch that was received by a socket with this address.
    pub(super) fn begin(&mut self, received: &RecvBatch, own: SocketAddr) {
        let key = |place| {
            let datagram = received.get(place)?;
            let destination = datagram.original_destination.unwrap_or(own);
            Some(FlowKey { client: datagram.source, destination })
        };
        self.of((0..received.len()).map(key));
    }

    fn of(&mut self, keys: impl Iterator<Item = Option<FlowKey>>) {
        self.keys.clear();
        self.keys.extend(keys.take(BATCH));
        let places = self.keys.iter().enumerate().filter(|(_, key)| key.is_some());
        self.left = places.fold(0, |left, (place, _)| left | 1 << place);
    }

    /// The next group: the one of the first remaining datagram.
    pub(super) fn next(&mut self) -> Option<(FlowKey, Group)> {
        let key = Group(self.left).next().and_then(|first| *self.keys.get(first)?)?;
        // Ports first, because clients differ in them most.
        let is_same = |other: &FlowKey| other.client.port() == key.client.port() && *other == key;
        let same = Group(self.left)
            .filter(|&place| self.keys.get(place).is_some_and(|other| other.as_ref().is_some_and(is_same)));
        let group = same.fold(0, |group, place| group | 1 << place);
        self.left &= !group;
        Some((key, Group(group)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(client: u16, destination: u16) -> FlowKey {
        FlowKey {
            client: ([10, 244, 0, 1], client).into(),
            destination: ([10, 96, 0, 10], destination).into(),
        }
    }

    fn groups(keys: &[Option<FlowKey>]) -> Vec<(FlowKey, Vec<usize>)> {
        let mut groups = Groups::default();
        groups.of(keys.iter().copied());
        std::iter::from_fn(|| groups.next()).map(|(key, group)| (key, group.collect())).collect()
    }

    #[test]
    fn datagrams_of_one_client_to_one_address_are_together_in_the_order_of_their_arrival() {
        let [a, b, c] = [key(1, 53), key(2, 53), key(1, 54)];
        let found = groups(&[Some(a), Some(b), None, Some(a), Some(c), Some(b), Some(a)]);
        assert_eq!(found, [(a, vec![0, 3, 6]), (b, vec![1, 5]), (c, vec![4])]);
        assert_eq!(groups(&[None]), []);
        assert_eq!(groups(&[]), []);
    }

    #[test]
    fn a_full_batch_has_a_place_for_each() {
        let same = vec![Some(key(1, 53)); BATCH];
        assert_eq!(groups(&same), [(key(1, 53), (0..BATCH).collect())]);
        let different: Vec<_> = (0..BATCH).map(|n| Some(key(u16::try_from(n).unwrap(), 53))).collect();
        assert_eq!(groups(&different).len(), BATCH);
    }
}
