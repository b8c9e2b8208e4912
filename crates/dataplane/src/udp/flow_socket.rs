//! A flow's socket towards its endpoint. Some options are set only when they matter: most flows are one
//! question and one answer, so each system call counts.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::ops::ControlFlow;

use mio::event::Source;
use mio::{Interest, Registry, Token};
use sluice_sys::udp::{self, Joining, RecvBatch, SendBatch, Sent};
use socket2::Domain;

use crate::drops::DropsCounted;

/// Datagrams of up to this many bytes are never fragmented: Linux assumes no path MTU below 552 bytes
/// (`net.ipv4.route.min_pmtu`), and IPv6 has none below 1,280.
const NEVER_FRAGMENTED: usize = 512;

/// A queue that overflows holds at least this many datagrams or bytes when it is read next: it is full when
/// payloads and the kernel's overhead (some 800 bytes to 5 KiB for each) take up 212,992 bytes
/// (`net.core.rmem_default`).
const LIKE_AN_OVERFLOW: (usize, usize) = (8, 16_384);

/// The socket of a flow.
#[derive(Debug)]
pub(crate) struct FlowSocket {
    socket: mio::net::UdpSocket,
    endpoint: Domain,
    joining: Joining,
    lets_fragment: bool,
    takes_trains: bool,
    may_have_dropped: bool,
}

impl FlowSocket {
    /// Wraps a socket that is connected to this endpoint.
    pub(crate) fn new(socket: UdpSocket, endpoint: SocketAddr) -> Self {
        Self {
            socket: mio::net::UdpSocket::from_std(socket),
            endpoint: Domain::for_address(endpoint),
            joining: Joining::default(),
            lets_fragment: false,
            takes_trains: false,
            may_have_dropped: false,
        }
    }

    /// Registers the socket for events.
    pub(crate) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        self.socket.register(registry, token, Interest::READABLE)
    }

    /// Whether its local address is one of these.
    pub(crate) fn sends_from(&self, addresses: &[IpAddr]) -> bool {
        self.socket.local_addr().is_ok_and(|own| addresses.contains(&own.ip()))
    }

    /// Sends a batch to the endpoint: see [`SendBatch::send_joined`].
    pub(crate) fn send(
        &mut self,
        batch: &mut SendBatch<'_>,
        failed: impl FnMut(usize, io::Error) -> ControlFlow<()>,
    ) -> Sent {
        if batch.largest() > NEVER_FRAGMENTED && !self.lets_fragment {
            self.lets_fragment = true;
            // No error is known for a UDP socket. Without the option, datagrams that are too large for some
            // link are lost.
            let _ = udp::allow_fragmentation(&self.socket, self.endpoint);
        }
        batch.send_joined(&self.socket, &self.joining, failed)
    }

    /// Receives from the endpoint: see [`RecvBatch::recv`].
    pub(crate) fn recv(&mut self, batch: &mut RecvBatch) -> io::Result<usize> {
        let count = batch.recv(&self.socket)?;
        if count > 1 {
            self.has_many(count, batch);
        }
        Ok(count)
    }

    #[cold]
    fn has_many(&mut self, count: usize, batch: &RecvBatch) {
        if !self.takes_trains {
            self.takes_trains = true;
            // No error is known for a UDP socket. Without the option, trains arrive as single datagrams.
            let _ = udp::receive_trains(&self.socket);
        }
        let bytes = || batch.iter().map(|datagram| datagram.payload.bytes().len()).sum::<usize>();
        self.may_have_dropped |= count >= LIKE_AN_OVERFLOW.0 || bytes() >= LIKE_AN_OVERFLOW.1;
    }

    /// Number of datagrams that the kernel dropped because the socket's queue was full.
    pub(crate) fn dropped(&self) -> u64 {
        if self.may_have_dropped { DropsCounted::default().more(&self.socket) } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use rustix::net::sockopt::{self, Ipv4PathMtuDiscovery};
    use sluice_sys::udp::Payload;
    use socket2::SockRef;

    use super::*;

    fn pair() -> (FlowSocket, UdpSocket) {
        let [flow, endpoint] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
        let [flows, endpoints] = [&flow, &endpoint].map(|socket| socket.local_addr().unwrap());
        flow.connect(endpoints).unwrap();
        flow.set_nonblocking(true).unwrap();
        endpoint.connect(flows).unwrap();
        (FlowSocket::new(flow, endpoints), endpoint)
    }

    fn send(flow: &mut FlowSocket, payload: &[u8]) {
        let mut batch = SendBatch::new();
        batch.push(payload, None).unwrap();
        assert_eq!(flow.send(&mut batch, |_, error| panic!("{error}")).datagrams, 1);
    }

    #[test]
    fn what_may_have_to_be_fragmented_is_allowed_to_be_before_it_is_sent() {
        let (mut flow, _endpoint) = pair();
        send(&mut flow, &[0; 512]);
        assert_ne!(sockopt::ip_mtu_discover(&flow.socket).unwrap(), Ipv4PathMtuDiscovery::DONT);
        send(&mut flow, &[0; 513]);
        assert_eq!(sockopt::ip_mtu_discover(&flow.socket).unwrap(), Ipv4PathMtuDiscovery::DONT);
    }

    #[test]
    fn trains_are_taken_from_an_endpoint_that_sends_many() {
        let (mut flow, endpoint) = pair();
        let mut received = RecvBatch::new();
        let trains = || {
            let mut batch = SendBatch::new();
            batch.push(Payload::train(&[0; 60], 30), None).unwrap();
            assert_eq!(batch.send(&endpoint, |_, error| panic!("{error}")).datagrams, 2);
        };
        trains();
        assert_eq!(flow.recv(&mut received).unwrap(), 2, "one by one");
        trains();
        assert_eq!(flow.recv(&mut received).unwrap(), 1, "as one");
        assert_eq!(received.get(0).unwrap().payload.datagrams(), 2);
    }

    #[test]
    fn a_queue_that_overflows_is_asked_what_it_has_lost() {
        for size in [1, 20_000] {
            let (mut flow, endpoint) = pair();
            SockRef::from(&flow.socket).set_recv_buffer_size(100_000).unwrap();
            (0..1_000).for_each(|_| assert_eq!(endpoint.send(&vec![0; size]).unwrap(), size));
            let mut received = RecvBatch::new();
            let count: usize = std::iter::from_fn(|| flow.recv(&mut received).ok()).sum();
            assert!(count < 1_000);
            assert_eq!(flow.dropped(), 1_000 - count as u64, "{size} bytes");
        }
    }
}
