//! Datagrams that wait until a flow is opened for them, in line by client. Pure: no sockets, no clock.
//!
//! To open a flow takes some twenty times as long as to send a datagram on, so one client that sends each datagram from
//! another port would keep all others waiting if they were served in the order of their arrival. Here each client has a
//! line of its own, of the flows that it wants, and the lines take turns: one flow each ([`Waiting::next`]).
//!
//! * In order: what comes for a flow that waits goes behind what waits already ([`Waiting::holds`]); nobody may send
//!   it on before.
//! * Bounded, in what is held for all clients together. At the bound the client that has most loses what is last in its
//!   line: not its oldest, which would be served next and has cost its wait already. So it is with a full queue of the
//!   kernel's, too; and what has just come need not be copied to be lost.
//! * Nothing waits for longer than [`MAX_WAIT`].

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::num::NonZeroU16;
use std::time::{Duration, Instant};

use sluice_sys::udp::{BATCH, Payload};

use super::flow_table::FlowKey;
use crate::client::ClientKey;

/// How much may wait: as much as the kernel holds for a socket of clients, so that a burst that it has room for is not
/// lost here.
pub(crate) const LIMIT: usize = 8 << 20;

/// What a datagram counts for besides its bytes: what it takes in memory if it is small and alone in its flow. The kernel
/// counts more (768 for a small one), so there is room here for all that it had room for.
const OVERHEAD: usize = 512;

/// Who asked has asked again by then, or has given up: the `timeout` of resolv.conf(5), the longest of those usual.
const MAX_WAIT: Duration = Duration::from_secs(5);

/// Memory that is kept for the next time: what a burst of an ordinary client takes.
const KEPT: usize = 64;

/// Datagrams that wait. `F` says where they came in.
#[derive(Debug)]
pub(crate) struct Waiting<F> {
    flows: HashMap<FlowKey, WaitingFlow<F>, foldhash::fast::RandomState>,
    clients: HashMap<ClientKey, Line, foldhash::fast::RandomState>,
    /// Whose turn it is. Each client that has a line is in here once.
    turns: VecDeque<ClientKey>,
    /// Clients by what their datagrams count for.
    by_size: BTreeSet<(usize, ClientKey)>,
    size: usize,
    limit: usize,
}

/// A flow that is not open, or was not when its first datagram came.
#[derive(Debug)]
struct WaitingFlow<F> {
    /// In whose line it is.
    client: ClientKey,
    from: F,
    /// At least one, in the order of their arrival.
    datagrams: VecDeque<Parcel>,
}

/// The flows of a client that wait, in the order in which they came; none if all were lost before its turn.
#[derive(Debug, Default)]
struct Line {
    flows: VecDeque<FlowKey>,
    size: usize,
}

/// A datagram, or a train of them, that is kept.
#[derive(Debug)]
pub(crate) struct Parcel {
    bytes: Box<[u8]>,
    segment_size: Option<NonZeroU16>,
    arrived: Instant,
}

/// What is to be sent on next.
#[derive(Debug)]
pub(crate) struct Served<F> {
    pub(crate) key: FlowKey,
    /// Where the last datagram of the flow so far came in.
    pub(crate) from: F,
    /// At least one and no more than fit into a batch, in the order of their arrival.
    pub(crate) datagrams: Vec<Parcel>,
}

/// What was lost: datagrams of a client; those of a train count one by one.
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

/// What a datagram or train counts for.
fn size(payload: Payload<'_>) -> usize {
    payload.bytes().len().saturating_add(OVERHEAD)
}

impl<F: Copy> Waiting<F> {
    /// Nothing yet, and never more than `limit` bytes.
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

    /// Whether nobody is in line.
    pub(crate) fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }

    /// Whether datagrams of this flow wait: further ones belong behind them.
    pub(crate) fn holds(&self, key: &FlowKey) -> bool {
        !self.is_empty() && self.flows.contains_key(key)
    }

    /// Whether a client waits for a flow: further ones belong behind it.
    pub(crate) fn has_client(&self, client: ClientKey) -> bool {
        !self.is_empty() && self.clients.contains_key(&client)
    }

    /// Puts a datagram in line: in its client's, or wherever its flow waits already. `lost` is told what there is no
    /// room for.
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

    /// What is to be sent on next: some of the flow that is first in the line of the client whose turn it is. `lost` is
    /// told what has waited for too long.
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

    /// Makes room for a datagram of a client: whoever has most loses what is last in its line. False if that is the
    /// datagram itself.
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

    /// A client's datagrams count for something else.
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
