//! The start of one attempt to connect: whether the client may have a port for it, and its socket.

use std::io;
use std::net::SocketAddr;

use sluice_model::Protocol;
use sluice_table::Upstream;

use super::connect::Failure;
use super::peer::Peer;
use super::socket;
use crate::client::Sharer;
use crate::core::Core;
use crate::token::{SlotId, Source};
use crate::transparent::Local;

/// Starts to connect to an endpoint, and has it reported how that went, unless it is connected already: endpoints on
/// this node answer within connect(2).
pub(super) fn start(
    id: SlotId,
    (client, sharer): (SocketAddr, Sharer),
    upstream: &Upstream,
    local: Local,
    core: &mut Core,
) -> Result<Peer, Failure> {
    let endpoint = upstream.address();
    if core.leads_back(endpoint, Protocol::Tcp) {
        return Err(Failure::Refused);
    }
    let needs_port = local.client.is_none();
    if needs_port && !core.port_shares.admits(endpoint, sharer) {
        say_no_port(endpoint, "a client has its share of them (--client-share)", core);
        return Err(Failure::OverPortShare);
    }
    let cannot_start = |error: &io::Error, core: &mut Core| {
        if let Some(left_out) = core.says.unstarted.admit(core.now) {
            tracing::debug!(%client, %endpoint, %error, left_out, "cannot start to connect");
        }
        let failure = Failure::to_start(error);
        if needs_port && failure == Failure::NoPort {
            say_no_port(endpoint, "there are no more", core);
        }
        failure
    };
    let stream =
        socket::connect(endpoint, local, &core.local_ports).map_err(|error| cannot_start(&error, core))?;
    if socket::is_connected(&stream) {
        let is_itself = socket::is_self_connected(&stream, endpoint, &core.local_ports);
        return if is_itself { Err(Failure::Refused) } else { Ok(Peer::connected(stream)) };
    }
    let mut peer = Peer::connecting(stream);
    peer.watch_all(&core.registry, Source::Upstream(id).token())
        .map_err(|error| cannot_start(&error, core))?;
    Ok(peer)
}

/// Says now and then that connections get none of this node's ports towards an endpoint.
fn say_no_port(endpoint: SocketAddr, why: &str, core: &mut Core) {
    if core.says.no_port.admit(core.now) {
        let largest = core.port_shares.largest(endpoint);
        let client = largest.map(|(client, _)| tracing::field::display(client));
        let its_sessions = largest.map(|(_, count)| count);
        tracing::warn!(
            %endpoint,
            client,
            its_sessions,
            "new TCP connections get no port of this node's towards an endpoint, which sees this node's address, and are \
             reset if there is no other: {why}; the client named has most of this worker's (said once a minute). To \
             mend it: see who has so many, add endpoints, or widen net.ipv4.ip_local_port_range"
        );
    }
}
