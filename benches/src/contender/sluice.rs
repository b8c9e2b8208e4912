//! Sluice with manifests.

use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::Result;
use sluice_testbed::lab::Process;

use super::{CLUSTER_IP, LISTEN_IP};
use crate::agent::{Agent, SOCKET, Source, TPROXY};
use crate::manifests::{Manifests, service};
use crate::site::Site;

/// On a node, in relay mode.
pub(super) fn tproxy(site: &Site, program: Option<&Path>) -> Result<Process> {
    start(site, program, &TPROXY, CLUSTER_IP)
}

/// On a node, in socket mode.
pub(super) fn socket(site: &Site, program: Option<&Path>, flags: &[String]) -> Result<Process> {
    let mut arguments = SOCKET.to_vec();
    arguments.extend(flags.iter().map(String::as_str));
    start(site, program, &arguments, CLUSTER_IP)
}

/// In bind mode.
pub(super) fn bind(site: &Site, program: Option<&Path>) -> Result<Process> {
    start(site, program, &["--capture", "bind"], LISTEN_IP)
}

fn start(site: &Site, program: Option<&Path>, arguments: &[&str], ip: Ipv4Addr) -> Result<Process> {
    let manifests = Manifests::new(site.directory(), &site.lab)?;
    manifests.put("all", &service("all", ip, &[site.server().v4]))?;
    Agent { program, arguments, source: Source::Manifests(&manifests) }.start(site.lab.node())
}
