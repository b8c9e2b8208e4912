//! Whether the failure to open a socket towards an endpoint is this node's or the endpoint's. Pure.

use std::io;

use rustix::io::Errno;

/// Whether an error of socket(2), bind(2), connect(2) or epoll_ctl(2) is about this node: it is out of
/// descriptors, memory or ports, or its own rules reject the connection. It says nothing about the endpoint
/// and must not be counted against it.
///
/// Not for errors that a socket reports later (`SO_ERROR`): there EACCES, for example, results from an ICMPv6
/// message of a host on the path.
pub(crate) fn is_of_this_node(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw_os_error),
        Some(
            Errno::ACCESS
                | Errno::PERM
                | Errno::ADDRNOTAVAIL
                | Errno::ADDRINUSE
                | Errno::AGAIN
                | Errno::MFILE
                | Errno::NFILE
                | Errno::NOBUFS
                | Errno::NOMEM
                | Errno::NOSPC
        )
    )
}

/// Whether an error of connect(2) or sendmsg(2) itself says that this node has no way to the endpoint from
/// the socket's address: there is no route (ENETUNREACH), or the route rejects it on purpose (EHOSTUNREACH,
/// EINVAL). It says nothing about the endpoint.
///
/// Not for errors that a socket reports later: those come from another host on the path.
pub(crate) fn is_about_the_route(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw_os_error),
        Some(Errno::NETUNREACH | Errno::HOSTUNREACH | Errno::INVAL)
    )
}

/// Whether an error of bind(2) says that a client's port is not available, so that another one has to be
/// used: the port is in use, or it is below `net.ipv4.ip_unprivileged_port_start` and CAP_NET_BIND_SERVICE is
/// missing.
pub(crate) fn is_about_the_port(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw_os_error),
        Some(Errno::ADDRINUSE | Errno::ADDRNOTAVAIL | Errno::ACCESS)
    )
}

/// Whether an error of connect(2) says that the local port is in use towards this destination. EACCES is not
/// such an error here: it means that a route or a rule of this node rejects the destination.
pub(crate) fn is_taken_towards_it(error: &io::Error) -> bool {
    matches!(error.raw_os_error().map(Errno::from_raw_os_error), Some(Errno::ADDRINUSE | Errno::ADDRNOTAVAIL))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_node_lacks_or_forbids_is_not_the_endpoints_failure() {
        let is_ours = |errno: Errno| is_of_this_node(&errno.into());
        for errno in [Errno::ACCESS, Errno::PERM, Errno::ADDRNOTAVAIL, Errno::ADDRINUSE, Errno::AGAIN] {
            assert!(is_ours(errno), "{errno}");
        }
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::NOSPC] {
            assert!(is_ours(errno), "{errno}");
        }
        for errno in [Errno::CONNREFUSED, Errno::HOSTUNREACH, Errno::NETUNREACH, Errno::TIMEDOUT] {
            assert!(!is_ours(errno), "{errno}");
        }
        assert!(!is_of_this_node(&io::Error::other("no errno")));
    }

    #[test]
    fn another_port_helps_only_where_the_port_is_the_trouble() {
        let helps = |errno: Errno| is_about_the_port(&errno.into());
        assert!(helps(Errno::ADDRINUSE) && helps(Errno::ADDRNOTAVAIL) && helps(Errno::ACCESS));
        assert!(!helps(Errno::PERM) && !helps(Errno::NOBUFS) && !helps(Errno::HOSTUNREACH));
        let helps_to_connect = |errno: Errno| is_taken_towards_it(&errno.into());
        assert!(helps_to_connect(Errno::ADDRINUSE) && helps_to_connect(Errno::ADDRNOTAVAIL));
        assert!(!helps_to_connect(Errno::ACCESS) && !helps_to_connect(Errno::PERM));
    }
}
