//! What this thread may do.

use rustix::thread::{CapabilitySet, capabilities};

/// Whether this thread has CAP_SYS_ADMIN: it may mount, and enter others' namespaces.
pub(crate) fn is_administrator() -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN))
}
