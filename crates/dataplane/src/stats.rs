//! The workers' counters. Workers add to them, any thread sums them.

use std::sync::atomic::{AtomicU64, Ordering};

use sluice_table::{Histogram, Times};

/// One number of [`Stats`], with its description.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counted {
    /// Its name in metrics, without prefix and suffix.
    pub name: &'static str,
    /// Whether it can decrease.
    pub kind: Kind,
    /// Its description for people: one sentence without its full stop.
    pub help: &'static str,
    /// The value.
    pub value: u64,
}

/// How a number changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It counts since the start, and never decreases.
    Counter,
    /// It is a current quantity.
    Gauge,
}

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident: $kind:ident,)+) => {
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
            $($(#[doc = $doc])+ pub $name: u64,)+
        }

        impl Stats {
            pub(crate) fn sum<'a>(workers: impl IntoIterator<Item = &'a WorkerStats>) -> Self {
                let mut total = Self::default();
                for worker in workers {
                    $(total.$name += worker.$name.get();)+
                }
                total
            }

            /// Every number with its name and description, in a fixed order.
            pub fn named(&self) -> Vec<Counted> {
                vec![$(Counted {
                    name: stringify!($name),
                    kind: Kind::$kind,
                    // Each line of a doc comment begins with a space.
                    help: concat!($($doc),+).trim().trim_end_matches('.'),
                    value: self.$name,
                }),+]
            }
        }
    };
}

counters! {
    /// TCP connections accepted.
    tcp_accepted: Counter,
    /// TCP connections that a worker handed to another worker with less than half as many sessions.
    tcp_handed_on: Counter,
    /// TCP sessions established with an endpoint.
    tcp_established: Counter,
    /// TCP sessions that are open: connecting or established.
    tcp_active: Gauge,
    /// TCP connections reset because their frontend or its endpoints were gone.
    tcp_unroutable: Counter,
    /// TCP connections reset because their Service has as many as sluice.dev/max-connections allows.
    tcp_over_service_limit: Counter,
    /// TCP connections reset because clients connected to the listener itself instead of a Service address.
    tcp_not_captured: Counter,
    /// TCP connections reset because every endpoint failed.
    tcp_all_endpoints_failed: Counter,
    /// TCP connections reset because this node was out of file descriptors, ports or memory, or forbade the
    /// connection to an endpoint.
    tcp_over_limit: Counter,
    /// TCP sessions that both sides had closed and that stayed open until the remaining bytes were delivered.
    tcp_delivering: Counter,
    /// Attempts to connect to an endpoint after another attempt had failed.
    tcp_retries: Counter,
    /// TCP clients that went away before an endpoint was connected.
    tcp_client_gone: Counter,
    /// TCP sessions that one side reset; the reset was passed on to the other side.
    tcp_resets: Counter,
    /// Half-closed TCP sessions closed because no bytes moved for too long.
    tcp_half_closed_timeouts: Counter,
    /// Endpoints skipped because they are themselves a frontend of this agent.
    endpoint_loops: Counter,
    /// Times that a listener paused because file descriptors had run out.
    accept_paused: Counter,
    /// Times that a listener could not accept connections at all; the log has the error.
    accept_failed: Counter,
    /// SYNs and final handshake segments that the kernel dropped at a listener, nearly always because its queue was
    /// full; clients retransmit after a second or later.
    tcp_dropped_queue: Counter,
    /// TCP connections reset because their client exceeded its share of the remaining sessions, or of the remaining
    /// ports towards its endpoints.
    tcp_over_share: Counter,
    /// Timers that are pending in the workers.
    deadlines: Gauge,
    /// Bytes moved by splice(2), without a copy through user memory.
    bytes_spliced: Counter,
    /// Bytes moved through a worker's buffer.
    bytes_copied: Counter,
    /// Pipes that hold bytes of bulk transfers, or are kept for the next transfer.
    pipes_active: Gauge,
    /// Times that a bulk transfer was copied because there was no pipe: file descriptors had run out, or pipes had
    /// used up their share of fs.pipe-user-pages-soft.
    pipe_fallbacks: Counter,
    /// UDP datagrams received from clients.
    udp_datagrams_in: Counter,
    /// UDP datagrams delivered to endpoints.
    udp_datagrams_forwarded: Counter,
    /// UDP datagrams delivered back to clients.
    udp_datagrams_returned: Counter,
    /// UDP flows opened.
    udp_flows_opened: Counter,
    /// UDP flows that are open.
    udp_flows_active: Gauge,
    /// UDP flows closed because no datagram came for too long.
    udp_flows_expired: Counter,
    /// UDP flows closed early to make room for new ones.
    udp_flows_evicted: Counter,
    /// UDP flows closed early to make room for new ones because their client exceeded its share.
    udp_flows_over_share: Counter,
    /// UDP flows closed early because new ones needed their ephemeral ports.
    udp_flows_evicted_for_port: Counter,
    /// UDP flows closed because their endpoint or frontend was gone, or the endpoint refused.
    udp_flows_ended: Counter,
    /// UDP datagrams dropped because there was no endpoint for them.
    udp_unroutable: Counter,
    /// UDP datagrams dropped because their Service has as many flows as sluice.dev/max-connections allows.
    udp_over_service_limit: Counter,
    /// UDP clients that were sent ICMP port unreachable, because their endpoint refuses or they exceed a limit.
    udp_refusals: Counter,
    /// UDP datagrams dropped because this node was out of file descriptors, ports or memory for a flow, or forbade
    /// it.
    udp_over_limit: Counter,
    /// UDP datagrams dropped because no socket could be opened to reply from: another program has the frontend's
    /// address and port, or the node has no resources for it or forbids it; the log has the error.
    udp_no_reply_socket: Counter,
    /// UDP datagrams dropped because clients sent them to the socket itself instead of a Service address.
    udp_not_captured: Counter,
    /// UDP datagrams dropped because a socket's send buffer was full.
    udp_dropped_full: Counter,
    /// UDP datagrams that the kernel dropped because a socket's receive queue was full; on sockets towards
    /// endpoints they are counted when the flow ends.
    udp_dropped_queue: Counter,
    /// UDP datagrams dropped while they waited for a flow to be opened, for want of room or after 5 s; the log has
    /// the clients.
    udp_dropped_waiting: Counter,
    /// UDP datagrams dropped because of a socket error.
    udp_dropped_error: Counter,
    /// Connections and flows written to the connection log.
    connection_log_records: Counter,
    /// Connections and flows left out of the connection log because it was not read fast enough.
    connection_log_dropped: Counter,
}

/// Histograms of one worker.
#[derive(Debug)]
pub(crate) struct WorkerTimes {
    /// The time from the first attempt to connect until an endpoint has answered.
    pub(crate) tcp_connecting: Histogram,
    /// The time from a TCP session's first attempt to connect to its end.
    pub(crate) tcp_sessions: Histogram,
    /// The time from a UDP flow's first datagram to its last one.
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

/// The sums of all workers' histograms at one moment.
#[derive(Debug, Clone, Copy)]
pub struct AllTimes {
    /// The time from the first attempt to connect until an endpoint has answered.
    pub tcp_connecting: Times,
    /// The time from the first attempt to connect to the end, of TCP sessions that have ended.
    pub tcp_sessions: Times,
    /// The time from the first datagram to the last one, of UDP flows that have ended.
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

/// A counter that only one thread changes, without locked instructions, and any number of threads read.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        self.0.store(self.get().wrapping_add(n), Ordering::Relaxed);
    }

    pub(crate) fn sub(&self, n: u64) {
        self.0.store(self.get().wrapping_sub(n), Ordering::Relaxed);
    }

    /// For a value that the same thread counts elsewhere.
    pub(crate) fn set(&self, n: usize) {
        self.0.store(n as u64, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
