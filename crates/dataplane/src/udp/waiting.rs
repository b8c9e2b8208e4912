//! Datagrams that wait until a flow is opened for them, in a line for each client. Pure: no sockets, no
//! clock.
//!
//! Opening a flow takes some twenty times as long as forwarding a datagram. If flows were opened in the order
//! of arrival, a client that sends each datagram from another port would delay all others. Here each client
//! has a line of the flows that it wants, and the lines take turns, one flow each ([`Waiting::next`]).
//!
//! * Order is kept: a datagram of a flow that waits is queued behind those that wait already
//!   ([`Waiting::holds`]); callers must not send it earlier.
//! * The queue is bounded in total. At the bound, the client with the most data loses the last of its line,
//!   not the oldest, which would be served next and has waited already. A full queue of the kernel does the
//!   same, and a datagram that has just arrived need not be copied to be dropped.
//! * Nothing waits for longer than [`MAX_WAIT`].

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::num::NonZeroU16;
use std::time::{Duration, Instant};

use sluice_sys::udp::{BATCH, Payload};

use super::flow_table::FlowKey;
use crate::client::ClientKey;

/// The maximum amount that waits: as much as the kernel holds for a socket that clients send to, so a burst
/// that fits there is not lost here.
pub(crate) const LIMIT: usize = 8 << 20;

/// The overhead that is counted for a datagram besides its bytes: the memory of a small one that is alone in
/// its flow. The kernel counts more (768 for a small one), so everything that fits into its queue fits here.
const OVERHEAD: usize = 512;

/// By then, the client has retried or given up: the `timeout` of resolv.conf(5), the longest of the usual
/// ones.
const MAX_WAIT: Duration = Duration::from_secs(5);

/// The capacity that is kept for reuse: enough for a burst of an ordinary client.
const KEPT: usize = 64;

/// The datagrams that wait. `F` identifies where they arrived.
#[derive(Debug)]
pub(crate) struct Waiting<F> {
    flows: HashMap<FlowKey, WaitingFlow<F>, foldhash::fast::RandomState>,
    clients: HashMap<ClientKey, Line, foldhash::fast::RandomState>,
    /// The clients in the order of their turns. Each client with a line is in it once.
    turns: VecDeque<ClientKey>,
    /// The clients by the size of their lines.
    by_size: BTreeSet<(usize, ClientKey)>,
    size: usize,
    limit: usize,
}

/// A flow that was not open when its first datagram arrived.
#[derive(Debug)]
struct WaitingFlow<F> {
    /// The client whose line it is in.
    client: ClientKey,
    from: F,
    /// At least one, in order of arrival.
    datagrams: VecDeque<Parcel>,
}

/// The flows of a client that wait, in order of arrival. Empty if all were lost before its turn.
#[derive(Debug, Default)]
struct Line {
    flows: VecDeque<FlowKey>,
    size: usize,
}

/// A datagram, or a train of them, that is queued.
#[derive(Debug)]
pub(crate) struct Parcel {
    bytes: Box<[u8]>,
    segment_size: Option<NonZeroU16>,
    arrived: Instant,
}

/// What to send next.
#[derive(Debug)]
pub(crate) struct Served<F> {
    pub(crate) key: FlowKey,
    /// Where the flow's latest datagram arrived.
    pub(crate) from: F,
    /// At least one and no more than fit into a batch, in order of arrival.
    pub(crate) datagrams: Vec<Parcel>,
}

/// Datagrams of a client that were lost; those of a train are counted one by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lost {
    pub(crate) client: ClientKey,
    pub(crate) datagrams: u64,
}

impl Parcel {
    pub(crate) fn payload(&self) -> Payload<'_> {
        match self.segment_size {
            Some(size) => Payload::train(&self.bytes, size.get()),
            None => Payload::from(&*self.bytes),
        }
    }

    fn size(&self) -> usize {
        size(self.payload())
    }

    fn count(&self) -> u64 {
        self.payload().datagrams() as u64
    }
}

/// The size that is counted for a datagram or train.
fn size(payload: Payload<'_>) -> usize {
    payload.bytes().len().saturating_add(OVERHEAD)
}

impl<F: Copy> Waiting<F> {
    /// An empty queue of at most `limit` bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            flows: HashMap::default(),
            clients: HashMap::default(),
            turns: VecDeque::new(),
            by_size: BTreeSet::new(),
            size: 0,
            limit,
        }
    }

    /// Whether no client is in line.
    pub(crate) fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }

    /// Whether datagrams of this flow wait: further ones must be queued behind them.
    pub(crate) fn holds(&self, key: &FlowKey) -> bool {
        !self.is_empty() && self.flows.contains_key(key)
    }

    /// Whether a client waits for a flow: its further flows must be queued behind it.
    pub(crate) fn has_client(&self, client: ClientKey) -> bool {
        !self.is_empty() && self.clients.contains_key(&client)
    }

    /// Queues a datagram: behind the others of its flow, or else at the end of its client's line. Calls
    /// `lost` for what there is no room for.
    pub(crate) fn push(
        &mut self,
        key: FlowKey,
        client: ClientKey,
        from: F,
        payload: Payload<'_>,
        now: Instant,
        lost: &mut impl FnMut(Lost),
    ) {
        let client = self.flows.get(&key).map_or(client, |flow| flow.client);
        let size = size(payload);
        if !self.make_room(client, size, lost) {
            return lost(Lost { client, datagrams: payload.datagrams() as u64 });
        }
        let datagram =
            Parcel { bytes: payload.bytes().into(), segment_size: payload.segment_size(), arrived: now };
        let line = self.clients.entry(client).or_insert_with(|| {
            self.turns.push_back(client);
            Line::default()
        });
        let flow = self.flows.entry(key).or_insert_with(|| {
            line.flows.push_back(key);
            WaitingFlow { client, from, datagrams: VecDeque::with_capacity(1) }
        });
        flow.from = from;
        flow.datagrams.push_back(datagram);
        self.resize(client, |whole| whole + size);
    }

    /// Returns what to send next: datagrams of the first flow in the line of the client whose turn it is.
    /// Calls `lost` for what has waited for too long.
    pub(crate) fn next(&mut self, now: Instant, lost: &mut impl FnMut(Lost)) -> Option<Served<F>> {
        let mut served = None;
        while served.is_none()
            && let Some(client) = self.turns.pop_front()
        {
            served = self.next_of(client, now, lost);
            if self.clients.get(&client).is_some_and(|line| !line.flows.is_empty()) {
                self.turns.push_back(client);
            } else {
                self.clients.remove(&client);
            }
        }
        if self.is_empty() {
            self.flows.shrink_to(KEPT);
            self.clients.shrink_to(KEPT);
            self.turns.shrink_to(KEPT);
        }
        served
    }

    fn next_of(&mut self, client: ClientKey, now: Instant, lost: &mut impl FnMut(Lost)) -> Option<Served<F>> {
        loop {
            let line = self.clients.get_mut(&client)?;
            let key = *line.flows.front()?;
            let flow = self.flows.get_mut(&key)?;
            let is_late = |parcel: &Parcel| now.saturating_duration_since(parcel.arrived) > MAX_WAIT;
            let late = flow.datagrams.iter().take_while(|parcel| is_late(parcel)).count();
            let mut gone = 0;
            for parcel in flow.datagrams.drain(..late) {
                gone += parcel.size();
                lost(Lost { client, datagrams: parcel.count() });
            }
            let batch = flow.datagrams.len().min(BATCH);
            let datagrams: Vec<Parcel> = flow.datagrams.drain(..batch).collect();
            gone += datagrams.iter().map(Parcel::size).sum::<usize>();
            let from = flow.from;
            if flow.datagrams.is_empty() {
                self.flows.remove(&key);
                line.flows.pop_front();
            }
            self.resize(client, |whole| whole - gone);
            if !datagrams.is_empty() {
                return Some(Served { key, from, datagrams });
            }
        }
    }

    /// Makes room for a datagram of a client: the client with the most data loses the last of its line.
    /// Returns false if that is the new datagram itself.
    fn make_room(&mut self, client: ClientKey, size: usize, lost: &mut impl FnMut(Lost)) -> bool {
        let own = self.clients.get(&client).map_or(0, |line| line.size);
        while self.size + size > self.limit {
            match self.by_size.last() {
                Some(&(most, other)) if most > own + size => self.lose_last(other, lost),
                _ => return false,
            }
        }
        true
    }

    fn lose_last(&mut self, client: ClientKey, lost: &mut impl FnMut(Lost)) {
        let Some(line) = self.clients.get_mut(&client) else { return };
        let Some(&key) = line.flows.back() else { return };
        let Some(flow) = self.flows.get_mut(&key) else { return };
        let last = flow.datagrams.pop_back();
        if flow.datagrams.is_empty() {
            self.flows.remove(&key);
            line.flows.pop_back();
        }
        if let Some(last) = last {
            self.resize(client, |whole| whole - last.size());
            lost(Lost { client, datagrams: last.count() });
        }
    }

    /// Changes the size of a client's line.
    fn resize(&mut self, client: ClientKey, change: impl FnOnce(usize) -> usize) {
        let Some(line) = self.clients.get_mut(&client) else { return };
        let before = line.size;
        line.size = change(before);
        self.size = self.size - before + line.size;
        self.by_size.remove(&(before, client));
        if line.size > 0 {
            self.by_size.insert((line.size, client));
        }
    }
}

#[cfg(test)]
mod tests;
