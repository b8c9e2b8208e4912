//! `healthCheckNodePort`: the number of a Service's local endpoints, for load balancers.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use sluice_model::{Family, ObjectName};

/// The state of one Service's health check port. It is shared: the counts change while it is being served.
#[derive(Debug)]
pub struct HealthCheck {
    service: ObjectName,
    port: u16,
    families: BTreeSet<Family>,
    v4: AtomicUsize,
    v6: AtomicUsize,
}

impl HealthCheck {
    pub(crate) fn new(service: ObjectName, port: u16, families: BTreeSet<Family>) -> Self {
        Self { service, port, families, v4: AtomicUsize::new(0), v6: AtomicUsize::new(0) }
    }

    /// The Service.
    pub fn service(&self) -> &ObjectName {
        &self.service
    }

    /// The port to listen on (`healthCheckNodePort`).
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The families that the Service has addresses of, which are those to listen in (kube-proxy has a proxier
    /// for each).
    pub fn families(&self) -> &BTreeSet<Family> {
        &self.families
    }

    /// Number of *ready* endpoints of one family on this node. Each address counts once, however many ports
    /// it has. Terminating endpoints do not count, even if they still serve: the load balancer is to choose
    /// another node.
    pub fn local_endpoints(&self, family: Family) -> usize {
        self.count(family).load(Ordering::Relaxed)
    }

    pub(crate) fn set(&self, family: Family, endpoints: usize) {
        self.count(family).store(endpoints, Ordering::Relaxed);
    }

    fn count(&self, family: Family) -> &AtomicUsize {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }
}
