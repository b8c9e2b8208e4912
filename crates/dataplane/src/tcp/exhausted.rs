//! The endpoints towards which no local port was left a moment ago: finding that out again takes dozens of
//! sockets, or a walk of the kernel over all ports. Pure; runs on the worker.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::socket::Search;

/// How long a path is assumed to stay exhausted. Ports that become free meanwhile are used once this time is
/// over.
const KEPT: Duration = Duration::from_secs(1);

/// The maximum number of paths; the oldest is dropped. Exhausting a path takes thousands of connections, and
/// so of descriptors: a node runs out of those before it has this many paths.
const LIMIT: usize = 64;

/// Connections from one address to one endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Path {
    /// The client's address if the endpoint sees it; `None` for this node's.
    pub(crate) from: Option<IpAddr>,
    pub(crate) endpoint: SocketAddr,
}

/// The paths of one worker that have no port left.
#[derive(Debug, Default)]
pub(crate) struct Exhausted {
    /// With the time at which each path is tried again; the soonest is first.
    paths: VecDeque<(Path, Instant)>,
}

impl Exhausted {
    /// Notes that no port was found for a path. Returns whether the path is now taken to be exhausted. For
    /// the node's own ports it is, because the kernel tries all of them; for a client's ports only if the
    /// search was thorough.
    pub(crate) fn found_none(&mut self, path: Path, search: Search, now: Instant) -> bool {
        let is_exhausted = path.from.is_none() || search == Search::Thorough;
        if is_exhausted {
            self.add(path, now);
        }
        is_exhausted
    }

    fn add(&mut self, path: Path, now: Instant) {
        if self.paths.len() == LIMIT {
            self.paths.pop_front();
        }
        self.paths.push_back((path, now + KEPT));
    }

    /// Whether a path is known to be exhausted.
    pub(crate) fn has(&mut self, path: Path, now: Instant) -> bool {
        while self.paths.front().is_some_and(|(_, until)| *until <= now) {
            self.paths.pop_front();
        }
        self.paths.iter().any(|(exhausted, _)| *exhausted == path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(client: u8, endpoint: u8) -> Path {
        let endpoint = SocketAddr::from(([10, 244, 2, endpoint], 8_080));
        Path { from: (client > 0).then_some([10, 244, 1, client].into()), endpoint }
    }

    #[test]
    fn a_path_is_tried_again_after_a_while_and_others_all_the_time() {
        let (start, mut exhausted) = (Instant::now(), Exhausted::default());
        exhausted.add(path(1, 1), start);
        exhausted.add(path(0, 2), start + KEPT / 2);
        let at = |exhausted: &mut Exhausted, now| {
            [path(1, 1), path(0, 2), path(1, 2), path(0, 1)].map(|path| exhausted.has(path, now))
        };
        assert_eq!(at(&mut exhausted, start + KEPT / 2), [true, true, false, false]);
        assert_eq!(at(&mut exhausted, start + KEPT), [false, true, false, false]);
        assert_eq!(at(&mut exhausted, start + KEPT * 2), [false; 4]);
        assert!(exhausted.paths.is_empty());
    }

    #[test]
    fn a_clients_ports_are_exhausted_only_if_they_were_looked_for_thoroughly() {
        let (now, mut exhausted) = (Instant::now(), Exhausted::default());
        for (path, search, is_exhausted) in [
            (path(1, 1), Search::Short, false),
            (path(1, 1), Search::Thorough, true),
            (path(0, 1), Search::Short, true),
        ] {
            assert_eq!(exhausted.found_none(path, search, now), is_exhausted, "{path:?}, {search:?}");
            assert_eq!(exhausted.has(path, now), is_exhausted, "{path:?}, {search:?}");
        }
    }

    #[test]
    fn no_more_are_kept_than_the_bound() {
        let (now, mut exhausted) = (Instant::now(), Exhausted::default());
        let paths: Vec<Path> = (1..=200).map(|client| path(client, 1)).collect();
        paths.iter().for_each(|path| exhausted.add(*path, now));
        assert_eq!(exhausted.paths.len(), LIMIT);
        assert!(exhausted.has(paths[199], now) && !exhausted.has(paths[0], now));
    }
}
