//! What is to decide at clients' sockets, and where.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sluice_socket_maps::{Capacity, MOST_SETS};

use super::{Detector, Pods};

/// How long the relay keeps a flow by default that was answered, as conntrack does.
const CONVERSATION_IDLE: Duration = Duration::from_secs(120);

/// Where programs that decide at sockets are attached, and kept.
#[derive(Debug, Clone)]
pub struct AtSocketConfig {
    /// The cgroup: sockets that are made in it and below are decided about. None is the root of all.
    pub cgroup: Option<PathBuf>,
    /// Below this directory of a bpffs is what outlives the agent.
    pub pins: PathBuf,
    /// Whether only sockets of the node's own network are decided about.
    pub host_only: bool,
    /// Where pods' network namespaces have names: sockets in others are left alone. Empty, all are pods'.
    pub namespaces: Vec<PathBuf>,
    /// What pods and namespaces are annotated with, if somebody goes by it.
    pub pods: Option<Arc<Pods>>,
    /// Where pods have their addresses, if pods of this node are told by address: others are left to the relay.
    pub detector: Option<Arc<Detector>>,
    /// Pods in which somebody listens at one of these ports are left alone; 0 is none.
    pub sidecar_ports: [u16; 2],
    /// How long an unconnected UDP socket keeps its endpoint while nothing is said.
    pub flow_idle: Duration,
    /// How many endpoints there may be, counted in each service port.
    pub endpoints: u32,
}

impl AtSocketConfig {
    /// Where Istio and Linkerd have what leaves a pod redirected to.
    pub const SIDECAR_PORTS: [u16; 2] = [15_001, 4_140];

    /// Those of 10,000 Services with ten endpoints each, and a tenth more.
    pub const ENDPOINTS: u32 = 110_000;

    /// Everything else as it is by default.
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

    /// How much maps for so many endpoints hold. Those that are mapped have all of their memory from the start, 85 bytes
    /// an endpoint; that of frontends has it by use.
    pub fn capacity_for(endpoints: u32) -> Capacity {
        Capacity {
            frontends: (endpoints / 2).max(1 << 16),
            sets: (endpoints / 4).clamp(1 << 10, MOST_SETS),
            // Each set has a power of two of them. And the next version of the largest that there may be.
            slots: endpoints.saturating_mul(2).saturating_add(1 << 16),
            endpoints,
        }
    }
}

/// What is to decide at clients' sockets.
#[derive(Debug, Clone)]
pub enum AtSocketWish {
    /// Nothing.
    None,
    /// Programs, as far as they can be had.
    Wanted(AtSocketConfig),
    /// Nothing, as a node that might have them lacks this.
    Lacking(String),
}
