//! What the workers have done: counters that workers add to and anyone sums.

use std::sync::atomic::{AtomicU64, Ordering};

use sluice_table::{Histogram, Times};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)+) => {
        /// One worker's counters. Aligned so that workers do not share cache lines.
        #[derive(Debug, Default)]
        #[repr(align(128))]
        pub(crate) struct WorkerStats {
            $(pub(crate) $name: Counter,)+
            pub(crate) times: WorkerTimes,
        }

        /// The sum over all workers at one moment.
        #[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
        pub struct Stats {
            $($(#[$doc])* pub $name: u64,)+
        }

        impl Stats {
            pub(crate) fn sum<'a>(workers: impl IntoIterator<Item = &'a WorkerStats>) -> Self {
                let mut total = Self::default();
                for worker in workers {
                    $(total.$name += worker.$name.get();)+
                }
                total
            }

            /// Every counter with its name, in a fixed order.
            pub fn named(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name)),+]
            }
        }
    };
}

counters! {
    /// TCP connections accepted.
    tcp_accepted,
    /// TCP connections handed to another worker, which had less than half as many sessions.
    tcp_handed_on,
    /// TCP sessions established with an endpoint.
    tcp_established,
    /// TCP sessions, connecting or established, that have not ended.
    tcp_active,
    /// TCP connections reset because their frontend or its endpoints were gone.
    tcp_unroutable,
    /// TCP connections reset because their Service has as many as `sluice.dev/max-connections` allows.
    tcp_over_service_limit,
    /// TCP connections reset because they came to the socket itself that only the capture may lead to.
    tcp_not_captured,
    /// TCP connections reset because every endpoint failed.
    tcp_all_endpoints_failed,
    /// TCP connections reset because of this node: it was out of file descriptors, ports or memory, or forbade
    /// to connect.
    tcp_over_limit,
    /// TCP sessions that both sides had ended and that went on until what they carried had arrived.
    tcp_delivering,
    /// Attempts to connect after another one had failed.
    tcp_retries,
    /// TCP clients that went away before an endpoint was connected.
    tcp_client_gone,
    /// TCP sessions that one side reset, passed on as a reset.
    tcp_resets,
    /// Half-closed TCP sessions ended because nothing moved for too long.
    tcp_half_closed_timeouts,
    /// Endpoints passed over because they are themselves a frontend of this table.
    endpoint_loops,
    /// Times that a listener had to pause because file descriptors had run out.
    accept_paused,
    /// Times that a listener did not work at all; what it is was logged.
    accept_failed,
    /// SYNs and last segments of handshakes that the kernel dropped at a listener, nearly always because its queue was
    /// full: connections came faster than a worker accepted them. Clients send them again, after a second and later.
    tcp_dropped_queue,
    /// TCP connections reset because their client had more than its share of what was left, of sessions or
    /// of ports towards their endpoints.
    tcp_over_share,
    /// Deadlines that workers wait for.
    deadlines,
    /// Bytes moved by splice(2), not through user memory.
    bytes_spliced,
    /// Bytes moved through a worker's buffer.
    bytes_copied,
    /// Pipes that hold bytes of bulk transfers, or are kept for the next one.
    pipes_active,
    /// Times that a bulk transfer was copied because no pipe could be had: file descriptors had run out, or pipes have
    /// their share of what the node's processes may have (`fs.pipe-user-pages-soft`).
    pipe_fallbacks,
    /// UDP datagrams received from clients.
    udp_datagrams_in,
    /// UDP datagrams delivered to endpoints.
    udp_datagrams_forwarded,
    /// UDP datagrams delivered back to clients.
    udp_datagrams_returned,
    /// UDP flows opened.
    udp_flows_opened,
    /// UDP flows that have not ended.
    udp_flows_active,
    /// UDP flows ended because nothing moved for too long.
    udp_flows_expired,
    /// UDP flows ended early to make room for new ones.
    udp_flows_evicted,
    /// UDP flows ended early to make room for new ones, because their client had more than its share.
    udp_flows_over_share,
    /// UDP flows ended early because new ones needed their ephemeral ports.
    udp_flows_evicted_for_port,
    /// UDP flows ended because their endpoint or frontend was gone, or the endpoint refused.
    udp_flows_ended,
    /// UDP datagrams lost because there was no endpoint for them.
    udp_unroutable,
    /// UDP datagrams lost because their Service has as many flows as `sluice.dev/max-connections` allows.
    udp_over_service_limit,
    /// UDP clients told that their endpoint refuses, or that they are over a limit (ICMP port unreachable).
    udp_refusals,
    /// UDP datagrams lost because of this node: it was out of file descriptors, ports or memory for a flow, or
    /// forbade to open it.
    udp_over_limit,
    /// UDP datagrams lost because there can be no socket to reply by: another program has the frontend's address and
    /// port, or this node is out of something or forbids it. What it is was logged.
    udp_no_reply_socket,
    /// UDP datagrams dropped because they came to the socket itself that only the capture may lead to.
    udp_not_captured,
    /// UDP datagrams lost because a socket's buffer for sending was full.
    udp_dropped_full,
    /// UDP datagrams that the kernel dropped because a socket's queue for receiving was full: clients sent faster
    /// than a worker received, or an endpoint did. Of sockets towards endpoints counted when their flow ends.
    udp_dropped_queue,
    /// UDP datagrams lost while they waited for flows to be opened: there was no room for more, and theirs was the client
    /// that had most waiting; or they had waited for 5 s. Whose they are was logged.
    udp_dropped_waiting,
    /// UDP datagrams lost to an error of a socket.
    udp_dropped_error,
    /// Connections and flows that were told of in the connection log.
    connection_log_records,
    /// Connections and flows that were not, because the log was not read fast enough.
    connection_log_dropped,
}

/// How long things took on one worker.
#[derive(Debug)]
pub(crate) struct WorkerTimes {
    /// From the first attempt to connect until an endpoint has answered.
    pub(crate) tcp_connecting: Histogram,
    /// Of TCP sessions, from the first attempt to connect to their end.
    pub(crate) tcp_sessions: Histogram,
    /// Of UDP flows, from the first datagram to the last one.
    pub(crate) udp_flows: Histogram,
}

impl Default for WorkerTimes {
    fn default() -> Self {
        Self {
            tcp_connecting: Histogram::of_connecting(),
            tcp_sessions: Histogram::of_lives(),
            udp_flows: Histogram::of_lives(),
        }
    }
}

/// How long things took on all workers, at one moment.
#[derive(Debug, Clone, Copy)]
pub struct AllTimes {
    /// From the first attempt to connect until an endpoint has answered.
    pub tcp_connecting: Times,
    /// Of TCP sessions that have ended, from the first attempt to connect to their end.
    pub tcp_sessions: Times,
    /// Of UDP flows that have ended, from the first datagram to the last one.
    pub udp_flows: Times,
}

impl AllTimes {
    pub(crate) fn sum<'a>(workers: impl IntoIterator<Item = &'a WorkerStats>) -> Self {
        let none = WorkerTimes::default();
        let mut all = Self {
            tcp_connecting: none.tcp_connecting.times(),
            tcp_sessions: none.tcp_sessions.times(),
            udp_flows: none.udp_flows.times(),
        };
        for WorkerStats { times, .. } in workers {
            all.tcp_connecting += times.tcp_connecting.times();
            all.tcp_sessions += times.tcp_sessions.times();
            all.udp_flows += times.udp_flows.times();
        }
        all
    }
}

/// A counter with one changing thread and any number of readers: what changes it needs no locked instruction.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        self.0.store(self.get().wrapping_add(n), Ordering::Relaxed);
    }

    pub(crate) fn sub(&self, n: u64) {
        self.0.store(self.get().wrapping_sub(n), Ordering::Relaxed);
    }

    /// For what is counted elsewhere, by the same thread.
    pub(crate) fn set(&self, n: usize) {
        self.0.store(n as u64, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
