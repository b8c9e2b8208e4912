//! Both batches over real sockets, on loopback, IPv4 and IPv6.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::Domain;

use super::*;

/// How long a test waits for what must happen, before it fails.
const DEADLINE: Duration = Duration::from_secs(10);

const LOOPBACKS: [&str; 2] = ["127.0.0.1:0", "[::1]:0"];

/// An owned copy of a [`Datagram`], to outlive the batch.
#[derive(Debug, Clone, PartialEq)]
struct Received {
    payload: Vec<u8>,
    source: SocketAddr,
    original_destination: Option<SocketAddr>,
    truncated: bool,
}

fn socket(address: &str) -> UdpSocket {
    UdpSocket::bind(address).unwrap()
}

fn address(socket: &UdpSocket) -> SocketAddr {
    socket.local_addr().unwrap()
}

fn connected(from: &str, to: &UdpSocket) -> UdpSocket {
    let socket = socket(from);
    socket.connect(address(to)).unwrap();
    socket
}

/// A socket that holds on to its port, yet takes nothing: it is connected to somebody else, so what
/// is sent to it is answered with port unreachable.
fn refusing(on: &str) -> UdpSocket {
    let peer = socket(on);
    connected(on, &peer)
}

fn wait_for(socket: impl AsFd, what: PollFlags) {
    let socket = socket.as_fd();
    let mut fds = [PollFd::new(&socket, what)];
    let timeout = Timespec::try_from(DEADLINE).unwrap();
    assert_eq!(poll(&mut fds, Some(&timeout)).unwrap(), 1, "nothing within {DEADLINE:?}");
}

/// Receives until there are `count` datagrams.
fn receive(batch: &mut RecvBatch, socket: impl AsFd, count: usize) -> Vec<Received> {
    let mut all = Vec::new();
    while all.len() < count {
        wait_for(&socket, PollFlags::IN);
        match batch.recv(&socket) {
            Ok(received) => assert_eq!(received, batch.iter().count()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
            Err(error) => panic!("{error}"),
        }
        all.extend(batch.iter().map(|datagram| Received {
            payload: datagram.payload.bytes().to_vec(),
            source: datagram.source,
            original_destination: datagram.original_destination,
            truncated: datagram.truncated,
        }));
    }
    all
}

/// Sends a batch in which nothing is expected to fail.
fn send_all<'a>(socket: impl AsFd, payloads: impl IntoIterator<Item = &'a [u8]>, to: Option<SocketAddr>) {
    let mut batch = SendBatch::new();
    for payload in payloads {
        batch.push(payload, to).unwrap();
    }
    let count = batch.len();
    let sent = batch.send(socket, |index, error| panic!("datagram {index}: {error}"));
    assert_eq!((sent.datagrams, sent.failed, sent.left), (count, 0, 0));
    assert!(batch.is_empty());
}

/// Bytes that differ from place to place and from seed to seed.
fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..=250).cycle().skip(seed * 7 % 251).step_by(31).take(len).collect()
}

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
        // Blocking sockets: it is the call that does not wait.
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

#[test]
fn a_refusal_is_told_to_a_connected_socket_that_receives() {
    let mut batch = RecvBatch::new();
    for loopback in LOOPBACKS {
        let refusing = refusing(loopback);
        let sender = connected(loopback, &refusing);
        send_all(&sender, [&b"anyone?"[..]], None);
        wait_for(&sender, PollFlags::ERR);
        assert_eq!(batch.recv(&sender).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        assert_eq!(batch.iter().count(), 0);
        assert_eq!(batch.recv(&sender).unwrap_err().kind(), ErrorKind::WouldBlock, "told once");
    }
}

#[test]
fn a_refusal_costs_the_next_datagram_sent_and_no_other() {
    for loopback in LOOPBACKS {
        let refusing = refusing(loopback);
        let sender = connected(loopback, &refusing);
        send_all(&sender, [&b"anyone?"[..]], None);
        wait_for(&sender, PollFlags::ERR);

        // From here on, somebody listens.
        let receiver = socket(loopback);
        sender.connect(address(&receiver)).unwrap();
        let mut sends = SendBatch::new();
        for payload in [&b"lost"[..], b"second", b"third"] {
            sends.push(payload, None).unwrap();
        }
        let mut errors = Vec::new();
        let sent = sends.send(&sender, |index, error| {
            errors.push((index, error.kind()));
            ControlFlow::Continue(())
        });
        assert_eq!(errors, [(0, ErrorKind::ConnectionRefused)]);
        assert_eq!(sent, Sent { datagrams: 2, bytes: 11, failed: 1, left: 0 });
        let received = receive(&mut RecvBatch::new(), &receiver, 2);
        assert_eq!(received[0].payload, b"second");
        assert_eq!(received[1].payload, b"third");
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

/// Sends payloads of these sizes joined, to a socket that takes trains; how many datagrams and trains came, and whether
/// all came whole and in order.
fn send_joined(sizes: &[usize], joining: &Joining, loopback: &str) -> Vec<usize> {
    let receiver = socket(loopback);
    receive_trains(&receiver).unwrap();
    let sender = connected(loopback, &receiver);
    let payloads: Vec<_> = sizes.iter().enumerate().map(|(seed, &size)| pattern(size, seed)).collect();
    let mut sends = SendBatch::new();
    payloads.iter().for_each(|payload| sends.push(&payload[..], None).unwrap());
    assert_eq!(sends.largest(), sizes.iter().copied().max().unwrap_or(0));
    let sent = sends.send_joined(&sender, joining, |index, error| panic!("datagram {index}: {error}"));
    let bytes = sizes.iter().sum();
    assert_eq!(sent, Sent { datagrams: sizes.len(), bytes, failed: 0, left: 0 }, "{sizes:?}");
    let (mut batch, mut lengths, mut received) = (RecvBatch::new(), Vec::new(), Vec::new());
    while received.len() < payloads.len() {
        wait_for(&receiver, PollFlags::IN);
        batch.recv(&receiver).unwrap();
        for datagram in batch.iter() {
            lengths.push(datagram.payload.datagrams());
            received.extend(datagram.payload.segments().map(<[u8]>::to_vec));
        }
    }
    assert!(received == payloads, "{sizes:?}");
    lengths
}

#[test]
fn datagrams_of_one_size_that_follow_each_other_go_as_a_train() {
    for loopback in LOOPBACKS {
        let joined = |sizes: &[usize]| send_joined(sizes, &Joining::default(), loopback);
        assert_eq!(joined(&[38; BATCH]), [BATCH]);
        assert_eq!(joined(&[38, 38, 37, 38, 38]), [3, 2], "a shorter one is the last of its train");
        assert_eq!(joined(&[37, 38, 38, 0, 38, 38]), [1, 2, 1, 2]);
        assert_eq!(joined(&[0, 0]), [1, 1]);
        assert_eq!(joined(&[5]), [1]);
        assert_eq!(joined(&[30_000; 5]), [2, 2, 1], "no more than fit into a packet");
    }
}

#[test]
fn what_goes_to_different_places_is_not_joined_and_arrives_where_it_should() {
    let receivers = [(); 2].map(|()| socket(LOOPBACKS[0]));
    let sender = socket(LOOPBACKS[0]);
    let mut sends = SendBatch::new();
    for (number, to) in [(1, 0), (2, 0), (3, 1), (4, 0)] {
        sends.push(&[[1], [2], [3], [4]][number - 1][..], Some(address(&receivers[to]))).unwrap();
    }
    let sent = sends.send_joined(&sender, &Joining::default(), |_, error| panic!("{error}"));
    assert_eq!(sent, Sent { datagrams: 4, bytes: 4, failed: 0, left: 0 });
    let payloads = |receiver, count| -> Vec<u8> {
        receive(&mut RecvBatch::new(), receiver, count).iter().map(|datagram| datagram.payload[0]).collect()
    };
    assert_eq!(payloads(&receivers[0], 3), [1, 2, 4]);
    assert_eq!(payloads(&receivers[1], 1), [3]);
}

#[test]
fn trains_that_came_as_such_are_not_joined_with_others() {
    let receiver = socket(LOOPBACKS[0]);
    let sender = connected(LOOPBACKS[0], &receiver);
    let bytes = pattern(90, 1);
    let mut sends = SendBatch::new();
    for payload in [Payload::from(&bytes[..30]), Payload::train(&bytes, 30), Payload::from(&bytes[60..])] {
        sends.push(payload, None).unwrap();
    }
    let sent = sends.send_joined(&sender, &Joining::default(), |_, error| panic!("{error}"));
    assert_eq!(sent, Sent { datagrams: 5, bytes: 150, failed: 0, left: 0 });
    assert_eq!(receive(&mut RecvBatch::new(), &receiver, 5).len(), 5);
}

#[test]
fn what_cannot_go_as_a_train_goes_one_by_one_and_is_not_tried_again() {
    for error in [libc::EMSGSIZE, libc::EINVAL] {
        let joining = Joining::default();
        joining.failed(1_400, &std::io::Error::from_raw_os_error(error));
        assert_eq!(send_joined(&[1_400; 4], &joining, LOOPBACKS[0]), [1; 4]);
        assert_eq!(send_joined(&[1_399; 4], &joining, LOOPBACKS[0]), [4]);
    }
    let joining = Joining::default();
    joining.failed(1_400, &std::io::Error::from_raw_os_error(libc::EIO));
    assert_eq!(send_joined(&[38; 4], &joining, LOOPBACKS[0]), [1; 4]);

    // Without checksums there are no trains: the kernel says so, once.
    let receiver = socket(LOOPBACKS[0]);
    let sender = connected(LOOPBACKS[0], &receiver);
    without_checksums(&sender);
    let joining = Joining::default();
    for _ in 0..2 {
        let mut sends = SendBatch::new();
        (0..4).for_each(|_| sends.push(&[7; 100][..], None).unwrap());
        let sent = sends.send_joined(&sender, &joining, |index, error| panic!("datagram {index}: {error}"));
        assert_eq!(sent, Sent { datagrams: 4, bytes: 400, failed: 0, left: 0 });
        assert_eq!(joining.up_to(), 99);
    }
    assert_eq!(receive(&mut RecvBatch::new(), &receiver, 8).len(), 8);
}

#[expect(clippy::cast_possible_truncation, reason = "the size of an int")]
fn without_checksums(socket: &UdpSocket) {
    use std::os::fd::AsRawFd;

    let on: libc::c_int = 1;
    // SAFETY: the kernel reads the four bytes of `on` during the call only.
    let result = unsafe {
        let length = size_of_val(&on) as libc::socklen_t;
        let value = (&raw const on).cast();
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_NO_CHECK, value, length)
    };
    assert_eq!(result, 0);
}

#[test]
fn a_refusal_costs_one_datagram_of_those_that_would_be_joined() {
    for loopback in LOOPBACKS {
        let refusing = refusing(loopback);
        let sender = connected(loopback, &refusing);
        send_all(&sender, [&b"anyone?"[..]], None);
        wait_for(&sender, PollFlags::ERR);
        let receiver = socket(loopback);
        sender.connect(address(&receiver)).unwrap();
        let mut sends = SendBatch::new();
        for payload in [&b"lost."[..], b"2nd..", b"third"] {
            sends.push(payload, None).unwrap();
        }
        let mut errors = Vec::new();
        let sent = sends.send_joined(&sender, &Joining::default(), |index, error| {
            errors.push((index, error.kind()));
            ControlFlow::Continue(())
        });
        assert_eq!(errors, [(0, ErrorKind::ConnectionRefused)]);
        assert_eq!(sent, Sent { datagrams: 2, bytes: 10, failed: 1, left: 0 });
        let received = receive(&mut RecvBatch::new(), &receiver, 2);
        assert_eq!(received[0].payload, b"2nd..");
    }
}

#[test]
fn whoever_stops_at_a_refusal_has_it_and_all_behind_it_still() {
    for (loopback, joined) in LOOPBACKS.into_iter().zip([false, true]) {
        let refusing = refusing(loopback);
        let sender = connected(loopback, &refusing);
        send_all(&sender, [&b"anyone?"[..]], None);
        wait_for(&sender, PollFlags::ERR);
        let bytes = pattern(100, 0);
        let mut sends = SendBatch::new();
        sends.push(&b"first"[..], None).unwrap();
        sends.push(Payload::train(&bytes, 30), None).unwrap();
        let stop = |_, _| ControlFlow::Break(());
        let sent = match joined {
            true => sends.send_joined(&sender, &Joining::default(), stop),
            false => sends.send(&sender, stop),
        };
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

#[test]
fn sockets_are_told_to_let_datagrams_be_fragmented() {
    use rustix::net::sockopt::{self, Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery};

    let v4 = socket(LOOPBACKS[0]);
    allow_fragmentation(&v4, Domain::IPV4).unwrap();
    assert_eq!(sockopt::ip_mtu_discover(&v4).unwrap(), Ipv4PathMtuDiscovery::DONT);
    let v6 = socket(LOOPBACKS[1]);
    allow_fragmentation(&v6, Domain::IPV6).unwrap();
    assert_eq!(sockopt::ipv6_mtu_discover(&v6).unwrap(), Ipv6PathMtuDiscovery::DONT);
}

#[test]
fn options_are_for_ip_sockets() {
    let (unix, _) = UnixDatagram::pair().unwrap();
    for domain in [Domain::IPV4, Domain::IPV6, Domain::UNIX] {
        assert!(allow_fragmentation(&unix, domain).is_err());
        assert!(receive_original_destination(&unix, domain).is_err());
    }
    assert!(receive_trains(&unix).is_err());
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

#[test]
fn batches_go_where_their_worker_goes() {
    fn sendable<T: Send>() {}
    sendable::<RecvBatch>();
    sendable::<SendBatch<'_>>();
}
