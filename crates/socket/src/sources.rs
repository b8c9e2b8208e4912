//! The source addresses that sockets have when they connect to an address, as the programs have learnt them:
//! see `affinity.h`.

use std::mem::offset_of;
use std::sync::atomic::Ordering;

use sluice_sys::bpf::Mapping;

use crate::layout::Source;

/// The size of a source in words, and the index of its namespace.
const SOURCE: usize = size_of::<Source>() / 8;
const NAMESPACE: usize = offset_of!(Source, namespace) / 8;

/// All known sources.
#[derive(Debug)]
pub(crate) struct Sources(pub(crate) Mapping);

impl Sources {
    /// Forgets the sources of a namespace, so that they are learnt anew. A source that a program is just
    /// writing belongs to no namespace yet, or is new.
    pub(crate) fn forget(&self, namespace: u64) {
        for source in self.0.words().chunks_exact(SOURCE) {
            if source.get(NAMESPACE).is_some_and(|word| word.load(Ordering::Relaxed) == namespace) {
                source.iter().for_each(|word| word.store(0, Ordering::Relaxed));
            }
        }
    }
}
