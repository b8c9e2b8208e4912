//! Translated sockets, as connections.

use std::io;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use sluice_model::Protocol;
use sluice_socket::Translated;
use sluice_socket_maps::protocol;
use sluice_table::{FrontendKey, Reader, Table};

use super::{Connection, ConnectionState};
use crate::at_socket::{Looks, View};

/// Adds all translated sockets of all network namespaces. Belongs on a thread that nobody waits for: the kernel
/// takes milliseconds to list thousands.
///
/// # Errors
/// The kernel cannot list them.
pub(super) fn add(view: &View, table: &Table, mut add: impl FnMut(Connection)) -> io::Result<()> {
    let Some(looks) = view.looks() else { return Ok(()) };
    let now = clock_gettime(ClockId::Monotonic);
    let now = Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0));
    let mut table = table.reader();
    looks.census.list()?.iter().for_each(|socket| add(connection(&looks, &mut table, socket, now)));
    Ok(())
}

fn connection(looks: &Looks, table: &mut Reader, socket: &Translated, now: Duration) -> Connection {
    let protocol = if socket.protocol == protocol::UDP { Protocol::Udp } else { Protocol::Tcp };
    // The endpoint knows its Service even if that is gone. Its id may mean another one by now.
    let endpoint = looks.ledger.upstream(socket.id).filter(|upstream| {
        let address = upstream.address();
        (address.ip().to_canonical(), address.port()) == (socket.endpoint.ip(), socket.endpoint.port())
    });
    let name = match endpoint {
        Some(upstream) => Some(upstream.service_port().as_ref().clone()),
        None => table
            .lookup(FrontendKey::new(socket.service.ip(), socket.service.port(), protocol))
            .map(|route| route.service_port().name().clone()),
    };
    let name_of = |of: fn(&sluice_model::ServicePortName) -> &str| name.as_ref().map_or("", of).to_owned();
    Connection {
        protocol: protocol.to_string(),
        client: socket.local,
        namespace: name_of(|name| &name.service.namespace),
        service: name_of(|name| &name.service.name),
        port: name_of(|name| &name.port),
        frontend: Some(socket.service),
        endpoint: Some(socket.endpoint),
        state: ConnectionState::Translated,
        age_seconds: now.saturating_sub(Duration::from_nanos(socket.since_ns)).as_secs_f64(),
        idle_seconds: None,
        bytes_to_endpoint: None,
        bytes_from_endpoint: None,
    }
}
