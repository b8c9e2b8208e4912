//! Settings of the kernel that an agent in TPROXY mode changes, other than br_netfilter's.

use std::fs;
use std::io;

use tracing::{info, warn};

/// Whether connect(2) may take a port that an earlier connection has left in TIME_WAIT: 0 never, 1 after a second,
/// 2 (the kernel's default) on loopback only.
pub(crate) const TW_REUSE: &str = "net/ipv4/tcp_tw_reuse";

/// Whether connections that are being made move to another socket of the same address when theirs is closed
/// (Linux 5.14); otherwise they are reset.
pub(crate) const MIGRATE_REQ: &str = "net/ipv4/tcp_migrate_req";

/// A setting of this network namespace; none where the kernel has it not.
pub(crate) fn get(name: &str) -> Option<u64> {
    fs::read_to_string(path(name)).ok()?.trim().parse().ok()
}

/// Changes a setting, unless it is so already: in a container `/proc/sys` can only be read, and somebody else has seen
/// to it.
///
/// # Errors
/// The kernel has it not, or this process may not.
pub(crate) fn set(name: &str, value: u64) -> io::Result<()> {
    if get(name) == Some(value) {
        return Ok(());
    }
    fs::write(path(name), value.to_string())
}

/// As people write it.
pub(crate) fn dotted(name: &str) -> String {
    name.replace('/', ".")
}

fn path(name: &str) -> String {
    format!("/proc/sys/{name}")
}

/// Lets connections with the node's own address take ports again before a minute is over. Under kube-proxy the
/// kernel's address translation did so; without it, some 470 new connections a second to one endpoint use up all
/// ports. Who has switched it off altogether has had a reason.
pub(crate) fn reuse_ports() {
    if get(TW_REUSE) != Some(2) {
        return;
    }
    let name = dotted(TW_REUSE);
    match set(TW_REUSE, 1) {
        Ok(()) => {
            info!("{name} is set to 1: many short connections to one endpoint would use up the node's ports")
        }
        Err(error) => warn!(
            "{name} cannot be set to 1: {error}; set it on the node, or many short connections to one endpoint use \
             up the node's ports"
        ),
    }
}
