//! The payload of a datagram, or of a train of them.

use std::num::NonZeroU16;

/// The payload of a datagram, or of a train: datagrams of one flow and of one size (the last may be shorter)
/// that the kernel handles as one, concatenated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Payload<'a> {
    bytes: &'a [u8],
    /// Present only if it is less than the number of bytes.
    segment_size: Option<NonZeroU16>,
}

impl<'a> Payload<'a> {
    /// The payloads of a train, `segment_size` bytes each. If all bytes fit into one segment, it is a single
    /// datagram.
    pub fn train(bytes: &'a [u8], segment_size: u16) -> Self {
        let is_train = bytes.len() > usize::from(segment_size);
        Self { bytes, segment_size: NonZeroU16::new(segment_size).filter(|_| is_train) }
    }

    /// All bytes, concatenated.
    pub fn bytes(self) -> &'a [u8] {
        self.bytes
    }

    /// Number of datagrams; an empty payload is one.
    pub fn datagrams(self) -> usize {
        self.segment_size.map_or(1, |size| self.bytes.len().div_ceil(usize::from(size.get())))
    }

    /// The payload of each datagram.
    pub fn segments(self) -> impl Iterator<Item = &'a [u8]> {
        // `chunks` of nothing yields nothing, but an empty datagram is one.
        let single = self.segment_size.is_none().then_some(self.bytes);
        let size = self.segment_size.map_or(usize::MAX, |size| usize::from(size.get()));
        let train = if single.is_some() { &[] } else { self.bytes };
        single.into_iter().chain(train.chunks(size))
    }

    /// The size of each datagram of a train but the last; `None` for a single datagram.
    pub fn segment_size(self) -> Option<NonZeroU16> {
        self.segment_size
    }
}

impl<'a> From<&'a [u8]> for Payload<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self { bytes, segment_size: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(payload: Payload<'_>) -> Vec<usize> {
        let sizes: Vec<_> = payload.segments().map(<[u8]>::len).collect();
        assert_eq!(sizes.len(), payload.datagrams());
        sizes
    }

    #[test]
    fn a_train_is_cut_where_its_datagrams_end() {
        let bytes = [0; 10];
        assert_eq!(sizes(Payload::train(&bytes, 3)), [3, 3, 3, 1]);
        assert_eq!(sizes(Payload::train(&bytes, 5)), [5, 5]);
        assert_eq!(sizes(Payload::train(&bytes, 9)), [9, 1]);
    }

    #[test]
    fn what_is_no_train_is_one_datagram_even_if_empty() {
        let bytes = [0; 10];
        for whole in [Payload::train(&bytes, 10), Payload::train(&bytes, u16::MAX), Payload::train(&bytes, 0)]
        {
            assert_eq!(whole, Payload::from(&bytes[..]));
            assert_eq!(sizes(whole), [10]);
        }
        assert_eq!(sizes(Payload::from(&[][..])), [0]);
        assert_eq!(sizes(Payload::train(&[], 3)), [0]);
    }
}
