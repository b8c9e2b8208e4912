//! Datagrams that wait until their flow may be opened: which clients have to wait, and their turns.

use sluice_sys::udp::{Payload, RecvBatch, SendBatch};

use super::super::flow_table::FlowKey;
use super::super::waiting::{Lost, Parcel, Served};
use super::groups::Group;
use super::opening::NotOpened;
use super::{OPENED_AT_ONCE, OPENED_PER_TURN, State};
use crate::client::{ClientKey, ListenerKind};
use crate::core::Core;
use crate::token::SlotId;

impl State {
    /// Whether a client's new flow has to wait.
    pub(super) fn must_wait(&self, client: ClientKey) -> bool {
        let at_once = if self.waiting.is_empty() { OPENED_PER_TURN } else { OPENED_AT_ONCE };
        self.opened >= at_once || self.waiting.has_client(client)
    }

    /// Queues what one client has sent to one address.
    pub(super) fn wait(
        &mut self,
        key: FlowKey,
        from: (SlotId, ListenerKind),
        group: Group,
        received: &RecvBatch,
        core: &Core,
    ) {
        let whole = group.filter_map(|place| received.get(place)).filter(|datagram| !datagram.truncated);
        self.wait_with(key, from, whole.map(|datagram| datagram.payload), core);
    }

    /// Queues these datagrams of one client to one address.
    pub(super) fn wait_with<'a>(
        &mut self,
        key: FlowKey,
        from: (SlotId, ListenerKind),
        payloads: impl Iterator<Item = Payload<'a>>,
        core: &Core,
    ) {
        let client_key = core.client_key(from.1, key.client.ip());
        let mut lost = Vec::new();
        for payload in payloads {
            self.waiting.push(key, client_key, from, payload, core.now, &mut |gone| lost.push(gone));
        }
        self.on_lost(&lost, core);
    }

    /// Opens flows for those that wait, as many as may be opened in this turn of the loop, and ends the turn.
    /// One more may be opened if the last one's endpoint refuses.
    pub(super) fn serve_waiting(&mut self, core: &mut Core) {
        while self.opened < OPENED_PER_TURN {
            let opened = self.opened;
            let mut lost = Vec::new();
            let served = self.waiting.next(core.now, &mut |gone| lost.push(gone));
            self.on_lost(&lost, core);
            let Some(served) = served else { break };
            self.serve(&served, core);
            // A turn that needs no new flow counts as well, because there may be thousands of them.
            self.opened = self.opened.max(opened + 1);
        }
        self.opened = 0;
    }

    fn serve(&mut self, Served { key, from, datagrams }: &Served<(SlotId, ListenerKind)>, core: &mut Core) {
        let whole = datagrams.iter().map(|parcel| parcel.payload().datagrams() as u64).sum();
        if self.frontends.get_mut(from.0).is_none() {
            // The frontend was withdrawn meanwhile.
            return NotOpened::Unroutable.count(whole, core);
        }
        let mut run = batch(datagrams.iter(), core);
        self.forward_waited(*key, *from, &mut run, whole, core);
    }

    /// Counts lost datagrams, and now and then logs whose they were.
    fn on_lost(&mut self, lost: &[Lost], core: &Core) {
        let Some(last) = lost.last() else { return };
        core.stats.udp_dropped_waiting.add(lost.iter().map(|lost| lost.datagrams).sum());
        if self.says.no_turn.admit(core.now) {
            let client = last.client;
            tracing::warn!(
                %client,
                "UDP datagrams are lost: this client sends from new ports faster than flows can be opened (said once a minute)"
            );
        }
    }
}

/// The batch of datagrams that have waited, for a connected socket.
fn batch<'a>(datagrams: impl Iterator<Item = &'a Parcel>, core: &Core) -> SendBatch<'a> {
    let mut batch = SendBatch::new();
    for parcel in datagrams {
        // A turn never has more than a batch has room for.
        if batch.push(parcel.payload(), None).is_err() {
            core.stats.udp_dropped_error.add(1);
        }
    }
    batch
}
