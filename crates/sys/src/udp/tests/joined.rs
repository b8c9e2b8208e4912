//! Datagrams that are joined to trains.

use std::net::UdpSocket;

use rustix::event::PollFlags;

use super::*;

/// Sends joined payloads of these sizes to a socket that receives trains. Checks that all arrive complete and
/// in order, and returns how many datagrams each received train has.
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

    // Without checksums there are no trains: the kernel returns an error, once.
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
