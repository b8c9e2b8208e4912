//! Datagrams in batches: one system call for many, with what a relay must know about each.
//!
//! [`RecvBatch`] receives: payload, who sent it, which address it was sent to (with
//! [`receive_original_destination`]), whether it was cut. [`SendBatch`] sends: to one peer or to
//! many, and one datagram that cannot be sent does not keep back the rest. Neither waits, ever.
//!
//! rustix and socket2 have no `recvmmsg` and do not know `IP_ORIGDSTADDR`; nix has both, but
//! allocates for each batch.

mod address;
mod option;
mod recv;
mod send;

#[cfg(test)]
mod tests;

pub use option::{allow_fragmentation, receive_original_destination};
pub use recv::{Datagram, RecvBatch};
pub use send::{BatchFull, SendBatch, Sent};

/// Datagrams that one system call moves at most. More per call gain nothing measurable (the cost of
/// entering the kernel is spread thin by then), and delay the flows at the end of the batch.
pub const BATCH: usize = 32;

/// The largest payload of a UDP datagram over IPv4: 65,535 bytes of packet, less 20 of IP header and
/// 8 of UDP header. IPv6 allows 65,527, its header not being part of the length.
pub const MAX_PAYLOAD_V4: usize = 65_507;
