//! The image on a node of a lab, run as the DaemonSet says: its containers one after the other, with their capabilities,
//! mounts and arguments, in the node's network. `runc` runs them.
//!
//! `.ci/image` builds the image, and runs this with `SLUICE_IMAGE_ROOT` and `SLUICE_IMAGE_CONFIG`.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Container, PodSpec, Probe};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};
use sluice_model::{Family, Protocol};
use sluice_testbed::apiserver::{Apiserver, Resource};
use sluice_testbed::lab::{Cgroup, Host, Lab, LabError, Load, PATIENCE, Process, SILENCE};
use tempfile::TempDir;

use crate::manifests::{daemonset, overlay, pod, with_components};
use crate::pod::{Node, arguments};

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// What the agent says once it serves.
const READY: &str = "ready frontends";

/// What kube-proxy's nftables mode has at least.
const KUBE_PROXY: &str = "table ip kube-proxy {
    comment \"rules for kube-proxy\"
    chain services { }
}";

/// A place for socket mode: the node's directories are mounted there, and sockets of the thread that makes it, and of all
/// that it starts, are what programs may decide about. Nobody else's on this machine.
struct SocketPlace {
    cgroup: Cgroup,
    /// The mount namespace.
    mounts: fs::File,
    directory: TempDir,
}

impl SocketPlace {
    /// Before the lab is made, whose clients are to be decided about.
    fn new() -> Self {
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
    fn bpffs(&self) -> PathBuf {
        self.directory.path().join("sys/fs/bpf")
    }

    /// The node's /run/netns, where its container runtime has the pods' network namespaces.
    fn netns(&self) -> PathBuf {
        self.directory.path().join("run/netns")
    }

    /// Has a pod's namespace be there.
    fn name_namespace(&self, pod: &Host) {
        let path = self.netns().join(&pod.name);
        fs::write(&path, "").unwrap();
        let mut mount = Command::new("mount");
        mount.args(["--bind", "/proc/self/ns/net"]).arg(path);
        assert!(pod.ns.run(|| mount.status()).unwrap().success(), "{}", pod.name);
    }

    /// Whether anything of an agent's is pinned there.
    fn is_pinned(&self) -> bool {
        self.bpffs().join("sluice").exists()
    }

    /// The cgroup, for a container that has this machine's /sys/fs/cgroup at /host/cgroup.
    fn flag(&self) -> String {
        let below = self.cgroup.path().strip_prefix("/sys/fs/cgroup").unwrap();
        format!("--socket-cgroup=/host/cgroup/{}", below.display())
    }

    /// A command that runs there, in the cgroup too, as a container runtime gives each container one.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        let mounts = format!("/proc/{}/fd/{}", std::process::id(), self.mounts.as_raw_fd());
        command.arg(format!("--mount={mounts}"));
        command.args(["sh", "-c", "echo 0 >\"$0/cgroup.threads\" && exec \"$@\""]);
        command.arg(self.cgroup.path()).arg(program);
        command
    }

    /// What is attached.
    fn programs(&self) -> usize {
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

/// A lab with an apiserver, `pod-1` as a Service's only endpoint, and a node that has the image.
struct Scene {
    lab: Lab,
    node: Node,
    directory: TempDir,
    apiserver: Apiserver,
    _runtime: tokio::runtime::Runtime,
    _server: sluice_testbed::lab::Server,
    /// Last: it goes when all threads of the lab have.
    sockets: Option<SocketPlace>,
}

/// A container that runs, or has run.
struct Running<'a> {
    process: Process,
    id: String,
    scene: &'a Scene,
}

impl Scene {
    fn new() -> Self {
        Self::build(None)
    }

    fn with_sockets() -> Self {
        Self::build(Some(SocketPlace::new()))
    }

    fn build(sockets: Option<SocketPlace>) -> Self {
        let from = |variable: &str| PathBuf::from(std::env::var_os(variable).expect(".ci/image sets it"));
        let lab = well(Lab::new());
        let server = well(lab.pod(1).serve(8080));
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let cidrs = ["10.96.0.0/16", "fd00:96::/112"].map(|cidr| cidr.parse().unwrap());
        let builder =
            Apiserver::builder().bind((lab.node().v4, 6443).into()).token("secret").service_cidrs(&cidrs);
        let apiserver = lab.node().ns.run(|| runtime.block_on(builder.start())).unwrap();
        apiserver.create(Resource::Nodes, node_object(&lab)).unwrap();
        apiserver.create(Resource::Services, service()).unwrap();
        for family in FAMILIES {
            apiserver.create(Resource::EndpointSlices, slice(&lab, family)).unwrap();
        }
        let directory = TempDir::new().unwrap();
        let config: Value = serde_json::from_slice(&fs::read(from("SLUICE_IMAGE_CONFIG")).unwrap()).unwrap();
        let node = Node {
            name: "node",
            root: from("SLUICE_IMAGE_ROOT"),
            image: config["OCIv1"]["config"].clone(),
            files: directory.path().join("node"),
            directories: sockets
                .iter()
                .flat_map(|place| {
                    [place.bpffs(), place.netns()].iter().for_each(|path| fs::create_dir_all(path).unwrap());
                    place.name_namespace(lab.pod(0));
                    [
                        ("/sys/fs/cgroup", "/sys/fs/cgroup".into()),
                        ("/sys/fs/bpf", place.bpffs()),
                        ("/run/netns", place.netns()),
                    ]
                })
                .collect(),
            config_maps: BTreeMap::from([("kube-proxy", kube_proxy_config(&apiserver.url()))]),
            is_old: false,
            token: "secret",
            authority: apiserver.ca_pem(),
            service: "10.96.0.1",
        };
        Self { lab, node, directory, apiserver, _runtime: runtime, _server: server, sockets }
    }

    /// The pod of an overlay, with what a person has to fill in. Only sockets of the lab are decided about, if any are.
    fn pod(&self, name: &str) -> PodSpec {
        let mut pod = self.fill_in(&overlay(name));
        pod.containers[0].args.as_mut().unwrap().extend(self.sockets.as_ref().map(SocketPlace::flag));
        pod
    }

    /// The same without socket mode.
    fn relaying_pod(&self, name: &str) -> PodSpec {
        self.fill_in(&with_components(name, &["tproxy"]))
    }

    fn fill_in(&self, objects: &[Value]) -> PodSpec {
        let mut pod = pod(&daemonset(objects));
        for argument in pod.containers.iter_mut().flat_map(|container| container.args.iter_mut().flatten()) {
            if argument.starts_with("--master=") {
                *argument = format!("--master=https://{}:6443", self.lab.node().v4);
            } else if argument.starts_with("--cluster-cidr=") {
                argument.push_str(",fd00:244::/32");
            }
        }
        pod
    }

    /// Starts a container.
    fn start(&self, pod: &PodSpec, container: &Container, arguments: &[String]) -> Running<'_> {
        let bundle = TempDir::new_in(self.directory.path()).unwrap().keep();
        let id = bundle.file_name().unwrap().to_str().unwrap().trim_start_matches('.').to_owned();
        self.node.bundle(pod, container, arguments, &bundle);
        let mut command = self.runc(&["run", "--bundle"]);
        command.arg(&bundle).arg(&id);
        Running { process: well(self.lab.node().spawn(&command)), id, scene: self }
    }

    /// Starts a pod: its init containers one after the other, then the agent.
    fn start_pod(&self, pod: &PodSpec) -> Running<'_> {
        for container in pod.init_containers.iter().flatten() {
            let mut running = self.start(pod, container, &arguments(container, self.node.name));
            let status = well(running.process.wait(PATIENCE));
            assert!(status.success(), "{}: {:?}", container.name, running.process.lines());
        }
        let agent = &pod.containers[0];
        self.start(pod, agent, &arguments(agent, self.node.name))
    }

    fn runc(&self, arguments: &[&str]) -> Command {
        let mut command =
            self.sockets.as_ref().map_or_else(|| Command::new("runc"), |place| place.command("runc"));
        command.arg("--root").arg(self.directory.path().join("runc"));
        command.args(arguments);
        command
    }

    /// The containers that there are.
    fn containers(&self) -> String {
        String::from_utf8(self.runc(&["list", "--quiet"]).output().unwrap().stdout).unwrap()
    }

    /// All probes of an agent that runs succeed, by and by.
    #[track_caller]
    fn assert_probed(&self, running: &Running<'_>, agent: &Container) {
        for probe in [&agent.startup_probe, &agent.liveness_probe, &agent.readiness_probe] {
            let deadline = Instant::now() + PATIENCE;
            while !running.probe(probe.as_ref().unwrap()) {
                assert!(Instant::now() < deadline, "{probe:?}: {:#?}", running.process.lines());
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    /// Everybody who can ask, and where.
    fn questions(&self) -> Vec<(&Host, SocketAddr)> {
        let of_family = |family: Family| {
            let node_port = (self.lab.node().ip(family), 30_007).into();
            [
                (self.lab.pod(0), cluster_ip(family)),
                (self.lab.node(), cluster_ip(family)),
                (self.lab.outside(), node_port),
            ]
        };
        FAMILIES.into_iter().flat_map(of_family).collect()
    }

    #[track_caller]
    fn assert_served(&self) {
        for (host, to) in self.questions() {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let outcome = host.ask(protocol, to, PATIENCE);
                assert_eq!(outcome.by(), Some("pod-1"), "{protocol} {to} from {}: {outcome:?}", host.name);
            }
        }
    }

    /// A UDP socket of a pod is connected to a Service, and then the endpoint goes and comes back. Where the agent may enter
    /// the pod's network, the socket is told; elsewhere it never was the endpoint's, and goes on.
    #[track_caller]
    fn assert_no_socket_waits_for_a_gone_endpoint(&self, may_enter: bool) {
        let socket = self.lab.pod(0).ns.run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.connect(cluster_ip(Family::V4)).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket
        });
        let is_answered = || {
            socket.send(b"who").unwrap();
            // A read with a time limit may be interrupted.
            loop {
                match socket.recv(&mut [0; 64]) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    answer => return answer,
                }
            }
        };
        is_answered().unwrap();
        self.apiserver.delete(Resource::EndpointSlices, "default", "web-ipv4").unwrap();
        if may_enter {
            let told = loop {
                match socket.recv(&mut [0; 64]) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    told => break told,
                }
            };
            assert_eq!(told.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
        }
        self.apiserver.create(Resource::EndpointSlices, slice(&self.lab, Family::V4)).unwrap();
        self.assert_served();
        if !may_enter {
            is_answered().unwrap();
        }
    }

    /// What there is in the kernel.
    fn kernel(&self) -> String {
        let ns = &self.lab.node().ns;
        let ip = ["rule", "-6 rule", "route show table all", "-6 route show table all"];
        well(ns.nft("list ruleset")) + &ip.map(|what| well(ns.ip(what))).concat()
    }
}

impl Running<'_> {
    /// Whether a probe succeeds, as the kubelet sees it.
    fn probe(&self, probe: &Probe) -> bool {
        let command = probe.exec.as_ref().and_then(|exec| exec.command.as_ref()).unwrap();
        self.scene.runc(&["exec", &self.id]).args(command).output().unwrap().status.success()
    }

    fn signal(&self, signal: &str) {
        assert!(self.scene.runc(&["kill", &self.id, signal]).status().unwrap().success());
    }

    #[track_caller]
    fn assert_ends_well(&mut self, patience: Duration) {
        let status = well(self.process.wait(patience));
        assert!(status.success(), "{status}: {:#?}", self.process.lines());
    }

    /// Nothing has been in the way: the log warns of nothing that a manifest could change.
    #[track_caller]
    fn assert_content(&self) {
        let lines = self.process.lines();
        let complaints =
            ["capabilit", "CAP_", "Read-only", "ermission", "cannot be set", "cannot set", "ERROR"];
        let complaint = lines.iter().find(|line| complaints.iter().any(|word| line.contains(word)));
        assert_eq!(complaint, None, "{lines:#?}");
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        // It has ended, or a test has failed.
        let _ = self.scene.runc(&["delete", "--force", &self.id]).output();
    }
}

#[test]
#[ignore = "needs the image: .ci/image builds it and runs this"]
fn the_daemonset_serves_a_node_is_updated_under_load_and_leaves_nothing() {
    let scene = Scene::new();
    let before = scene.kernel();
    let kill = Duration::from_secs(30);
    for name in ["managed", "kubeadm"] {
        let pod = scene.pod(name);
        let agent = &pod.containers[0];
        well(scene.lab.node().ns.nft_file(KUBE_PROXY));
        let begin = Instant::now();
        let mut first = scene.start_pod(&pod);
        well(first.process.wait_for(READY, PATIENCE));
        eprintln!("{name}: serves after {:?}, init containers and all", begin.elapsed());
        assert!(!scene.kernel().contains("kube-proxy"), "{name}: what kube-proxy has left is gone");
        let setting = scene.lab.node().ns.read("/proc/sys/net/ipv4/tcp_migrate_req").unwrap();
        assert_eq!(setting, "1");
        scene.assert_served();
        scene.assert_probed(&first, agent);

        let loads: Vec<Load> = scene
            .questions()
            .into_iter()
            .flat_map(|(host, to)| [Protocol::Tcp, Protocol::Udp].map(|protocol| host.load(protocol, to)))
            .collect();
        let assert_answered = || {
            assert!(
                loads.iter().all(|load| load.answers_more(25, PATIENCE)),
                "{name}: questions are answered"
            )
        };
        assert_answered();
        let mut second = scene.start_pod(&pod);
        // The kubelet tells the first one to end once the second one is ready.
        scene.assert_probed(&second, agent);
        assert!(second.process.lines().iter().any(|line| line.contains(READY)), "it is ready by itself");
        first.signal("TERM");
        first.assert_ends_well(kill);
        assert!(
            first.process.lines().iter().any(|line| line.contains("another agent takes new connections"))
        );
        first.assert_content();
        assert_answered();
        for report in loads.into_iter().map(Load::stop) {
            // A datagram may be lost, and who sends them asks again; of some thousand in an update one was. A connection may not.
            let is_datagram = |failure: &String| failure.contains(": UDP ");
            assert!(report.failed <= 1 && report.failures.iter().all(is_datagram), "{name}: {report:?}");
            if report.failed > 0 {
                eprintln!("{name}: a datagram was lost: {report:?}");
            }
        }

        second.signal("TERM");
        second.assert_ends_well(kill);
        second.assert_content();
        // Settings are set back by who may write to /proc/sys.
        let settings = pod.init_containers.iter().flatten().find(|container| container.name == "settings");
        let mut cleanup = scene.start(&pod, settings.unwrap(), &["cleanup".to_owned()]);
        cleanup.assert_ends_well(PATIENCE);
        drop((first, second, cleanup));
        assert_eq!(scene.containers(), "");
        assert_eq!(scene.kernel(), before, "{name}: nothing is left");
    }
}

/// Has a container run without some of its capabilities.
fn take_away(container: &mut Container, capabilities: &[&str]) {
    let context = container.security_context.as_mut().unwrap();
    let all = context.capabilities.as_mut().unwrap().add.as_mut().unwrap();
    all.retain(|capability| !capabilities.contains(&&**capability));
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
        scene.assert_served();
        let attached = place.programs();
        assert!(attached > 0 && place.is_pinned(), "{name}");
        scene.assert_no_socket_waits_for_a_gone_endpoint(may_enter);

        // Another one takes its place: the programs are replaced, by somebody who has no more rights than this one.
        let mut second = scene.start_pod(&pod);
        well(second.process.wait_for(READY, PATIENCE));
        first.signal("TERM");
        first.assert_ends_well(patience);
        first.assert_content();
        well(second.process.wait_for("as the earlier agent does not any more", PATIENCE));
        second.assert_content();
        assert_eq!(place.programs(), attached, "{name}");
        scene.assert_served();

        // There is no agent, nobody to relay, and connections are made.
        second.signal("KILL");
        well(second.process.wait(PATIENCE));
        assert_eq!(is_answered_on_the_node(&scene, PATIENCE), [true; 8], "{name}");

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

#[test]
#[ignore = "needs the image: .ci/image builds it and runs this"]
fn each_capability_of_the_agent_is_one_that_its_check_asks_for_and_no_more_are() {
    let scene = Scene::new();
    let pod = scene.relaying_pod("managed");
    let level = |container: &Container| {
        let arguments = ["check", "--output", "json"].map(str::to_owned);
        let mut running = scene.start(&pod, container, &arguments);
        well(running.process.wait(PATIENCE));
        let findings: Value = serde_json::from_str(&running.process.lines().concat()).unwrap();
        let found = findings["findings"].as_array().unwrap().iter().find(|f| f["about"] == "capabilities");
        found.unwrap()["level"].clone()
    };
    let agent = pod.containers[0].clone();
    assert_eq!(level(&agent), "ok");
    let capabilities = |container: &Container| {
        container.security_context.clone().unwrap().capabilities.unwrap().add.unwrap()
    };
    for capability in capabilities(&agent) {
        let mut without = agent.clone();
        take_away(&mut without, &[&capability]);
        assert_ne!(level(&without), "ok", "without {capability}");
    }
}

#[test]
#[ignore = "needs the image: .ci/image builds it and runs this"]
fn the_image_has_what_it_needs_and_nothing_to_log_in_with() {
    let scene = Scene::new();
    let root = &scene.node.root;
    assert_eq!(scene.node.image["Entrypoint"], json!(["/usr/bin/sluice"]));
    assert_eq!(scene.node.image["Labels"]["org.opencontainers.image.licenses"], "Apache-2.0");
    for program in ["sh", "bash", "dash", "apt-get", "su"] {
        let found =
            ["bin", "sbin", "usr/bin", "usr/sbin"].map(|folder| root.join(folder).join(program).exists());
        assert_eq!(found, [false; 4], "{program}");
    }
    // Programs run, so all that they are linked against is there.
    let pod = scene.pod("managed");
    let mut container = pod.containers[0].clone();
    for line in [
        "nft --version",
        "sysctl --version",
        "ip -Version",
        "ipset --version",
        "ipvsadm --version",
        "iptables-legacy-save --version",
        "ip6tables-legacy-restore --version",
    ] {
        container.command = Some(line.split(' ').map(str::to_owned).collect());
        let mut running = scene.start(&pod, &container, &[]);
        let status = well(running.process.wait(PATIENCE));
        // ipvsadm looks for IPVS first, which this kernel may not have.
        let lines = running.process.lines().concat();
        assert!(status.success() || lines.contains("initialize ipvs"), "{line}: {lines}");
    }
}

/// What kubeadm 1.36 writes.
fn kube_proxy_config(apiserver: &str) -> Vec<(&'static str, String)> {
    let read = |name: &str| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/deploy/kubeadm");
        fs::read_to_string(folder.join(name)).unwrap().replace("https://apiserver:6443", apiserver)
    };
    vec![("config.conf", read("config.conf")), ("kubeconfig.conf", read("kubeconfig.conf"))]
}

fn cluster_ip(family: Family) -> SocketAddr {
    match family {
        Family::V4 => "10.96.0.7:80".parse().unwrap(),
        Family::V6 => "[fd00:96::7]:80".parse().unwrap(),
    }
}

fn node_object(lab: &Lab) -> Value {
    let addresses = FAMILIES.map(|family| json!({ "type": "InternalIP", "address": lab.node().ip(family) }));
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": "node" },
        "spec": { "podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:244:1::/64"] },
        "status": { "addresses": addresses },
    })
}

fn service() -> Value {
    let port = |protocol: &str| json!({ "name": protocol.to_lowercase(), "protocol": protocol, "port": 80, "nodePort": 30_007 });
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": "web", "namespace": "default" },
        "spec": {
            "type": "NodePort",
            "clusterIP": cluster_ip(Family::V4).ip(),
            "clusterIPs": FAMILIES.map(|family| cluster_ip(family).ip()),
            "ipFamilies": ["IPv4", "IPv6"],
            "ipFamilyPolicy": "RequireDualStack",
            "ports": [port("TCP"), port("UDP")],
        },
    })
}

fn slice(lab: &Lab, family: Family) -> Value {
    let port =
        |protocol: &str| json!({ "name": protocol.to_lowercase(), "protocol": protocol, "port": 8080 });
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": format!("web-{family}").to_lowercase(), "namespace": "default",
            "labels": { "kubernetes.io/service-name": "web" },
        },
        "addressType": family.to_string(),
        "ports": [port("TCP"), port("UDP")],
        "endpoints": [{ "addresses": [lab.pod(1).ip(family)], "conditions": { "ready": true }, "nodeName": "node" }],
    })
}

/// An error as a person is to read it.
#[track_caller]
fn well<T>(result: Result<T, LabError>) -> T {
    result.unwrap_or_else(|error| panic!("{error}"))
}
