//! Creates maps, and accesses those that are not mapped into memory.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use super::{Command, address, bpf, bpf_fd, length, name, number, text};

/// The parameters of a new map.
#[derive(Debug, Clone)]
pub struct MapSpec<'a> {
    /// Its name, of which the kernel keeps 15 characters.
    pub name: &'a str,
    /// `enum bpf_map_type`.
    pub kind: u32,
    /// Size of a key in bytes.
    pub key_size: u32,
    /// Size of a value in bytes.
    pub value_size: u32,
    /// The maximum number of elements.
    pub max_entries: u32,
    /// `BPF_F_...` for maps.
    pub flags: u32,
    /// The types of key and value in the program's BTF, which socket storage requires.
    pub btf: Option<(BorrowedFd<'a>, u32, u32)>,
}

/// The kernel's information about a map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapInfo {
    /// Its name.
    pub name: String,
    /// `enum bpf_map_type`.
    pub kind: u32,
    /// Size of a key in bytes.
    pub key_size: u32,
    /// Size of a value in bytes.
    pub value_size: u32,
    /// The maximum number of elements.
    pub max_entries: u32,
    /// `BPF_F_...` for maps.
    pub flags: u32,
}

/// Creates a map.
///
/// # Errors
/// `EPERM` without CAP_BPF, `EINVAL` if the kernel has no such map type, `ENOMEM`.
pub fn create_map(spec: &MapSpec<'_>) -> io::Result<OwnedFd> {
    create(spec, None)
}

/// Like [`create_map`]; a map of maps like `inner`, if that is given.
pub(super) fn create(spec: &MapSpec<'_>, inner: Option<BorrowedFd<'_>>) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attributes {
        kind: u32,
        key_size: u32,
        value_size: u32,
        max_entries: u32,
        flags: u32,
        inner_map: u32,
        numa_node: u32,
        name: [u8; 16],
        interface: u32,
        btf: u32,
        btf_key: u32,
        btf_value: u32,
    }
    let (btf, btf_key, btf_value) = spec.btf.map_or((0, 0, 0), |(fd, key, value)| (number(fd), key, value));
    let mut attributes = Attributes {
        kind: spec.kind,
        key_size: spec.key_size,
        value_size: spec.value_size,
        max_entries: spec.max_entries,
        flags: spec.flags,
        inner_map: inner.map_or(0, number),
        numa_node: 0,
        name: name(spec.name),
        interface: 0,
        btf,
        btf_key,
        btf_value,
    };
    // SAFETY: the attributes contain no addresses.
    unsafe { bpf_fd(Command::MapCreate, &mut attributes) }
}

/// Returns the information about a map.
///
/// # Errors
/// The descriptor is not a map's (`EINVAL`).
pub fn map_info(map: BorrowedFd<'_>) -> io::Result<MapInfo> {
    #[derive(Default)]
    #[repr(C)]
    struct Info {
        kind: u32,
        id: u32,
        key_size: u32,
        value_size: u32,
        max_entries: u32,
        flags: u32,
        name: [u8; 16],
    }
    // Otherwise a program's or a link's information would be taken for a map's.
    if !is(map, "map") {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: that is the beginning of `bpf_map_info`.
    let info: Info = unsafe { super::info(map)? };
    let Info { kind, id: _, key_size, value_size, max_entries, flags, name } = info;
    Ok(MapInfo { name: text(&name), kind, key_size, value_size, max_entries, flags })
}

/// Whether a descriptor is that of a bpf `what`, according to /proc.
pub(super) fn is(fd: BorrowedFd<'_>, what: &str) -> bool {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", number(fd))).unwrap_or_default();
    // Some kernels have an underscore in the names of links.
    let kind = link.to_str().and_then(|link| link.strip_prefix("anon_inode:bpf"));
    kind.and_then(|kind| kind.strip_prefix(['-', '_'])) == Some(what)
}

/// The attributes of commands for one element.
#[repr(C)]
pub(super) struct Element {
    pub(super) map: u32,
    pub(super) pad: u32,
    pub(super) key: u64,
    pub(super) value: u64,
    pub(super) flags: u64,
}

/// Checks that keys and values have the sizes of the map.
fn check(map: BorrowedFd<'_>, keys: usize, values: Option<usize>, count: usize) -> io::Result<()> {
    let info = map_info(map)?;
    let fits = |size: u32, bytes: usize| (size as usize).checked_mul(count) == Some(bytes);
    if fits(info.key_size, keys) && values.is_none_or(|values| fits(info.value_size, values)) {
        Ok(())
    } else {
        Err(io::ErrorKind::InvalidInput.into())
    }
}

/// Returns an element, or `None` if it is not there.
///
/// # Errors
/// The key has another size than the map's, or the map is a per-CPU one.
pub fn lookup(map: BorrowedFd<'_>, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
    check(map, key.len(), None, 1)?;
    let mut value = vec![0; value_room(&map_info(map)?)?];
    let mut attributes = Element {
        map: number(map),
        pad: 0,
        key: address(key.as_ptr()),
        value: address(value.as_mut_ptr()),
        flags: 0,
    };
    // SAFETY: the kernel reads a key and writes a value, which have those sizes.
    match unsafe { bpf(Command::MapLookup, &mut attributes) } {
        Ok(_) => Ok(Some(value)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The number of bytes that the kernel writes for one value. Per-CPU maps have one value for each CPU, so
/// they are refused.
fn value_room(info: &MapInfo) -> io::Result<usize> {
    /// Of `enum bpf_map_type`: hash, array, LRU hash, storage of sockets.
    const ONE_VALUE: [u32; 4] = [1, 2, 9, 24];
    if ONE_VALUE.contains(&info.kind) {
        Ok(info.value_size as usize)
    } else {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// The attributes of commands for many elements.
#[repr(C)]
pub(super) struct Batch {
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) keys: u64,
    pub(super) values: u64,
    pub(super) count: u32,
    pub(super) map: u32,
    pub(super) element_flags: u64,
    pub(super) flags: u64,
}

/// Sets `count` elements; keys and values are concatenated.
///
/// # Errors
/// `E2BIG`: the map is full. The elements before the one that failed were set.
pub fn update_batch(map: BorrowedFd<'_>, keys: &[u8], values: &[u8], count: usize) -> io::Result<()> {
    if count == 0 {
        return Ok(());
    }
    check(map, keys.len(), Some(values.len()), count)?;
    let mut attributes = Batch {
        from: 0,
        to: 0,
        keys: address(keys.as_ptr()),
        values: address(values.as_ptr()),
        count: length(count)?,
        map: number(map),
        element_flags: 0,
        flags: 0,
    };
    // SAFETY: the kernel reads `count` keys and values, and there are that many.
    unsafe { bpf(Command::UpdateBatch, &mut attributes) }.map(drop)
}

/// Deletes `count` elements, whose keys are concatenated. Absent ones are ignored.
///
/// # Errors
/// The keys have another size than the map's.
pub fn delete_batch(map: BorrowedFd<'_>, keys: &[u8], count: usize) -> io::Result<()> {
    check(map, keys.len(), None, count)?;
    let Some(size) = keys.len().checked_div(count) else { return Ok(()) };
    let mut left = keys;
    while !left.is_empty() {
        let mut attributes = Batch {
            from: 0,
            to: 0,
            keys: address(left.as_ptr()),
            values: 0,
            count: length(left.len() / size)?,
            map: number(map),
            element_flags: 0,
            flags: 0,
        };
        // SAFETY: the kernel reads `count` keys, and there are that many.
        let deleted = unsafe { bpf(Command::DeleteBatch, &mut attributes) };
        match deleted {
            Ok(_) => return Ok(()),
            // The kernel stops at the first absent element, and returns how many it has deleted.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                let done = (attributes.count as usize).saturating_add(1).saturating_mul(size);
                left = left.get(done..).unwrap_or_default();
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// All elements of a hash map: keys and values, concatenated. If an element changes meanwhile, the result has
/// its old or its new value.
///
/// # Errors
/// It is another kind of map.
pub fn lookup_all(map: BorrowedFd<'_>) -> io::Result<(Vec<u8>, Vec<u8>)> {
    /// `BPF_MAP_TYPE_HASH` and `BPF_MAP_TYPE_LRU_HASH`.
    const HASHES: [u32; 2] = [1, 9];
    let info = map_info(map)?;
    if !HASHES.contains(&info.kind) {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let (key_size, value_size) = (info.key_size as usize, info.value_size as usize);
    // A bucket has to fit. If it does not, twice the room will suffice in the end.
    let mut room = info.max_entries.clamp(1, 4096) as usize;
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    // The kernel's position: a bucket number.
    let mut position: Option<u32> = None;
    loop {
        let start = position.unwrap_or(0);
        let mut next = 0u32;
        let (mut some_keys, mut some_values) = (vec![0; room * key_size], vec![0; room * value_size]);
        let mut attributes = Batch {
            from: position.map_or(0, |_| address(&raw const start)),
            to: address(&raw mut next),
            keys: address(some_keys.as_mut_ptr()),
            values: address(some_values.as_mut_ptr()),
            count: length(room)?,
            map: number(map),
            element_flags: 0,
            flags: 0,
        };
        // SAFETY: the kernel reads and writes a bucket number, 4 bytes for hash maps, and writes up to
        // `count` keys and values. There is room for that many.
        let result = unsafe { bpf(Command::LookupBatch, &mut attributes) };
        let ended = match result {
            Ok(_) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                room = room.saturating_mul(2);
                continue;
            }
            Err(error) => return Err(error),
        };
        let count = (attributes.count as usize).min(room);
        keys.extend_from_slice(some_keys.get(..count * key_size).unwrap_or_default());
        values.extend_from_slice(some_values.get(..count * value_size).unwrap_or_default());
        if ended {
            return Ok((keys, values));
        }
        position = Some(next);
    }
}
