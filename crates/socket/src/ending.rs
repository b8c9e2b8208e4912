//! Ends stale connected UDP sockets in batches, so that memory is bounded however many there are.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use sluice_sys::bpf;

use crate::census::{Translated, each};
use crate::destroy::{self, Done, EndedSockets};

/// The most sockets that are kept before they are ended.
const MOST: usize = 4096;

/// The most looks in a row. A look that has ended sockets is followed by another: the kernel remembers its
/// place in the list by a count, and clients close what was ended, so it may have skipped some.
const LOOKS: usize = 3;

/// Sockets by their network namespace.
type Sockets = BTreeMap<u64, Vec<Translated>>;

/// The same as [`Census::end_datagram_sockets`](crate::Census::end_datagram_sockets), for one map and the
/// program that lists its UDP sockets. Network namespaces have their names in `directories`.
pub(crate) fn end_listed(
    program: BorrowedFd<'_>,
    conns: BorrowedFd<'_>,
    directories: &[PathBuf],
    mut is_stale: impl FnMut(&Translated) -> bool,
) -> io::Result<EndedSockets> {
    // If there is no memory to wait, a socket that is being connected is left for the next time.
    let _ = bpf::wait_for_programs();
    let mut total = EndedSockets::default();
    for _ in 0..LOOKS {
        let mut look = Look::new(|sockets: &mut Sockets| end(program, conns, directories, sockets));
        each(program, conns, |socket| if is_stale(&socket) { look.add(socket) } else { Ok(()) })?;
        let found = look.finish()?;
        total = EndedSockets { ended: total.ended + found.ended, ..found };
        if found.ended == 0 {
            break;
        }
    }
    Ok(total)
}

/// Ends sockets. Those whose namespaces are not found stay in `sockets`.
fn end(
    program: BorrowedFd<'_>,
    conns: BorrowedFd<'_>,
    directories: &[PathBuf],
    sockets: &mut Sockets,
) -> io::Result<EndedSockets> {
    let wanted: BTreeSet<u64> = sockets.keys().copied().collect();
    let of = |namespace| sockets.remove(&namespace).unwrap_or_default();
    let Done { mut ended, absent } = destroy::in_namespaces(&wanted, directories, of)?;
    if !absent.is_empty() {
        // Sockets that were closed meanwhile are not listed any more.
        each(program, conns, |socket| {
            ended.missed += usize::from(absent.contains(&socket.connection()));
            Ok(())
        })?;
        ended.ended += absent.len().saturating_sub(ended.missed);
    }
    Ok(ended)
}

/// One pass over all sockets.
struct Look<E> {
    end: E,
    kept: Sockets,
    count: usize,
    /// Namespaces that were not found; looking again would mean another pass over every process.
    unreached: BTreeSet<u64>,
    ended: EndedSockets,
}

impl<E: FnMut(&mut Sockets) -> io::Result<EndedSockets>> Look<E> {
    fn new(end: E) -> Self {
        let (kept, unreached, ended) = Default::default();
        Self { end, kept, count: 0, unreached, ended }
    }

    /// Adds a socket that is to be ended.
    fn add(&mut self, socket: Translated) -> io::Result<()> {
        if self.unreached.contains(&socket.namespace) {
            self.ended.unreached += 1;
            return Ok(());
        }
        self.kept.entry(socket.namespace).or_default().push(socket);
        self.count += 1;
        if self.count == MOST {
            self.end_kept()?;
        }
        Ok(())
    }

    fn end_kept(&mut self) -> io::Result<()> {
        let mut sockets = std::mem::take(&mut self.kept);
        self.count = 0;
        if sockets.is_empty() {
            return Ok(());
        }
        let EndedSockets { ended, refused, unreached: _, failed, missed } = (self.end)(&mut sockets)?;
        self.ended.ended += ended;
        self.ended.refused += refused;
        self.ended.failed += failed;
        self.ended.missed += missed;
        self.ended.unreached += sockets.values().map(Vec::len).sum::<usize>();
        self.unreached.extend(sockets.into_keys());
        Ok(())
    }

    fn finish(mut self) -> io::Result<EndedSockets> {
        self.end_kept()?;
        Ok(self.ended)
    }
}

#[cfg(test)]
mod tests {

    use super::*;

    #[test]
    fn however_many_are_stale_no_more_than_some_are_kept() {
        const FOUND: u64 = 1;
        const HIDDEN: u64 = 2;
        let count = MOST as u64 * 5 / 2;
        let mut batches = Vec::new();
        let mut look = Look::new(|sockets: &mut Sockets| {
            batches.push(sockets.values().map(Vec::len).sum::<usize>());
            let ended = sockets.remove(&FOUND).unwrap_or_default().len();
            Ok(EndedSockets { ended, ..EndedSockets::default() })
        });
        for cookie in 0..count {
            look.add(Translated::for_tests(FOUND, cookie)).unwrap();
            look.add(Translated::for_tests(HIDDEN, cookie)).unwrap();
        }
        let all = MOST * 5 / 2;
        assert_eq!(
            look.finish().unwrap(),
            EndedSockets { ended: all, unreached: all, ..EndedSockets::default() }
        );
        // Once a namespace is known to be missing, its sockets are not kept.
        assert_eq!(batches, [MOST, MOST, MOST]);
    }
}
