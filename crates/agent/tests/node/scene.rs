//! A lab, manifests for the agent on its node, and the agent.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use sluice_model::{Family, Protocol};
use sluice_testbed::lab::{Host, Lab, LabError, Load, Outcome, PATIENCE, Process, Server};
use tempfile::TempDir;

use crate::manifests::{BACKEND, FAMILIES, Service, cluster_ip, node_port};

/// What the agent says once it serves.
pub(crate) const READY: &str = "ready frontends";

/// What makes the program the one of the lab's node.
pub(crate) const AGENT: [&str; 9] = [
    "agent",
    "--capture",
    "tproxy",
    "--hostname-override",
    "node",
    "--cluster-cidr",
    "10.244.0.0/16,fd00:244::/32",
    "--metrics-bind-address",
    "0",
];

/// A lab with `pod-1` and `other-pod-0` as backends, and Services 1 and 2, which have both as endpoints.
pub(crate) struct Scene {
    pub(crate) lab: Lab,
    directory: TempDir,
    _servers: [Server; 2],
}

impl Scene {
    pub(crate) fn new() -> Self {
        Self::of(well(Lab::new()))
    }

    /// In a lab of another kind.
    pub(crate) fn of(lab: Lab) -> Self {
        let servers = [lab.pod(1), lab.other_pod(0)].map(|host| well(host.serve(BACKEND)));
        let scene = Self { lab, directory: TempDir::new().unwrap(), _servers: servers };
        fs::create_dir(scene.manifests()).unwrap();
        scene.put("node", &scene.lab.node_object().to_string());
        for number in [1, 2] {
            scene.apply(&scene.service(number));
        }
        scene
    }

    /// A Service with both endpoints.
    pub(crate) fn service(&self, number: u8) -> Service {
        Service::new(number).here(self.lab.pod(1)).there(self.lab.other_pod(0))
    }

    pub(crate) fn manifests(&self) -> PathBuf {
        self.directory.path().join("manifests")
    }

    /// Where the agent answers commands.
    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("admin.sock")
    }

    /// Writes the manifest of a Service, or writes it anew.
    pub(crate) fn apply(&self, service: &Service) {
        self.put(&service.name(), &service.manifest());
    }

    pub(crate) fn delete(&self, service: &Service) {
        fs::remove_file(self.manifests().join(service.name()).with_extension("json")).unwrap();
    }

    /// Renames it into its place, as the documentation asks for.
    pub(crate) fn put(&self, name: &str, text: &str) {
        let new = self.directory.path().join("new");
        fs::write(&new, text).unwrap();
        fs::rename(new, self.manifests().join(name).with_extension("json")).unwrap();
    }

    /// The agent's command line, following the manifests.
    pub(crate) fn command(&self) -> Command {
        self.command_following(&self.manifests())
    }

    /// The same, following others.
    pub(crate) fn command_following(&self, manifests: &Path) -> Command {
        let mut command = sluice(AGENT);
        command.arg("--manifests").arg(manifests).arg("--admin-socket").arg(self.socket());
        command
    }

    /// See [`nft`].
    pub(crate) fn nft(&self, what: &str) -> String {
        nft(&self.lab, what)
    }

    /// Starts an agent and waits until it is ready, and answers commands, which it does a moment later.
    pub(crate) fn start(&self) -> Process {
        let agent = well(self.lab.node().spawn(&self.command()));
        well(agent.wait_for(READY, PATIENCE));
        well(agent.wait_for("answering commands", PATIENCE));
        agent
    }

    /// Who asks, and where: from everywhere, over both families.
    pub(crate) fn questions(&self, number: u8) -> Vec<(&Host, SocketAddr)> {
        let of_family = |family: Family| {
            [
                (self.lab.pod(0), cluster_ip(number, family)),
                (self.lab.node(), cluster_ip(number, family)),
                (self.lab.outside(), node_port(number, family)),
            ]
        };
        FAMILIES.into_iter().flat_map(of_family).collect()
    }

    /// Asks each question of a Service once, over TCP and UDP: all are answered.
    #[track_caller]
    pub(crate) fn assert_served(&self, number: u8) {
        for (host, to) in self.questions(number) {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let outcome = host.ask(protocol, to, PATIENCE);
                assert!(outcome.by().is_some(), "{protocol} {to} from {}: {outcome:?}", host.name);
            }
        }
    }

    /// Load on Service 1 over TCP and on Service 2 over UDP, from everywhere.
    pub(crate) fn load(&self) -> Loads {
        let (pod, node, outside) = (self.lab.pod(0), self.lab.node(), self.lab.outside());
        let loads = [
            pod.load(Protocol::Tcp, cluster_ip(1, Family::V4)),
            node.load(Protocol::Tcp, cluster_ip(1, Family::V6)),
            outside.load(Protocol::Tcp, node_port(1, Family::V4)),
            pod.load(Protocol::Udp, cluster_ip(2, Family::V6)),
            node.load(Protocol::Udp, cluster_ip(2, Family::V4)),
            outside.load(Protocol::Udp, node_port(2, Family::V6)),
        ];
        let loads = Loads(loads.into());
        loads.assert_answered();
        loads
    }
}

/// What `nft` lists on the node, without counters, without the connections that packets have noted, and without the
/// number of the agent that is the owner.
pub(crate) fn nft(lab: &Lab, what: &str) -> String {
    let listing = well(lab.node().ns.nft(&format!("--stateless list {what}")));
    let mut kept = String::new();
    let (mut set, mut inside) = ("", false);
    for line in listing.lines() {
        let text = line.trim_start();
        set = text.strip_prefix("set ").or(text.strip_prefix("map ")).unwrap_or(set);
        // Elements may take several lines, the last of which ends in a brace.
        inside |= (set.contains("_flows") || set == "agent {") && text.starts_with("elements =");
        if inside {
            inside = !line.ends_with('}');
        } else {
            kept.extend([line, "\n"]);
        }
    }
    kept
}

/// Load that must not notice anything.
pub(crate) struct Loads(Vec<Load>);

impl Loads {
    /// Enough further questions of each are answered.
    #[track_caller]
    pub(crate) fn assert_answered(&self) {
        for load in &self.0 {
            assert!(load.answers_more(25, PATIENCE), "{:?}", load.report());
        }
    }

    /// Ends it: no question has failed, and those asked last were answered.
    #[track_caller]
    pub(crate) fn assert_unharmed(self) {
        self.assert_answered();
        let reports: Vec<_> = self.0.into_iter().map(Load::stop).collect();
        let failures: Vec<_> = reports.iter().flat_map(|report| &report.failures).collect();
        assert!(failures.is_empty(), "of {} questions: {failures:#?}", total(&reports));
        assert!(reports.iter().all(|report| report.failed == 0));
    }
}

fn total(reports: &[sluice_testbed::lab::Report]) -> u64 {
    reports.iter().map(|report| report.answered + report.failed).sum()
}

/// A connection on which lines are said, and come back.
pub(crate) struct Conversation(BufReader<TcpStream>);

impl Conversation {
    #[track_caller]
    pub(crate) fn begin(from: &Host, to: SocketAddr) -> Self {
        Self::on(from.tcp_stream(to, PATIENCE).unwrap())
    }

    #[track_caller]
    pub(crate) fn on(stream: TcpStream) -> Self {
        let mut conversation = Self(BufReader::new(stream));
        // Who is there.
        conversation.hear();
        conversation
    }

    #[track_caller]
    pub(crate) fn say(&mut self, line: &str) {
        writeln!(self.0.get_ref(), "{line}").unwrap();
        assert_eq!(self.hear(), line);
    }

    #[track_caller]
    fn hear(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Waits until the other side has ended it: by a reset, as an end would be taken for all that there was to say.
    #[track_caller]
    pub(crate) fn assert_is_reset(mut self) {
        let heard = self.0.read_line(&mut String::new());
        assert_eq!(heard.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    }
}

/// `sluice cleanup` that leaves alone what other agents of this machine have pinned.
pub(crate) const CLEANUP: [&str; 3] = ["cleanup", "--socket-pins", "/sys/fs/bpf/no-such-pins"];

/// The program, whatever is to be done with it.
pub(crate) fn sluice(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"));
    command.args(arguments).env_remove("RUST_LOG");
    command
}

/// What a process says from now on.
pub(crate) struct FromNowOn<'a> {
    process: &'a Process,
    said: usize,
}

impl<'a> FromNowOn<'a> {
    pub(crate) fn of(process: &'a Process) -> Self {
        Self { process, said: process.lines().len() }
    }

    /// Waits for a line with all of these parts.
    #[track_caller]
    pub(crate) fn wait_for(&self, parts: &[&str]) {
        until(&format!("a line with {parts:?}"), || {
            let lines = self.process.lines();
            lines[self.said..].iter().any(|line| parts.iter().all(|part| line.contains(part)))
        });
    }
}

/// Waits for a condition.
#[track_caller]
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// Whether a question is refused, in whichever way the client is told.
pub(crate) fn is_refused(outcome: &Outcome) -> bool {
    // The node's own datagrams do not even leave.
    matches!(outcome, Outcome::Refused | Outcome::Forbidden)
}

/// An error as a person is to read it.
#[track_caller]
pub(crate) fn well<T>(result: Result<T, LabError>) -> T {
    result.unwrap_or_else(|error| panic!("{error}"))
}
