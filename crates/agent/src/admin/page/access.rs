//! Who may see the status page. It names every Service and endpoint of the cluster, so not everybody who
//! reaches the port may.

use std::fmt;
use std::net::IpAddr;

use clap::ValueEnum;
use hyper::Request;
use hyper::header::HOST;
use hyper::http::uri::Authority;

use crate::http_server::Ends;

/// `--status-page`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StatusPage {
    /// Nobody.
    Off,
    /// Clients of this machine that connect to a loopback address.
    Loopback,
    /// Everybody who reaches the port.
    All,
}

/// Why a client may not see the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// The client is not on this machine, or does not connect to a loopback address.
    NotLocal,
    /// The request names a host that is not this machine: a foreign site may have pointed its name here to read
    /// along (DNS rebinding).
    Name,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotLocal => {
                "the status page is shown on loopback addresses of this node only: ask there, or start the agent with \
                 --status-page all"
            }
            Self::Name => {
                "the status page is not shown under this name: ask for localhost or a loopback address instead"
            }
        })
    }
}

/// Checks whether a request may be answered.
pub(super) fn check<B>(setting: StatusPage, request: &Request<B>) -> Result<(), Refused> {
    let ends = request.extensions().get::<Ends>();
    let is_local = ends.is_some_and(|ends| ends.are_loopback());
    let said = request.headers().get_all(HOST).iter().map(|host| host.to_str().ok());
    let target = request.uri().authority().map(|authority| Some(authority.as_str()));
    judge(setting, is_local, said.chain(target))
}

fn judge<'a>(
    setting: StatusPage,
    is_local: bool,
    names: impl Iterator<Item = Option<&'a str>>,
) -> Result<(), Refused> {
    match (setting, is_local) {
        // The names by which a node is known elsewhere cannot be told here.
        (StatusPage::All, false) => Ok(()),
        (StatusPage::Off | StatusPage::Loopback, false) => Err(Refused::NotLocal),
        (_, true) => {
            let mut names = names.peekable();
            let is_good = names.peek().is_some() && names.all(|name| name.is_some_and(is_local_name));
            if is_good { Ok(()) } else { Err(Refused::Name) }
        }
    }
}

/// Whether a host name, with or without a port, is this machine's own whatever a name server says.
fn is_local_name(name: &str) -> bool {
    let Ok(authority) = name.parse::<Authority>() else { return false };
    let host = authority.host();
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let is_loopback = bare.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback());
    // An authority may begin with `user@`, which no Host header has.
    !name.contains('@') && (is_loopback || host.eq_ignore_ascii_case("localhost"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases() {
        use StatusPage::{All, Loopback};
        let cases: [(StatusPage, bool, &[&str], _); 16] = [
            (Loopback, true, &["localhost"], Ok(())),
            (Loopback, true, &["LocalHost:10249"], Ok(())),
            (Loopback, true, &["127.0.0.1:10249"], Ok(())),
            (Loopback, true, &["127.9.9.9"], Ok(())),
            (Loopback, true, &["[::1]:10249"], Ok(())),
            (Loopback, true, &["evil.example:10249"], Err(Refused::Name)),
            (Loopback, true, &["localhost.evil.example"], Err(Refused::Name)),
            (Loopback, true, &["127.0.0.1.evil.example"], Err(Refused::Name)),
            (Loopback, true, &["localhost@evil.example"], Err(Refused::Name)),
            (Loopback, true, &["10.0.0.1"], Err(Refused::Name)),
            (Loopback, true, &["localhost", "evil.example"], Err(Refused::Name)),
            (Loopback, true, &[], Err(Refused::Name)),
            (Loopback, false, &["localhost"], Err(Refused::NotLocal)),
            (All, false, &["node-1.example:10249"], Ok(())),
            (All, true, &["evil.example"], Err(Refused::Name)),
            (All, true, &["localhost"], Ok(())),
        ];
        for (setting, is_local, names, wanted) in cases {
            let judged = judge(setting, is_local, names.iter().map(|name| Some(*name)));
            assert_eq!(judged, wanted, "{setting:?} {is_local} {names:?}");
        }
        assert_eq!(judge(Loopback, true, std::iter::once(None)), Err(Refused::Name), "no text");
    }
}
