//! From SIGTERM to the end in TPROXY mode: until when an agent goes on serving.
//!
//! The kernel hands connections over to whoever has the doors, and to nobody while they are closed: a SYN is
//! then lost without an answer. So an agent that is to end keeps them open until a successor has them, too, or
//! until ending cuts off nobody.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use sluice_capture::tproxy::Ports;

use crate::proxy::Observer;

/// How often it is looked.
const LOOK: Duration = Duration::from_millis(100);

/// How long the last connections may take where there were none a moment ago. Longer than endpoints have to
/// answer the last datagrams.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// How `/proc/net/tcp` spells TCP_LISTEN.
const LISTEN: &str = "0A";

/// Why an agent need not serve any longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Another process listens on all doors.
    Successor,
    /// No TCP session is left.
    Idle,
    /// The grace period is over.
    Late,
    /// The data plane is not whole any more.
    Broken,
}

/// What there is at one time.
#[derive(Debug, Clone, Copy)]
struct Sight {
    is_alive: bool,
    has_successor: bool,
    sessions: u64,
    left: Duration,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Successor => "another agent takes new connections",
            Self::Idle => "no connection is open",
            Self::Late => "the grace period is over",
            Self::Broken => "the data plane has broken down",
        })
    }
}

impl End {
    /// How long connections may still take to finish, of what is left of the grace period.
    pub(crate) fn grace(self, left: Duration) -> Duration {
        match self {
            Self::Successor => left,
            Self::Idle => left.min(LAST_ANSWERS),
            Self::Late | Self::Broken => Duration::ZERO,
        }
    }
}

/// Returns when there is a reason to end, at the deadline at the latest.
pub(crate) async fn wait(observer: &Observer, ports: Ports, deadline: Instant) -> End {
    let mut look = tokio::time::interval(LOOK);
    loop {
        look.tick().await;
        let sight = Sight {
            is_alive: observer.is_alive(),
            has_successor: is_shared(ports, observer.workers()),
            sessions: observer.stats().tcp_active,
            left: deadline.saturating_duration_since(Instant::now()),
        };
        if let Some(end) = decide(sight) {
            return end;
        }
    }
}

fn decide(sight: Sight) -> Option<End> {
    if !sight.is_alive {
        Some(End::Broken)
    } else if sight.has_successor {
        Some(End::Successor)
    } else if sight.sessions == 0 {
        Some(End::Idle)
    } else if sight.left.is_zero() {
        Some(End::Late)
    } else {
        None
    }
}

/// Whether others listen on the doors, too. Each of our workers has a socket of its own on each.
fn is_shared(ports: Ports, workers: usize) -> bool {
    // IPv6 may be missing on this machine; where it is not, its doors are opened along with these.
    let doors = [ports.outside, ports.local_pod, ports.node];
    match File::open("/proc/thread-self/net/tcp").and_then(|table| listeners(BufReader::new(table), doors)) {
        Ok(listeners) => listeners.iter().all(|number| *number > workers),
        Err(error) => {
            // Then the grace period ends it.
            tracing::debug!("cannot look for another agent: {error}");
            false
        }
    }
}

/// How many sockets listen on each of these ports of 127.0.0.1, by the text of `/proc/net/tcp`. The kernel lists
/// sockets that listen before all others, of which there may be very many.
fn listeners<const N: usize>(table: impl BufRead, ports: [u16; N]) -> io::Result<[usize; N]> {
    // An address is printed as a number of this machine's, a port as a number.
    let address = u32::from_ne_bytes(Ipv4Addr::LOCALHOST.octets());
    let doors = ports.map(|port| format!("{address:08X}:{port:04X}"));
    let mut numbers = [0; N];
    for line in table.lines().skip(1) {
        let line = line?;
        let mut words = line.split_whitespace().skip(1);
        let (local, state) = (words.next(), words.nth(1));
        if state != Some(LISTEN) {
            break;
        }
        for (door, number) in doors.iter().zip(&mut numbers) {
            *number += usize::from(local == Some(door.as_str()));
        }
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn when_and_why_it_ends() {
        #[rustfmt::skip]
        let cases = [
            ("connections are open",         false, 3, 20, None),
            ("a successor is here",          true,  3, 20, Some((End::Successor, 20 * SECOND))),
            ("a successor, and nobody left", true,  0, 20, Some((End::Successor, 20 * SECOND))),
            ("nobody is left",               false, 0, 20, Some((End::Idle, LAST_ANSWERS))),
            ("it is late",                   false, 3, 0,  Some((End::Late, Duration::ZERO))),
            ("no grace, nobody there",       false, 0, 0,  Some((End::Idle, Duration::ZERO))),
        ];
        for (name, has_successor, sessions, left, wanted) in cases {
            let left = left * SECOND;
            let sight = Sight { is_alive: true, has_successor, sessions, left };
            let end = decide(sight);
            assert_eq!(end.map(|end| (end, end.grace(left))), wanted, "{name}");
            assert_eq!(decide(Sight { is_alive: false, ..sight }), Some(End::Broken), "{name}");
        }
    }

    #[test]
    fn sockets_that_listen_are_counted_and_no_others() {
        let address = format!("{:08X}", u32::from_ne_bytes([127, 0, 0, 1]));
        let table = format!(
            "  sl  local_address rem_address   st tx_queue rx_queue\n   \
             0: {address}:2819 00000000:0000 0A 00000000:00000000\n   \
             1: 00000000:2819 00000000:0000 0A 00000000:00000000\n   \
             2: {address}:2819 00000000:0000 0A 00000000:00000000\n   \
             3: {address}:281B 00000000:0000 0A 00000000:00000000\n   \
             4: {address}:2819 {address}:D2F0 01 00000000:00000000\n"
        );
        assert_eq!(listeners(table.as_bytes(), [10_265, 10_266, 10_267]).unwrap(), [2, 0, 1]);
        assert_eq!(listeners(&b""[..], [10_265]).unwrap(), [0]);
    }

    #[test]
    fn the_kernel_lists_our_sockets() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let ports = Ports { outside: port, local_pod: port, node: port };
        assert!(is_shared(ports, 0));
        assert!(!is_shared(ports, 1));
    }
}
