//! Configuration of socket mode.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sluice_socket_maps::{Capacity, MOST_SETS};

use super::{Detector, Pods};

/// How long the relay keeps an answered flow by default, as conntrack does.
const CONVERSATION_IDLE: Duration = Duration::from_secs(120);

/// Where programs are attached and pinned, and whose sockets they translate.
#[derive(Debug, Clone)]
pub struct AtSocketConfig {
    /// Sockets that are made in this cgroup and below are translated. `None` is the root cgroup.
    pub cgroup: Option<PathBuf>,
    /// The directory of a bpffs below which everything is pinned that outlives the agent.
    pub pins: PathBuf,
    /// Whether only sockets of the node's own network namespace are translated.
    pub host_only: bool,
    /// Directories with the names of pods' network namespaces; sockets in others are left alone. If empty, all
    /// are pods'.
    pub namespaces: Vec<PathBuf>,
    /// The annotations of pods and namespaces, if they count.
    pub pods: Option<Arc<Pods>>,
    /// Where pods have their addresses, if pods of this node are recognised by address; others are left to the
    /// relay.
    pub detector: Option<Arc<Detector>>,
    /// Pods in which a socket listens on one of these ports are left alone; 0 stands for none.
    pub sidecar_ports: [u16; 2],
    /// How long an unconnected UDP socket keeps its endpoint without sending or receiving.
    pub flow_idle: Duration,
    /// How many endpoints the maps hold, counted in each service port.
    pub endpoints: u32,
}

impl AtSocketConfig {
    /// The ports to which Istio and Linkerd redirect what leaves a pod.
    pub const SIDECAR_PORTS: [u16; 2] = [15_001, 4_140];

    /// Enough for 10,000 Services with ten endpoints each, and a tenth more.
    pub const ENDPOINTS: u32 = 110_000;

    /// The default configuration.
    pub fn new(cgroup: Option<PathBuf>, pins: PathBuf) -> Self {
        Self {
            cgroup,
            pins,
            host_only: false,
            namespaces: Vec::new(),
            pods: None,
            detector: None,
            sidecar_ports: Self::SIDECAR_PORTS,
            flow_idle: CONVERSATION_IDLE,
            endpoints: Self::ENDPOINTS,
        }
    }

    /// The maps' capacity for so many endpoints. Memory-mapped maps take all of their memory at the start, 85
    /// bytes per endpoint; the map of frontends takes it as needed.
    pub fn capacity_for(endpoints: u32) -> Capacity {
        Capacity {
            frontends: (endpoints / 2).max(1 << 16),
            sets: (endpoints / 4).clamp(1 << 10, MOST_SETS),
            // Each set has a power of two of slots. The rest is for a new version of the largest possible set.
            slots: endpoints.saturating_mul(2).saturating_add(1 << 16),
            endpoints,
        }
    }
}

/// Whether socket mode is wanted.
#[derive(Debug, Clone)]
pub enum AtSocketWish {
    /// It is not.
    None,
    /// It is, as far as possible.
    Wanted(AtSocketConfig),
    /// It was asked for, but the node lacks this.
    Lacking(String),
}
