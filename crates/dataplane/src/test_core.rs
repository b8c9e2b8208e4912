//! The part of a worker that all of its parts use, for tests of a single part.

use std::sync::Arc;
use std::time::Instant;

use mio::Poll;
use sluice_table::Writer;

use crate::Config;
use crate::core::{Core, Says};
use crate::descriptors::Descriptors;
use crate::local_ports::LocalPorts;
use crate::tcp::port_shares::PortShares;
use crate::timers::Timers;

/// A core with a writer's table and this many file descriptors.
pub(crate) fn core(poll: &Poll, writer: &Writer, descriptors: usize) -> Core {
    Core {
        registry: poll.registry().try_clone().unwrap(),
        timers: Timers::default(),
        reader: writer.table().reader(),
        stats: Arc::default(),
        descriptors: Descriptors::new(descriptors),
        local_ports: LocalPorts::with_range(32_768..=60_999),
        port_shares: PortShares::new(100, 0, 1),
        exhausted: Default::default(),
        orphans: Default::default(),
        marks: None,
        half_closed_idle: Config::HALF_CLOSED_IDLE,
        log: None,
        service_times: true,
        recall: Arc::default(),
        says: Says::default(),
        now: Instant::now(),
    }
}
