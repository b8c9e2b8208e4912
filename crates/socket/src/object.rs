//! The object file that `programs/build` has made: reading it, and fitting it to this kernel and to the maps.

use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use aya_obj::btf::{Btf, BtfFeatures};
use aya_obj::generated::bpf_insn;
use aya_obj::maps::Map;
use rustix::io::Errno;
use sluice_sys::bpf;

use crate::Error;
use crate::shape::{SHAPES, Shape};

/// The object file, with the alignment that parsing needs.
static OBJECT: &[u8] = include_bytes!("../programs/sluice.bpf.o");

/// The parsed object.
#[derive(Debug)]
pub(crate) struct Object {
    inner: aya_obj::Object,
    /// Its types, loaded into the kernel.
    btf: OwnedFd,
}

/// A program, ready to be loaded.
#[derive(Debug)]
pub(crate) struct Code {
    pub(crate) instructions: Vec<u8>,
    pub(crate) license: CString,
}

fn failed(error: impl std::fmt::Display) -> Error {
    Error::Object(error.to_string())
}

impl Object {
    /// Parses the object and fits it to `kernel`'s types.
    pub(crate) fn read(kernel: &Btf) -> Result<Self, Error> {
        let mut inner = aya_obj::Object::parse(OBJECT).map_err(failed)?;
        // Only maps refer to our types: no feature is needed that a kernel might lack.
        let features = BtfFeatures::new(false, false, false, false, false, false, false, false);
        let types = inner
            .fixup_and_sanitize_btf(&features)
            .map_err(failed)?
            .ok_or_else(|| failed("it has no BTF"))?;
        // The first call of bpf(2).
        let btf = bpf::load_btf(&types.to_bytes()).map_err(|error| match Errno::from_io_error(&error) {
            Some(Errno::PERM | Errno::NOSYS) => Error::Denied(error),
            _ => Error::system("loading types")(error),
        })?;
        inner.relocate_btf(kernel).map_err(failed)?;
        Ok(Self { inner, btf })
    }

    /// The arguments for creating a map.
    pub(crate) fn map_spec(&self, shape: &Shape, max_entries: u32) -> Result<bpf::MapSpec<'_>, Error> {
        let Some(Map::Btf(map)) = self.inner.maps.get(shape.name) else {
            return Err(failed(format!("it has no map {}", shape.name)));
        };
        let types = (self.btf.as_fd(), map.def.btf_key_type_id, map.def.btf_value_type_id);
        Ok(bpf::MapSpec {
            name: shape.name,
            kind: shape.kind,
            key_size: shape.key_size,
            value_size: shape.value_size,
            max_entries,
            flags: shape.flags,
            btf: Some(types),
        })
    }

    /// Puts the maps' file descriptors into the programs.
    pub(crate) fn link(&mut self, maps: &HashMap<&'static str, OwnedFd>) -> Result<(), Error> {
        let sections: HashSet<usize> = self.inner.functions.keys().map(|(section, _)| *section).collect();
        let theirs = self.inner.maps.clone();
        let mut ours = Vec::with_capacity(SHAPES.len());
        for (name, map) in &theirs {
            let fd = maps.get(name.as_str()).ok_or_else(|| failed(format!("map {name} is not known")))?;
            ours.push((name.as_str(), fd.as_raw_fd(), map));
        }
        self.inner.relocate_maps(ours.into_iter(), &sections).map_err(failed)?;
        self.inner.relocate_calls(&sections).map_err(failed)
    }

    /// A program, by the name of its function.
    pub(crate) fn code(&self, program: &str) -> Result<Code, Error> {
        let absent = || failed(format!("it has no program {program}"));
        let found = self.inner.programs.get(program).ok_or_else(absent)?;
        let function = self.inner.functions.get(&found.function_key()).ok_or_else(absent)?;
        Ok(Code {
            instructions: function.instructions.iter().flat_map(bytes).collect(),
            license: found.license.clone(),
        })
    }
}

/// An instruction in the kernel's encoding.
fn bytes(instruction: &bpf_insn) -> [u8; 8] {
    let [off_low, off_high] = instruction.off.to_ne_bytes();
    let [a, b, c, d] = instruction.imm.to_ne_bytes();
    // For little-endian kernels; the object is for no others.
    let registers = instruction.src_reg() << 4 | instruction.dst_reg();
    [instruction.code, registers, off_low, off_high, a, b, c, d]
}
