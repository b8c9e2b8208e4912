//! The contenders: a direct connection, Sluice, the kernel, and other relays. Each runs on the node of its
//! own site, with the servers' ports, on an address that the client can reach.

mod kernel;
mod relays;
mod sluice;

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use sluice_model::Protocol;
use sluice_testbed::lab::Process;

use crate::site::{HTTP, Site, TCP_ECHO, await_tcp, end};
use crate::sockets::Sockets;
use crate::tool::is_installed;

/// The Service's address, for contenders that capture packets.
pub(crate) const CLUSTER_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 80);

/// An address of the node, for contenders that listen on their own address.
pub(crate) const LISTEN_IP: Ipv4Addr = Ipv4Addr::new(10, 98, 0, 80);

/// The kind of a contender.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// None: the node routes.
    Direct,
    /// Sluice on a node in relay mode; this build, or another one.
    SluiceTproxy(Option<PathBuf>),
    /// Sluice on a node in socket mode.
    SluiceSocket(Option<PathBuf>),
    /// Sluice in bind mode, on an address of the node.
    SluiceBind(Option<PathBuf>),
    /// The kernel's DNAT, with rules like those of kube-proxy's nftables mode.
    Dnat,
    /// haproxy in TCP mode.
    Haproxy,
    /// nginx's stream module.
    Nginx,
    /// realm, with the path of its program.
    Realm(PathBuf),
}

/// A contender with its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contender {
    /// The name in tables and plots.
    pub name: String,
    /// Its kind.
    pub kind: Kind,
}

/// The names of contenders that need no path.
pub const NAMES: [&str; 7] =
    ["direct", "sluice-socket", "sluice-tproxy", "sluice-bind", "dnat", "haproxy", "nginx"];

/// A running contender. Its processes end with it.
pub struct Running {
    /// Its address for clients.
    pub ip: IpAddr,
    /// Its processes; empty if the kernel does the work.
    pub processes: Vec<Process>,
    /// The place of its programs, in socket mode.
    sockets: Option<Sockets>,
    /// Its site.
    pub site: Site,
}

impl Drop for Running {
    fn drop(&mut self) {
        end(&mut self.processes);
    }
}

impl Running {
    /// Does something in place of a client.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn as_client<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        match &self.sockets {
            Some(sockets) => sockets.within(work),
            None => work(),
        }
    }
}

impl Contender {
    /// Parses a contender: one of [`NAMES`], `realm=PATH`, or `sluice-tproxy=PATH`, `sluice-socket=PATH` or
    /// `sluice-bind=PATH` for another build. `NAME:` before the path sets its name.
    ///
    /// # Errors
    /// There is no such contender.
    pub fn parse(text: &str) -> Result<Self> {
        let (word, path) = text.split_once('=').map_or((text, None), |(word, path)| (word, Some(path)));
        let (label, path) = match path.map(|path| path.split_once(':').unwrap_or((word, path))) {
            Some((label, path)) => (label, Some(PathBuf::from(path))),
            None => (word, None),
        };
        let kind = match (word, path) {
            ("direct", None) => Kind::Direct,
            ("sluice-tproxy", path) => Kind::SluiceTproxy(path),
            ("sluice-socket", path) => Kind::SluiceSocket(path),
            ("sluice-bind", path) => Kind::SluiceBind(path),
            ("dnat", None) => Kind::Dnat,
            ("haproxy", None) => Kind::Haproxy,
            ("nginx", None) => Kind::Nginx,
            ("realm", Some(path)) => Kind::Realm(path),
            _ => bail!("no contender {text:?}: there are {}, and realm=PATH", NAMES.join(", ")),
        };
        Ok(Self { name: label.to_owned(), kind })
    }

    /// Why it cannot be measured here; `None` if it can.
    pub fn missing(&self) -> Option<String> {
        let program = match &self.kind {
            Kind::Haproxy => "haproxy",
            Kind::Nginx => "nginx",
            Kind::Realm(path)
            | Kind::SluiceTproxy(Some(path))
            | Kind::SluiceSocket(Some(path))
            | Kind::SluiceBind(Some(path)) => {
                return (!path.is_file()).then(|| format!("there is no {}", path.display()));
            }
            Kind::Direct
            | Kind::SluiceTproxy(None)
            | Kind::SluiceSocket(None)
            | Kind::SluiceBind(None)
            | Kind::Dnat => return None,
        };
        (!is_installed(program)).then(|| format!("{program} is not installed"))
    }

    /// Whether it supports a protocol.
    pub fn carries(&self, protocol: Protocol) -> bool {
        !(self.kind == Kind::Haproxy && protocol == Protocol::Udp)
    }

    /// Whether the data passes through a program, not only through the kernel.
    pub fn is_relay(&self) -> bool {
        !matches!(self.kind, Kind::Direct | Kind::Dnat | Kind::SluiceSocket(_))
    }

    /// Starts it at a site.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(&self, site: Site) -> Result<Running> {
        let sockets =
            matches!(self.kind, Kind::SluiceSocket(_)).then(|| Sockets::new(site.directory())).transpose();
        let sockets = sockets.with_context(|| self.name.clone())?;
        let (ip, processes) = self.start_at(&site, sockets.as_ref()).with_context(|| self.name.clone())?;
        let running = Running { ip: ip.into(), processes, sockets, site };
        if is_installed("nginx") {
            running.as_client(|| await_tcp(running.site.client(), (ip, HTTP).into(), &running.processes))?;
        }
        // The first connection to an endpoint is relayed, and sockperf makes only one.
        if running.sockets.is_some() && is_installed("sockperf") {
            running
                .as_client(|| await_tcp(running.site.client(), (ip, TCP_ECHO).into(), &running.processes))?;
        }
        Ok(running)
    }

    fn start_at(&self, site: &Site, sockets: Option<&Sockets>) -> Result<(Ipv4Addr, Vec<Process>)> {
        let server = site.server().v4;
        if self.is_relay() && !matches!(self.kind, Kind::SluiceTproxy(_)) {
            site.lab.node().ns.ip(&format!("address add {LISTEN_IP}/32 dev lo"))?;
        }
        Ok(match &self.kind {
            Kind::Direct => (server, Vec::new()),
            Kind::SluiceTproxy(path) => (CLUSTER_IP, vec![sluice::tproxy(site, path.as_deref())?]),
            Kind::SluiceSocket(path) => {
                let flags = sockets.map(Sockets::arguments).unwrap_or_default();
                (CLUSTER_IP, vec![sluice::socket(site, path.as_deref(), &flags)?])
            }
            Kind::SluiceBind(path) => (LISTEN_IP, vec![sluice::bind(site, path.as_deref())?]),
            Kind::Dnat => {
                kernel::dnat(&site.lab, CLUSTER_IP, server)?;
                (CLUSTER_IP, Vec::new())
            }
            Kind::Haproxy => (LISTEN_IP, vec![relays::haproxy(site, LISTEN_IP)?]),
            Kind::Nginx => (LISTEN_IP, vec![relays::nginx(site, LISTEN_IP)?]),
            Kind::Realm(path) => (LISTEN_IP, relays::realm(site, path, LISTEN_IP)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contenders_are_told_by_name_and_path() {
        let of = |text| Contender::parse(text).unwrap();
        assert_eq!(of("haproxy").kind, Kind::Haproxy);
        assert_eq!(of("sluice-tproxy").kind, Kind::SluiceTproxy(None));
        let before = of("sluice-tproxy=before:/tmp/sluice");
        assert_eq!(
            (before.name.as_str(), before.kind),
            ("before", Kind::SluiceTproxy(Some("/tmp/sluice".into())))
        );
        assert_eq!(
            of("realm=/tmp/realm"),
            Contender { name: "realm".into(), kind: Kind::Realm("/tmp/realm".into()) }
        );
        assert!(Contender::parse("realm").is_err() && Contender::parse("haproxy=/x").is_err());
    }

    #[test]
    fn every_name_is_a_contender() {
        for name in NAMES {
            assert_eq!(Contender::parse(name).unwrap().name, name);
        }
    }
}
