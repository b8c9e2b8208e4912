//! How the proxy is to run.

use std::path::PathBuf;

use sluice_capture::tproxy;
use sluice_dataplane::Config;
use sluice_table::{NodePortAddresses, WriterConfig};

use crate::at_socket::AtSocketWish;
use crate::events::Events;
use crate::recall::Memory;

/// How the proxy is to run.
#[derive(Debug, Clone)]
pub struct ProxyConfig {
    /// What the rules need to know.
    pub table: WriterConfig,
    /// The workers.
    pub dataplane: Config,
    /// How connections get to them.
    pub capture: CaptureConfig,
    /// Where nodePorts are served.
    pub node_ports: NodePortAddresses,
    /// What decides at clients' sockets, beside a capture of packets.
    pub at_socket: AtSocketWish,
    /// Where an earlier agent may have left what decides there, to be removed if nothing is to.
    pub leftovers: Option<PathBuf>,
    /// Who has which endpoint, by an agent whose place this one takes.
    pub(crate) recalled: Option<Memory>,
    /// Where people are told of what concerns single objects.
    pub events: Events,
}

impl ProxyConfig {
    /// Frontends are listened on, which needs no privileges; nodePorts at the Node object's addresses.
    pub fn bind(table: WriterConfig, dataplane: Config) -> Self {
        Self {
            table,
            dataplane,
            capture: CaptureConfig::Bind,
            node_ports: NodePortAddresses::Primary,
            at_socket: AtSocketWish::None,
            leftovers: None,
            recalled: None,
            events: Events::default(),
        }
    }
}

/// How connections get to the workers.
#[derive(Debug, Clone)]
pub enum CaptureConfig {
    /// Listen on the frontends' own addresses.
    Bind,
    /// Have the kernel hand over what is sent to them.
    Tproxy(tproxy::Config),
}
