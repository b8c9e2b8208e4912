//! What `tcp(7)` offers beyond socket options.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

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
}
