//! Opens a flow's own socket, towards its endpoint.

use std::io;
use std::net::{SocketAddr, UdpSocket};

use rustix::io::Errno;
use sluice_model::Protocol;
use socket2::Socket;

use super::socket;
use crate::failure;
use crate::local_ports::{UpstreamPort, counterpart, last_choices};
use crate::transparent::{Local, make_transparent};

/// A flow's socket, and whether it has the client's port.
#[derive(Debug)]
pub(crate) struct Connected {
    pub(crate) socket: UdpSocket,
    pub(crate) keeps_port: bool,
}

/// Opens a flow's socket. It is connected, so that it receives only from its endpoint, and gets ICMP errors.
///
/// A client's address is used with the client's port if that matters ([`UpstreamPort`]) and no other flow to
/// this endpoint has it (`may_keep_port`, from the caller), unless a program of this node has it without
/// sharing it, or it is privileged and we are not.
///
/// # Errors
/// There is no route, no port, or no descriptor.
pub(crate) fn connect(address: SocketAddr, local: Local, may_keep_port: bool) -> io::Result<Connected> {
    let socket = socket::open_plain(address)?;
    let mut keeps_port = false;
    if let Some(client) = local.client {
        make_transparent(&socket, client.ip())?;
        keeps_port = may_keep_port && bind_shared(&socket, client)?;
        if !keeps_port {
            bind_chosen(&socket, client)?;
        }
    }
    socket.connect(&address.into())?;
    // Not earlier: before it is connected, its mark would make it receive whatever anybody sends to the
    // client's port.
    local.prepare(&socket)?;
    Ok(Connected { socket: socket.into(), keeps_port })
}

/// Binds a socket to its client's port, which the client's flows to other endpoints have too. Returns false
/// if that is not possible or not necessary.
fn bind_shared(socket: &Socket, client: SocketAddr) -> io::Result<bool> {
    if UpstreamPort::of_client(client.port(), Protocol::Udp) == UpstreamPort::Choose {
        return Ok(false);
    }
    socket.set_reuse_address(true)?;
    match socket.bind(&client.into()) {
        Err(error) if failure::is_about_the_port(&error) => {
            socket.set_reuse_address(false)?;
            Ok(false)
        }
        bound => bound.map(|()| true),
    }
}

/// Binds a socket to a port of its own. It is not shared, so the kernel knows which ports are free. Tries the
/// counterpart of the client's port first, which hardly any other flow of the client has; random ports would
/// mostly be taken once the client has thousands.
fn bind_chosen(socket: &Socket, client: SocketAddr) -> io::Result<()> {
    let ports = std::iter::once(counterpart(client.port())).chain(last_choices());
    let client = client.ip();
    for port in ports {
        match socket.bind(&SocketAddr::new(client, port).into()) {
            Err(error) if failure::is_about_the_port(&error) => {}
            bound => return bound,
        }
    }
    Err(Errno::ADDRNOTAVAIL.into())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Loopback addresses stand in for clients' addresses, because they need no privileges.
    fn flow(client: &str, endpoint: SocketAddr, may_keep_port: bool) -> Option<Connected> {
        let local = Local { client: Some(client.parse().unwrap()), mark: None };
        match connect(endpoint, local, may_keep_port) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                assert!(!rustix::process::geteuid().is_root(), "{error}");
                sluice_sys::skipped("needs CAP_NET_ADMIN");
                None
            }
            connected => Some(connected.unwrap()),
        }
    }

    fn port(connected: &Connected) -> u16 {
        connected.socket.local_addr().unwrap().port()
    }

    #[test]
    fn a_port_that_means_something_is_kept_and_shared_and_any_other_is_replaced_by_one_of_its_own() {
        let endpoints = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
        let [first, second] = endpoints.each_ref().map(|endpoint| endpoint.local_addr().unwrap());
        let Some(kept) = flow("127.0.0.2:5070", first, true) else { return };
        let shared = flow("127.0.0.2:5070", second, true).unwrap();
        assert_eq!([port(&kept), port(&shared)], [5_070; 2]);
        assert!(kept.keeps_port && shared.keeps_port);
        let other = flow("127.0.0.2:5070", first, false).unwrap();
        assert!(!other.keeps_port && port(&other) != 5_070);

        let chosen: Vec<_> = (0..200).map(|_| flow("127.0.0.2:40000", first, true).unwrap()).collect();
        let ports: BTreeSet<u16> = chosen.iter().map(port).collect();
        assert_eq!(ports.len(), 200, "nobody shares");
        assert!(ports.iter().all(|port| !(32_768..=60_999).contains(port)), "{ports:?}");
        assert!(!chosen.iter().any(|flow| flow.keeps_port));
    }

    #[test]
    fn a_client_with_thousands_of_flows_finds_a_port_for_each_at_once() {
        let endpoint = UdpSocket::bind("127.0.0.1:0").unwrap();
        for port in [32_768, 45_000, 60_999] {
            let client = format!("127.0.0.3:{port}");
            let Some(chosen) = flow(&client, endpoint.local_addr().unwrap(), true) else { return };
            assert_eq!(chosen.socket.local_addr().unwrap().port(), counterpart(port));
        }
    }
}
