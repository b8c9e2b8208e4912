//! Counting the packets that the kernel drops because a socket's queue is full. The count belongs to the
//! socket: it has to be read from it, and is lost when the socket is closed.

use std::os::fd::AsFd;

use sluice_sys::udp;

/// How many drops of one socket have been counted.
#[derive(Debug, Default)]
pub(crate) struct DropsCounted(u32);

impl DropsCounted {
    /// How many datagrams were dropped since the last call, or so far at the first call; a batch of datagrams
    /// that is dropped as a whole (GRO) counts as one. For a TCP listener, how many SYNs and final handshake
    /// segments were dropped.
    pub(crate) fn more(&mut self, socket: impl AsFd) -> u64 {
        // No error is known for an open socket; what this call misses the next one counts.
        let Ok(dropped) = udp::dropped(socket) else { return 0 };
        let more = dropped.wrapping_sub(self.0);
        self.0 = dropped;
        more.into()
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn what_a_full_queue_loses_is_counted_once() {
        for loopback in ["127.0.0.1:0", "[::1]:0"] {
            let receiver = UdpSocket::bind(loopback).unwrap();
            let sender = UdpSocket::bind(loopback).unwrap();
            sender.connect(receiver.local_addr().unwrap()).unwrap();
            receiver.set_nonblocking(true).unwrap();
            let mut counted = DropsCounted::default();
            assert_eq!(counted.more(&receiver), 0);
            for round in 0..2 {
                socket2::SockRef::from(&receiver).set_recv_buffer_size(4_096).unwrap();
                (0..1_000).for_each(|_| assert_eq!(sender.send(&[0; 100]).unwrap(), 100));
                let received = std::iter::from_fn(|| receiver.recv(&mut [0; 100]).ok()).count() as u64;
                assert!(received < 1_000, "a queue of 4 KiB is full");
                assert_eq!(counted.more(&receiver), 1_000 - received, "{loopback}, round {round}");
                assert_eq!(counted.more(&receiver), 0);
            }
        }
    }
}
