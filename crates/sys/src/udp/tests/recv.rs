//! Receiving.

use std::io::ErrorKind;

use rustix::event::PollFlags;
use socket2::Domain;

use super::*;

#[test]
fn the_largest_datagram_passes_whole() {
    let mut batch = RecvBatch::new();
    for (loopback, largest) in LOOPBACKS.into_iter().zip([MAX_PAYLOAD_V4, 65_527]) {
        let receiver = socket(loopback);
        let sender = connected(loopback, &receiver);
        for len in [MAX_PAYLOAD_V4, largest] {
            let payload = pattern(len, 1);
            send_all(&sender, [&payload[..]], None);
            let [datagram] = &receive(&mut batch, &receiver, 1)[..] else { panic!("one was sent") };
            assert!(datagram.payload == payload, "{len} bytes sent, {} received", datagram.payload.len());
            assert!(!datagram.truncated);
            assert_eq!(datagram.source, address(&sender));
        }
    }
}

#[test]
fn a_batch_of_all_sizes_arrives_in_order_and_empty_datagrams_with_it() {
    let mut batch = RecvBatch::new();
    for loopback in LOOPBACKS {
        let receiver = socket(loopback);
        let sender = socket(loopback);
        let sizes = [0, 1, 512, 0, 1472, 1473, 9000, 2, 0, 20_000];
        let payloads: Vec<_> = sizes.iter().enumerate().map(|(seed, &len)| pattern(len, seed)).collect();
        // More in total than one batch holds.
        for round in 0..4 {
            send_all(&sender, payloads.iter().map(|p| &p[..]), Some(address(&receiver)));
            let received = receive(&mut batch, &receiver, sizes.len());
            let bytes: Vec<_> = received.iter().map(|datagram| datagram.payload.clone()).collect();
            assert!(bytes == payloads, "round {round}");
            assert!(received.iter().all(|datagram| !datagram.truncated));
            assert!(received.iter().all(|datagram| datagram.source == address(&sender)));
        }
    }
}

#[test]
fn a_batch_receives_no_more_than_it_holds_and_the_rest_next_time() {
    let receiver = socket("127.0.0.1:0");
    let sender = connected("127.0.0.1:0", &receiver);
    let payloads: Vec<_> = (0..BATCH + 5).map(|seed| pattern(10, seed)).collect();
    let (first, second) = payloads.split_at(BATCH);
    send_all(&sender, first.iter().map(|p| &p[..]), None);
    send_all(&sender, second.iter().map(|p| &p[..]), None);
    let mut batch = RecvBatch::new();
    let received = receive(&mut batch, &receiver, payloads.len());
    assert!(received.iter().map(|datagram| &datagram.payload).eq(&payloads));
    assert_eq!(batch.recv(&receiver).unwrap_err().kind(), ErrorKind::WouldBlock);
    assert!(!batch.is_full() && batch.is_empty());
    send_all(&sender, first.iter().map(|p| &p[..]), None);
    wait_for(&receiver, PollFlags::IN);
    assert_eq!(batch.recv(&receiver).unwrap(), BATCH);
    assert!(batch.is_full() && batch.get(BATCH).is_none());
}

#[test]
fn a_datagram_larger_than_the_buffer_is_marked_and_its_neighbours_are_not() {
    let mut batch = RecvBatch::with_payload_size(100);
    for loopback in LOOPBACKS {
        let receiver = socket(loopback);
        let sender = connected(loopback, &receiver);
        let payloads = [pattern(100, 0), pattern(101, 1), pattern(0, 2), pattern(5000, 3), pattern(99, 4)];
        send_all(&sender, payloads.iter().map(|p| &p[..]), None);
        let received = receive(&mut batch, &receiver, payloads.len());
        let marks: Vec<_> = received.iter().map(|datagram| datagram.truncated).collect();
        assert_eq!(marks, [false, true, false, true, false]);
        for (datagram, payload) in received.iter().zip(&payloads) {
            assert_eq!(datagram.payload, payload[..payload.len().min(100)]);
        }
    }
}

#[test]
fn an_empty_socket_would_block_and_leaves_nothing_of_the_batch_before() {
    let mut batch = RecvBatch::new();
    for loopback in LOOPBACKS {
        // The sockets block, but the call does not.
        let receiver = socket(loopback);
        let sender = connected(loopback, &receiver);
        assert_eq!(batch.recv(&receiver).unwrap_err().kind(), ErrorKind::WouldBlock);
        send_all(&sender, [&b"something"[..]], None);
        assert_eq!(receive(&mut batch, &receiver, 1).len(), 1);
        assert_eq!(batch.recv(&receiver).unwrap_err().kind(), ErrorKind::WouldBlock);
        assert_eq!(batch.iter().count(), 0);
    }
}

#[test]
fn the_original_destination_is_the_address_that_the_client_used() {
    let mut batch = RecvBatch::new();
    for (any, used) in [("0.0.0.0:0", "127.0.0.77"), ("[::]:0", "::1")] {
        let receiver = socket(any);
        let to = SocketAddr::new(used.parse().unwrap(), address(&receiver).port());
        let sender = socket(if to.is_ipv4() { LOOPBACKS[0] } else { LOOPBACKS[1] });
        send_all(&sender, [&b"a"[..]], Some(to));
        assert_eq!(receive(&mut batch, &receiver, 1)[0].original_destination, None, "not asked for");

        receive_original_destination(&receiver, Domain::for_address(address(&receiver))).unwrap();
        send_all(&sender, [&b"b"[..], b"", b"c"], Some(to));
        for datagram in receive(&mut batch, &receiver, 3) {
            assert_eq!(datagram.original_destination, Some(to));
            assert_eq!(datagram.source, address(&sender));
        }
    }
}

#[test]
fn a_refusal_is_told_to_a_connected_socket_that_receives() {
    let mut batch = RecvBatch::new();
    for loopback in LOOPBACKS {
        let sender = refused(loopback);
        assert_eq!(batch.recv(&sender).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        assert_eq!(batch.iter().count(), 0);
        assert_eq!(batch.recv(&sender).unwrap_err().kind(), ErrorKind::WouldBlock, "told once");
    }
}

#[test]
fn a_train_is_received_as_one_where_trains_are_asked_for() {
    let mut batch = RecvBatch::new();
    for loopback in LOOPBACKS {
        let receiver = socket(loopback);
        receive_trains(&receiver).unwrap();
        receive_original_destination(&receiver, Domain::for_address(address(&receiver))).unwrap();
        let sender = connected(loopback, &receiver);
        let bytes = pattern(1200 * 30 + 1, 1);
        let payloads = [Payload::from(&b"before"[..]), Payload::train(&bytes, 1200), Payload::from(&b""[..])];
        let mut sends = SendBatch::new();
        payloads.iter().for_each(|&payload| sends.push(payload, None).unwrap());
        let sent = sends.send(&sender, |index, error| panic!("{index}: {error}"));
        assert_eq!((sent.datagrams, sent.failed, sent.left), (33, 0, 0));
        let mut received = 0;
        while received < payloads.len() {
            wait_for(&receiver, PollFlags::IN);
            batch.recv(&receiver).unwrap();
            for datagram in batch.iter() {
                assert_eq!(datagram.payload, payloads[received]);
                assert_eq!(datagram.original_destination, Some(address(&receiver)));
                assert_eq!(datagram.source, address(&sender));
                received += 1;
            }
        }
    }
}

#[test]
fn what_finds_no_room_in_the_queue_of_a_socket_is_told_by_it() {
    for loopback in LOOPBACKS {
        let receiver = socket(loopback);
        socket2::SockRef::from(&receiver).set_recv_buffer_size(4_096).unwrap();
        let sender = connected(loopback, &receiver);
        assert_eq!(dropped(&receiver).unwrap(), 0);
        (0..500).for_each(|_| assert_eq!(sender.send(b"x").unwrap(), 1));
        receiver.set_nonblocking(true).unwrap();
        let received = std::iter::from_fn(|| receiver.recv(&mut [0]).ok()).count();
        assert_eq!(dropped(&receiver).unwrap() as usize, 500 - received, "{loopback}");
        assert!(received < 500);
        assert_eq!(dropped(&sender).unwrap(), 0);
    }
    assert!(dropped(std::fs::File::open("/dev/null").unwrap()).is_err());
}
