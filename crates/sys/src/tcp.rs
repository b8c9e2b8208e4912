//! TCP operations beyond the usual socket options (`tcp(7)`).

use std::ffi::c_int;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `SIOCATMARK` of asm-generic/sockios.h, which libc does not have for every target.
const SIOCATMARK: libc::Ioctl = 0x8905;

/// An interface index that does not exist: the kernel assigns them upwards from 1.
static NO_INTERFACE: c_int = c_int::MAX;

/// Number of bytes written to a TCP socket that the peer has not acknowledged: unsent or in flight
/// (`SIOCOUTQ`, tcp(7)).
///
/// # Errors
/// The descriptor is not a socket, or a listening one.
pub fn unacknowledged_bytes(socket: BorrowedFd<'_>) -> io::Result<usize> {
    // SIOCOUTQ has the same number as TIOCOUTQ.
    ask(socket, libc::TIOCOUTQ).map(|bytes| usize::try_from(bytes).unwrap_or(0))
}

/// Whether the next byte to be read is the urgent one (`SIOCATMARK`, sockatmark(3)). With `SO_OOBINLINE` it
/// is read like any other.
///
/// # Errors
/// The descriptor is not a TCP socket.
pub fn is_at_urgent_mark(socket: BorrowedFd<'_>) -> io::Result<bool> {
    ask(socket, SIOCATMARK).map(|answer| answer != 0)
}

/// The result of an ioctl that writes an int; `request` must be such an ioctl.
fn ask(socket: BorrowedFd<'_>, request: libc::Ioctl) -> io::Result<c_int> {
    let mut answer: c_int = 0;
    // SAFETY: both requests of this module write one int to the address they are given, which outlives the call;
    // the descriptor is borrowed, so it is open.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), request, &raw mut answer) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

/// Makes the kernel refuse new connections to a listening socket; handshakes that have begun can be completed
/// and accepted. Closing a socket resets the connections in its queue. To lose none, first refuse new ones,
/// then accept what is left, and close the socket when no more arrive.
///
/// The socket is bound to an interface that does not exist (`SO_BINDTOIFINDEX`, socket(7)): SYNs do not find
/// it any more, but handshakes in progress are found by their own addresses. Needs no privileges from Linux
/// 5.7 on. A group of sockets that share the address (`SO_REUSEPORT`) refuses once all of them do.
///
/// # Errors
/// The socket is already bound to an interface, and CAP_NET_RAW is missing.
pub fn refuse_new_connections(listener: BorrowedFd<'_>) -> io::Result<()> {
    // An int has 4 bytes.
    #[expect(clippy::cast_possible_truncation, reason = "the size of an int")]
    const LENGTH: libc::socklen_t = size_of::<c_int>() as libc::socklen_t;
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

    use socket2::SockRef;

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
    fn a_read_stops_before_the_urgent_byte_and_the_mark_is_seen() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let writer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut reader, _) = listener.accept().unwrap();
        SockRef::from(&reader).set_out_of_band_inline(true).unwrap();
        SockRef::from(&writer).send(b"ab").unwrap();
        SockRef::from(&writer).send_out_of_band(b"!").unwrap();
        SockRef::from(&writer).send(b"cd").unwrap();
        let mut buffer = [0; 16];
        reader.read_exact(&mut buffer[..2]).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while !is_at_urgent_mark(reader.as_fd()).unwrap() {
            assert!(Instant::now() < deadline, "the urgent byte has arrived");
        }
        reader.read_exact(&mut buffer[..1]).unwrap();
        assert_eq!(&buffer[..1], b"!");
        assert!(!is_at_urgent_mark(reader.as_fd()).unwrap());
    }

    #[test]
    fn what_is_no_socket_is_an_error() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(unacknowledged_bytes(file.as_fd()).is_err());
        assert!(is_at_urgent_mark(file.as_fd()).is_err());
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
