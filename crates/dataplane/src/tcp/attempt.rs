//! The start of one connection attempt: whether the client may have a local port for it, and its socket.

use std::io;
use std::net::SocketAddr;

use sluice_model::Protocol;
use sluice_table::Upstream;

use super::connect::Failure;
use super::exhausted::Path;
use super::peer::Peer;
use super::socket::{self, Search};
use crate::client::ClientKey;
use crate::core::Core;
use crate::token::{SlotId, Source};
use crate::transparent::Local;

/// Starts to connect to an endpoint. Registers the socket for events, unless it is connected already:
/// endpoints on this node answer within connect(2). `search`: how long to look for a port, for this attempt
/// and the next one.
pub(super) fn start(
    id: SlotId,
    (client, client_key): (SocketAddr, ClientKey),
    upstream: &Upstream,
    local: Local,
    search: &mut Search,
    core: &mut Core,
) -> Result<Peer, Failure> {
    let endpoint = upstream.address();
    if core.leads_back(endpoint, Protocol::Tcp) {
        return Err(Failure::Refused);
    }
    let path = Path { from: local.client.map(|client| client.ip()), endpoint };
    let is_exhausted = core.exhausted.has(path, core.now);
    if is_exhausted && path.from.is_none() {
        return Err(Failure::KnownNoPort);
    }
    if path.from.is_none() && !core.port_shares.admits(endpoint, client_key) {
        say_no_port(endpoint, "a client has its share of them (--client-share)", core);
        return Err(Failure::OverPortShare);
    }
    // The search that failed did not try all of the client's ports, and this connection has another one of
    // its own.
    let now = if is_exhausted { Search::Single } else { *search };
    let stream = match socket::connect(endpoint, local, &core.local_ports, now) {
        Ok(stream) => stream,
        Err(error) => {
            let failure = cannot_start(client, endpoint, &error, core);
            if failure == Failure::NoPort && !is_exhausted {
                on_no_port(path, std::mem::replace(search, Search::Short), core);
            }
            return Err(failure);
        }
    };
    if socket::is_connected(&stream) {
        let is_itself = socket::is_self_connected(&stream, endpoint, &core.local_ports);
        return if is_itself { Err(Failure::Refused) } else { Ok(Peer::connected(stream)) };
    }
    let mut peer = Peer::connecting(stream);
    peer.watch_all(&core.registry, Source::Upstream(id).token())
        .map_err(|error| cannot_start(client, endpoint, &error, core))?;
    Ok(peer)
}

fn cannot_start(client: SocketAddr, endpoint: SocketAddr, error: &io::Error, core: &mut Core) -> Failure {
    if let Some(left_out) = core.says.unstarted.admit(core.now) {
        tracing::debug!(%client, %endpoint, %error, left_out, "cannot start to connect");
    }
    Failure::to_start(error)
}

/// Notes that a path has no port left, so that it is not tried again soon.
fn on_no_port(path: Path, search: Search, core: &mut Core) {
    let now = core.now;
    if !core.exhausted.found_none(path, search, now) {
        return;
    }
    let Path { from, endpoint } = path;
    let Some(client) = from else {
        return say_no_port(endpoint, "there are no more, and for a second none is looked for", core);
    };
    if let Some(left_out) = core.says.exhausted.admit(now) {
        tracing::warn!(
            %client, %endpoint, left_out,
            "a client has hardly a port left towards an endpoint: for a second each of its connections tries one only, and \
             they go to others, or are reset"
        );
    }
}

/// Logs once a minute that connections get none of this node's ports towards an endpoint.
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
             reset if there is no other: {why}; the client named has most of this worker's (said once a minute). Fix: \
             see who has so many, add endpoints, or widen net.ipv4.ip_local_port_range and start the agent again"
        );
    }
}
