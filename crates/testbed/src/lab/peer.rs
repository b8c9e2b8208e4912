//! Servers and clients in a lab: servers that report their name and the client's address, clients that report
//! the outcome, and clients that generate load.

mod client;
mod load;
mod server;

use std::net::{IpAddr, SocketAddr};

pub use client::{Outcome, ask_on};
pub use load::{Load, Report};
pub use server::Server;

/// The datagram that is answered with the server's line; any other is echoed.
pub const WHO: &[u8] = b"who";

/// A server's line: its name and the client's address.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Answer {
    by: String,
    source: SocketAddr,
}

impl Answer {
    /// `NAME ADDRESS PORT\n`.
    fn to_line(&self) -> String {
        format!("{} {} {}\n", self.by, self.source.ip(), self.source.port())
    }

    fn from_line(line: &str) -> Option<Self> {
        let mut words = line.strip_suffix('\n')?.split(' ');
        let (by, ip, port) = (words.next()?, words.next()?, words.next()?);
        let source = SocketAddr::new(ip.parse::<IpAddr>().ok()?, port.parse().ok()?);
        words.next().is_none().then(|| Self { by: by.into(), source })
    }
}
