//! The kinds of flows, by what has passed: how long each may be silent, and who makes room first when there is none.
//! Pure.

use std::time::{Duration, Instant};

use super::flow_queue::{Chain, Linked, Queue};
use crate::token::{SlotId, Slots};

/// What has passed in a flow so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// Nothing has come back.
    Unanswered,
    /// One datagram each way: most of DNS. Usually that is all.
    Exchange,
    /// Something has come back, and more was sent or came.
    Answered,
    /// Answered, and more was sent or came after [`STREAM_AFTER`]: a conversation.
    Stream,
}

impl Class {
    pub(super) const ALL: [Self; 4] = [Self::Unanswered, Self::Exchange, Self::Answered, Self::Stream];
}

/// From this age on a flow that is answered counts as a conversation, as the kernel's connection tracking has it
/// (`nf_conntrack_udp_packet`).
pub(super) const STREAM_AFTER: Duration = Duration::from_secs(2);

/// For how long an exchange is spared, for something else to follow.
pub(super) const EXCHANGE_SPARED: Duration = Duration::from_millis(250);

/// What a new flow lacks, so that another one has to end for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lack {
    /// A place in the table, or a file descriptor. Every flow has both.
    Place,
    /// An ephemeral port of this node. Only flows whose endpoints see this node's address have one.
    Port,
}

/// When a flow was last used: the number of the use, and its time.
pub(super) type Use = (u64, Instant);

/// How long flows may be silent, in both directions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timeouts {
    /// Whatever the flow is, unless one of the following applies.
    pub(crate) idle: Duration,
    /// Of a conversation, while there is room.
    pub(crate) stream: Duration,
    /// Of an exchange, while there is little.
    pub(crate) exchange: Duration,
}

impl Timeouts {
    /// Of a class, where room is scarce or is not.
    pub(super) fn of(&self, class: Class, is_scarce: bool) -> Duration {
        match class {
            Class::Stream if !is_scarce => self.stream,
            Class::Exchange if is_scarce => self.exchange,
            _ => self.idle,
        }
    }
}

/// A queue of flows for each class, in the order of their last use: as a class has one timeout at a time, the first
/// of a queue is the first to expire.
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

    /// Puts a slot at the end of the queue of its class, which may have changed.
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

/// The queues of flows that have an ephemeral port of the node, and of those that have none: who lacks a port has to
/// find those that have one. A flow is in one of them.
#[derive(Debug)]
pub(super) struct FlowQueues {
    with_port: ClassQueues,
    without_port: ClassQueues,
}

impl FlowQueues {
    pub(super) const fn new(chain: Chain) -> Self {
        Self { with_port: ClassQueues::new(chain), without_port: ClassQueues::new(chain) }
    }

    /// Those of flows that have a port, or have none.
    pub(super) fn of(&self, has_port: bool) -> &ClassQueues {
        if has_port { &self.with_port } else { &self.without_port }
    }

    pub(super) fn of_mut(&mut self, has_port: bool) -> &mut ClassQueues {
        if has_port { &mut self.with_port } else { &mut self.without_port }
    }

    /// How many flows have what is lacking.
    pub(super) fn holders(&self, lack: Lack) -> usize {
        match lack {
            Lack::Place => self.with_port.len() + self.without_port.len(),
            Lack::Port => self.with_port.len(),
        }
    }

    /// Of a class, the flow that was not used for longest and has what is lacking.
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

    /// An exchange that is probably over.
    pub(super) fn finished(
        &self,
        lack: Lack,
        now: Instant,
        last_use: &impl Fn(SlotId) -> Option<Use>,
    ) -> Option<SlotId> {
        let is_over = |(_, at): Use| now.saturating_duration_since(at) >= EXCHANGE_SPARED;
        self.oldest(Class::Exchange, lack, last_use).filter(|&id| last_use(id).is_some_and(is_over))
    }

    /// Which flow ends first for what is lacking: an exchange that is probably over; then an unanswered one, as a flood
    /// consists of those; and a conversation last of all.
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
