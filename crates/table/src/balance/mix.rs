//! A bit mixer: the finalizer of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number
//! generators", 2014). Its values are the same on every node and in every release, which hashers of libraries
//! do not promise.

use std::net::{IpAddr, SocketAddr};

/// The increment of SplitMix64: 2^64 divided by the golden ratio, odd.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// A bijection on 64 bits in which every bit of the input affects half of the output's bits.
pub(super) fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// Number `index` of the SplitMix64 sequence that starts at `seed`.
pub(super) fn nth(seed: u64, index: u64) -> u64 {
    mix(seed.wrapping_add(index.wrapping_add(1).wrapping_mul(GOLDEN)))
}

/// Maps `random` to a number below `len` (0 if that is 0), as uniformly as `random` is distributed: the upper
/// word of the product.
pub(super) fn below(random: u64, len: usize) -> usize {
    usize::try_from((u128::from(random) * len as u128) >> 64).unwrap_or(0)
}

/// The hash of an address. IPv4 is hashed as v4-mapped.
pub(crate) fn hash_ip(ip: IpAddr) -> u64 {
    let bits = match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
    .to_bits();
    let [a, b, c, d, e, f, g, h, lower @ ..] = bits.to_be_bytes();
    let (upper, lower) = (u64::from_be_bytes([a, b, c, d, e, f, g, h]), u64::from_be_bytes(lower));
    nth(mix(upper ^ GOLDEN), lower)
}

/// The hash of an address and port.
pub(super) fn hash_address(address: SocketAddr) -> u64 {
    nth(hash_ip(address.ip()), u64::from(address.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequence_is_that_of_splitmix64() {
        // The first values for seed 1234567, as other implementations print them.
        let values = [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        assert_eq!([0, 1, 2].map(|index| nth(1_234_567, index)), values);
    }

    #[test]
    fn numbers_below_stay_below() {
        assert_eq!(
            (below(0, 3), below(u64::MAX, 3), below(u64::MAX / 2, 3), below(u64::MAX, 0)),
            (0, 2, 1, 0)
        );
    }
}
