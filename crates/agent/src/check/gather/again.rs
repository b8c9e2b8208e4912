//! Collects the facts that may change while an agent runs and are cheap to find out.

use sluice_capture::{kube_proxy, tproxy};

use super::super::facts::Facts;
use super::{capabilities, firewall, interfaces, text};

/// Only those facts; `None` if they cannot be found out now.
pub(in super::super) fn again() -> Option<Facts> {
    let capabilities = capabilities(&text("/proc/thread-self/status").unwrap_or_default());
    let others_chains = match capabilities.net_admin {
        true => Some(Ok(firewall::chains().ok()?)),
        false => None,
    };
    Some(Facts {
        capabilities,
        interfaces: interfaces(),
        leftovers: Ok(kube_proxy::find().ok()?),
        mark_rules: Ok(tproxy::others_mark_rules().ok()?),
        others_chains,
        first_free_port: None,
        kernel: String::new(),
        nft: Ok(String::new()),
        features: Vec::new(),
        transparent: Vec::new(),
        kube_proxy: Vec::new(),
        sees_all_processes: false,
        forwarding: Vec::new(),
        conntrack: None,
        descriptors: None,
        backlog: None,
        local_ports: None,
        reserved_ports: Vec::new(),
        tw_reuse: None,
        bridges: Vec::new(),
        bridge_rules: Vec::new(),
        legacy_tables: Vec::new(),
        node: None,
    })
}
