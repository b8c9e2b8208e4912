//! The classes of flows, by the datagrams that have passed: how long each may be idle, and which one is
//! evicted first. Pure.

use std::time::{Duration, Instant};

use super::flow_queue::{Chain, Linked, Queue};
use crate::token::{SlotId, Slots};

/// Which datagrams have passed in a flow so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// No reply.
    Unanswered,
    /// One datagram each way, as in most of DNS. Usually no more follow.
    Exchange,
    /// A reply, and at least one more datagram in either direction.
    Answered,
    /// Answered, and a datagram passed after [`STREAM_AFTER`]: a conversation.
    Stream,
}

impl Class {
    pub(super) const ALL: [Self; 4] = [Self::Unanswered, Self::Exchange, Self::Answered, Self::Stream];
}

/// The age from which an answered flow counts as a conversation, as in the kernel's connection tracking
/// (`nf_conntrack_udp_packet`).
pub(super) const STREAM_AFTER: Duration = Duration::from_secs(2);

/// How long an exchange is protected from eviction, in case more datagrams follow.
pub(super) const EXCHANGE_SPARED: Duration = Duration::from_millis(250);

/// The resource that a new flow lacks, so that another flow has to be evicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lack {
    /// A place in the table, or a file descriptor. Every flow has both.
    Place,
    /// An ephemeral port of this node. Only flows whose endpoints see this node's address have one.
    Port,
}

/// A flow's last use: a sequence number, and the time.
pub(super) type Use = (u64, Instant);

/// How long flows may be idle in both directions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timeouts {
    /// For all flows to which neither of the following applies.
    pub(crate) idle: Duration,
    /// For conversations, while the table is at most half full.
    pub(crate) stream: Duration,
    /// For exchanges, while the table is more than half full.
    pub(crate) exchange: Duration,
}

impl Timeouts {
    /// The timeout of a class. `is_scarce`: the table is more than half full.
    pub(super) fn of(&self, class: Class, is_scarce: bool) -> Duration {
        match class {
            Class::Stream if !is_scarce => self.stream,
            Class::Exchange if is_scarce => self.exchange,
            _ => self.idle,
        }
    }
}

/// A queue of flows for each class, in the order of their last use. Because a class has one timeout at a
/// time, the first flow of a queue is the first to expire.
#[derive(Debug)]
pub(super) struct ClassQueues([Queue; Class::ALL.len()]);

impl ClassQueues {
    pub(super) const fn new(chain: Chain) -> Self {
        Self([Queue::new(chain), Queue::new(chain), Queue::new(chain), Queue::new(chain)])
    }

    pub(super) fn of(&self, class: Class) -> &Queue {
        &self.0[class as usize]
    }

    fn of_mut(&mut self, class: Class) -> &mut Queue {
        &mut self.0[class as usize]
    }

    pub(super) fn len(&self) -> usize {
        self.0.iter().map(Queue::len).sum()
    }

    pub(super) fn push<T: Linked>(&mut self, class: Class, slots: &mut Slots<T>, id: SlotId) {
        self.of_mut(class).push(slots, id);
    }

    pub(super) fn remove<T: Linked>(&mut self, class: Class, slots: &mut Slots<T>, id: SlotId) {
        self.of_mut(class).remove(slots, id);
    }

    /// Moves a slot to the end of the queue of its class, which may have changed.
    pub(super) fn requeue<T: Linked>(
        &mut self,
        (before, after): (Class, Class),
        slots: &mut Slots<T>,
        id: SlotId,
    ) {
        if before == after && self.of(after).newest() == Some(id) {
            return;
        }
        self.remove(before, slots, id);
        self.push(after, slots, id);
    }
}

/// The queues of flows with an ephemeral port of the node, and those of flows without one: to free a port,
/// only the former matter. A flow is in one of them.
#[derive(Debug)]
pub(super) struct FlowQueues {
    with_port: ClassQueues,
    without_port: ClassQueues,
}

impl FlowQueues {
    pub(super) const fn new(chain: Chain) -> Self {
        Self { with_port: ClassQueues::new(chain), without_port: ClassQueues::new(chain) }
    }

    /// The queues of flows with a port, or without one.
    pub(super) fn of(&self, has_port: bool) -> &ClassQueues {
        if has_port { &self.with_port } else { &self.without_port }
    }

    pub(super) fn of_mut(&mut self, has_port: bool) -> &mut ClassQueues {
        if has_port { &mut self.with_port } else { &mut self.without_port }
    }

    /// Number of flows that hold the resource.
    pub(super) fn holders(&self, lack: Lack) -> usize {
        match lack {
            Lack::Place => self.with_port.len() + self.without_port.len(),
            Lack::Port => self.with_port.len(),
        }
    }

    /// The least recently used flow of a class that holds the resource.
    pub(super) fn oldest(
        &self,
        class: Class,
        lack: Lack,
        last_use: &impl Fn(SlotId) -> Option<Use>,
    ) -> Option<SlotId> {
        let with_port = self.with_port.of(class).oldest();
        let without_port = self.without_port.of(class).oldest().filter(|_| lack == Lack::Place);
        with_port.into_iter().chain(without_port).min_by_key(|&id| last_use(id))
    }

    /// An exchange that is probably complete.
    pub(super) fn finished(
        &self,
        lack: Lack,
        now: Instant,
        last_use: &impl Fn(SlotId) -> Option<Use>,
    ) -> Option<SlotId> {
        let is_over = |(_, at): Use| now.saturating_duration_since(at) >= EXCHANGE_SPARED;
        self.oldest(Class::Exchange, lack, last_use).filter(|&id| last_use(id).is_some_and(is_over))
    }

    /// The flow to evict in order to free a resource: first an exchange that is probably complete; then an
    /// unanswered flow, because a flood consists of those; a conversation last of all.
    pub(super) fn victim(
        &self,
        lack: Lack,
        now: Instant,
        last_use: &impl Fn(SlotId) -> Option<Use>,
    ) -> Option<SlotId> {
        let others = [Class::Unanswered, Class::Exchange, Class::Answered, Class::Stream];
        self.finished(lack, now, last_use)
            .or_else(|| others.into_iter().find_map(|class| self.oldest(class, lack, last_use)))
    }
}
