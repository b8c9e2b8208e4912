//! The node, as the place where socket mode's programs are attached, handed over and removed.

use std::io;
use std::path::Path;

use sluice_model::Frontend;
use sluice_socket::Removed;
use sluice_socket_maps::FrontendKey;
use sluice_table::Table;

use super::attach::{self, Attached, NotAttached};
use super::{AtSocketConfig, Looks};

/// Where programs are attached and removed.
pub(super) trait Place: Send + Sync {
    /// As [`attach::would_begin_anew`] says.
    fn would_begin_anew(&self, config: &AtSocketConfig) -> bool;
    /// As [`attach::attach`] does.
    fn attach(&mut self, config: &AtSocketConfig, table: &Table) -> Result<(Attached, Looks), NotAttached>;
    /// As [`sluice_socket::remove`] does.
    fn remove(&mut self, pins: &Path) -> io::Result<Removed>;
    /// As [`sluice_socket::remove_held`] does.
    fn remove_held(&mut self, pins: &Path) -> io::Result<Removed>;
    /// As [`sluice_socket::forget_frontends`] does.
    fn forget(&mut self, pins: &Path, frontends: &[Frontend]) -> io::Result<usize>;
    /// As [`sluice_socket::ask_for`] does.
    fn ask_for(&mut self, pins: &Path) -> io::Result<()>;
    /// As [`sluice_socket::is_asked_for`] does.
    fn is_asked_for(&self, pins: &Path) -> bool;
    /// As [`sluice_socket::let_go`] does.
    fn let_go(&mut self, pins: &Path);
}

/// This node.
pub(super) struct Node;

impl Place for Node {
    fn would_begin_anew(&self, config: &AtSocketConfig) -> bool {
        attach::would_begin_anew(config)
    }

    fn attach(&mut self, config: &AtSocketConfig, table: &Table) -> Result<(Attached, Looks), NotAttached> {
        attach::attach(config, table)
    }

    fn remove(&mut self, pins: &Path) -> io::Result<Removed> {
        sluice_socket::remove(pins)
    }

    fn remove_held(&mut self, pins: &Path) -> io::Result<Removed> {
        sluice_socket::remove_held(pins)
    }

    fn forget(&mut self, pins: &Path, frontends: &[Frontend]) -> io::Result<usize> {
        let keys: Vec<FrontendKey> = frontends.iter().map(|frontend| (*frontend).into()).collect();
        sluice_socket::forget_frontends(pins, &keys)
    }

    fn ask_for(&mut self, pins: &Path) -> io::Result<()> {
        sluice_socket::ask_for(pins)
    }

    fn is_asked_for(&self, pins: &Path) -> bool {
        sluice_socket::is_asked_for(pins)
    }

    fn let_go(&mut self, pins: &Path) {
        sluice_socket::let_go(pins);
    }
}
