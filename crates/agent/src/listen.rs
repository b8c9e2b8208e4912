//! Where the agent's own HTTP ports listen, by kube-proxy's flags, and opening them. A port that is taken is
//! waited for: the agent that this one replaces has it until it ends, and traffic matters more.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tracing::warn;

/// Pause before an address that is taken is tried again: for at most this long, nobody answers while one agent
/// follows another.
const RETRY: Duration = Duration::from_millis(100);

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// The value of a flag: an address, with or without a port, or nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BindAddress {
    /// `0`, or nothing.
    Nowhere,
    /// Without a port, the default port is meant.
    At(IpAddr, Option<u16>),
}

/// Where to listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// At one address. `[::]` stands for all addresses of both families.
    At(SocketAddr),
    /// At all addresses of the families that this machine has.
    Everywhere(u16),
}

impl FromStr for BindAddress {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if matches!(text, "" | "0") {
            return Ok(Self::Nowhere);
        }
        let whole = text.parse().map(|at: SocketAddr| Self::At(at.ip(), Some(at.port())));
        let inner = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        whole
            .or_else(|_| inner.parse().map(|ip| Self::At(ip, None)))
            .map_err(|_| "write ADDRESS:PORT, or 0 for nowhere")
    }
}

impl fmt::Display for BindAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Nowhere => f.write_str("0"),
            Self::At(ip, Some(port)) => SocketAddr::new(ip, port).fmt(f),
            Self::At(ip, None) => ip.fmt(f),
        }
    }
}

impl BindAddress {
    /// The place that the flag names, with `port` as the default. `0.0.0.0` stands for all addresses of both
    /// families, as in kube-proxy, because Go's `net.Listen` takes it so.
    pub fn place(self, port: u16) -> Option<Place> {
        match self {
            Self::Nowhere => None,
            Self::At(IpAddr::V4(Ipv4Addr::UNSPECIFIED), given) => {
                Some(Place::Everywhere(given.unwrap_or(port)))
            }
            Self::At(ip, given) => Some(Place::At(SocketAddr::new(ip, given.unwrap_or(port)))),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(address) => address.fmt(f),
            Self::Everywhere(port) => write!(f, "port {port}"),
        }
    }
}

impl Place {
    fn listen(self) -> io::Result<TcpListener> {
        match self {
            Self::At(address) => listen(address),
            Self::Everywhere(port) => listen((Ipv6Addr::UNSPECIFIED, port).into()).or_else(|error| {
                let has_v6 =
                    !matches!(Errno::from_io_error(&error), Some(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL));
                if has_v6 { Err(error) } else { listen((Ipv4Addr::UNSPECIFIED, port).into()) }
            }),
        }
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.ip() == Ipv6Addr::UNSPECIFIED {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// A port that is open, or will be.
#[derive(Debug)]
pub struct Opening {
    place: Place,
    /// What is missing until the port is open, and the flag that names its place.
    what: &'static str,
    flag: &'static str,
    listener: io::Result<TcpListener>,
}

impl Opening {
    /// Tries once to open the port.
    ///
    /// # Errors
    /// The port cannot be opened, and is not to be waited for (kube-proxy's `--bind-address-hard-fail`).
    pub fn new(
        place: Place,
        what: &'static str,
        flag: &'static str,
        hard_fail: bool,
    ) -> anyhow::Result<Self> {
        match place.listen() {
            Err(error) if hard_fail => {
                anyhow::bail!("no {what} on {place}: {error}: choose another address with {flag}")
            }
            listener => Ok(Self { place, what, flag, listener }),
        }
    }

    /// Returns once the port is open; logs each reason why it is not, once.
    pub(crate) async fn wait(self) -> TcpListener {
        let Self { place, what, flag, mut listener } = self;
        let mut said = None;
        loop {
            match listener {
                Ok(listener) => return listener,
                Err(error) => {
                    let reason = error.kind();
                    if said.replace(reason) != Some(reason) {
                        warn!(
                            "no {what} on {place}: {error}: it is tried again; another address can be chosen with \
                             {flag}"
                        );
                    }
                }
            }
            tokio::time::sleep(RETRY).await;
            listener = place.listen();
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;
    use tokio::time::timeout;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(20);

    #[test]
    fn addresses_are_written_as_for_kube_proxy() {
        #[rustfmt::skip]
        let cases = [
            ("0.0.0.0:10256",   Some("port 10256")),
            ("0.0.0.0",         Some("port 7")),
            ("192.0.2.1:8",     Some("192.0.2.1:8")),
            ("[::]:1",          Some("[::]:1")),
            ("::",              Some("[::]:7")),
            ("[2001:db8::1]",   Some("[2001:db8::1]:7")),
            ("",                None),
            ("0",               None),
        ];
        for (text, wanted) in cases {
            let address: BindAddress = text.parse().unwrap();
            assert_eq!(address.place(7).map(|place| place.to_string()).as_deref(), wanted, "{text}");
            assert_eq!(address.to_string().parse(), Ok(address), "{text}");
        }
        for text in ["here", ":10256", "0.0.0.0:", "0.0.0.0:65536", "[::"] {
            assert!(text.parse::<BindAddress>().is_err(), "{text}");
        }
    }

    #[tokio::test]
    async fn everywhere_is_both_families() {
        let places =
            ["0.0.0.0:0", "[::]:0"].map(|text| text.parse::<BindAddress>().unwrap().place(7).unwrap());
        for place in places.into_iter().chain([Place::Everywhere(0)]) {
            let listener = place.listen().unwrap();
            let port = listener.local_addr().unwrap().port();
            for ip in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
                TcpStream::connect((ip, port)).await.unwrap_or_else(|error| panic!("{place}, {ip}: {error}"));
            }
        }
    }

    #[tokio::test]
    async fn a_taken_port_is_waited_for_unless_that_is_not_wanted() {
        let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let place = Place::At(other.local_addr().unwrap());
        let error = Opening::new(place, "metrics", "--metrics-bind-address", true).unwrap_err().to_string();
        assert!(error.contains("in use") && error.contains("--metrics-bind-address"), "{error}");
        let opening = Opening::new(place, "metrics", "--metrics-bind-address", false).unwrap();
        let waiting = tokio::spawn(opening.wait());
        drop(other);
        timeout(DEADLINE, waiting).await.expect("it can be had by now").unwrap();
    }
}
