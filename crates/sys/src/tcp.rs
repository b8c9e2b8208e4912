//! What `tcp(7)` offers beyond socket options.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd};

/// An interface that does not exist: the kernel counts them up from 1.
static NO_INTERFACE: libc::c_int = libc::c_int::MAX;

/// Bytes that were written to a TCP socket and that the peer has not acknowledged: not sent yet, or
/// sent and on their way (`SIOCOUTQ`, tcp(7)).
///
/// # Errors
/// The descriptor is no socket, or one that listens.
pub fn unacknowledged_bytes(socket: BorrowedFd<'_>) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: SIOCOUTQ (the same number as TIOCOUTQ) writes one int to the address it is given, which
    // outlives the call; the descriptor is borrowed, so it is open.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(usize::try_from(bytes).unwrap_or(0))
}

/// Has the kernel refuse new connections to a socket that listens, and lets those that have begun be made and
/// accepted. Closing a socket resets what waits in its queue; so one that is to lose nothing first refuses, then
/// accepts what is left, and is closed once nothing comes any more.
///
/// The socket is bound to an interface that does not exist (`SO_BINDTOIFINDEX`, socket(7)): no SYN finds it any
/// more, while handshakes under way are found by their own addresses. Needs no privileges from Linux 5.7 on. A
/// group of sockets that share the address (`SO_REUSEPORT`) refuses once every one of them does.
///
/// # Errors
/// The socket is bound to an interface already, and CAP_NET_RAW is missing.
pub fn refuse_new_connections(listener: BorrowedFd<'_>) -> io::Result<()> {
    // An int has 4 bytes.
    #[expect(clippy::cast_possible_truncation, reason = "the size of an int")]
    const LENGTH: libc::socklen_t = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the kernel reads one int from the address it is given, which outlives the call; the descriptor is
    // borrowed, so it is open.
    let result = unsafe {
        libc::setsockopt(
            listener.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_BINDTOIFINDEX,
            (&raw const NO_INTERFACE).cast(),
            LENGTH,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_reader_that_does_not_read_leaves_bytes_unacknowledged() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut writer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut reader, _) = listener.accept().unwrap();
        assert_eq!(unacknowledged_bytes(writer.as_fd()).unwrap(), 0);
        writer.set_nonblocking(true).unwrap();
        while writer.write(&[0; 65_536]).is_ok() {}
        assert!(unacknowledged_bytes(writer.as_fd()).unwrap() > 0);

        reader.set_nonblocking(true).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while unacknowledged_bytes(writer.as_fd()).unwrap() > 0 {
            assert!(Instant::now() < deadline, "the reader has read it all");
            while reader.read(&mut [0; 65_536]).is_ok() {}
        }
    }

    #[test]
    fn what_is_no_socket_is_an_error() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(unacknowledged_bytes(file.as_fd()).is_err());
    }

    #[test]
    fn a_listener_that_refuses_loses_nothing_that_it_has() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut client = TcpStream::connect(address).unwrap();
        refuse_new_connections(listener.as_fd()).unwrap();
        assert_eq!(TcpStream::connect(address).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        let (mut accepted, _) = listener.accept().unwrap();
        drop(listener);
        client.write_all(b"a").unwrap();
        let mut byte = [0; 1];
        accepted.read_exact(&mut byte).unwrap();
        accepted.write_all(&byte).unwrap();
        client.read_exact(&mut byte).unwrap();
    }
}
