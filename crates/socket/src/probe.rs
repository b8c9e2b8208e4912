//! Checks what socket mode needs of a node, and finds what is missing.

use std::io;
use std::path::{Path, PathBuf};

use crate::attach::rehearse;
use crate::destroy::Endable;
use crate::namespaces::named_in;
use crate::others::Others;
use crate::pins::{self, Bpffs};
use crate::rights::is_administrator;
use crate::{cgroup, cgroup_root, is_initial_network};

/// The state of something that socket mode needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It is there.
    Ok,
    /// It is missing, but the agent can provide it.
    Mendable,
    /// It is missing; socket mode works without it, but leaves more to the relay than otherwise, or less than
    /// it should.
    Lesser,
    /// It is missing, and there is no socket mode without it.
    Missing,
}

/// Something that socket mode needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What is needed.
    pub what: &'static str,
    /// Its state.
    pub state: State,
    /// What was found.
    pub seen: String,
    /// The remedy if it is missing.
    pub mend: &'static str,
}

/// Checks what socket mode needs on this node, by trying it if looking is not enough. Changes nothing: programs
/// are loaded and dropped. Without a `cgroup`, the root of all cgroups is meant. Pods' network namespaces have
/// names in `namespaces`.
pub fn probe(cgroup: Option<&Path>, pins: &Path, namespaces: &[PathBuf]) -> Vec<Finding> {
    let names = names(namespaces, is_administrator());
    let beside = beside(cgroup, pins);
    vec![cgroup2(cgroup), beside, scope(cgroup), bpffs(pins), types(), programs(), ending(), names]
}

fn found(named: Option<&Path>) -> io::Result<PathBuf> {
    named.map_or_else(cgroup_root, |path| cgroup::id(path).map(|_| path.into()))
}

fn cgroup2(named: Option<&Path>) -> Finding {
    let mend =
        "mount cgroup2 (all distributions with systemd do); a container needs the host's /sys/fs/cgroup";
    let (state, seen) = match found(named) {
        Ok(path) => (State::Ok, path.display().to_string()),
        Err(error) => (State::Missing, error.to_string()),
    };
    Finding { what: "cgroup2", state, seen, mend }
}

fn beside(named: Option<&Path>, pins: &Path) -> Finding {
    let what = "room beside other programs";
    let mend = "`bpftool cgroup show` with that cgroup lists them, and `bpftool prog show id` says what one is and whose: \
                have it attached with BPF_F_ALLOW_MULTI, or removed";
    let others = found(named).and_then(|cgroup| Others::of(&cgroup, pins));
    match others {
        Ok(others) => {
            let state = if others.refusing.is_empty() { State::Ok } else { State::Missing };
            Finding { what, state, seen: others.to_string(), mend }
        }
        Err(error) => Finding {
            what,
            state: State::Lesser,
            seen: format!("it cannot be looked at: {error}"),
            mend: "CAP_NET_ADMIN, and a cgroup of version 2",
        },
    }
}

fn scope(named: Option<&Path>) -> Finding {
    let mend = "--socket-cgroup, the cgroup below which the node's processes and pods are";
    let (state, seen) = match named {
        Some(_) => (State::Ok, "those below a cgroup that was named"),
        None if is_initial_network() => (State::Ok, "all of the machine"),
        None => (
            State::Lesser,
            "all of the machine, of which this network namespace is only a part: auto relays all connections",
        ),
    };
    Finding { what: "whose sockets", state, seen: seen.into(), mend }
}

fn bpffs(pins: &Path) -> Finding {
    let mend = "mount -t bpf bpf /sys/fs/bpf on the node; a container needs that of the host";
    let (state, seen) = match pins::find_bpffs(pins) {
        Ok(Bpffs::There(at)) => (State::Ok, at.display().to_string()),
        Ok(Bpffs::ToBeMounted(at)) if is_administrator() => {
            (State::Mendable, format!("{} is no bpffs; the agent mounts one", at.display()))
        }
        Ok(Bpffs::ToBeMounted(at)) => (State::Missing, format!("{} is no bpffs", at.display())),
        Err(error) => (State::Missing, error.to_string()),
    };
    Finding { what: "bpffs", state, seen, mend }
}

fn types() -> Finding {
    let path = Path::new("/sys/kernel/btf/vmlinux");
    let state = if path.exists() { State::Ok } else { State::Missing };
    let mend = "a kernel with CONFIG_DEBUG_INFO_BTF=y";
    Finding { what: "BTF", state, seen: path.display().to_string(), mend }
}

fn programs() -> Finding {
    let mend = "Linux 6.1 or newer, and CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON";
    let (state, seen) = match rehearse() {
        Ok(()) => (State::Ok, "the kernel takes all of them".into()),
        Err(error) => (State::Missing, error.to_string()),
    };
    Finding { what: "BPF programs", state, seen, mend }
}

fn ending() -> Finding {
    let mend = "CAP_SYS_ADMIN, and a kernel with CONFIG_INET_DIAG_DESTROY";
    let (state, seen) = match Endable::probe() {
        Endable { of_pods: true, .. } => (State::Ok, "they can be ended when their endpoint goes"),
        _ => (State::Lesser, "they cannot be ended when their endpoint goes, so they are relayed"),
    };
    Finding { what: "connected UDP sockets of pods", state, seen: seen.into(), mend }
}

fn names(directories: &[PathBuf], is_administrator: bool) -> Finding {
    let mend = "CAP_SYS_ADMIN, and the directory where the container runtime has them (--socket-namespaces); a container \
                needs that of the host";
    let there: Vec<String> = directories
        .iter()
        .map(|path| (path, named_in(path).map_or(0, |named| named.len())))
        .filter(|(_, count)| *count > 0)
        .map(|(path, count)| format!("{count} names in {}", path.display()))
        .collect();
    let all = |why: &str| {
        format!(
            "{why}, so all count as pods', those of containers within pods too, and endpoints see their own address at \
             clusterIPs whatever the local detector says"
        )
    };
    let (state, seen) = match (directories, &there[..]) {
        ([], _) => (State::Ok, all("no directory of them is named")),
        (_, []) => (State::Lesser, all("none has a name where it may have one")),
        _ if !is_administrator => (State::Lesser, all("they cannot be entered")),
        _ => (State::Ok, there.join(", ")),
    };
    Finding { what: "pods' network namespaces", state, seen, mend }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_of_pods_are_told_from_others_where_they_have_names_and_may_be_entered() {
        let [there, absent, without] = ["/proc/self/ns", "/nowhere/at/all", "/"].map(PathBuf::from);
        let found = |directories: &[&PathBuf], is_administrator| {
            let directories: Vec<PathBuf> = directories.iter().map(|path| (*path).clone()).collect();
            let finding = names(&directories, is_administrator);
            (finding.state, finding.seen)
        };
        let (state, seen) = found(&[&absent, &without, &there], true);
        assert!(state == State::Ok && seen.ends_with(" names in /proc/self/ns"), "{seen}");
        for (directories, is_administrator, wanted) in [
            (&[&there][..], false, State::Lesser),
            (&[&absent, &without], true, State::Lesser),
            (&[], true, State::Ok),
        ] {
            let (state, seen) = found(directories, is_administrator);
            assert!(state == wanted && seen.contains("all count as pods'"), "{seen}");
        }
    }
}
