//! Clients with session affinity, in the map that the programs read: see `affinity.h`.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use sluice_socket_maps::{AffinityKey, AffinityValue, Kept, KeptClients, KeptPart};
use sluice_sys::bpf;
use sluice_table::SocketNumber;

use crate::Error;
use crate::attached::{halves, hash, word};
use crate::health::now_ns;
use crate::shape::AFFINITIES;

const KEY: usize = size_of::<AffinityKey>();
const VALUE: usize = size_of::<AffinityValue>();

/// The map, which stays open as long as this is held.
#[derive(Debug)]
pub(crate) struct Clients(bpf::HashMap<KEY, VALUE>);

impl Clients {
    pub(crate) fn new(map: OwnedFd) -> Result<Self, Error> {
        bpf::HashMap::new(map).map(Self).map_err(Error::system(format!("looking at {AFFINITIES}")))
    }

    pub(crate) fn keys(&self) -> io::Result<Vec<AffinityKey>> {
        Ok(bpf::lookup_all(self.0.as_fd())?.0.as_chunks().0.iter().map(key_from).collect())
    }
}

impl KeptClients for Clients {
    fn room(&self) -> usize {
        self.0.room() as usize
    }

    fn keep(&self, key: AffinityKey, number: SocketNumber) -> io::Result<()> {
        self.0.put(&key_bytes(&key), &value_bytes(&key, number, now_ns()))
    }

    fn forget(&self, key: AffinityKey) -> io::Result<bool> {
        self.0.remove(&key_bytes(&key))
    }

    fn idle(&self, key: AffinityKey) -> Option<Duration> {
        let value = self.0.get(&key_bytes(&key)).ok()??;
        Some(kept(&key, &value, now_ns()).idle)
    }

    fn part(&self, from: Option<u32>, most: usize) -> io::Result<KeptPart> {
        let bpf::Part { keys, next } = self.0.part(from, most)?;
        Ok(KeptPart { keys: keys.iter().map(key_from).collect(), next })
    }

    fn all(&self) -> io::Result<Vec<Kept>> {
        let (keys, values) = bpf::lookup_all(self.0.as_fd())?;
        let now = now_ns();
        let pairs = keys.as_chunks().0.iter().zip(values.as_chunks().0);
        Ok(pairs.map(|(key, value)| kept(&key_from(key), value, now)).collect())
    }
}

fn kept(key: &AffinityKey, value: &[u8; VALUE], now_ns: u64) -> Kept {
    let [number, last_ns] = value.as_chunks().0 else {
        return Kept { key: *key, number: SocketNumber { id: 0, incarnation: 0 }, idle: Duration::MAX };
    };
    let (id, check) = halves(u64::from_ne_bytes(*number));
    let incarnation = check ^ hash(&key_bytes(key));
    // A program may have written a later time than ours.
    let idle = now_ns.saturating_sub(u64::from_ne_bytes(*last_ns));
    Kept { key: *key, number: SocketNumber { id, incarnation }, idle: Duration::from_nanos(idle) }
}

fn value_bytes(key: &AffinityKey, number: SocketNumber, last_ns: u64) -> [u8; VALUE] {
    let mut bytes = [0; VALUE];
    let check = number.incarnation ^ hash(&key_bytes(key));
    bytes[..8].copy_from_slice(&word(number.id, check).to_ne_bytes());
    bytes[8..].copy_from_slice(&last_ns.to_ne_bytes());
    bytes
}

fn key_bytes(key: &AffinityKey) -> [u8; KEY] {
    let mut bytes = [0; KEY];
    bytes[..16].copy_from_slice(&key.addr);
    bytes[16..].copy_from_slice(&key.number.to_ne_bytes());
    bytes
}

fn key_from(bytes: &[u8; KEY]) -> AffinityKey {
    let (mut addr, mut number) = ([0; 16], [0; 4]);
    addr.copy_from_slice(&bytes[..16]);
    number.copy_from_slice(&bytes[16..]);
    AffinityKey { addr, number: u32::from_ne_bytes(number) }
}
