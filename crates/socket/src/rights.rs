//! What this thread may do.

use rustix::thread::{CapabilitySet, capabilities};

/// Whether it has CAP_SYS_ADMIN: may mount, and enter namespaces of others.
pub(crate) fn is_administrator() -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN))
}
