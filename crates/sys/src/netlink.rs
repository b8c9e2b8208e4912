//! Options of netlink sockets.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Makes the kernel apply the filters in requests for dumps on a netlink socket (`NETLINK_GET_STRICT_CHK`,
/// Linux 4.20).
///
/// # Errors
/// The kernel does not support it.
pub fn filter_dumps(socket: impl AsFd) -> io::Result<()> {
    const GET_STRICT_CHK: libc::c_int = 12;
    #[expect(clippy::cast_possible_truncation, reason = "the size of an int")]
    const LENGTH: libc::socklen_t = size_of::<libc::c_int>() as libc::socklen_t;
    let on: libc::c_int = 1;
    // SAFETY: the kernel reads one int, which lives as long as the call.
    let outcome = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_NETLINK,
            GET_STRICT_CHK,
            (&raw const on).cast(),
            LENGTH,
        )
    };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
