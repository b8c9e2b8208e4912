//! The connection log: one line for each ended connection, or for one in so many.
//!
//! Workers pass records to the log's own thread through a bounded queue. If the log is read too slowly,
//! records are dropped and counted; workers never wait.

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sluice_model::{Protocol, ServicePortName};

use crate::stats::WorkerStats;

/// The maximum number of records in the queue, about 200 bytes each. At 10,000 connections per second that is
/// 400 ms.
const QUEUE: usize = 4_096;

/// How long writing the remaining records may take at the end.
const PATIENCE: Duration = Duration::from_secs(1);

/// How a connection or a flow ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Both sides have closed.
    Closed,
    /// The client reset it.
    ClientReset,
    /// The endpoint reset it.
    EndpointReset,
    /// Half-closed and idle for too long; or both sides had closed, and the remaining data was not read.
    HalfClosed,
    /// No endpoint answered.
    NoEndpoint,
    /// The client went away before an endpoint was connected.
    ClientGone,
    /// This node lacked a resource, or its own rules rejected the connection.
    ThisNode,
    /// A flow was idle for as long as a flow may be.
    Idle,
    /// It made room for others.
    MadeRoom,
    /// Its endpoint stopped serving or refused, its frontend is gone, or the node lost the address that it
    /// was sent from.
    EndpointGone,
    /// The client opened a new connection in its place.
    Replaced,
}

impl End {
    /// The name that is written to the log.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::ClientReset => "client-reset",
            Self::EndpointReset => "endpoint-reset",
            Self::HalfClosed => "half-closed-timeout",
            Self::NoEndpoint => "no-endpoint",
            Self::ClientGone => "client-gone",
            Self::ThisNode => "node-limit",
            Self::Idle => "idle",
            Self::MadeRoom => "made-room",
            Self::EndpointGone => "endpoint-gone",
            Self::Replaced => "replaced",
        }
    }
}

/// What is recorded of a logged connection while it is open.
#[derive(Debug, Clone)]
pub(crate) struct Trace {
    pub(crate) frontend: SocketAddr,
    /// The time from the first attempt until an endpoint was connected.
    pub(crate) connect: Option<Duration>,
}

/// The log record of an ended connection.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) protocol: Protocol,
    pub(crate) client: SocketAddr,
    pub(crate) service_port: Arc<ServicePortName>,
    pub(crate) endpoint: Option<SocketAddr>,
    /// Bytes of payload from the client.
    pub(crate) bytes_to_endpoint: u64,
    /// Bytes of payload to the client.
    pub(crate) bytes_from_endpoint: u64,
    pub(crate) duration: Duration,
    pub(crate) end: End,
    pub(crate) trace: Trace,
}

impl Record {
    fn say(&self) {
        let Self { protocol, client, service_port, endpoint, duration, end, trace, .. } = self;
        let protocol = match protocol {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
        };
        tracing::info!(
            protocol,
            %client,
            frontend = %trace.frontend,
            service = %service_port,
            endpoint = endpoint.map(tracing::field::display),
            bytes_from_client = self.bytes_to_endpoint,
            bytes_to_client = self.bytes_from_endpoint,
            connect_seconds = trace.connect.map(|connect| connect.as_secs_f64()),
            duration_seconds = duration.as_secs_f64(),
            end = end.name(),
            "connection ended"
        );
    }
}

/// A worker's end of the log.
#[derive(Debug, Clone)]
pub(crate) struct ConnectionLog {
    one_in: NonZeroU32,
    records: SyncSender<Record>,
}

impl ConnectionLog {
    /// A [`Trace`] for the connection, if it is chosen to be logged.
    pub(crate) fn choose(&self, frontend: SocketAddr) -> Option<Box<Trace>> {
        let is_chosen = self.one_in.get() == 1 || rand::random_range(0..self.one_in.get()) == 0;
        is_chosen.then(|| Box::new(Trace { frontend, connect: None }))
    }

    /// Queues a record, or drops and counts it if the queue is full.
    pub(crate) fn put(&self, record: Record, stats: &WorkerStats) {
        match self.records.try_send(record) {
            Ok(()) => stats.connection_log_records.add(1),
            Err(_) => stats.connection_log_dropped.add(1),
        }
    }
}

/// The thread that writes the log.
#[derive(Debug)]
pub(crate) struct LogThread(JoinHandle<()>);

impl LogThread {
    /// Waits up to a second until the queue is written. All workers must have ended.
    pub(crate) fn finish(self) {
        let until = Instant::now() + PATIENCE;
        while !self.0.is_finished() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Starts a log of one in `one_in` connections. The thread ends with the last [`ConnectionLog`].
///
/// # Errors
/// The thread cannot be created.
pub(crate) fn start(one_in: NonZeroU32) -> io::Result<(ConnectionLog, LogThread)> {
    let (records, receiver): (_, Receiver<Record>) = mpsc::sync_channel(QUEUE);
    let thread = std::thread::Builder::new()
        .name("connection-log".to_owned())
        .spawn(move || receiver.iter().for_each(|record| record.say()))?;
    Ok((ConnectionLog { one_in, records }, LogThread(thread)))
}

#[cfg(test)]
mod tests {
    use sluice_model::Protocol;

    use super::*;
    use crate::test_table;

    #[test]
    fn a_full_queue_costs_records_which_are_counted_and_nobody_waits() {
        // The log is not read.
        let (records, _receiver) = mpsc::sync_channel(2);
        let log = ConnectionLog { one_in: NonZeroU32::MIN, records };
        let (stats, selection) = (WorkerStats::default(), test_table::selection(1));
        for _ in 0..5 {
            let trace = *log.choose("10.96.0.1:80".parse().unwrap()).unwrap();
            let record = Record {
                protocol: Protocol::Tcp,
                client: "10.0.0.9:4000".parse().unwrap(),
                service_port: Arc::clone(selection.service_port().shared_name()),
                endpoint: None,
                bytes_to_endpoint: 0,
                bytes_from_endpoint: 0,
                duration: Duration::ZERO,
                end: End::NoEndpoint,
                trace,
            };
            log.put(record, &stats);
        }
        let sum = crate::Stats::sum([&stats]);
        assert_eq!((sum.connection_log_records, sum.connection_log_dropped), (2, 3));
    }

    #[test]
    fn one_in_so_many_is_chosen() {
        let (records, _receiver) = mpsc::sync_channel(1);
        let log = ConnectionLog { one_in: NonZeroU32::new(10).unwrap(), records };
        let frontend = "10.96.0.1:80".parse().unwrap();
        let chosen = (0..10_000).filter(|_| log.choose(frontend).is_some()).count();
        assert!((700..1_300).contains(&chosen), "{chosen}");
    }
}
