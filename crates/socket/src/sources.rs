//! What sockets come from that connect to an address, as the programs have learnt it: see `affinity.h`.

use std::mem::offset_of;
use std::sync::atomic::Ordering;

use sluice_sys::bpf::Mapping;

use crate::layout::Source;

/// Words of one, and which of them is the namespace.
const SOURCE: usize = size_of::<Source>() / 8;
const NAMESPACE: usize = offset_of!(Source, namespace) / 8;

/// All that are known.
#[derive(Debug)]
pub(crate) struct Sources(pub(crate) Mapping);

impl Sources {
    /// Has those of a namespace be learnt anew. One that a program is just writing is not that of any namespace, or is learnt.
    pub(crate) fn forget(&self, namespace: u64) {
        for source in self.0.words().chunks_exact(SOURCE) {
            if source.get(NAMESPACE).is_some_and(|word| word.load(Ordering::Relaxed) == namespace) {
                source.iter().for_each(|word| word.store(0, Ordering::Relaxed));
            }
        }
    }
}
