//! The map in which the programs look up frontends: see `struct frontend_value` of layout.h.

use std::fs;
use std::io;
use std::mem::offset_of;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use sluice_socket_maps::{FrontendKey, FrontendValue, Outcome};
use sluice_sys::bpf;

use crate::attached::hash;
use crate::layout::Outcomes;
use crate::removal::is_ours;
use crate::shape::FRONTENDS;

/// The sizes of a key and a value, in bytes.
const KEY: usize = size_of::<FrontendKey>();
const VALUE: usize = size_of::<Outcomes>();

/// The offsets of the outcomes for the node's and for pods' sockets.
const NODE: usize = offset_of!(Outcomes, node);
const POD: usize = offset_of!(Outcomes, pod);

/// How many entries go into one system call.
const BATCH: usize = 4096;

/// Positions of an outcome's parts: `OUTCOME_CHECK_SHIFT` and so on. Half of the service number is between
/// verdict and check.
const CHECK_SHIFT: u32 = 42;
const SERVICE_SHIFT: u32 = 26;
const VERDICT_SHIFT: u32 = 24;

/// The frontends that the programs know; usable on any thread.
#[derive(Debug)]
pub struct Frontends(pub(crate) OwnedFd);

impl Frontends {
    /// What the programs know of a frontend.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn get(&self, key: &FrontendKey) -> io::Result<Option<FrontendValue>> {
        let value = bpf::lookup(self.0.as_fd(), &key_bytes(key))?;
        Ok(value.and_then(|value| value.as_slice().try_into().ok().map(value_from)))
    }

    pub(crate) fn all(&self) -> io::Result<Vec<(FrontendKey, FrontendValue)>> {
        let (keys, values) = bpf::lookup_all(self.0.as_fd())?;
        let pairs = keys.as_chunks().0.iter().zip(values.as_chunks().0);
        Ok(pairs.map(|(key, value)| (key_from(key), value_from(value))).collect())
    }

    pub(crate) fn put(&self, entries: &[(FrontendKey, FrontendValue)]) -> io::Result<()> {
        for entries in entries.chunks(BATCH) {
            let keys: Vec<[u8; KEY]> = entries.iter().map(|(key, _)| key_bytes(key)).collect();
            let values: Vec<[u8; VALUE]> =
                entries.iter().map(|(key, value)| value_bytes(key, value)).collect();
            let (keys, values) = (keys.as_flattened(), values.as_flattened());
            bpf::update_batch(self.0.as_fd(), keys, values, entries.len())?;
        }
        Ok(())
    }

    pub(crate) fn remove(&self, keys: &[FrontendKey]) -> io::Result<()> {
        for keys in keys.chunks(BATCH) {
            let bytes: Vec<[u8; KEY]> = keys.iter().map(key_bytes).collect();
            bpf::delete_batch(self.0.as_fd(), bytes.as_flattened(), keys.len())?;
        }
        Ok(())
    }

    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }
}

/// Removes these frontends from the maps pinned below `pins`, whoever holds them: the programs do not translate
/// new connections to them any more. Returns how many were there.
///
/// # Errors
/// A pinned map cannot be read or changed.
pub fn forget_frontends(pins: &Path, frontends: &[FrontendKey]) -> io::Result<usize> {
    if !is_ours(pins)? {
        return Ok(0);
    }
    let mut forgotten = 0;
    // Programs of other layouts translate too, as long as they are there.
    for entry in fs::read_dir(pins)? {
        let map = match bpf::get(&entry?.path().join(FRONTENDS)) {
            Ok(map) => map,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                continue;
            }
            Err(error) => return Err(error),
        };
        let map = match bpf::HashMap::<KEY, VALUE>::new(map) {
            Ok(map) => map,
            // Another version's map has another format.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => continue,
            Err(error) => return Err(error),
        };
        for key in frontends {
            forgotten += usize::from(map.remove(&key_bytes(key))?);
        }
    }
    Ok(forgotten)
}

fn key_bytes(key: &FrontendKey) -> [u8; KEY] {
    let mut bytes = [0; KEY];
    bytes[..16].copy_from_slice(&key.addr);
    bytes[16..18].copy_from_slice(&key.port);
    bytes[18] = key.protocol;
    bytes
}

fn key_from(bytes: &[u8; KEY]) -> FrontendKey {
    let mut addr = [0; 16];
    addr.copy_from_slice(&bytes[..16]);
    FrontendKey { addr, port: [bytes[16], bytes[17]], protocol: bytes[18], pad: 0 }
}

fn value_bytes(key: &FrontendKey, value: &FrontendValue) -> [u8; VALUE] {
    // The upper bits of the key's hash, which the programs check in what they read: see `check_of` of pick.h.
    let check = u64::from(hash(&key_bytes(key)) >> (CHECK_SHIFT - 32)) << CHECK_SHIFT;
    let [s0, s1, s2, s3] = value.service.to_le_bytes();
    let mut bytes = [0; VALUE];
    for (at, outcome, half) in [(NODE, value.node, [s0, s1]), (POD, value.pod, [s2, s3])] {
        let verdict = u64::from(outcome.verdict) << VERDICT_SHIFT;
        let half = u64::from(u16::from_le_bytes(half)) << SERVICE_SHIFT;
        bytes[at..at + 8].copy_from_slice(&(check | half | verdict | u64::from(outcome.set)).to_ne_bytes());
    }
    bytes
}

fn value_from(bytes: &[u8; VALUE]) -> FrontendValue {
    let outcome = |at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[at..at + 8]);
        // Three bytes of the set, then two bits of the verdict, and half of the service number across the next
        // three bytes.
        let [set0, set1, set2, b3, b4, b5, _, _] = u64::from_ne_bytes(word).to_le_bytes();
        let rest = u32::from_le_bytes([b3, b4, b5, 0]);
        let [half0, half1, ..] = (rest >> (SERVICE_SHIFT - VERDICT_SHIFT)).to_le_bytes();
        let set = u32::from_le_bytes([set0, set1, set2, 0]);
        (Outcome { set, verdict: b3 & 3 }, [half0, half1])
    };
    let ((node, [s0, s1]), (pod, [s2, s3])) = (outcome(NODE), outcome(POD));
    FrontendValue { node, pod, service: u32::from_le_bytes([s0, s1, s2, s3]) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_socket_maps::MOST_SETS;

    #[test]
    fn there_and_back() {
        let key = FrontendKey { addr: [7; 16], port: [0, 80], protocol: 6, pad: 0 };
        for (set, verdict, service) in
            [(MOST_SETS - 1, 1, u32::MAX), (0, 2, 1), (1, 0, 0x1234_5678), (0, 0, 0)]
        {
            let outcome = |set| Outcome { set, verdict };
            let value = FrontendValue { node: outcome(set), pod: outcome(set / 2), service };
            assert_eq!(value_from(&value_bytes(&key, &value)), value);
        }
        assert_eq!(key_from(&key_bytes(&key)), key);
    }
}
