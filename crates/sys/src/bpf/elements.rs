//! Hash maps for workers: each access to an element is one system call.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::map::Element;
use super::{Command, address, bpf, length, map_info, number};

/// `BPF_MAP_TYPE_HASH`.
const HASH: u32 = 1;

/// A hash map with keys and values of these sizes, in bytes. The sizes are checked only at creation, because
/// those of a map do not change.
#[derive(Debug)]
pub struct HashMap<const KEY: usize, const VALUE: usize> {
    map: OwnedFd,
    room: u32,
}

/// A part of the keys of a map.
#[derive(Debug)]
pub struct Part<const KEY: usize> {
    /// The keys of this part.
    pub keys: Vec<[u8; KEY]>,
    /// Where the next part begins; `None` if this is the last one.
    pub next: Option<u32>,
}

impl<const KEY: usize, const VALUE: usize> HashMap<KEY, VALUE> {
    /// Wraps a map.
    ///
    /// # Errors
    /// It is not a hash map with these sizes (`InvalidInput`), or not a map.
    pub fn new(map: OwnedFd) -> io::Result<Self> {
        let info = map_info(map.as_fd())?;
        if (info.kind, info.key_size as usize, info.value_size as usize) != (HASH, KEY, VALUE) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(Self { map, room: info.max_entries })
    }

    /// The maximum number of elements.
    pub fn room(&self) -> u32 {
        self.room
    }

    /// Sets an element.
    ///
    /// # Errors
    /// `E2BIG`: the map is full; `ENOMEM`: the kernel has no memory for a new one.
    pub fn put(&self, key: &[u8; KEY], value: &[u8; VALUE]) -> io::Result<()> {
        let mut element = self.element(key, address(value.as_ptr()));
        // SAFETY: the kernel reads a key and a value, which have the sizes of the map.
        unsafe { bpf(Command::MapUpdate, &mut element) }.map(drop)
    }

    /// Removes an element. Returns whether it was there.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn remove(&self, key: &[u8; KEY]) -> io::Result<bool> {
        let mut element = self.element(key, 0);
        // SAFETY: the kernel reads a key, which has the size of the map.
        is_there(unsafe { bpf(Command::MapDelete, &mut element) }.map(drop))
    }

    /// Returns an element, if it is there.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn get(&self, key: &[u8; KEY]) -> io::Result<Option<[u8; VALUE]>> {
        let mut value = [0; VALUE];
        let mut element = self.element(key, address(value.as_mut_ptr()));
        // SAFETY: the kernel reads a key and writes a value, which have the sizes of the map.
        let is_there = is_there(unsafe { bpf(Command::MapLookup, &mut element) }.map(drop))?;
        Ok(is_there.then_some(value))
    }

    /// A part of the keys: from the beginning, or from where an earlier part has ended. About `most` keys, or
    /// more if many have the same hash. A key that is there all the time is in one of the parts.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn part(&self, from: Option<u32>, most: usize) -> io::Result<Part<KEY>> {
        let mut most = most.clamp(1, self.room.max(1) as usize);
        loop {
            match self.try_part(from, most) {
                // All keys with one hash have to fit. If they do not, twice the room will suffice in the end.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && most < self.room as usize => {
                    most = most.saturating_mul(2);
                }
                part => return part,
            }
        }
    }

    fn try_part(&self, from: Option<u32>, most: usize) -> io::Result<Part<KEY>> {
        let (start, mut next) = (from.unwrap_or(0), 0u32);
        let (mut keys, mut values) = (vec![[0; KEY]; most], vec![[0; VALUE]; most]);
        let mut batch = super::map::Batch {
            from: from.map_or(0, |_| address(&raw const start)),
            to: address(&raw mut next),
            keys: address(keys.as_mut_ptr()),
            values: address(values.as_mut_ptr()),
            count: length(most)?,
            map: number(self.map.as_fd()),
            element_flags: 0,
            flags: 0,
        };
        // SAFETY: the kernel reads and writes a bucket number, 4 bytes for hash maps, and writes up to
        // `count` keys and values. There is room for that many of the map's sizes.
        let has_more = is_there(unsafe { bpf(Command::LookupBatch, &mut batch) }.map(drop))?;
        keys.truncate(batch.count as usize);
        Ok(Part { keys, next: has_more.then_some(next) })
    }

    fn element(&self, key: &[u8; KEY], value: u64) -> Element {
        Element { map: number(self.map.as_fd()), pad: 0, key: address(key.as_ptr()), value, flags: 0 }
    }
}

impl<const KEY: usize, const VALUE: usize> AsFd for HashMap<KEY, VALUE> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }
}

/// Turns `ENOENT` into `false`.
fn is_there(answer: io::Result<()>) -> io::Result<bool> {
    match answer {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::bpf::{MapSpec, create_map};

    fn map(kind: u32, max_entries: u32) -> OwnedFd {
        let flags = u32::from(kind == HASH);
        let spec =
            MapSpec { name: "elements", kind, key_size: 4, value_size: 8, max_entries, flags, btf: None };
        create_map(&spec).expect("as root maps can be made")
    }

    #[test]
    fn only_a_map_of_these_sizes_is_taken() {
        assert!(HashMap::<4, 8>::new(map(HASH, 1)).is_ok());
        assert!(HashMap::<4, 16>::new(map(HASH, 1)).is_err());
        assert!(HashMap::<8, 8>::new(map(HASH, 1)).is_err());
        // An LRU map: its elements may disappear by themselves.
        assert!(HashMap::<4, 8>::new(map(9, 1)).is_err());
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(HashMap::<4, 8>::new(file.into()).is_err());
    }

    #[test]
    fn elements_are_put_found_and_removed() {
        let map = HashMap::<4, 8>::new(map(HASH, 2)).unwrap();
        assert_eq!(map.room(), 2);
        assert_eq!(map.get(&[1; 4]).unwrap(), None);
        map.put(&[1; 4], &[2; 8]).unwrap();
        map.put(&[1; 4], &[3; 8]).unwrap();
        map.put(&[2; 4], &[4; 8]).unwrap();
        assert_eq!(map.put(&[3; 4], &[5; 8]).unwrap_err().raw_os_error(), Some(libc::E2BIG));
        assert_eq!(map.get(&[1; 4]).unwrap(), Some([3; 8]));
        assert!(map.remove(&[1; 4]).unwrap());
        assert!(!map.remove(&[1; 4]).unwrap());
        assert_eq!(map.get(&[1; 4]).unwrap(), None);
    }

    #[test]
    fn parts_are_all_that_there_is() {
        const COUNT: u32 = 1_000;
        let map = HashMap::<4, 8>::new(map(HASH, COUNT)).unwrap();
        assert!(map.part(None, 10).unwrap().keys.is_empty());
        (0..COUNT).for_each(|n| map.put(&n.to_ne_bytes(), &[0; 8]).unwrap());
        let (mut found, mut from, mut parts) = (BTreeSet::new(), None, 0);
        loop {
            // A part of at most one key, although some keys have the same hash.
            let Part { keys, next } = map.part(from, if parts == 0 { 1 } else { 100 }).unwrap();
            assert!(keys.len() <= 100);
            found.extend(keys.into_iter().map(u32::from_ne_bytes));
            parts += 1;
            match next {
                Some(next) => from = Some(next),
                None => break,
            }
        }
        assert!(parts > 10);
        assert!(found.into_iter().eq(0..COUNT));
    }

    /// An access is one system call: it neither reads /proc nor asks the kernel about the map.
    #[test]
    fn elements_take_no_look_at_what_the_map_is() {
        let map = HashMap::<4, 8>::new(map(HASH, 1)).unwrap();
        let empty = std::env::temp_dir().join(format!("sluice-no-proc-{}", std::process::id()));
        std::fs::create_dir(&empty).unwrap();
        let done = std::thread::scope(|scope| {
            let look = || {
                // SAFETY: from here on this thread has its own root, and it opens nothing afterwards.
                unsafe {
                    if libc::unshare(libc::CLONE_FS) != 0 {
                        return Err(io::Error::last_os_error());
                    }
                }
                std::os::unix::fs::chroot(&empty)?;
                assert!(map_info(map.as_fd()).is_err(), "nobody sees /proc here");
                map.put(&[1; 4], &[2; 8])?;
                assert_eq!(map.get(&[1; 4])?, Some([2; 8]));
                map.remove(&[1; 4])
            };
            scope.spawn(look).join().unwrap()
        });
        std::fs::remove_dir(&empty).unwrap();
        assert!(done.unwrap());
    }
}
