//! Attaching: maps, programs and links, in an order in which no connection is ever half translated.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya_obj::btf::{Btf, BtfError, BtfKind};
use rustix::io::Errno;
use sluice_socket_maps::Capacity;
use sluice_sys::bpf::{self, MapInfo, ProgramSpec};

use crate::census::Listers;
use crate::links::Links;
use crate::object::Object;
use crate::pins::{Pins, directory, link_path};
use crate::shape::{CONNS, FLOWS, META, SHAPES, Shape};
use crate::{Attached, Error, cgroup};

/// The layout of the maps. It changes whenever programs of two versions could not share maps, and each layout
/// has a directory of its own. A test compares the layout with this number.
pub(crate) const LAYOUT: u64 = 6;

/// `BPF_PROG_TYPE_CGROUP_SOCK_ADDR`.
const SOCK_ADDR: u32 = 18;

/// What to attach, and where.
#[derive(Debug, Clone)]
pub struct Config {
    /// Sockets that are made in this cgroup and below are translated. On a node, it is the root:
    /// [`cgroup_root`](crate::cgroup_root).
    pub cgroup: PathBuf,
    /// Where to pin, for example [`PINS`](crate::PINS).
    pub pins: PathBuf,
    /// The capacity of the maps.
    pub capacity: Capacity,
}

/// The programs.
#[derive(Debug)]
pub struct Programs;

/// A program that is attached to the cgroup.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hook {
    /// The name of its function.
    pub(crate) name: &'static str,
    /// `enum bpf_prog_type`.
    kind: u32,
    /// `enum bpf_attach_type`.
    pub(crate) attach: u32,
}

/// `BPF_PROG_TYPE_SOCK_OPS`, and its attach type `BPF_CGROUP_SOCK_OPS`.
const SOCK_OPS: (u32, u32) = (13, 3);

/// The program that lists connected UDP sockets.
const DATAGRAMS: &str = "sluice_census_udp";

/// `BPF_PROG_TYPE_TRACING`, and `BPF_TRACE_ITER`.
const TRACING: (u32, u32) = (26, 28);

const fn hook(name: &'static str, attach: u32) -> Hook {
    Hook { name, kind: SOCK_ADDR, attach }
}

/// The hooks in the order of attaching: those that translate back come before those that translate.
pub(crate) const HOOKS: [Hook; 9] = [
    hook("sluice_getpeername4", 29),
    hook("sluice_getpeername6", 30),
    hook("sluice_recvmsg4", 19),
    hook("sluice_recvmsg6", 20),
    Hook { name: "sluice_sockops", kind: SOCK_OPS.0, attach: SOCK_OPS.1 },
    hook("sluice_sendmsg4", 14),
    hook("sluice_sendmsg6", 15),
    hook("sluice_connect4", 10),
    hook("sluice_connect6", 11),
];

impl Programs {
    /// Loads and attaches the programs. If an earlier agent has left its programs attached, replaces them and
    /// keeps their maps. Sockets in the calling thread's network namespace count as the node's.
    ///
    /// No run is missed in between: every event meets either the old program or the new one.
    ///
    /// See [`Error`]. After any but [`Error::Busy`], an earlier agent's programs go on translating by what is
    /// in their maps: a caller that does not try again has to [`remove`](crate::remove) them.
    pub fn attach(config: &Config) -> Result<Attached, Error> {
        let cgroup_failed = |source| Error::NoCgroup { path: config.cgroup.clone(), source };
        let cgroup_id = cgroup::id(&config.cgroup).map_err(cgroup_failed)?;
        let cgroup = OwnedFd::from(fs::File::open(&config.cgroup).map_err(cgroup_failed)?);
        let kernel = kernel_types()?;
        let mut object = Object::read(&kernel)?;
        let listers = load_listers(&object, &kernel)?;

        let pins = Pins::open(&config.pins, LAYOUT)?;
        let was_empty = is_empty(&pins.directory).map_err(Error::system("reading pins"))?;
        let place = Place { directory: &pins.directory, cgroup: cgroup.as_fd(), cgroup_id, config };
        match place.fill(&mut object) {
            // Programs of other layouts translate beside these, and run before them, until these maps are
            // filled.
            Ok((maps, links, fresh)) => {
                let links = Links::new(&pins.directory, cgroup_id, links);
                Attached::new(pins, &maps, listers, links, config.capacity, fresh)
            }
            Err(error) => {
                if was_empty {
                    // Nothing of the attempt may stay. The first error is the one that counts.
                    let _ = pins.remove();
                }
                Err(error)
            }
        }
    }
}

impl Programs {
    /// Whether [`Programs::attach`] would give empty maps to programs that are attached, because maps are
    /// missing or have another size. Nothing would be translated until they are filled.
    pub fn would_begin_anew(config: &Config) -> bool {
        let directory = directory(&config.pins, LAYOUT);
        let is_attached = HOOKS.iter().any(|hook| link_path(&directory, hook.name).exists());
        is_attached
            && SHAPES.iter().any(|shape| matches!(pinned(&directory, shape, &config.capacity), Ok(None)))
    }
}

fn is_empty(directory: &Path) -> io::Result<bool> {
    Ok(fs::read_dir(directory)?.next().is_none())
}

/// Creates the smallest maps, loads all programs, and drops both: checks whether this kernel takes them from
/// this process.
pub(crate) fn rehearse() -> Result<(), Error> {
    let kernel = kernel_types()?;
    let mut object = Object::read(&kernel)?;
    let maps = new_maps(&object, &Capacity { frontends: 1, sets: 1, slots: 1, endpoints: 1 })?;
    object.link(&maps)?;
    HOOKS.iter().try_for_each(|hook| load(&object, hook).map(drop))?;
    load_listers(&object, &kernel).map(drop)
}

fn new_maps(object: &Object, capacity: &Capacity) -> Result<Maps, Error> {
    let mut new = Maps::new();
    for shape in &SHAPES {
        let made = bpf::create_map(&object.map_spec(shape, (shape.elements)(capacity))?);
        new.insert(shape.name, made.map_err(|source| Error::Map { map: shape.name.into(), source })?);
    }
    Ok(new)
}

/// Where programs and maps are attached and pinned.
struct Place<'a> {
    directory: &'a Path,
    cgroup: BorrowedFd<'a>,
    cgroup_id: u64,
    config: &'a Config,
}

type Maps = HashMap<&'static str, OwnedFd>;

impl Place<'_> {
    /// Creates or finds everything except the mappings; the links are in the order of [`HOOKS`]. Returns also
    /// whether the maps are new and so empty.
    fn fill(&self, object: &mut Object) -> Result<(Maps, Vec<OwnedFd>, bool), Error> {
        let (maps, new) = self.maps(object)?;
        object.link(&maps)?;
        let mut programs = Vec::with_capacity(HOOKS.len());
        for hook in &HOOKS {
            programs.push((hook, load(object, hook)?));
        }
        // From now on the directory is incomplete, until the new `META` is pinned as the last map.
        if new.contains(&META) {
            let _ = fs::remove_file(self.directory.join(META));
        }
        for name in &new {
            self.pin_map(name, &maps)?;
        }
        let links = programs.iter().map(|(hook, program)| self.link(hook, program.as_fd()));
        let links = links.collect::<Result<_, _>>()?;
        Ok((maps, links, !new.is_empty()))
    }

    /// The pinned maps if all exist with the right size; otherwise new ones, and their names. Maps of what
    /// sockets are connected to are always kept: they are needed to find and end these sockets.
    fn maps(&self, object: &Object) -> Result<(Maps, Vec<&'static str>), Error> {
        let mut found = Maps::new();
        for shape in &SHAPES {
            if let Some(map) = pinned(self.directory, shape, &self.config.capacity)? {
                found.insert(shape.name, map);
            }
        }
        if found.len() == SHAPES.len() {
            return Ok((found, Vec::new()));
        }
        let mut maps = new_maps(object, &self.config.capacity)?;
        let mut new: Vec<&'static str> = SHAPES.iter().map(|shape| shape.name).collect();
        // Maps of sockets' state have no configured size. They outlive the others, so that answers to earlier
        // requests still come from the Service's address.
        for name in [CONNS, FLOWS] {
            if let Some(map) = found.remove(name) {
                maps.insert(name, map);
                new.retain(|other| *other != name);
            }
        }
        Ok((maps, new))
    }

    /// Pins a new map in place of an earlier one.
    fn pin_map(&self, name: &'static str, maps: &Maps) -> Result<(), Error> {
        let Some(map) = maps.get(name) else { return Ok(()) };
        let path = self.directory.join(name);
        let _ = fs::remove_file(&path);
        bpf::pin(map.as_fd(), &path).map_err(Error::system(format!("pinning {}", path.display())))
    }

    /// Attaches a program, or replaces the attached one.
    fn link(&self, hook: &Hook, program: BorrowedFd<'_>) -> Result<OwnedFd, Error> {
        let path = link_path(self.directory, hook.name);
        match bpf::get(&path) {
            Ok(link) => {
                let foreign = |found| Error::Foreign { path: path.clone(), found };
                let info = bpf::link_info(link.as_fd()).map_err(|_| foreign("no link to a cgroup".into()))?;
                if info.attach != hook.attach {
                    return Err(foreign(format!("a link of type {}", info.attach)));
                }
                if info.cgroup == self.cgroup_id {
                    // The lock on the pins keeps others away.
                    bpf::replace_program(link.as_fd(), program)
                        .map_err(Error::system(format!("replacing the program at {}", path.display())))?;
                    return Ok(link);
                }
                // The link is for a cgroup that is gone or is not the wanted one: it has no effect.
                self.attach(hook, program, &path, true)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.attach(hook, program, &path, false),
            Err(error) => Err(not_ours(&path, error)),
        }
    }

    fn attach(
        &self,
        hook: &Hook,
        program: BorrowedFd<'_>,
        path: &Path,
        replace: bool,
    ) -> Result<OwnedFd, Error> {
        let link = bpf::create_link(program, self.cgroup, hook.attach).map_err(|error| {
            if error.raw_os_error() == Some(Errno::PERM.raw_os_error()) {
                Error::Exclusive { program: hook.name.into(), cgroup: self.config.cgroup.clone() }
            } else {
                Error::system(format!("attaching {}", hook.name))(error)
            }
        })?;
        if replace {
            fs::remove_file(path).map_err(Error::system(format!("removing {}", path.display())))?;
        }
        bpf::pin(link.as_fd(), path).map_err(Error::system(format!("pinning {}", path.display())))?;
        Ok(link)
    }
}

/// The pinned map, if there is one of the right size.
fn pinned(directory: &Path, shape: &Shape, capacity: &Capacity) -> Result<Option<OwnedFd>, Error> {
    let path = directory.join(shape.name);
    let foreign = |found| Error::Foreign { path: path.clone(), found };
    let map = match bpf::get(&path) {
        Ok(map) => map,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(not_ours(&path, error)),
    };
    let info = bpf::map_info(map.as_fd()).map_err(|_| foreign("no map".into()))?;
    let MapInfo { kind, key_size, value_size, flags, max_entries, .. } = info;
    if (kind, key_size, value_size, flags) != (shape.kind, shape.key_size, shape.value_size, shape.flags) {
        return Err(foreign(format!(
            "a map of kind {kind} with keys of {key_size} bytes, values of {value_size} and flags {flags:#x}"
        )));
    }
    Ok((max_entries == (shape.elements)(capacity)).then_some(map))
}

fn load(object: &Object, hook: &Hook) -> Result<OwnedFd, Error> {
    load_program(object, hook.name, hook.kind, hook.attach, 0)
}

/// Loads the programs that list sockets, which are not attached to anything.
fn load_listers(object: &Object, kernel: &Btf) -> Result<Listers, Error> {
    Ok(Listers {
        all: load_iterator(object, kernel, "sluice_census")?,
        datagrams: load_iterator(object, kernel, DATAGRAMS)?,
    })
}

/// The error for a pin that cannot be opened: it is no map, program or link (`EINVAL`, `EACCES`, `EPERM`), or
/// the system is out of file descriptors, which passes.
fn not_ours(path: &Path, source: io::Error) -> Error {
    match Errno::from_io_error(&source) {
        Some(Errno::INVAL | Errno::ACCESS | Errno::PERM) => {
            Error::Foreign { path: path.into(), found: source.to_string() }
        }
        _ => Error::system(format!("opening {}", path.display()))(source),
    }
}

/// The types of the kernel's own structures.
fn kernel_types() -> Result<Btf, Error> {
    Btf::from_sys_fs().map_err(|error| match error {
        BtfError::FileError { path, error } => Error::system(format!("reading {}", path.display()))(error),
        other => Error::Object(other.to_string()),
    })
}

/// The program that lists UDP sockets, for maps that somebody else has made.
pub(crate) fn datagram_lister() -> Result<OwnedFd, Error> {
    let kernel = kernel_types()?;
    load_iterator(&Object::read(&kernel)?, &kernel, DATAGRAMS)
}

fn load_iterator(object: &Object, kernel: &Btf, name: &str) -> Result<OwnedFd, Error> {
    let target = kernel
        .id_by_type_name_kind("bpf_iter_bpf_sk_storage_map", BtfKind::Func)
        .map_err(|error| Error::Object(error.to_string()))?;
    load_program(object, name, TRACING.0, TRACING.1, target)
}

fn load_program(object: &Object, name: &str, kind: u32, attach: u32, target: u32) -> Result<OwnedFd, Error> {
    let code = object.code(name)?;
    let (instructions, license) = (&code.instructions, &*code.license);
    let spec = ProgramSpec { name, kind, attach, instructions, license, target };
    bpf::load_program(&spec).map_err(|rejected| Error::Program {
        program: name.into(),
        source: rejected.error,
        log: rejected.log,
    })
}
