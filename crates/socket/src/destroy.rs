//! Ends sockets of other processes in their network namespaces.

use std::collections::{BTreeSet, HashSet};
use std::fs::{self, File};
use std::io;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::thread;

use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use sluice_socket_maps::protocol;
use sluice_sys::bpf;

use crate::attached::own_namespace;
use crate::census::Translated;
use crate::diag::Diag;
use crate::rights::is_administrator;

/// The results of ending sockets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EndedSockets {
    /// Ended, or closed before.
    pub ended: usize,
    /// Not ended, because the kernel refuses: it takes CAP_NET_ADMIN and CONFIG_INET_DIAG_DESTROY.
    pub refused: usize,
    /// Not ended, because their network namespace was not found: no visible process is in it, and it has no
    /// name.
    pub unreached: usize,
    /// Not ended, because the kernel was short of something or did not answer: it may work the next time.
    pub failed: usize,
    /// Not ended, because the kernel does not find them by their addresses and interfaces. These may have
    /// changed meanwhile, or belong to other sockets too: it may work the next time.
    pub missed: usize,
}

impl EndedSockets {
    /// Why some were not ended, and what helps, for people.
    pub fn trouble(&self) -> Option<String> {
        let Self { ended: _, refused, unreached, failed, missed } = *self;
        let mut troubles = Vec::new();
        if unreached > 0 {
            troubles.push(format!(
                "{unreached} are in network namespaces in which no process is that is seen from here (a pod needs the \
                 node's /run/netns, or where its container runtime has them)"
            ));
        }
        if refused > 0 {
            troubles.push(format!(
                "the kernel ends {refused} of them not (it takes CAP_NET_ADMIN, CAP_SYS_ADMIN and a kernel with \
                 CONFIG_INET_DIAG_DESTROY)"
            ));
        }
        if failed > 0 {
            troubles.push(format!("the kernel did not get to ending {failed} of them"));
        }
        if missed > 0 {
            troubles.push(format!("the kernel does not find {missed} of them by their addresses"));
        }
        (!troubles.is_empty()).then(|| troubles.join("; "))
    }
}

/// The results of requests.
#[derive(Debug, Default)]
pub(crate) struct Done {
    pub(crate) ended: EndedSockets,
    /// Sockets that the kernel did not find; not counted in `ended`.
    pub(crate) absent: HashSet<Connection>,
}

/// Identifies one connect of a socket: its cookie and the time. Connecting again makes another one.
pub(crate) type Connection = (u64, u64);

/// Which connected UDP sockets this process can end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endable {
    /// Those of its own network namespace: the kernel has `CONFIG_INET_DIAG_DESTROY`.
    pub of_node: bool,
    /// Those of other namespaces: it may also enter these.
    pub of_pods: bool,
}

impl Endable {
    /// Tries it on a socket of its own.
    pub fn probe() -> Self {
        let of_node = end_own().is_ok();
        Self { of_node, of_pods: of_node && is_administrator() }
    }
}

fn end_own() -> io::Result<()> {
    let socket = UdpSocket::bind("127.0.0.1:0").or_else(|_| UdpSocket::bind("[::1]:0"))?;
    // The socket is connected to itself: nothing is sent.
    let local = socket.local_addr()?;
    socket.connect(local)?;
    let (namespace, cookie) =
        (bpf::netns_cookie(socket.as_fd())?, rustix::net::sockopt::socket_cookie(&socket)?);
    Diag::open()?.end(&Translated {
        namespace,
        cookie,
        protocol: protocol::UDP,
        is_v6: local.is_ipv6(),
        local,
        device: 0,
        service: local,
        endpoint: local,
        id: 0,
        incarnation: 0,
        since_ns: 0,
    })
}

/// Ends the sockets that `sockets` returns for each wanted namespace. Namespaces are found by the processes in
/// them, or by their names in one of these directories.
///
/// # Errors
/// Not everything was looked at: the system refuses a thread, or a netlink socket. Some sockets may be ended.
pub(crate) fn in_namespaces(
    wanted: &BTreeSet<u64>,
    directories: &[PathBuf],
    sockets: impl FnMut(u64) -> Vec<Translated> + Send,
) -> io::Result<Done> {
    let builder = thread::Builder::new().name("socket-end".to_owned());
    on_a_thread_of(builder, wanted, directories, sockets)
}

fn on_a_thread_of(
    builder: thread::Builder,
    wanted: &BTreeSet<u64>,
    directories: &[PathBuf],
    mut sockets: impl FnMut(u64) -> Vec<Translated> + Send,
) -> io::Result<Done> {
    let (mut done, mut left) = (Done::default(), wanted.clone());
    // Staying in one's own namespace takes no rights.
    let own = own_namespace()?;
    if left.remove(&own) {
        end_all(&mut Diag::open()?, &sockets(own), &mut done);
    }
    if left.is_empty() {
        return Ok(done);
    }
    let work = move || -> io::Result<Done> {
        let mut seen = HashSet::new();
        // One at a time, because there may be more namespaces than file descriptors.
        for link in links(directories)? {
            if left.is_empty() {
                break;
            }
            // Processes and namespaces end at any time; one that is gone has no sockets.
            let Ok(known) = fs::metadata(&link) else { continue };
            if !seen.insert(known.ino()) {
                continue;
            }
            let Ok(cookie) = File::open(&link).and_then(|namespace| enter(&namespace)) else {
                continue;
            };
            if left.remove(&cookie) {
                end_all(&mut Diag::open()?, &sockets(cookie), &mut done);
            }
        }
        Ok(done)
    };
    // On a thread of its own, because it moves between namespaces. The system may refuse one.
    let done = thread::scope(|scope| Ok::<_, io::Error>(builder.spawn_scoped(scope, work)?.join()));
    done?.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Paths to every network namespace that has a process or a name; many occur more than once.
fn links(directories: &[PathBuf]) -> io::Result<impl Iterator<Item = PathBuf>> {
    let path = |entry: io::Result<fs::DirEntry>| Some(entry.ok()?.path());
    let of_process = |path: PathBuf| {
        let is_process = path.file_name()?.as_encoded_bytes().first()?.is_ascii_digit();
        is_process.then(|| path.join("ns/net"))
    };
    // A directory may not exist.
    let named = directories.iter().filter_map(|directory| fs::read_dir(directory).ok()).flatten();
    Ok(fs::read_dir("/proc")?.filter_map(path).filter_map(of_process).chain(named.filter_map(path)))
}

/// Moves this thread to a namespace; returns its cookie.
pub(crate) fn enter(namespace: &File) -> io::Result<u64> {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
    own_namespace()
}

/// The kernel's answers if this process may not end sockets or the kernel cannot: they will not change.
const REFUSALS: [Errno; 4] = [Errno::PERM, Errno::ACCESS, Errno::OPNOTSUPP, Errno::INVAL];

fn end_all(diag: &mut Diag, sockets: &[Translated], done: &mut Done) {
    for (at, socket) in sockets.iter().enumerate() {
        let Err(error) = diag.end(socket) else {
            done.ended.ended += 1;
            continue;
        };
        match Errno::from_io_error(&error) {
            Some(Errno::NOENT) => _ = done.absent.insert(socket.connection()),
            Some(error) if REFUSALS.contains(&error) => done.ended.refused += 1,
            // The wait would be as long for each of the others.
            Some(Errno::AGAIN) => {
                done.ended.failed += sockets.len() - at;
                return;
            }
            _ => done.ended.failed += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::time::Duration;

    use super::*;
    use crate::passes;

    fn sockets(count: u64) -> Vec<Translated> {
        (1..=count).map(|cookie| Translated::for_tests(1, cookie)).collect()
    }

    /// The kernel's answer to a request.
    fn answer(request: &[u8], error: i32) -> Vec<u8> {
        let mut bytes = Vec::from(36u32.to_ne_bytes());
        bytes.extend(2u16.to_ne_bytes());
        bytes.extend([0; 2]);
        bytes.extend(&request[8..12]);
        bytes.extend([0; 4]);
        bytes.extend((-error).to_ne_bytes());
        bytes.extend(&request[..16]);
        bytes
    }

    /// The results of ending one socket per element of `answers`: the answers that are sent for its request.
    fn ended(answers: &[&[i32]]) -> Done {
        let (ours, kernel) = UnixDatagram::pair().unwrap();
        let mut diag = Diag::over(ours.into(), Duration::from_secs(60)).unwrap();
        let mut done = Done::default();
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut former: Option<Vec<u8>> = None;
                for errors in answers {
                    let mut request = [0; 128];
                    let length = kernel.recv(&mut request).unwrap();
                    let request = &request[..length];
                    // A late answer to an earlier request.
                    former.iter().for_each(|former| _ = kernel.send(&answer(former, 0)).unwrap());
                    errors.iter().for_each(|error| _ = kernel.send(&answer(request, *error)).unwrap());
                    former = Some(request.to_vec());
                }
            });
            end_all(&mut diag, &sockets(answers.len() as u64), &mut done);
        });
        done
    }

    #[test]
    fn only_what_the_kernel_refuses_counts_as_that() {
        let errno = |errno: Errno| errno.raw_os_error();
        let done = ended(&[
            &[0],
            &[errno(Errno::NOENT)],
            &[errno(Errno::PERM)],
            &[errno(Errno::OPNOTSUPP)],
            &[errno(Errno::NOMEM)],
            &[0],
        ]);
        assert_eq!(done.ended, EndedSockets { ended: 2, refused: 2, failed: 1, ..EndedSockets::default() });
        let gone: Vec<Connection> = done.absent.into_iter().collect();
        assert_eq!(gone, [sockets(2)[1].connection()], "it had been closed");
    }

    #[test]
    fn a_kernel_that_does_not_answer_is_waited_for_once() {
        let (ours, kernel) = UnixDatagram::pair().unwrap();
        let mut diag = Diag::over(ours.into(), Duration::from_millis(1)).unwrap();
        let mut done = Done::default();
        end_all(&mut diag, &sockets(3), &mut done);
        assert_eq!(done.ended, EndedSockets { failed: 3, ..EndedSockets::default() });
        kernel.set_nonblocking(true).unwrap();
        let requests = std::iter::from_fn(|| kernel.recv(&mut [0; 128]).ok()).count();
        assert_eq!(requests, 1);
        assert!(done.ended.trouble().is_some());
    }

    #[test]
    fn where_the_system_gives_no_thread_that_is_an_error_that_passes() {
        // There is no address space for such a stack: creating the thread fails as if there were too many.
        let builder = thread::Builder::new().stack_size(1 << 50);
        let other = BTreeSet::from([own_namespace().unwrap() + 1_000_000]);
        let error = on_a_thread_of(builder, &other, &[], |_| unreachable!("none is entered")).unwrap_err();
        assert_eq!(Errno::from_io_error(&error), Some(Errno::AGAIN));
        assert!(passes(&error), "{error}");
    }
}
