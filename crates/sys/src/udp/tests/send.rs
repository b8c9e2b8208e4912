//! Sending, and what happens to datagrams that cannot be sent.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, UdpSocket};
use std::ops::ControlFlow;
use std::os::unix::net::UnixDatagram;

use super::*;

#[test]
fn one_socket_sends_to_many_destinations_in_one_batch() {
    let mut batch = RecvBatch::new();
    for loopback in LOOPBACKS {
        let receivers: Vec<_> = (0..BATCH).map(|_| socket(loopback)).collect();
        let sender = socket(loopback);
        let payloads: Vec<_> = (0..BATCH).map(|seed| pattern(seed, seed)).collect();
        let mut sends = SendBatch::new();
        for (receiver, payload) in receivers.iter().zip(&payloads) {
            sends.push(&payload[..], Some(address(receiver))).unwrap();
        }
        assert!(sends.is_full());
        assert_eq!(sends.push(&b"one too many"[..], None), Err(BatchFull));
        let sent = sends.send(&sender, |index, error| panic!("datagram {index}: {error}"));
        let bytes = payloads.iter().map(Vec::len).sum();
        assert_eq!(sent, Sent { datagrams: BATCH, bytes, failed: 0, left: 0 });
        for (receiver, payload) in receivers.iter().zip(&payloads) {
            assert_eq!(receive(&mut batch, receiver, 1)[0].payload, *payload);
        }
    }
}

#[test]
fn datagrams_that_cannot_be_sent_do_not_keep_back_the_others() {
    let mut batch = RecvBatch::new();
    for (loopback, too_large) in LOOPBACKS.into_iter().zip([MAX_PAYLOAD_V4 + 1, 65_528]) {
        let receiver = socket(loopback);
        let sender = socket(loopback);
        let good = Some(address(&receiver));
        let nowhere = Some(SocketAddr::new(address(&receiver).ip(), 0));
        let too_large = vec![0; too_large];
        for bad_at in [&[0][..], &[3], &[9], &[0, 1, 2], &[4, 5, 9], &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]] {
            let payloads: Vec<_> = (0..10).map(|seed| pattern(20, seed)).collect();
            let mut sends = SendBatch::new();
            for (at, payload) in payloads.iter().enumerate() {
                let pushed = match bad_at.contains(&at) {
                    false => sends.push(&payload[..], good),
                    true if at % 2 == 0 => sends.push(&too_large[..], good),
                    true => sends.push(&payload[..], nowhere),
                };
                pushed.unwrap();
            }
            let mut errors = Vec::new();
            let sent = sends.send(&sender, |index, error| {
                errors.push((index, error.raw_os_error()));
                ControlFlow::Continue(())
            });
            let expected: Vec<_> = bad_at
                .iter()
                .map(|&at| (at, Some(if at % 2 == 0 { libc::EMSGSIZE } else { libc::EINVAL })))
                .collect();
            assert_eq!(errors, expected);
            let datagrams = 10 - bad_at.len();
            assert_eq!(sent, Sent { datagrams, bytes: datagrams * 20, failed: bad_at.len(), left: 0 });
            let received = receive(&mut batch, &receiver, datagrams);
            let good = payloads.iter().enumerate().filter(|(at, _)| !bad_at.contains(at));
            assert!(received.iter().map(|datagram| &datagram.payload).eq(good.map(|(_, payload)| payload)));
        }
    }
}

/// Sends a batch, joined or as single datagrams.
fn send(
    sends: &mut SendBatch<'_>,
    socket: &UdpSocket,
    joined: bool,
    on_error: impl FnMut(usize, io::Error) -> ControlFlow<()>,
) -> Sent {
    if joined {
        sends.send_joined(socket, &Joining::default(), on_error)
    } else {
        sends.send(socket, on_error)
    }
}

#[test]
fn a_refusal_costs_the_next_datagram_sent_and_no_other_joined_or_not() {
    for (loopback, joined) in LOOPBACKS.into_iter().flat_map(|loopback| [(loopback, false), (loopback, true)])
    {
        let sender = refused(loopback);
        // From here on, a socket receives.
        let receiver = socket(loopback);
        sender.connect(address(&receiver)).unwrap();
        let mut sends = SendBatch::new();
        for payload in [&b"lost."[..], b"2nd..", b"third"] {
            sends.push(payload, None).unwrap();
        }
        let mut errors = Vec::new();
        let sent = send(&mut sends, &sender, joined, |index, error| {
            errors.push((index, error.kind()));
            ControlFlow::Continue(())
        });
        assert_eq!(errors, [(0, ErrorKind::ConnectionRefused)], "{loopback}, joined: {joined}");
        assert_eq!(sent, Sent { datagrams: 2, bytes: 10, failed: 1, left: 0 });
        let received = receive(&mut RecvBatch::new(), &receiver, 2);
        assert_eq!(received[0].payload, b"2nd..");
        assert_eq!(received[1].payload, b"third");
    }
}

#[test]
fn whoever_stops_at_a_refusal_has_it_and_all_behind_it_still() {
    for (loopback, joined) in LOOPBACKS.into_iter().zip([false, true]) {
        let sender = refused(loopback);
        let bytes = pattern(100, 0);
        let mut sends = SendBatch::new();
        sends.push(&b"first"[..], None).unwrap();
        sends.push(Payload::train(&bytes, 30), None).unwrap();
        let sent = send(&mut sends, &sender, joined, |_, _| ControlFlow::Break(()));
        assert_eq!((sent, sends.len()), (Sent { left: 5, ..Sent::default() }, 2));

        let receiver = socket(loopback);
        sender.connect(address(&receiver)).unwrap();
        let sent = sends.send(&sender, |_, error| panic!("{error}"));
        assert_eq!(sent, Sent { datagrams: 5, bytes: 105, failed: 0, left: 0 });
        let received = receive(&mut RecvBatch::new(), &receiver, 5);
        assert_eq!(received[0].payload, b"first");
        assert!(received[1..].iter().flat_map(|datagram| &datagram.payload).eq(&bytes));
    }
}

#[test]
fn what_finds_no_room_stays_in_the_batch_and_goes_out_later() {
    // A socket pair, because over loopback a datagram leaves its sender's buffer at once.
    let (sender, receiver) = UnixDatagram::pair().unwrap();
    let payloads: Vec<_> = (0..BATCH).map(|seed| pattern(50_000, seed)).collect();
    let mut sends = SendBatch::new();
    for payload in &payloads {
        sends.push(&payload[..], None).unwrap();
    }
    let (mut arrived, mut stopped) = (0, 0);
    let mut buffer = vec![0; 65_536];
    while !sends.is_empty() {
        let before = sends.len();
        let sent = sends.send(&sender, |index, error| panic!("datagram {index}: {error}"));
        assert_eq!((sent.datagrams + sent.left, sent.failed), (before, 0));
        assert_eq!((sends.len(), sent.bytes), (sent.left, sent.datagrams * 50_000));
        assert!(sent.datagrams > 0);
        stopped += usize::from(sent.left > 0);
        for _ in 0..sent.datagrams {
            let len = receiver.recv(&mut buffer).unwrap();
            assert!(buffer[..len] == payloads[arrived], "datagram {arrived}");
            arrived += 1;
        }
    }
    assert_eq!(arrived, BATCH);
    assert!(stopped > 0, "the buffer took it all at once; the test is about when it does not");
}

#[test]
fn a_full_socket_takes_nothing_and_says_how_many_are_left() {
    let (sender, _receiver) = UnixDatagram::pair().unwrap();
    let fill = [0; 1000];
    let mut left = 0;
    while left == 0 {
        let mut sends = SendBatch::new();
        while sends.push(&fill[..], None).is_ok() {}
        left = sends.send(&sender, |_, error| panic!("{error}")).left;
    }
    let mut sends = SendBatch::new();
    sends.push(&b"a"[..], None).unwrap();
    sends.push(&b"b"[..], None).unwrap();
    let sent = sends.send(&sender, |_, error| panic!("{error}"));
    assert_eq!(sent, Sent { left: 2, ..Sent::default() });
    sends.clear();
    assert_eq!(sends.send(&sender, |_, error| panic!("{error}")), Sent::default());
}

#[test]
fn a_train_arrives_as_its_datagrams_where_trains_are_not_asked_for() {
    let mut batch = RecvBatch::new();
    for loopback in LOOPBACKS {
        let receiver = socket(loopback);
        let sender = connected(loopback, &receiver);
        // The last is more than the kernel sends as one (128).
        for (size, count) in [(1000u16, 2), (1200, 50), (1, 64), (5, 150)] {
            let payload_size = usize::from(size);
            let bytes = pattern(payload_size * count - payload_size / 2, count);
            let mut sends = SendBatch::new();
            sends.push(Payload::train(&bytes, size), None).unwrap();
            let sent = sends.send(&sender, |index, error| panic!("train {index}: {error}"));
            assert_eq!(sent, Sent { datagrams: count, bytes: bytes.len(), failed: 0, left: 0 });
            let received = receive(&mut batch, &receiver, count);
            assert!(received.iter().map(|datagram| &datagram.payload[..]).eq(bytes.chunks(payload_size)));
        }
    }
}

#[test]
fn a_train_that_fails_is_counted_by_its_datagrams() {
    let sender = socket(LOOPBACKS[0]);
    let nowhere = Some(SocketAddr::new(address(&sender).ip(), 0));
    let bytes = pattern(100, 0);
    let mut sends = SendBatch::new();
    sends.push(&b"a"[..], Some(address(&sender))).unwrap();
    sends.push(Payload::train(&bytes, 30), nowhere).unwrap();
    sends.push(&b"b"[..], Some(address(&sender))).unwrap();
    let mut errors = Vec::new();
    let sent = sends.send(&sender, |index, error| {
        errors.push((index, error.raw_os_error()));
        ControlFlow::Continue(())
    });
    assert_eq!(errors, [(1, Some(libc::EINVAL)); 4]);
    assert_eq!(sent, Sent { datagrams: 2, bytes: 2, failed: 4, left: 0 });
}

#[test]
fn whoever_stops_in_a_train_has_the_rest_of_it_still() {
    let sender = socket(LOOPBACKS[0]);
    let nowhere = Some(SocketAddr::new(address(&sender).ip(), 0));
    let bytes = pattern(100, 0);
    let mut sends = SendBatch::new();
    sends.push(&b"a"[..], Some(address(&sender))).unwrap();
    sends.push(Payload::train(&bytes, 30), nowhere).unwrap();
    let mut errors = 0;
    let sent = sends.send(&sender, |_, _| {
        errors += 1;
        if errors == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert_eq!(sent, Sent { datagrams: 1, bytes: 1, failed: 1, left: 3 });
    assert_eq!(sends.datagrams(), 3);
}
