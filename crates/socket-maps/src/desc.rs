//! [`Set::desc`](crate::Set::desc), unpacked.

/// The slots of a set, and the offset of its round robin. A pick is `slots[base + (cursor + rotation) %
/// count]`; with a count of 0 there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Desc {
    /// The first slot.
    pub base: u32,
    /// The number of slots.
    pub count: u16,
    /// The offset that is added to a turn; less than `count`.
    pub rotation: u16,
}

impl Desc {
    /// The word in the map.
    pub fn pack(self) -> u64 {
        u64::from(self.base) << 32 | u64::from(self.count) << 16 | u64::from(self.rotation)
    }

    /// The inverse of [`Self::pack`].
    pub fn unpack(word: u64) -> Self {
        let [b3, b2, b1, b0, c1, c0, r1, r0] = word.to_be_bytes();
        Self {
            base: u32::from_be_bytes([b3, b2, b1, b0]),
            count: u16::from_be_bytes([c1, c0]),
            rotation: u16::from_be_bytes([r1, r0]),
        }
    }

    /// The slot that a turn points to.
    pub fn slot(self, turn: u64) -> Option<u32> {
        let place = turn.wrapping_add(u64::from(self.rotation)).checked_rem(u64::from(self.count))?;
        self.base.checked_add(u32::try_from(place).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_parts() {
        let desc = Desc { base: 0x0102_0304, count: 0x0506, rotation: 0x0708 };
        assert_eq!(desc.pack(), 0x0102_0304_0506_0708);
        assert_eq!(Desc::unpack(desc.pack()), desc);
        let three = Desc { base: 10, count: 3, rotation: 2 };
        let slots: Vec<_> = (0..4).map(|turn| three.slot(turn)).collect();
        assert_eq!(slots, [Some(12), Some(10), Some(11), Some(12)]);
        assert_eq!(Desc::default().slot(7), None);
    }
}
