//! The addresses at which apiservers are reached: the configured ones, and those that their names resolve to.
//! Any thread may add addresses.

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};

use reqwest::Url;
use tokio::sync::watch;

use super::access::Access;

/// The maximum number of addresses. A control plane has a few, and a name must not add any number of them.
const MOST: usize = 16;

/// The port of SOCKS proxies whose URL names none (RFC 1928). The `url` crate knows the ports of HTTP only.
const SOCKS: u16 = 1080;

/// The configured addresses, followed by the others, most recently resolved first.
#[derive(Debug)]
pub(super) struct Addresses {
    /// The number of configured addresses. Locked during changes.
    configured: Mutex<usize>,
    all: watch::Sender<Vec<SocketAddr>>,
}

impl Addresses {
    /// Starts with the configured addresses.
    pub(super) fn new(access: &Access) -> Self {
        let all = configured(access);
        Self { configured: Mutex::new(all.len()), all: watch::Sender::new(all) }
    }

    /// A receiver of all addresses, now and after each change.
    pub(super) fn subscribe(&self) -> watch::Receiver<Vec<SocketAddr>> {
        self.all.subscribe()
    }

    /// Starts over with the addresses that are configured now.
    pub(super) fn set(&self, access: &Access) {
        let mut count = self.configured.lock().unwrap_or_else(PoisonError::into_inner);
        let all = configured(access);
        *count = all.len();
        self.all.send_replace(all);
    }

    /// Adds addresses that a name was resolved to. If there are too many, those resolved longest ago are dropped.
    pub(super) fn resolved(&self, addresses: &[SocketAddr]) {
        let configured = self.configured.lock().unwrap_or_else(PoisonError::into_inner);
        self.all.send_if_modified(|all| {
            let (first, others) = all.split_at_checked(*configured).unwrap_or((all.as_slice(), &[]));
            let added = addresses.iter().map(|address| canonical(*address));
            let now = distinct(first.iter().copied().chain(added).chain(others.iter().copied()));
            let is_news = now.len() != all.len() || now.iter().any(|address| !all.contains(address));
            *all = now;
            is_news
        });
    }
}

/// The port of a URL that names an apiserver or a proxy.
pub(super) fn port(url: &Url) -> u16 {
    url.port_or_known_default().unwrap_or(SOCKS)
}

/// The host that connections are made to: the proxy, if there is one.
pub(super) fn target<'a>(access: &'a Access, server: &'a Url) -> &'a Url {
    access.tls.proxy.as_ref().unwrap_or(server)
}

/// The configured addresses that need no resolver.
fn configured(access: &Access) -> Vec<SocketAddr> {
    let literal = |url: &Url| {
        let ip = url.host_str()?.trim_matches(['[', ']']).parse().ok()?;
        Some(canonical(SocketAddr::new(ip, port(url))))
    };
    distinct(access.servers.iter().filter_map(|server| literal(target(access, server))))
}

/// The first addresses, without duplicates.
fn distinct(addresses: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let mut some = Vec::with_capacity(MOST);
    for address in addresses {
        if some.len() == MOST {
            break;
        }
        if !some.contains(&address) {
            some.push(address);
        }
    }
    some
}

/// The form in which frontends have it: an IPv4-mapped address as IPv4, and without a zone.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::super::access::{Auth, Tls};
    use super::*;

    fn access(servers: &[&str], proxy: Option<&str>) -> Access {
        let url = |text: &&str| Url::parse(text).unwrap();
        let tls = Tls { proxy: proxy.map(|text| url(&text)), ..Tls::default() };
        Access { servers: servers.iter().map(url).collect(), tls, auth: Auth::None }
    }

    fn parse(text: &str) -> Vec<SocketAddr> {
        text.split_whitespace().map(|address| address.parse().unwrap()).collect()
    }

    #[test]
    fn what_is_configured() {
        #[rustfmt::skip]
        let cases: &[(&[&str], Option<&str>, &str)] = &[
            (&["https://192.0.2.1:6443", "https://192.0.2.2"], None, "192.0.2.1:6443 192.0.2.2:443"),
            (&["http://[2001:db8::1]:8080/base", "http://192.0.2.1"], None, "[2001:db8::1]:8080 192.0.2.1:80"),
            (&["https://[::ffff:192.0.2.1]:6443"], None, "192.0.2.1:6443"),
            (&["https://192.0.2.1:6443", "https://192.0.2.1:6443/"], None, "192.0.2.1:6443"),
            (&["https://api.example:6443"], None, ""),
            (&["https://192.0.2.1:6443"], Some("http://192.0.2.9:3128"), "192.0.2.9:3128"),
            (&["https://192.0.2.1:6443"], Some("socks5://192.0.2.9"), "192.0.2.9:1080"),
            (&["https://192.0.2.1:6443"], Some("http://proxy.example:3128"), ""),
        ];
        for (servers, proxy, wanted) in cases {
            assert_eq!(configured(&access(servers, *proxy)), parse(wanted), "{servers:?} {proxy:?}");
        }
    }

    #[test]
    fn it_is_told_when_one_comes_or_goes_and_not_when_one_is_resolved_again() {
        let addresses = Addresses::new(&access(&["https://192.0.2.1:6443"], None));
        let mut seen = addresses.subscribe();
        addresses.resolved(&parse("192.0.2.1:6443 [::ffff:192.0.2.1]:6443"));
        assert!(!seen.has_changed().unwrap());
        addresses.resolved(&parse("192.0.2.3:6443 192.0.2.2:6443"));
        assert_eq!(*seen.borrow_and_update(), parse("192.0.2.1:6443 192.0.2.3:6443 192.0.2.2:6443"));
        addresses.resolved(&parse("192.0.2.2:6443"));
        assert!(!seen.has_changed().unwrap());
        addresses.set(&access(&["https://192.0.2.4:6443"], None));
        assert_eq!(*seen.borrow_and_update(), parse("192.0.2.4:6443"));
    }

    #[test]
    fn of_too_many_those_that_were_resolved_longest_ago_are_forgotten() {
        let numbered = |number: usize| SocketAddr::from(([192, 0, 2, number.try_into().unwrap()], 6443));
        let addresses = Addresses::new(&access(&["https://192.0.2.0:6443"], None));
        let seen = addresses.subscribe();
        for number in 1..=MOST {
            addresses.resolved(&[numbered(number)]);
            // The first one is still being resolved to.
            addresses.resolved(&[numbered(1)]);
        }
        let mut wanted = vec![numbered(0), numbered(1)];
        wanted.extend((3..=MOST).rev().map(numbered));
        assert_eq!(*seen.borrow(), wanted);
        let many: Vec<SocketAddr> = (50..150).map(numbered).collect();
        addresses.resolved(&many);
        let wanted: Vec<SocketAddr> = [numbered(0)].into_iter().chain(many).take(MOST).collect();
        assert_eq!(*seen.borrow(), wanted, "a name with many addresses");
    }
}
