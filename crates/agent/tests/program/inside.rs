//! The commands that ask a running agent, as a person runs them.

use std::fs;
use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::common::{Agent, PATIENCE, address, ask, backend, free_port, service, slice, until};

/// An agent that serves a Service, and where it answers.
pub(crate) struct Scene {
    directory: TempDir,
    pub(crate) frontend: SocketAddr,
    pub(crate) endpoints: Vec<SocketAddr>,
    agent: Agent,
}

impl Scene {
    pub(crate) fn start() -> Self {
        let directory = TempDir::new().unwrap();
        let frontend = free_port(address());
        let endpoints = vec![backend(1), backend(2)];
        fs::create_dir(directory.path().join("manifests")).unwrap();
        let manifest = service("web", frontend) + &slice("web", &endpoints);
        fs::write(directory.path().join("manifests/web.yaml"), manifest).unwrap();
        let agent = spawn(&directory);
        Self { directory, frontend, endpoints, agent }
    }

    /// Puts a manifest in its place.
    pub(crate) fn write(&self, name: &str, manifest: &str) {
        fs::write(self.directory.path().join(format!("manifests/{name}.yaml")), manifest).unwrap();
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("admin.sock")
    }

    /// What a command answers: it is to succeed, and complain of nothing.
    pub(crate) fn ask(&self, arguments: &str) -> String {
        let output = command(&self.socket(), arguments);
        let [said, complaints] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
        assert!(output.status.success() && complaints.is_empty(), "{arguments}: {said}{complaints}");
        said.into_owned()
    }

    pub(crate) fn json(&self, arguments: &str) -> serde_json::Value {
        serde_json::from_str(&self.ask(&format!("{arguments} -o json"))).unwrap()
    }

    /// What a command complains of: it is to fail.
    pub(crate) fn complaint(&self, arguments: &str) -> String {
        let output = command(&self.socket(), arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments}: {output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }
}

/// An agent on the manifests of a directory that answers there.
fn spawn(directory: &TempDir) -> Agent {
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let mut agent = Agent::start(&["--manifests", &path("manifests"), "--admin-socket", &path("admin.sock")]);
    agent.wait_for("answering commands");
    agent
}

pub(crate) fn command(socket: &std::path::Path, arguments: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sluice"))
        .args(arguments.split(' '))
        .arg("--admin-socket")
        .arg(socket)
        .env_remove("RUST_LOG")
        .output()
        .unwrap()
}

#[test]
fn services_are_told_with_what_they_carry() {
    let scene = Scene::start();
    let mut open = TcpStream::connect(scene.frontend).unwrap();
    open.set_read_timeout(Some(PATIENCE)).unwrap();
    open.read_exact(&mut [0]).unwrap();
    ask(scene.frontend).unwrap();
    until("one connection is over and one is open", || {
        let traffic = &scene.json("services web")["items"][0]["ports"][0]["traffic"];
        traffic["total"] == 2 && traffic["open"] == 1 && traffic["bytesFromEndpoint"] == 2
    });
    let list = scene.ask("services");
    let words: Vec<Vec<&str>> = list.lines().map(|line| line.split_whitespace().collect()).collect();
    let frontend = scene.frontend.to_string();
    let port = format!("{}/TCP", scene.frontend.port());
    assert_eq!(words[0][..6], ["NAMESPACE", "NAME", "PORT", "ADDRESS", "VERDICT", "ENDPOINTS"]);
    assert_eq!(words[1][..9], ["default", "web", &port, &frontend, "relay", "2/2", "1", "2", "0"]);
    assert_eq!(words.len(), 2);

    let full = scene.ask("services default/web");
    for endpoint in &scene.endpoints {
        assert!(full.lines().any(|line| line.starts_with(&format!("{endpoint} "))), "{full}");
    }
    assert!(full.contains("relay     2 endpoints ready"), "{full}");
    let yaml = scene.ask("services -o yaml");
    assert!(yaml.starts_with("items:\n- name: web\n  namespace: default\n  ports:\n"), "{yaml}");
    assert!(scene.ask("services --output wide").contains("BALANCE"));
    let complaint = scene.complaint("services other/web");
    assert!(complaint.contains("no Service web in namespace other has an address here"), "{complaint}");
    drop(open);
}

#[test]
fn what_was_carried_is_not_forgotten_when_an_endpoint_leaves() {
    let scene = Scene::start();
    (0..4).for_each(|_| assert!(ask(scene.frontend).is_ok()));
    let carried = |scene: &Scene| scene.json("services web")["items"][0]["ports"][0].clone();
    until("all are counted", || carried(&scene)["traffic"]["total"] == 4);
    let manifest = service("web", scene.frontend) + &slice("web", &scene.endpoints[..1]);
    fs::write(scene.directory.path().join("manifests/web.yaml"), manifest).unwrap();
    until("one endpoint leaves", || carried(&scene)["endpoints"].as_array().unwrap().len() == 1);
    let port = carried(&scene);
    assert_eq!(
        (&port["traffic"]["total"], &port["endpoints"][0]["traffic"]["total"]),
        (&4.into(), &2.into())
    );
}

#[test]
fn a_packet_is_explained() {
    let scene = Scene::start();
    let frontend = scene.frontend;
    let said = scene.ask(&format!("explain {} {frontend}", frontend.ip()));
    for part in ["a process of this node", "default/web, by clusterIP", "relayed", "2 endpoints ready"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let udp = scene.ask(&format!("explain 192.0.2.1 {frontend}/udp"));
    assert!(udp.contains("left alone") && udp.contains("ask for it with /tcp"), "{udp}");
    let other = scene.json(&format!("explain 192.0.2.1 {}:1", frontend.ip()));
    assert_eq!(other["outcome"]["verdict"], "pass", "{other}");
    assert!(other["outcome"]["why"].as_str().unwrap().contains("has no such port"), "{other}");
    let complaint = scene.complaint(&format!("explain fd00::1 {frontend}"));
    assert!(complaint.contains("two families"), "{complaint}");
    for client in ["web", "10.244.1.9:80"] {
        let output = command(&scene.socket(), &format!("explain {client} {frontend}"));
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(complaint.contains("without a port, as 10.244.1.9"), "{complaint}");
    }
}

#[test]
fn the_status_names_services_that_are_not_served_as_they_ask_for() {
    let scene = Scene::start();
    let node = scene.json("status")["node"].as_str().unwrap().to_owned();
    // TEST-NET-1, RFC 5737: nobody's. On loopback addresses there are neither nodePorts nor health checks.
    let (ip, cluster_ip) = ("192.0.2.1", address());
    let lb = format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: lb}}\nspec: {{type: LoadBalancer, clusterIP: {cluster_ip}, \
         externalTrafficPolicy: Local, healthCheckNodePort: 32001, ports: [{{port: {}, nodePort: 32002}}]}}\n",
        free_port(cluster_ip).port(),
    );
    let problem = |part: &str| {
        until(part, || {
            scene.ask("status").lines().any(|line| line.starts_with("Problem:") && line.contains(part))
        });
    };
    let rival = service("z-rival", scene.frontend) + &slice("z-rival", &[backend(b'r')]);
    scene.write("z-lb", &(rival + &lb));
    problem("belongs to Service default/web, which comes first");
    problem(&format!(
        "nodePorts are served nowhere (Services that have some: 1), as no address of Node {node} is known"
    ));
    scene.write(
        "node",
        &format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: {node}}}\nstatus: {{addresses: [{{type: InternalIP, address: {ip}}}]}}\n"
        ),
    );
    problem(&format!(
        "default/lb: no health check on {ip}:32001: the address is not on an interface of this node"
    ));
    until("nodePorts are served", || !scene.ask("status").contains("served nowhere"));
}

#[test]
fn the_status_says_that_it_stops_and_the_socket_goes_with_the_agent() {
    let mut scene = Scene::start();
    let status = scene.json("status");
    assert_eq!((&status["mode"], &status["isHealthy"]), (&"bind".into(), &true.into()));
    assert_eq!((&status["services"], &status["endpoints"]), (&1.into(), &2.into()));
    assert!(scene.ask("status").contains("State:       healthy\n"));
    assert!(scene.ask("status -o wide").contains("udp_flows_evicted"));
    for state in ["live", "ready"] {
        assert_eq!(scene.ask(&format!("status --expect {state}")), "");
    }

    let mut open = TcpStream::connect(scene.frontend).unwrap();
    open.read_exact(&mut [0]).unwrap();
    scene.agent.signal(Signal::TERM);
    until("it says that it stops", || scene.json("status")["isStopping"] == true);
    drop(open);
    assert!(scene.agent.wait().success());
    assert!(!scene.socket().exists());
    let complaint = scene.complaint("status");
    assert!(complaint.contains("no agent answers at") && complaint.contains("--admin-socket"), "{complaint}");
}

#[test]
fn of_two_agents_the_newer_answers_and_the_older_again_when_that_is_gone() {
    let older = Scene::start();
    let process = |scene: &Scene| scene.json("status")["process"].as_u64().unwrap();
    assert_eq!(process(&older), u64::from(older.agent.child.id()));
    let newer = spawn(&older.directory);
    assert_eq!(process(&older), u64::from(newer.child.id()));
    // Killed: it leaves its socket behind.
    drop(newer);
    until("the older one answers again", || {
        let output = command(&older.socket(), "status -o json");
        let status = serde_json::from_slice::<serde_json::Value>(&output.stdout).ok();
        status.is_some_and(|status| status["process"] == older.agent.child.id())
    });
}

#[test]
fn without_a_place_for_the_socket_everything_else_goes_on() {
    let directory = TempDir::new().unwrap();
    let frontend = free_port(address());
    let manifest = directory.path().join("web.yaml");
    fs::write(&manifest, service("web", frontend) + &slice("web", &[backend(1)])).unwrap();
    // A file is where its directory would be.
    let socket = manifest.join("admin.sock");
    let arguments = ["--manifests", manifest.to_str().unwrap(), "--admin-socket", socket.to_str().unwrap()];
    let mut agent = Agent::start(&arguments);
    let warning = agent.wait_for("are not answered, all else goes on");
    assert!(warning.contains("WARN") && warning.contains("--admin-socket"), "{warning}");
    assert_eq!(ask(frontend).unwrap(), 1);
}

#[test]
fn what_changes_is_told_by_those_who_watch_and_the_end_of_an_agent_ends_none_of_them() {
    let mut scene = Scene::start();
    let start = |scene: &Scene, arguments: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"));
        let arguments = arguments.split(' ').chain(["--watch", "--interval", "100ms", "--admin-socket"]);
        command.args(arguments).arg(scene.socket()).stdout(Stdio::piped());
        // Its output is what is listened to.
        Agent::run_for(&mut command, |child| Box::new(child.stdout.take().unwrap()))
    };
    let mut services = start(&scene, "services");
    let mut connections = start(&scene, "connections -o wide");
    services.wait_for("NAMESPACE");
    services.wait_for("web ");
    connections.wait_for("No such connection is open.");
    let mut open = TcpStream::connect(scene.frontend).unwrap();
    open.read_exact(&mut [0]).unwrap();
    let client = open.local_addr().unwrap().to_string();
    connections.wait_for(&client);
    let is_of_web = |line: &&String| line.contains(" web ");
    until("it is told that a connection is open", || {
        services.heard().iter().rfind(is_of_web).unwrap().contains("   1      1 ")
    });
    scene.write("other", &(service("other", free_port(address())) + &slice("other", &[backend(3)])));
    services.wait_for("other ");
    assert_eq!(services.heard().iter().filter(|line| line.contains("NAMESPACE")).count(), 1);
    assert_eq!(
        connections.heard().iter().filter(|line| line.contains(&client)).count(),
        1,
        "its age is no news"
    );

    drop(open);
    scene.agent.signal(Signal::TERM);
    assert!(scene.agent.wait().success());
    scene.agent = spawn(&scene.directory);
    let again = TcpStream::connect(scene.frontend).unwrap();
    connections.wait_for(&again.local_addr().unwrap().to_string());
}
