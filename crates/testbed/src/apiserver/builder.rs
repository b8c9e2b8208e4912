//! The settings of a server.

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result};
use ipnet::IpNet;

use super::auth::{Authentication, Credential};
use super::listener::{self, Running};
use super::registry::Registry;
use super::server::Apiserver;
use super::tls::Certificates;
use super::{Cluster, Config, Shared};

/// The default length of the history in changes: a load of 10,000 Services with a slice each fits, so watches
/// survive it.
const HISTORY: usize = 32_768;

/// Settings of an [`Apiserver`]. The default is TLS on a free port of 127.0.0.1, open to everybody.
#[derive(Debug, Clone)]
pub struct Builder {
    address: SocketAddr,
    names: Vec<String>,
    tls: bool,
    http2: bool,
    credentials: Vec<Credential>,
    client_certificates: bool,
    service_cidrs: Vec<IpNet>,
    node_ports: RangeInclusive<u16>,
    history: usize,
    bookmark_interval: Duration,
    watch_timeout: Duration,
    service_fields: bool,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            address: (Ipv4Addr::LOCALHOST, 0).into(),
            names: Vec::new(),
            tls: true,
            http2: true,
            credentials: Vec::new(),
            client_certificates: false,
            service_cidrs: vec![IpNet::V4(ipnet::Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 12))],
            node_ports: 30000..=32767,
            history: HISTORY,
            bookmark_interval: Duration::from_secs(60),
            watch_timeout: Duration::from_secs(30 * 60),
            service_fields: true,
        }
    }
}

impl Builder {
    /// Where to listen; port 0 is any free one.
    #[must_use]
    pub fn bind(mut self, address: SocketAddr) -> Self {
        self.address = address;
        self
    }

    /// Adds a name or address to the certificate, besides the usual ones, loopback and the listening address.
    #[must_use]
    pub fn name(mut self, name: &str) -> Self {
        self.names.push(name.to_owned());
        self
    }

    /// Plain HTTP, as from `kubectl proxy`. HTTP/2 by prior knowledge works, too.
    #[must_use]
    pub fn plain_http(mut self) -> Self {
        self.tls = false;
        self
    }

    /// HTTP/1.1 only over TLS, so every watch is a connection of its own.
    #[must_use]
    pub fn http1_only(mut self) -> Self {
        self.http2 = false;
        self
    }

    /// A bearer token that clients need. May be called several times.
    #[must_use]
    pub fn token(mut self, token: &str) -> Self {
        self.credentials.push(Credential::Token(token.to_owned()));
        self
    }

    /// A user and password that clients need.
    #[must_use]
    pub fn password(mut self, user: &str, password: &str) -> Self {
        let (user, password) = (user.to_owned(), password.to_owned());
        self.credentials.push(Credential::Password { user, password });
        self
    }

    /// Clients need a client certificate; if there are tokens too, either one.
    #[must_use]
    pub fn client_certificates(mut self) -> Self {
        self.client_certificates = true;
        self
    }

    /// The ranges of the ServiceCIDR `kubernetes`. Default: 10.96.0.0/12.
    #[must_use]
    pub fn service_cidrs(mut self, cidrs: &[IpNet]) -> Self {
        self.service_cidrs = cidrs.to_vec();
        self
    }

    /// The range of node ports. Default: 30000 to 32767.
    #[must_use]
    pub fn node_ports(mut self, range: RangeInclusive<u16>) -> Self {
        self.node_ports = range;
        self
    }

    /// How many changes, of all resources together, are kept for watches and continued lists. Default: 32768.
    #[must_use]
    pub fn history(mut self, changes: usize) -> Self {
        self.history = changes;
        self
    }

    /// How often watches that request bookmarks get one, once their resource has changed since the start.
    /// Default: every minute.
    #[must_use]
    pub fn bookmark_interval(mut self, interval: Duration) -> Self {
        self.bookmark_interval = interval;
        self
    }

    /// How long a watch lasts that sets no timeout. Default: half an hour.
    #[must_use]
    pub fn watch_timeout(mut self, timeout: Duration) -> Self {
        self.watch_timeout = timeout;
        self
    }

    /// As before Kubernetes 1.31: field selectors for Services support names only.
    #[must_use]
    pub fn no_service_fields(mut self) -> Self {
        self.service_fields = false;
        self
    }

    /// Starts the server on the current tokio runtime.
    ///
    /// # Errors
    /// The address cannot be listened on, or a name is not valid for a certificate.
    pub async fn start(self) -> Result<Apiserver> {
        let context = || format!("listening on {}: choose another address", self.address);
        let socket = listener::reserve(self.address).with_context(context)?;
        let address = socket.local_addr().with_context(context)?;
        let certificates =
            self.tls.then(|| Certificates::new(&self.names, address.ip())).transpose()?.map(Arc::new);
        let tls = certificates
            .as_ref()
            .map(|certificates| certificates.server_config(self.http2))
            .transpose()?
            .map(Arc::new);
        let config = Config {
            bookmark_interval: self.bookmark_interval,
            watch_timeout: self.watch_timeout,
            service_fields: self.service_fields,
        };
        let cluster = Cluster {
            registry: Mutex::new(Registry::new(self.history, &self.service_cidrs, self.node_ports.clone())),
            authentication: Authentication::new(self.credentials.clone(), self.client_certificates),
            certificates,
            tick: Arc::default(),
        };
        let shared = Shared::new(address, config, Arc::new(cluster));
        let running = Running::start(socket, &shared, tls.clone()).with_context(context)?;
        Ok(Apiserver::new(shared, tls, running))
    }
}
