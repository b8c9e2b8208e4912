//! Flows that have ended: counting and logging them, and warnings about evictions.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_model::Protocol;

use super::super::flow_table::{Cause, EndedFlow, FlowId, Lack};
use super::super::kept_ports::KeptPorts;
use super::{Link, Reply, State};
use crate::connection_log::{End, Record, Trace};
use crate::core::Core;

impl State {
    pub(super) fn end(&mut self, id: FlowId, core: &Core) {
        let ended = self.flows.close(id);
        self.on_end(ended, core);
    }

    pub(super) fn on_end(&mut self, ended: Option<EndedFlow<Link>>, core: &Core) {
        if let Some(ended) = ended {
            self.complain(&ended, core.now);
            on_end(ended, &mut self.kept_ports, core);
        }
    }

    /// Logs now and then that flows are evicted for others.
    fn complain(&mut self, ended: &EndedFlow<Link>, now: Instant) {
        let whose = match ended.cause {
            Cause::Evicted => "it was the one least needed",
            Cause::OverShare => "its client has more than its share (--client-share)",
            Cause::EvictedForPort => return self.complain_of_ports(now),
            _ => return,
        };
        if self.says.no_room.admit(now) {
            let (client, flows) = (ended.flow.key().client.ip(), self.flows.len());
            tracing::warn!(%client, flows, "UDP flows end early to make room for new ones; {whose} (said once a minute)");
        }
    }

    fn complain_of_ports(&mut self, now: Instant) {
        if self.says.no_port.admit(now) {
            let largest = self.flows.largest(Lack::Port);
            let client = largest.map(|(client, _)| tracing::field::display(client));
            let (its_flows, flows) = (largest.map(|(_, count)| count), self.flows.with_port());
            tracing::warn!(
                client,
                its_flows,
                flows,
                "UDP flows to endpoints that see this node's address end early, as new ones need their ports: of those they \
                 have all that they may have; the client named has most, if any has many (said once a minute). Fix: \
                 see who has so many, or widen net.ipv4.ip_local_port_range and start the agent again"
            );
        }
    }
}

/// Counts and logs a flow that has ended, and closes its socket.
pub(super) fn on_end(ended: EndedFlow<Link>, kept_ports: &mut KeptPorts, core: &Core) {
    let Link { kept_port, route, reply, .. } = &ended.flow.upstream;
    kept_ports.ended(*kept_port);
    if let Reply::Captured(reply) = reply
        && !route.is_live()
        && Arc::strong_count(reply) == 1
    {
        reply.turn_away();
    }
    core.stats.udp_flows_active.sub(1);
    core.stats.udp_dropped_queue.add(ended.flow.upstream.socket.dropped());
    let lasted = ended.flow.lasted();
    core.stats.times.udp_flows.add_alone(lasted);
    if core.service_times {
        ended.flow.upstream.route.service_port().times().lives.add(lasted);
    }
    tell(&ended, lasted, core);
    match ended.cause {
        Cause::Idle => core.stats.udp_flows_expired.add(1),
        Cause::Evicted => core.stats.udp_flows_evicted.add(1),
        Cause::OverShare => core.stats.udp_flows_over_share.add(1),
        Cause::EvictedForPort => core.stats.udp_flows_evicted_for_port.add(1),
        Cause::Gone | Cause::Closed | Cause::Replaced => core.stats.udp_flows_ended.add(1),
    }
}

/// Writes a flow to the connection log, if it was chosen for that.
fn tell(ended: &EndedFlow<Link>, duration: Duration, core: &Core) {
    let link = &ended.flow.upstream;
    let (Some(log), Some(trace)) = (&core.log, &link.trace) else { return };
    let end = match ended.cause {
        Cause::Idle => End::Idle,
        Cause::Evicted | Cause::OverShare | Cause::EvictedForPort => End::MadeRoom,
        Cause::Gone | Cause::Closed => End::EndpointGone,
        Cause::Replaced => End::Replaced,
    };
    let record = Record {
        protocol: Protocol::Udp,
        client: ended.flow.key().client,
        service_port: Arc::clone(link.lease.service_port()),
        endpoint: Some(link.lease.address()),
        bytes_to_endpoint: link.sent,
        bytes_from_endpoint: link.received,
        duration,
        end,
        trace: Trace::clone(trace),
    };
    log.put(record, &core.stats);
}
