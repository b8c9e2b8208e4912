//! The HTTP client: which certificates it trusts, and which it presents.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Certificate, Client, Identity as ClientIdentity, Proxy, Url};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::access::{Access, Identity, Secret, Trust};
use super::addresses::{Addresses, port, target};
use super::config::{ConfigError, Timing};
use super::reason;

const USER_AGENT: &str = concat!("sluice/", env!("CARGO_PKG_VERSION"));

/// The timeout for establishing a connection, including TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The number of TCP keep-alive probes that may get lost.
const PROBES: u32 = 3;

/// An apiserver, and the client that reaches it.
#[derive(Debug, Clone)]
pub(super) struct Server {
    /// The URL as configured.
    pub(super) url: Url,
    /// The URL in requests: with the name in the certificate.
    pub(super) base: Url,
    pub(super) http: Client,
}

/// Makes clients for all apiservers, in their order. `identity` takes precedence over the configured one.
/// Addresses that names resolve to are added to `addresses` before a connection to them is made.
pub(super) fn build(
    access: &Access,
    identity: Option<&Identity>,
    timing: &Timing,
    addresses: &Arc<Addresses>,
) -> Result<Vec<Server>, ConfigError> {
    let trusted = match &access.tls.trust {
        Trust::Authorities(pem) => Some(authorities(pem)?),
        Trust::System | Trust::Anything => None,
    };
    let one = |url| build_one(access, trusted.as_deref(), identity, timing, addresses, url);
    access.servers.iter().map(one).collect()
}

fn build_one(
    access: &Access,
    trusted: Option<&[Certificate]>,
    identity: Option<&Identity>,
    timing: &Timing,
    addresses: &Arc<Addresses>,
    url: &Url,
) -> Result<Server, ConfigError> {
    let tls = &access.tls;
    let probe_interval = probe_interval(timing);
    let mut builder = Client::builder()
        .user_agent(USER_AGENT)
        // A redirect would send the credentials elsewhere, and an apiserver does not redirect our requests.
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .tcp_keepalive(timing.keep_alive)
        .tcp_keepalive_interval(probe_interval)
        .tcp_keepalive_retries(PROBES)
        // It replaces the number of probes, and covers data that was sent and not acknowledged. The kernel
        // checks it when a probe is due: at the last one before the timeout.
        .tcp_user_timeout(timing.unnoticed().saturating_sub(probe_interval))
        .http2_keep_alive_interval(timing.keep_alive)
        .http2_keep_alive_timeout(timing.keep_alive_answer)
        .http2_keep_alive_while_idle(true);
    let mut resolver =
        Resolver { elsewhere: None, port: port(target(access, url)), addresses: Arc::clone(addresses) };
    let mut base = url.clone();
    if let (Some(name), "https") = (&tls.server_name, url.scheme()) {
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        base.set_host(Some(name)).map_err(|error| {
            let what = format!("{name:?} is not a host name ({error})");
            ConfigError::value("TLS", "tls-server-name", what, "write the DNS name in the certificate")
        })?;
        resolver.elsewhere = Some(host);
    }
    builder = builder.dns_resolver(Arc::new(resolver));
    builder = match trusted {
        Some(trusted) => builder.tls_certs_only(trusted.iter().cloned()),
        None => builder.tls_danger_accept_invalid_certs(tls.trust == Trust::Anything),
    };
    builder = match &tls.proxy {
        // The proxies of the environment are for the internet.
        None => builder.no_proxy(),
        Some(proxy) => {
            let proxy = Proxy::all(proxy.clone()).map_err(|error| wrong("proxy-url", &error))?;
            builder.proxy(proxy)
        }
    };
    if let Some(Identity { certificate, key: Secret(key) }) = identity.or(tls.identity.as_ref()) {
        let pem = [certificate.as_slice(), b"\n", key].concat();
        let identity = ClientIdentity::from_pem(&pem).map_err(|error| wrong("client certificate", &error))?;
        builder = builder.identity(identity);
    }
    let http = builder.build().map_err(|error| wrong("client certificate and CA", &error))?;
    Ok(Server { url: url.clone(), base, http })
}

/// The interval of the probes. The kernel counts whole seconds; its default is 75 s.
fn probe_interval(timing: &Timing) -> Duration {
    Duration::from_secs((timing.keep_alive_answer / PROBES).as_secs().max(1))
}

/// The usable certificates of a bundle. As in client-go (`x509.CertPool.AppendCertsFromPEM`), an unusable one
/// does not affect the others.
fn authorities(pem: &[u8]) -> Result<Vec<Certificate>, ConfigError> {
    let (mut usable, mut number, mut problem) = (Vec::new(), 0, String::new());
    for certificate in CertificateDer::pem_slice_iter(pem) {
        number += 1;
        let read = certificate.map_err(|error| error.to_string()).and_then(|certificate| {
            RootCertStore::empty().add(certificate.clone()).map_err(|error| error.to_string())?;
            Certificate::from_der(&certificate).map_err(|error| error.to_string())
        });
        match read {
            Ok(certificate) => usable.push(certificate),
            Err(error) => problem = format!("number {number}: {}", reason::one_line(&error)),
        }
    }
    if usable.is_empty() {
        let (field, mend) = ("certificate authority", "write certificates in the PEM format");
        let what = match number {
            0 => "it holds no certificate".to_owned(),
            _ => format!("none of its {number} certificates can be used ({problem})"),
        };
        return Err(ConfigError::value("TLS", field, what, mend));
    }
    if usable.len() < number {
        let unusable = number - usable.len();
        tracing::warn!(
            "TLS: certificate authority: {unusable} of {number} certificates cannot be used ({problem}), the others are: \
             remove what is no certificate"
        );
    }
    Ok(usable)
}

fn wrong(field: &str, error: &reqwest::Error) -> ConfigError {
    let cause = std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string);
    ConfigError::value(
        "TLS",
        field,
        cause,
        "check that certificate and key are whole, PEM, and belong together",
    )
}

/// Resolves names with the system's resolver, and reports the addresses.
#[derive(Debug)]
struct Resolver {
    /// The host that every name resolves to: the apiserver's, whatever name its certificate has.
    elsewhere: Option<String>,
    /// The port of the connections.
    port: u16,
    addresses: Arc<Addresses>,
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let host = self.elsewhere.clone().unwrap_or_else(|| name.as_str().to_owned());
        let (port, addresses) = (self.port, Arc::clone(&self.addresses));
        Box::pin(async move {
            // The port comes from the URL.
            let found: Vec<SocketAddr> = tokio::net::lookup_host((host, 0)).await?.collect();
            let to: Vec<SocketAddr> = found.iter().map(|found| (found.ip(), port).into()).collect();
            addresses.resolved(&to);
            let found: Addrs = Box::new(found.into_iter());
            Ok(found)
        })
    }
}
