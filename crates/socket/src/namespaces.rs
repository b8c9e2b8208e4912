//! Finds pods' network namespaces: those with a name in the container runtimes' directories. All others except
//! the node's belong to strangers, for example containers within a pod, and their sockets are left alone.
//!
//! A namespace is known by its cookie, which is never reused, and by its addresses, which tell whose it is. To
//! read either, the thread has to enter the namespace.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::ifaddrs::getifaddrs;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use sluice_socket_maps::meta_flags;
use sluice_sys::bpf::{self, Mapping};

use crate::attached::own_namespace;
use crate::census::set_flags;
use crate::destroy::enter;
use crate::error::passes;
use crate::rights::is_administrator;
use crate::shape::MOST_NAMESPACES;

/// Where container runtimes name pods' network namespaces: containerd and CRI-O, and Docker with cri-dockerd.
pub const NAMED: [&str; 2] = ["/run/netns", "/run/docker/netns"];

/// `NSFS_MAGIC` of linux/magic.h.
const NSFS: u64 = 0x6e73_6673;

/// What is known of namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// So many are pods'; sockets in others are left alone.
    Some {
        /// Namespaces in the map whose sockets are translated.
        known: usize,
        /// Namespaces for which the map has no room.
        left_out: usize,
        /// Namespaces whose sockets are not to be translated, or for which that is not known.
        kept_out: usize,
    },
    /// All count as pods', because no directory exists or none names a namespace: the container runtime has the
    /// names elsewhere.
    All,
}

/// What becomes of the sockets in a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// They are translated.
    Led,
    /// They are left alone, whether or not an agent lives.
    LeftAlone,
    /// It is not known whose namespace it is. An earlier fate stands, for example that of a deleted pod that is
    /// ending. A new namespace is left alone while an agent lives.
    Unknown,
}

/// Decides what becomes of the sockets in a namespace.
#[derive(Clone, Copy)]
pub struct Judge<'a> {
    /// Decides by the addresses in the namespace.
    pub fate: &'a (dyn Fn(&[IpAddr]) -> Fate + Sync),
    /// If no namespace has a name, whether none counts as a pod's; otherwise all do.
    pub is_binding: bool,
}

impl fmt::Debug for Judge<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Judge").field("is_binding", &self.is_binding).finish_non_exhaustive()
    }
}

/// The shortest time before a namespace is entered again to read its addresses, because no event tells that
/// they have changed. It is entered each time that it has been known for twice as long. Pods get their
/// addresses when they start.
const SOONEST: Duration = Duration::from_millis(10);

/// A namespace that has been known for this long is entered again after the same time, and only in a look that
/// has another reason: many namespaces by turns would keep the thread busy.
const SETTLED: Duration = Duration::from_secs(30);

/// A namespace with only local addresses is entered again at least this often until it has been known for
/// [`SETTLED`]: its network may still be set up.
const BARE: Duration = Duration::from_secs(1);

/// Identifies a namespace as long as it exists. The kernel reuses the inode of a namespace that is gone, but
/// the new one has another time.
type Identity = (u64, u64, i64, i64);

/// A namespace that was entered.
#[derive(Debug, Clone)]
struct Entered {
    cookie: u64,
    /// The addresses that it had then, if they count. A new namespace may have none yet.
    addresses: Vec<IpAddr>,
    /// When it was first entered.
    since: Instant,
    /// When it is to be entered again, if addresses count.
    due: Instant,
    /// Whether it has been known for [`SETTLED`]; then `due` is not waited for.
    is_settled: bool,
}

/// Tells the programs which namespaces are pods'.
#[derive(Debug)]
pub struct Namespaces {
    directories: Vec<PathBuf>,
    map: OwnedFd,
    meta: Mapping,
    /// The node's namespace, to come back to.
    own: File,
    own_cookie: u64,
    /// The map's contents: whether sockets in the namespace are translated.
    known: BTreeMap<u64, bool>,
    /// Namespaces that were entered.
    entered: HashMap<Identity, Entered>,
    /// The earliest time at which a namespace that is not settled is to be entered again.
    due: Option<Instant>,
    /// Watches the directories for names. Without it, only mounts are noticed.
    names: Option<OwnedFd>,
    /// Reports mounts and unmounts.
    mounts: File,
}

impl Namespaces {
    /// Finds namespaces by their names in these directories, for programs with these maps.
    pub(crate) fn new(directories: &[PathBuf], map: OwnedFd, meta: Mapping) -> io::Result<Self> {
        if directories.is_empty() {
            return Err(io::Error::other("no directory is named that has those of pods"));
        }
        if !is_administrator() {
            return Err(io::Error::other("to know those of pods takes CAP_SYS_ADMIN"));
        }
        // An earlier agent may have left some.
        let (keys, values) = bpf::lookup_all(map.as_fd())?;
        let cookies = keys.as_chunks().0.iter().map(|cookie| u64::from_ne_bytes(*cookie));
        Ok(Self {
            directories: directories.to_owned(),
            map,
            meta,
            own: File::open("/proc/thread-self/ns/net")?,
            own_cookie: own_namespace()?,
            known: cookies.zip(values.iter().map(|value| *value != 0)).collect(),
            entered: HashMap::new(),
            due: None,
            names: inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).ok(),
            mounts: File::open("/proc/thread-self/mountinfo")?,
        })
    }

    /// Tells the programs which namespaces have a name now; with a judge, those that it knows, and what becomes
    /// of them. The thread may enter any of them meanwhile, and has to see the node's mounts.
    ///
    /// # Errors
    /// The kernel is out of memory or file descriptors; what was known stands.
    pub fn look(&mut self, judge: Option<Judge<'_>>) -> io::Result<Known> {
        // Before the names are read: changes that come meanwhile are for the next look.
        self.watch();
        let named = self.named(judge)?;
        if named.is_empty() && !judge.is_some_and(|judge| judge.is_binding) {
            set_flags(&self.meta, meta_flags::KNOWN_ONLY, 0);
            return Ok(Known::All);
        }
        let wanted = named.iter().filter_map(|(cookie, fate)| match fate {
            Fate::Led => Some((*cookie, true)),
            Fate::LeftAlone => Some((*cookie, false)),
            Fate::Unknown => self.known.get_key_value(cookie).map(|(cookie, was)| (*cookie, *was)),
        });
        let wanted: BTreeMap<u64, bool> = wanted.collect();
        let kept_out = named.len() - wanted.values().filter(|is_led| **is_led).count();
        let Change { gone, new, left_out } = Change::between(&self.known, &wanted, MOST_NAMESPACES as usize);
        bpf::delete_batch(self.map.as_fd(), bytes(gone.iter()).as_flattened(), gone.len())?;
        self.known.retain(|cookie, _| !gone.contains(cookie));
        let values: Vec<u8> = new.iter().map(|(_, is_led)| u8::from(*is_led)).collect();
        let keys = bytes(new.iter().map(|(cookie, _)| cookie));
        bpf::update_batch(self.map.as_fd(), keys.as_flattened(), &values, new.len())?;
        self.known.extend(new);
        set_flags(&self.meta, meta_flags::KNOWN_ONLY, meta_flags::KNOWN_ONLY);
        let known = self.known.values().filter(|is_led| **is_led).count();
        Ok(Known::Some { known, left_out, kept_out })
    }

    /// Waits until another look may find something new, until `stop` or one of `news` is readable, or this
    /// long. Returns whether `stop` is readable.
    ///
    /// # Errors
    /// The kernel is out of memory.
    pub fn wait(&self, stop: BorrowedFd<'_>, news: &[BorrowedFd<'_>], longest: Duration) -> io::Result<bool> {
        let until_due = self.due.map_or(longest, |due| due.saturating_duration_since(Instant::now()));
        let longest = Timespec::try_from(longest.min(until_due)).map_err(io::Error::other)?;
        let mut polled = vec![
            PollFd::from_borrowed_fd(stop, PollFlags::IN),
            // The file is always readable; a change is reported as urgent.
            PollFd::from_borrowed_fd(self.mounts.as_fd(), PollFlags::PRI),
        ];
        polled.extend(self.names.as_ref().map(|names| PollFd::new(names, PollFlags::IN)));
        polled.extend(news.iter().map(|news| PollFd::from_borrowed_fd(*news, PollFlags::IN)));
        match poll(&mut polled, Some(&longest)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(polled.first().is_some_and(|stop| !stop.revents().is_empty()))
    }

    fn watch(&self) {
        let Some(names) = &self.names else { return };
        let mut piece = [0; 4096];
        while rustix::io::read(names, &mut piece).is_ok_and(|length| length > 0) {}
        let changes = WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::MOVE;
        let flags = changes | WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF | WatchFlags::ONLYDIR;
        for directory in &self.directories {
            // A directory is watched only once. One that does not exist yet is tried again.
            let _ = inotify::add_watch(names, directory, flags);
        }
    }

    /// The cookies of all named namespaces except the node's own, and what becomes of their sockets.
    fn named(&mut self, judge: Option<Judge<'_>>) -> io::Result<BTreeMap<u64, Fate>> {
        // If this fails, the caller decides when to try again.
        self.due = None;
        let mut paths = Vec::new();
        for directory in &self.directories {
            match named_in(directory) {
                Ok(named) => paths.extend(named),
                // Otherwise, what was known would be forgotten.
                Err(error) if passes(&error) => return Err(error),
                Err(_) => {}
            }
        }
        let fate = |addresses: &[IpAddr]| judge.map_or(Fate::Led, |judge| (judge.fate)(addresses));
        let now = Instant::now();
        let mut here = HashMap::new();
        let (mut has_moved, mut failed) = (false, None);
        for path in paths {
            let Ok(seen) = fs::metadata(&path) else { continue };
            let before = self.entered.get(&identity(&seen));
            // A namespace of unknown fate is entered again, because its addresses may tell whose it is.
            if let Some(entered) = before
                && (judge.is_none()
                    || entered.cookie == self.own_cookie
                    || now < entered.due && fate(&entered.addresses) != Fate::Unknown)
            {
                here.insert(identity(&seen), entered.clone());
                continue;
            }
            has_moved = true;
            let since = before.map_or(now, |entered| entered.since);
            let (seen, cookie, addresses) = match (enter_at(&path, judge.is_some()), before) {
                (Ok(entered), _) => entered,
                (Err(error), _) if passes(&error) => {
                    failed = Some(error);
                    continue;
                }
                // If it is gone, the next look sees that.
                (Err(_), Some(before)) => (identity(&seen), before.cookie, before.addresses.clone()),
                // It is no network namespace, or it is gone.
                (Err(_), None) => continue,
            };
            let pause = pause(now.duration_since(since), &addresses);
            let (due, is_settled) = (now + pause, pause >= SETTLED);
            here.insert(seen, Entered { cookie, addresses, since, due, is_settled });
        }
        if has_moved {
            // Otherwise this thread would keep a pod's namespace alive.
            enter(&self.own)?;
        }
        if let Some(error) = failed {
            return Err(error);
        }
        let others = || here.values().filter(|entered| entered.cookie != self.own_cookie);
        let named = others().map(|entered| (entered.cookie, fate(&entered.addresses))).collect();
        let waited_for = others().filter(|entered| judge.is_some() && !entered.is_settled);
        self.due = waited_for.map(|entered| entered.due).min();
        self.entered = here;
        Ok(named)
    }
}

/// Moves this thread to the namespace with this name.
fn enter_at(path: &Path, with_addresses: bool) -> io::Result<(Identity, u64, Vec<IpAddr>)> {
    let namespace = File::open(path)?;
    let seen = identity(&namespace.metadata()?);
    let cookie = enter(&namespace)?;
    let addresses = if with_addresses { addresses_here()? } else { Vec::new() };
    Ok((seen, cookie, addresses))
}

/// How long to wait before a namespace is entered again that has been known for this long and has these
/// addresses.
fn pause(known_for: Duration, addresses: &[IpAddr]) -> Duration {
    let is_bare = addresses.iter().all(is_local) && known_for < SETTLED;
    known_for.clamp(SOONEST, if is_bare { BARE } else { SETTLED })
}

/// The addresses in this thread's network namespace.
fn addresses_here() -> io::Result<Vec<IpAddr>> {
    let addresses = getifaddrs()?.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|of| IpAddr::from(of.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|of| IpAddr::from(of.ip())))
    });
    Ok(addresses.collect())
}

/// Whether the address is loopback or link-local: nobody beyond the link can answer to it, and each namespace
/// may have the same.
pub fn is_local(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unicast_link_local(),
    }
}

fn identity(of: &fs::Metadata) -> Identity {
    (of.dev(), of.ino(), of.ctime(), of.ctime_nsec())
}

/// The names of namespaces in a directory. A runtime first makes a file, and mounts the namespace there a
/// moment later; until then the name does not count.
pub(crate) fn named_in(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let paths = fs::read_dir(directory)?.filter_map(|entry| Some(entry.ok()?.path()));
    Ok(paths.filter(|path| is_namespace(path)).collect())
}

fn is_namespace(path: &Path) -> bool {
    #[allow(clippy::unnecessary_cast, reason = "the type is another one on other targets")]
    rustix::fs::statfs(path).is_ok_and(|found| found.f_type as u64 & 0xffff_ffff == NSFS)
}

fn bytes<'a>(cookies: impl Iterator<Item = &'a u64>) -> Vec<[u8; 8]> {
    cookies.map(|cookie| cookie.to_ne_bytes()).collect()
}

/// The changes to make to the map.
#[derive(Debug, PartialEq, Eq)]
struct Change {
    gone: BTreeSet<u64>,
    /// New entries, and changed ones.
    new: Vec<(u64, bool)>,
    left_out: usize,
}

impl Change {
    fn between(known: &BTreeMap<u64, bool>, wanted: &BTreeMap<u64, bool>, room: usize) -> Self {
        let gone: BTreeSet<u64> =
            known.keys().copied().filter(|cookie| !wanted.contains_key(cookie)).collect();
        let other = wanted.iter().map(|(cookie, is_led)| (*cookie, *is_led));
        let (mut new, changed): (Vec<_>, Vec<_>) = other
            .filter(|(cookie, is_led)| known.get(cookie) != Some(is_led))
            .partition(|(cookie, _)| !known.contains_key(cookie));
        let room = (room + gone.len()).saturating_sub(known.len());
        let left_out = new.len().saturating_sub(room);
        new.truncate(room);
        new.extend(changed);
        Self { gone, new, left_out }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_known_stays_so_and_what_has_no_room_is_left_out() {
        let change = |known: &[u64], named: &[u64]| {
            let [known, named] = [known, named].map(|all| all.iter().map(|cookie| (*cookie, true)).collect());
            let Change { gone, new, left_out } = Change::between(&known, &named, 3);
            (Vec::from_iter(gone), new.into_iter().map(|(cookie, _)| cookie).collect(), left_out)
        };
        assert_eq!(change(&[], &[1, 2]), (vec![], vec![1, 2], 0));
        assert_eq!(change(&[1, 2], &[2, 3]), (vec![1], vec![3], 0));
        assert_eq!(change(&[7, 8], &[1, 2, 7, 8]), (vec![], vec![1], 1));
        assert_eq!(change(&[7, 8, 9], &[1, 8, 9]), (vec![7], vec![1], 0));
        assert_eq!(change(&[1, 2, 3], &[1, 2, 3, 4, 5]), (vec![], vec![], 2));
        // More than there is room for: another version may have had more room.
        assert_eq!(change(&[1, 2, 3, 4], &[1, 2, 3, 4, 5]), (vec![], vec![], 1));
    }

    #[test]
    fn what_becomes_of_one_may_change_without_any_room() {
        let known = BTreeMap::from([(1, true), (2, false), (3, true)]);
        let wanted = BTreeMap::from([(1, false), (2, true), (3, true), (4, true)]);
        let Change { gone, new, left_out } = Change::between(&known, &wanted, 3);
        assert_eq!((gone.len(), new, left_out), (0, vec![(1, false), (2, true)], 1));
    }

    #[test]
    fn a_namespace_is_entered_again_ever_more_rarely() {
        let [bare, pod] = [&["127.0.0.1", "::1", "fe80::1"][..], &["127.0.0.1", "fd00::1"]]
            .map(|all| all.iter().map(|ip| ip.parse().unwrap()).collect::<Vec<IpAddr>>());
        let seconds =
            |after: u64, addresses: &[IpAddr]| pause(Duration::from_secs(after), addresses).as_secs();
        assert_eq!([pause(Duration::ZERO, &pod), pause(Duration::ZERO, &[])], [SOONEST; 2]);
        assert_eq!([1, 8, 29, 30, 3_600].map(|after| seconds(after, &pod)), [1, 8, 29, 30, 30]);
        assert_eq!([1, 8, 29, 30, 3_600].map(|after| seconds(after, &bare)), [1, 1, 1, 30, 30]);
    }

    #[test]
    fn addresses_are_those_of_the_network_that_the_thread_is_in() {
        assert!(addresses_here().unwrap().contains(&"127.0.0.1".parse().unwrap()));
    }
}
