//! UDP: flows from clients to endpoints.
//!
//! A flow is one client that sends to one Service address. [`flow_table`] decides which flows there are,
//! without sockets or a clock; [`waiting`] decides whose flow is opened next. [`relay`] owns the sockets,
//! [`upstream`] opens those towards endpoints, and [`replies`] holds those from which replies to captured
//! datagrams are sent.

pub(crate) mod flow_table;
pub(crate) mod recall;
pub(crate) mod relay;
pub(crate) mod replies;
pub(crate) mod socket;

mod flow;
mod flow_class;
mod flow_clients;
mod flow_key;
mod flow_limits;
mod flow_queue;
#[cfg(test)]
mod flow_simulation;
mod flow_socket;
mod kept_ports;
mod refusal;
mod upstream;
mod waiting;

pub(crate) use flow_limits::STREAM_FACTOR;
