//! `--capture socket` and `--capture auto` as real processes: what an agent tells of connections that it has no part in, who
//! takes over, and what is left.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use sluice_model::{Family, Protocol};
use sluice_testbed::lab::{Bpffs, Cgroup, Lab, Outcome, PATIENCE};

use crate::manifests::{BACKEND, Service, cluster_ip, node_port};
use crate::scene::{AGENT, Conversation, READY, Scene, sluice, until};

pub(crate) const METRICS: &str = "127.0.0.1:10249";

/// A scene whose sockets can be decided about, by agents that are processes of this thread's.
pub(crate) struct Sockets {
    pub(crate) scene: Scene,
    pub(crate) cgroup: Cgroup,
    bpffs: Bpffs,
}

impl Sockets {
    pub(crate) fn new() -> Self {
        let bpffs = Bpffs::mount().unwrap();
        let cgroup = Cgroup::enter().unwrap();
        Self { scene: Scene::new(), cgroup, bpffs }
    }

    pub(crate) fn pins(&self) -> PathBuf {
        self.bpffs.path().join("sluice")
    }

    /// What is attached.
    pub(crate) fn programs(&self) -> String {
        let shown =
            Command::new("bpftool").args(["cgroup", "show"]).arg(self.cgroup.path()).output().unwrap();
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        shown.lines().filter(|line| line.contains("sluice_")).collect()
    }

    /// What the status of an agent says that does not know which network namespaces are pods'.
    fn on_everywhere(&self) -> String {
        let cgroup = self.cgroup.path().display();
        format!(
            "on, for sockets below {cgroup}, in all network namespaces; endpoints see the own address of pods outside of \
             --cluster-cidr, too, as pods cannot be told apart"
        )
    }

    /// The number tells agents apart.
    pub(crate) fn start(&self, number: u8, capture: &str, pins: &Path) -> Agent {
        self.start_by(sluice([] as [&str; 0]), number, capture, Some(self.cgroup.path()), pins)
    }

    /// The same once an earlier agent has seen each endpoint of Service 1 serve over TCP and IPv4: nobody doubts them any more,
    /// and all such connections of pods are decided at their sockets.
    pub(crate) fn start_where_all_serve(&self, capture: &str) -> Agent {
        let earlier = self.start(1, capture, &self.pins());
        let accepted = || earlier.json(&["status"])["counters"]["tcp_accepted"].clone();
        until("none is left to the relay", || {
            let before = accepted();
            (0..4).for_each(|_| drop(Conversation::begin(self.scene.lab.pod(0), cluster_ip(1, Family::V4))));
            before == accepted()
        });
        earlier.stop();
        self.start(1, capture, &self.pins())
    }

    /// The same where a command is the program, or runs it.
    pub(crate) fn start_by(
        &self,
        command: Command,
        number: u8,
        capture: &str,
        cgroup: Option<&Path>,
        pins: &Path,
    ) -> Agent {
        let agent = self.spawn(command, number, capture, cgroup, pins);
        agent.wait_until_ready();
        agent
    }

    /// The same, and does not wait until it is ready.
    pub(crate) fn spawn(
        &self,
        mut command: Command,
        number: u8,
        capture: &str,
        cgroup: Option<&Path>,
        pins: &Path,
    ) -> Agent {
        let arguments = AGENT.map(|argument| match argument {
            "tproxy" => capture,
            "0" if number == 1 => METRICS,
            other => other,
        });
        command.args(arguments).arg("--manifests").arg(self.scene.manifests());
        if let Some(cgroup) = cgroup {
            command.arg("--socket-cgroup").arg(cgroup);
        }
        command.arg("--socket-pins").arg(pins);
        // The lab's have no names.
        command.args(["--socket-namespaces=", "--service-metrics", "endpoint", "--grace-period", "1"]);
        Agent::spawn(command, &self.scene.lab, self.scene.manifests().parent().unwrap(), number)
    }
}

/// An agent in the cgroup and the mount namespace of the test.
pub(crate) struct Agent {
    child: Child,
    admin: PathBuf,
    log: PathBuf,
}

impl Agent {
    /// Starts one on the node, with its files in a directory, and waits until it is ready.
    pub(crate) fn start(command: Command, lab: &Lab, directory: &Path, number: u8) -> Self {
        let agent = Self::spawn(command, lab, directory, number);
        agent.wait_until_ready();
        agent
    }

    fn spawn(mut command: Command, lab: &Lab, directory: &Path, number: u8) -> Self {
        let admin = directory.join(format!("admin-{number}.sock"));
        let log = directory.join(format!("log-{number}"));
        let out = File::create(&log).unwrap();
        command.arg("--admin-socket").arg(&admin);
        command.stdin(Stdio::null()).stdout(out.try_clone().unwrap()).stderr(out);
        Self { child: lab.node().ns.run(|| command.spawn()).unwrap(), admin, log }
    }

    /// How many files it has open.
    pub(crate) fn open_files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    #[track_caller]
    pub(crate) fn wait_for(&self, text: &str) {
        until(&format!("{text:?} in {}", self.log()), || self.log().contains(text));
    }

    /// Waits until it serves, and until it answers commands, which comes a moment later.
    #[track_caller]
    fn wait_until_ready(&self) {
        self.wait_for(READY);
        self.wait_for("answering commands");
    }

    /// What a command answers.
    #[track_caller]
    pub(crate) fn ask(&self, arguments: &[&str]) -> String {
        let output = sluice(arguments).arg("--admin-socket").arg(&self.admin).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn json(&self, arguments: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.ask(&[arguments, &["-o", "json"]].concat())).unwrap()
    }

    pub(crate) fn stop(mut self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn metrics(lab: &Lab) -> String {
    let mut stream = lab.node().tcp_stream(METRICS.parse().unwrap(), PATIENCE).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// The sum over all series of a metric whose labels have all of these parts.
pub(crate) fn value(metrics: &str, name: &str, labels: &[&str]) -> Option<f64> {
    let series = metrics.lines().filter(|line| {
        let rest = line.strip_prefix(name);
        rest.is_some_and(|rest| rest.starts_with([' ', '{'])) && labels.iter().all(|part| line.contains(part))
    });
    series.map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

#[test]
fn what_was_translated_is_told_and_counted_once_beside_what_was_relayed() {
    let sockets = Sockets::new();
    let scene = &sockets.scene;
    let agent = sockets.start_where_all_serve("socket");
    let (pod, to) = (scene.lab.pod(0), cluster_ip(1, Family::V4));
    let mut conversations: Vec<_> = (0..4).map(|_| Conversation::begin(pod, to)).collect();
    conversations.iter_mut().for_each(|conversation| conversation.say("hello"));
    let mut relayed = Conversation::begin(scene.lab.outside(), node_port(1, Family::V4));
    relayed.say("hello");
    let udp = pod.ns.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect(to).unwrap();
        socket
    });

    let of_web = [r#"service="s1",port="tcp""#];
    let told = metrics(&scene.lab);
    let value_of = |told: &str, name: &str| value(told, &format!("sluice_{name}"), &of_web);
    assert_eq!(value_of(&told, "service_connections_total"), Some(5.0), "{told}");
    assert_eq!(value_of(&told, "service_connections_translated_total"), Some(4.0));
    assert_eq!(value_of(&told, "endpoint_connections_translated_total"), Some(4.0));
    assert_eq!(value_of(&told, "endpoint_connections_total"), Some(5.0));
    assert_eq!(value_of(&told, "service_connections_active"), Some(5.0));
    let info = [r#"mode="socket""#, r#"wanted="socket""#, r#"reason="""#];
    assert_eq!(value(&told, "sluice_capture_info", &info), Some(1.0));
    assert!(value(&told, "sluice_socket_frontends", &[]).unwrap() > 0.0);
    let mut helps: Vec<&str> =
        told.lines().filter_map(|line| Some(line.strip_prefix("# HELP ")?.split_once(' ')?.1)).collect();
    let described = helps.len();
    helps.sort_unstable();
    helps.dedup();
    assert!(described > 100 && helps.len() == described, "each metric has its own description: {told}");
    assert_eq!(value(&told, "sluice_socket_waiting", &[]), Some(0.0));
    assert_eq!(value(&told, "sluice_socket_namespaces", &[]), Some(0.0));
    assert_eq!(value(&told, "sluice_socket_connections_total", &[]), Some(5.0));

    // All of them are there, and filters and orders go on working.
    let list = agent.json(&["connections"]);
    let rows = list["items"].as_array().unwrap();
    let translated: Vec<_> = rows.iter().filter(|row| row["state"] == "translated").collect();
    assert_eq!((rows.len(), translated.len()), (6, 5), "{list}");
    for row in &translated {
        assert_eq!((&row["service"], &row["bytesToEndpoint"]), (&"s1".into(), &serde_json::Value::Null));
        assert_eq!(row["frontend"], to.to_string());
        assert!(row["client"].as_str().unwrap().starts_with(&pod.v4.to_string()), "{row}");
        assert!(row["ageSeconds"].as_f64().unwrap() < 3600.0);
    }
    let filtered = agent.json(&["connections", "--protocol", "udp"]);
    assert_eq!(filtered["items"][0]["client"], udp.local_addr().unwrap().to_string());
    assert_eq!(filtered["matched"], 1);
    let by_bytes = agent.ask(&["connections", "--sort", "bytes"]);
    assert!(by_bytes.lines().nth(1).unwrap().contains(" open "), "{by_bytes}");
    assert!(by_bytes.contains("translated"), "{by_bytes}");

    let service = agent.json(&["services", "s1"]);
    let tcp = |service: &serde_json::Value| {
        let ports = service["items"][0]["ports"].as_array().unwrap().clone();
        ports.into_iter().find(|port| port["protocol"] == "TCP" && port["family"] == "IPv4").unwrap()
    };
    let traffic = &tcp(&service)["traffic"];
    assert_eq!(
        (&traffic["total"], &traffic["translated"], &traffic["open"]),
        (&5.into(), &4.into(), &5.into())
    );
    assert_eq!(traffic["bytesToEndpoint"], 6, "what is relayed");
    assert!(agent.ask(&["services", "s1"]).contains("4 of all were translated"));

    // What they carried is known when they are over, of an endpoint that has gone by then, too.
    scene.apply(&Service::new(1).here(scene.lab.pod(1)));
    until("one endpoint is left", || {
        tcp(&agent.json(&["services", "s1"]))["endpoints"].as_array().unwrap().len() == 1
    });
    conversations.iter_mut().for_each(|conversation| conversation.say("and"));
    drop(conversations);
    until("they are over", || tcp(&agent.json(&["services", "s1"]))["traffic"]["open"] == 1);
    let traffic = tcp(&agent.json(&["services", "s1"]))["traffic"].clone();
    let sent = traffic["bytesToEndpoint"].as_u64().unwrap();
    // "hello" of all, and "and" of four, each with the end of a line; a reset leaves it open what was acknowledged.
    assert!((6 + 4 * 6..=6 + 4 * 10 + 4).contains(&sent), "{traffic}");
    let told = metrics(&scene.lab);
    assert_eq!(value_of(&told, "service_connections_total"), Some(5.0));
    assert_eq!(value_of(&told, "service_connections_translated_closed_total"), Some(4.0));
    assert!(value_of(&told, "service_connections_translated_closed_seconds_total").unwrap() > 0.0);
    let life = |of: &str, labels: &[&str]| {
        value(&told, &format!("sluice_socket_connection_duration_seconds_{of}"), labels)
    };
    assert_eq!((life("count", &[]), life("bucket", &[r#"le="+Inf""#])), (Some(4.0), Some(4.0)), "{told}");
    assert!(life("sum", &[]).unwrap() > 0.0);

    let status = agent.json(&["status"]);
    let on = sockets.on_everywhere();
    assert_eq!((&status["mode"], &status["atSockets"]), (&"socket".into(), &on.into()));
    assert_eq!(status["counters"]["socket_connections"], 5);
    let explain = |client: &str, to: SocketAddr| {
        let told = agent.json(&["explain", client, &to.to_string()]);
        (told["atSocket"]["verdict"].clone(), told["atSocket"]["why"].as_str().unwrap().to_owned())
    };
    let pod_ip = pod.v4.to_string();
    assert_eq!(explain(&pod_ip, to).0, "translate");
    let (verdict, why) = explain(&pod_ip, node_port(1, Family::V4));
    assert!(verdict == "pass" && why.contains("the node's address"), "{why}");
    let (verdict, why) = explain("192.0.2.1", node_port(1, Family::V4));
    assert!(verdict == "pass" && why.contains("not on this node; a pod of this node outside of"), "{why}");
}

/// Whoever connects while all of it begins: the programs know that there is a relay before they know of a Service.
#[test]
fn an_endpoint_that_refuses_from_the_start_costs_no_client_an_error_however_early_it_connects() {
    let sockets = Sockets::new();
    let scene = &sockets.scene;
    let (pod, refusing) = (scene.lab.pod(0), scene.lab.other());
    let endpoint = SocketAddr::new(refusing.ip(Family::V4), BACKEND);
    assert_eq!(pod.ask(Protocol::Tcp, endpoint, PATIENCE), Outcome::Refused);
    // A first error would be the last one of a Service for a second.
    const SERVICES: RangeInclusive<u8> = 1..=4;
    for number in SERVICES {
        scene.apply(&Service::new(number).here(scene.lab.pod(1)).there(refusing));
    }
    let (is_over, connected) =
        (AtomicBool::new(false), SERVICES.map(|_| AtomicU64::new(0)).collect::<Vec<_>>());
    let refused = std::thread::scope(|scope| {
        let client = |(number, connected)| {
            let (to, is_over): (_, &AtomicBool) = (cluster_ip(number, Family::V4), &is_over);
            let connected: &AtomicU64 = connected;
            scope.spawn(move || {
                let mut refused = 0;
                while !is_over.load(Ordering::Relaxed) {
                    // Until there is a Service nobody answers.
                    match pod.tcp_stream(to, Duration::from_millis(5)) {
                        Ok(_) => _ = connected.fetch_add(1, Ordering::Relaxed),
                        Err(error) => refused += u64::from(error.kind() == io::ErrorKind::ConnectionRefused),
                    }
                }
                refused
            })
        };
        let clients: Vec<_> = SERVICES.zip(&connected).map(client).collect();
        let agent = sockets.start(1, "socket", &sockets.pins());
        let counts = || connected.iter().map(|count| count.load(Ordering::Relaxed));
        let before: Vec<u64> = counts().collect();
        until("there are more of each", || counts().zip(&before).all(|(now, before)| now > before + 50));
        assert_eq!(agent.json(&["status"])["mode"], "socket");
        is_over.store(true, Ordering::Relaxed);
        clients.into_iter().map(|client| client.join().unwrap()).sum::<u64>()
    });
    assert_eq!(refused, 0, "beside {connected:?}");
}

#[test]
fn a_second_agent_decides_in_the_place_of_the_first_and_counts_from_there() {
    let sockets = Sockets::new();
    let scene = &sockets.scene;
    let first = sockets.start_where_all_serve("socket");
    let (pod, to) = (scene.lab.pod(0), cluster_ip(1, Family::V4));
    let mut open = Conversation::begin(pod, to);
    let load = pod.load(Protocol::Tcp, to);
    assert!(load.answers_more(10, PATIENCE), "{:?}", load.report());
    let second = sockets.start(2, "socket", &sockets.pins());
    second.wait_for("connections are decided at their sockets, as this agent knows all");
    assert!(!second.log().contains("no connection is decided"), "an update is no problem: {}", second.log());
    let status = first.json(&["status"]);
    assert_eq!(
        (&status["mode"], &status["atSockets"]),
        (&"tproxy".into(), &"off: another agent has taken over".into())
    );
    first.stop();
    assert!(load.answers_more(10, PATIENCE), "{:?}", load.report());
    let report = load.stop();
    assert_eq!(report.failed, 0, "{report:?}");
    open.say("on");
    let status = second.json(&["status"]);
    let on = sockets.on_everywhere();
    assert_eq!((&status["mode"], &status["atSockets"]), (&"socket".into(), &on.into()));
    let list = second.json(&["connections", "--service", "default/s1"]);
    assert!(list["items"].as_array().unwrap().iter().any(|row| row["state"] == "translated"), "{list}");
    let service = second.json(&["services", "s1"]);
    let ports = service["items"][0]["ports"].as_array().unwrap();
    let traffic = &ports.iter().find(|port| port["protocol"] == "TCP").unwrap()["traffic"];
    let (total, open_now) = (traffic["total"].as_u64().unwrap(), traffic["open"].as_u64().unwrap());
    assert!(total > 0 && open_now >= 1, "{traffic}");
}

#[test]
fn what_somebody_takes_away_is_missed_and_all_is_relayed_until_the_agent_is_started_again() {
    let sockets = Sockets::new();
    let scene = &sockets.scene;
    let agent = sockets.start_where_all_serve("auto");
    let (pod, to) = (scene.lab.pod(0), cluster_ip(1, Family::V4));
    let mut open = Conversation::begin(pod, to);
    let load = pod.load(Protocol::Tcp, to);
    assert!(load.answers_more(10, PATIENCE), "{:?}", load.report());
    let udp = scene.lab.node().ns.run(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    udp.connect(to).unwrap();
    udp.set_read_timeout(Some(PATIENCE)).unwrap();
    let version = fs::read_dir(sockets.pins()).unwrap().next().unwrap().unwrap().path();
    // Without the second nobody else knows which sockets were connected.
    for pin in ["link_sluice_connect4", "conns"] {
        fs::remove_file(version.join(pin)).unwrap();
    }
    agent.wait_for("somebody has taken sluice_connect4 away");
    // It would wait for its endpoint for ever.
    assert_eq!(udp.recv(&mut [0; 8]).unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
    let status = agent.json(&["status"]);
    assert_eq!(status["mode"], "tproxy");
    assert!(status["atSockets"].as_str().unwrap().starts_with("off: somebody has taken"), "{status}");
    // Nothing of it is left, which would be kept in line by nobody.
    assert_eq!(sockets.programs(), "");
    assert!(!sockets.pins().exists());
    assert!(load.answers_more(10, PATIENCE), "{:?}", load.report());
    agent.stop();
    let again = sockets.start(1, "auto", &sockets.pins());
    assert_eq!(again.json(&["status"])["mode"], "socket");
    assert!(load.answers_more(10, PATIENCE), "{:?}", load.report());
    let report = load.stop();
    assert_eq!(report.failed, 0, "{report:?}");
    open.say("on");
}

/// As somebody does who mounts a bpffs where there is one.
#[test]
fn programs_whose_pins_are_hidden_go_before_they_are_out_of_date() {
    let sockets = Sockets::new();
    let scene = &sockets.scene;
    let agent = sockets.start(1, "socket", &sockets.pins());
    let load = scene.lab.pod(0).load(Protocol::Tcp, cluster_ip(1, Family::V4));
    assert!(load.answers_more(10, PATIENCE), "{:?}", load.report());
    assert_ne!(sockets.programs(), "");
    let umount = || Command::new("umount").arg(sockets.bpffs.path()).status().unwrap();
    let mount = Command::new("mount").args(["-t", "bpf", "bpf"]).arg(sockets.bpffs.path()).status().unwrap();
    assert!(mount.success());
    agent.wait_for("no connection is decided at its socket any more");
    assert_eq!((sockets.programs(), &agent.json(&["status"])["mode"]), (String::new(), &"tproxy".into()));
    agent.stop();
    let again = sockets.start(1, "socket", &sockets.pins());
    assert_eq!(again.json(&["status"])["mode"], "socket");
    assert!(load.answers_more(10, PATIENCE), "{:?}", load.report());
    let report = load.stop();
    assert_eq!(report.failed, 0, "{report:?}");
    again.stop();
    // The kernel lets go of what a process had open after it is gone.
    until("it can be unmounted", || umount().success());
}

#[test]
fn cleanup_removes_the_programs_wherever_they_are() {
    let sockets = Sockets::new();
    let pins = sockets.pins();
    sockets.start(1, "socket", &pins).stop();
    let cleanup = || {
        let mut command = sluice(["cleanup", "--force", "--socket-pins"]);
        command.arg(&pins).stdin(Stdio::null()).stderr(Stdio::piped());
        let output = sockets.scene.lab.node().ns.run(|| command.output()).unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(cleanup().contains(&format!("removed: programs and maps at {}", pins.display())));
    assert!(!pins.exists() && !cleanup().contains("programs"));
}

#[test]
#[ignore = "a measurement: run it alone, with --nocapture"]
fn what_listing_ten_thousand_sockets_costs() {
    let sockets = Sockets::new();
    let agent = sockets.start(1, "socket", &sockets.pins());
    let (pod, to) = (sockets.scene.lab.pod(0), cluster_ip(1, Family::V4));
    let connect = || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect(to).unwrap();
        socket
    };
    let all: Vec<UdpSocket> = pod.ns.run(|| (0..10_000).map(|_| connect()).collect());
    let mut times: Vec<_> = (0..9)
        .map(|_| {
            let start = Instant::now();
            let said = agent.ask(&["connections", "-o", "json", "--limit", "10000"]);
            (start.elapsed(), said.matches("\"translated\"").count())
        })
        .collect();
    times.sort_unstable();
    println!("{} sockets: median {:?}, all {times:?}", all.len(), times[4]);
    assert!(times.iter().all(|(_, listed)| *listed == all.len()));
}
