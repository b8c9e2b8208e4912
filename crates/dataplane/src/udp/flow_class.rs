//! The kinds of flows, by what has passed: how long each may be silent, and whose place is taken first when there is
//! no room. Pure.

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

    /// Whose place is taken first: an exchange's, which is probably over; then an unanswered one's, as a flood
    /// consists of those; and a conversation's last of all.
    pub(super) fn victim(
        &self,
        now: Instant,
        last_used: impl Fn(SlotId) -> Option<Instant>,
    ) -> Option<SlotId> {
        let exchange = self.of(Class::Exchange).oldest();
        let is_over = |at: Instant| now.saturating_duration_since(at) >= EXCHANGE_SPARED;
        let over = exchange.filter(|&id| last_used(id).is_some_and(is_over));
        let others = [Class::Unanswered, Class::Exchange, Class::Answered, Class::Stream];
        over.or_else(|| others.into_iter().find_map(|class| self.of(class).oldest()))
    }
}
