//! [`Endpoint::failures`](crate::Endpoint::failures), unpacked. It is one word, so no reader sees half of a
//! change.

/// The failed connects to an endpoint since the last success, and their consequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Failures {
    /// Their number, up to [`Failures::MOST`].
    pub count: u8,
    /// Without a relay, the endpoint is skipped until then, in nanoseconds of `CLOCK_MONOTONIC`; a multiple
    /// of eight.
    pub until_ns: u64,
}

/// How long an endpoint is skipped after the first failure. The time doubles with each further failure, up to
/// 16 times.
const PAUSE_NS: u64 = 1_000_000_000;
const DOUBLINGS: u8 = 4;

impl Failures {
    /// The largest count.
    pub const MOST: u8 = 7;

    /// The bits of the count.
    const COUNT: u64 = Self::MOST as u64;

    /// The word in the map.
    pub fn pack(self) -> u64 {
        self.until_ns & !Self::COUNT | u64::from(self.count.min(Self::MOST))
    }

    /// The inverse of [`Self::pack`].
    pub fn unpack(word: u64) -> Self {
        let [low, ..] = word.to_le_bytes();
        Self { count: low & Self::MOST, until_ns: word & !Self::COUNT }
    }

    /// The state after one more failure at `now_ns`.
    pub fn and_one(self, now_ns: u64) -> Self {
        let until_ns = now_ns.saturating_add(PAUSE_NS << self.count.min(DOUBLINGS));
        Self { count: (self.count + 1).min(Self::MOST), until_ns: until_ns & !Self::COUNT }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_parts() {
        let failures = Failures { count: 3, until_ns: 0x1234_5678 };
        assert_eq!((failures.pack(), Failures::unpack(0x1234_567b)), (0x1234_567b, failures));
        assert_eq!(Failures::default().pack(), 0);
    }

    #[test]
    fn each_takes_twice_as_long_as_the_one_before_up_to_16_s() {
        let now = 8_000_000_000;
        let mut failures = Failures::default();
        let mut steps = Vec::new();
        for _ in 0..9 {
            failures = Failures::unpack(failures.and_one(now).pack());
            steps.push((failures.count, (failures.until_ns - now) / 1_000_000_000));
        }
        let expected = [(1, 1), (2, 2), (3, 4), (4, 8), (5, 16), (6, 16), (7, 16), (7, 16), (7, 16)];
        assert_eq!(steps, expected);
    }
}
