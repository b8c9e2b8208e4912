//! The proxy's configuration.

use std::path::PathBuf;

use sluice_capture::tproxy;
use sluice_dataplane::Config;
use sluice_table::{NodePortAddresses, WriterConfig};

use crate::at_socket::AtSocketWish;
use crate::events::Events;
use crate::recall::Memory;

/// The proxy's configuration.
#[derive(Debug, Clone)]
pub struct ProxyConfig {
    /// The table's rules.
    pub table: WriterConfig,
    /// The workers.
    pub dataplane: Config,
    /// How connections get to the workers.
    pub capture: CaptureConfig,
    /// Where nodePorts are served.
    pub node_ports: NodePortAddresses,
    /// Socket mode, beside a capture of packets.
    pub at_socket: AtSocketWish,
    /// The directory where an earlier agent may have pinned socket mode's programs; they are removed if socket
    /// mode is off.
    pub leftovers: Option<PathBuf>,
    /// Which client has which endpoint at the agent that this one replaces.
    pub(crate) recalled: Option<Memory>,
    /// Where Events about single objects go.
    pub events: Events,
}

impl ProxyConfig {
    /// Bind mode: listens on frontends, which needs no privileges. NodePorts are served at the Node object's
    /// addresses.
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
    /// Capture packets to frontends in the kernel.
    Tproxy(tproxy::Config),
}
