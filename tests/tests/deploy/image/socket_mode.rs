//! The image in socket mode: with the capabilities and mounts that this takes.

use std::fs;
use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Container;
use nix::sched::{CloneFlags, unshare};
use serde_json::Value;
use sluice_model::{Family, Protocol};
use sluice_testbed::apiserver::Resource;
use sluice_testbed::lab::{Cgroup, Host, PATIENCE, SILENCE};
use tempfile::TempDir;

use super::cluster::{FAMILIES, cluster_ip, slice};
use super::scene::{READY, Scene, take_away, well};
use crate::pod::arguments;

/// A place for socket mode: the node's directories are mounted there, and sockets of the thread that makes it, and of all
/// that it starts, are what programs may decide about. Nobody else's on this machine.
pub(super) struct SocketPlace {
    cgroup: Cgroup,
    /// The mount namespace.
    mounts: fs::File,
    directory: TempDir,
}

impl SocketPlace {
    /// Before the lab is made, whose clients are to be decided about.
    pub(super) fn new() -> Self {
        let directory = TempDir::new().unwrap();
        unshare(CloneFlags::CLONE_NEWNS).expect("this takes root");
        let path = directory.path().to_str().unwrap();
        // What is mounted there by a container is to be seen by the others.
        for arguments in [&["--make-rprivate", "/"][..], &["--bind", path, path], &["--make-shared", path]] {
            assert!(Command::new("mount").args(arguments).status().unwrap().success(), "{arguments:?}");
        }
        let mounts = fs::File::open("/proc/thread-self/ns/mnt").unwrap();
        Self { cgroup: Cgroup::enter().unwrap(), mounts, directory }
    }

    /// The node's /sys/fs/bpf, where nothing is mounted at first.
    pub(super) fn bpffs(&self) -> PathBuf {
        self.directory.path().join("sys/fs/bpf")
    }

    /// The node's /run/netns, where its container runtime has the pods' network namespaces.
    pub(super) fn netns(&self) -> PathBuf {
        self.directory.path().join("run/netns")
    }

    /// Has a pod's namespace be there.
    pub(super) fn name_namespace(&self, pod: &Host) {
        pod.ns.name_at(&self.netns().join(&pod.name)).unwrap();
    }

    /// Whether anything of an agent's is pinned there.
    pub(super) fn is_pinned(&self) -> bool {
        self.bpffs().join("sluice").exists()
    }

    /// The cgroup, for a container that has this machine's /sys/fs/cgroup at /host/cgroup.
    pub(super) fn flag(&self) -> String {
        let below = self.cgroup.path().strip_prefix("/sys/fs/cgroup").unwrap();
        format!("--socket-cgroup=/host/cgroup/{}", below.display())
    }

    /// A command that runs there, in the cgroup too, as a container runtime gives each container one.
    pub(super) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        let mounts = format!("/proc/{}/fd/{}", std::process::id(), self.mounts.as_raw_fd());
        command.arg(format!("--mount={mounts}"));
        command.args(["sh", "-c", "echo 0 >\"$0/cgroup.threads\" && exec \"$@\""]);
        command.arg(self.cgroup.path()).arg(program);
        command
    }

    /// What is attached.
    pub(super) fn programs(&self) -> usize {
        let shown =
            Command::new("bpftool").args(["cgroup", "show"]).arg(self.cgroup.path()).output().unwrap();
        String::from_utf8_lossy(&shown.stdout).matches(" sluice_").count()
    }
}

impl Drop for SocketPlace {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["--recursive", "--lazy"]).arg(self.directory.path()).status();
    }
}

/// A UDP socket of a pod is connected to a Service, and then the endpoint goes and comes back. Where the agent may enter the
/// pod's network the socket is told; elsewhere it never was the endpoint's, and goes on.
#[track_caller]
fn assert_no_socket_waits_for_a_gone_endpoint(scene: &Scene, may_enter: bool) {
    let socket = scene.lab.pod(0).ns.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect(cluster_ip(Family::V4)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    });
    // A read with a time limit may be interrupted.
    let receive = || loop {
        match socket.recv(&mut [0; 64]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            received => return received,
        }
    };
    socket.send(b"who").unwrap();
    receive().unwrap();
    scene.apiserver.delete(Resource::EndpointSlices, "default", "web-ipv4").unwrap();
    if may_enter {
        assert_eq!(receive().unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
    }
    scene.apiserver.create(Resource::EndpointSlices, slice(&scene.lab, Family::V4)).unwrap();
    // The agent hears of it in a moment.
    let deadline = Instant::now() + PATIENCE;
    // The rules, which have what comes from outside, after the programs.
    while !scene.is_served() {
        assert!(Instant::now() < deadline, "the endpoint is there again");
    }
    if !may_enter {
        socket.send(b"who").unwrap();
        receive().unwrap();
    }
}

/// Whether this is answered by the lab's backend, for everybody on the node.
fn is_answered_on_the_node(scene: &Scene, patience: Duration) -> Vec<bool> {
    let hosts = [scene.lab.pod(0), scene.lab.node()];
    let ask = |family, protocol| {
        hosts.map(|host| host.ask(protocol, cluster_ip(family), patience).by() == Some("pod-1"))
    };
    FAMILIES
        .into_iter()
        .flat_map(|family| [Protocol::Tcp, Protocol::Udp].map(|p| ask(family, p)))
        .flatten()
        .collect()
}

#[test]
#[ignore = "needs the image: .ci/image builds it and runs this"]
fn in_socket_mode_connections_need_no_agent_and_it_can_be_left_again() {
    let scene = Scene::with_sockets();
    let before = scene.kernel();
    let place = scene.sockets.as_ref().unwrap();
    let patience = Duration::from_secs(30);
    for (name, may_enter) in [("managed", true), ("kubeadm", false)] {
        let mut pod = scene.pod(name);
        if !may_enter {
            take_away(&mut pod.containers[0], &["SYS_ADMIN"]);
        }
        let mut first = scene.start_pod(&pod);
        well(first.process.wait_for("are decided when they are made", PATIENCE));
        well(first.process.wait_for(READY, PATIENCE));
        let status = scene.runc(&["exec", &first.id, "/usr/bin/sluice", "status"]).output().unwrap();
        let status = String::from_utf8_lossy(&status.stdout).into_owned();
        assert!(status.contains("on, for sockets below /host/cgroup/"), "{status}");
        let whose = if may_enter { "of the node and of 1 pods" } else { "in all network namespaces" };
        assert!(status.contains(whose), "{status}");
        scene.assert_served();
        let attached = place.programs();
        assert!(attached > 0 && place.is_pinned(), "{name}");
        assert_no_socket_waits_for_a_gone_endpoint(&scene, may_enter);

        // Another one takes its place: the programs are replaced, by somebody who has no more rights than this one.
        let mut second = scene.start_pod(&pod);
        well(second.process.wait_for(READY, PATIENCE));
        first.signal("TERM");
        first.assert_ends_well(patience);
        if may_enter {
            first.assert_content();
        }
        well(second.process.wait_for("as this agent knows all", PATIENCE));
        if may_enter {
            second.assert_content();
        }
        assert_eq!(place.programs(), attached, "{name}");
        scene.assert_served();

        // There is no agent, nobody to relay, and connections are made.
        second.signal("KILL");
        well(second.process.wait(PATIENCE));
        if may_enter {
            assert_eq!(is_answered_on_the_node(&scene, PATIENCE), [true; 8], "{name}");
        } else {
            // Pods' datagrams were relayed.
            for family in FAMILIES {
                let outcome = scene.lab.pod(0).ask(Protocol::Tcp, cluster_ip(family), PATIENCE);
                assert_eq!(outcome.by(), Some("pod-1"), "{name}: {outcome:?}");
            }
        }

        // Socket mode is left by an update, while an agent still has it.
        let mut third = scene.start_pod(&pod);
        well(third.process.wait_for(READY, PATIENCE));
        assert_eq!(place.programs(), attached, "{name}");
        let mut fourth = scene.start_pod(&scene.relaying_pod(name));
        assert_eq!((place.programs(), place.is_pinned()), (0, false), "{name}");
        scene.assert_served();
        well(fourth.process.wait_for(READY, PATIENCE));
        third.signal("TERM");
        third.assert_ends_well(patience);
        scene.assert_served();
        fourth.signal("TERM");
        fourth.assert_ends_well(patience);

        // It is left by hand, after an agent that was killed.
        let mut fifth = scene.start_pod(&pod);
        well(fifth.process.wait_for(READY, PATIENCE));
        fifth.signal("KILL");
        well(fifth.process.wait(PATIENCE));
        assert_eq!(place.programs(), attached, "{name}");
        let settings = pod.init_containers.iter().flatten().find(|container| container.name == "settings");
        let mut cleanup = scene.start(&pod, settings.unwrap(), &["cleanup".to_owned()]);
        cleanup.assert_ends_well(PATIENCE);
        assert_eq!((place.programs(), place.is_pinned()), (0, false), "{name}");
        assert_eq!(is_answered_on_the_node(&scene, SILENCE), [false; 8], "{name}: it was they who did it");
        drop((first, second, third, fourth, fifth, cleanup));
        assert_eq!(scene.containers(), "");
        assert_eq!(scene.kernel(), before, "{name}: nothing is left");
    }
}

#[test]
#[ignore = "needs the image: .ci/image builds it and runs this"]
fn in_a_container_the_root_of_all_cgroups_is_found_and_without_it_the_mend_is_told() {
    let mut scene = Scene::with_sockets();
    let pod = scene.pod("managed");
    // It mounts the bpffs.
    let settings = &pod.init_containers.as_ref().unwrap()[0];
    let mut running = scene.start(&pod, settings, &arguments(settings, scene.node.name));
    running.assert_ends_well(PATIENCE);
    let socket_mode = |scene: &Scene, container: &Container| {
        // Nobody is there to ask for the Node, which is said at once.
        let nobody = "--master=http://127.0.0.1:1";
        let arguments =
            ["check", "--output", "json", nobody, "--socket-pins=/host/bpf/sluice"].map(str::to_owned);
        let mut running = scene.start(&pod, container, &arguments);
        well(running.process.wait(PATIENCE));
        let findings: Value = serde_json::from_str(&running.process.lines().concat()).unwrap();
        let found = findings["findings"].as_array().unwrap().iter().find(|f| f["about"] == "socket mode");
        found.unwrap().to_string()
    };
    running.assert_content();
    drop(running);
    let agent = pod.containers[0].clone();
    let found = socket_mode(&scene, &agent);
    assert!(found.contains("have what they need") && found.contains("cgroup2 (/host/cgroup"), "{found}");
    for (mount, mend) in
        [("cgroup", "a container needs the host's /sys/fs/cgroup"), ("bpffs", "mount -t bpf")]
    {
        let mut without = agent.clone();
        without.volume_mounts.as_mut().unwrap().retain(|other| other.name != mount);
        let found = socket_mode(&scene, &without);
        assert!(found.contains("relay all connections") && found.contains(mend), "without {mount}: {found}");
    }
    // It stands for the other two.
    let mut less = agent.clone();
    take_away(&mut less, &["SYS_ADMIN"]);
    let found = socket_mode(&scene, &less);
    assert!(found.contains("have what they need") && found.contains("CAP_SYS_ADMIN"), "{found}");
    for capability in ["BPF", "PERFMON"] {
        let mut without = less.clone();
        take_away(&mut without, &[capability]);
        let found = socket_mode(&scene, &without);
        assert!(found.contains("CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON"), "without {capability}: {found}");
    }
    scene.node.is_old = true;
    let found = socket_mode(&scene, &less);
    assert!(found.contains("a seccomp profile that has bpf(2)"), "{found}");
}
