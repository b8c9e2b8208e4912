//! The site of a contender: a lab of its own, so that contenders' rules, connections and sockets do not
//! affect each other. `pod-0` is the client, `pod-1` has the servers, and the node between them has the
//! contender.

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};
use sluice_testbed::lab::{Host, Lab, PATIENCE, Process};
use tempfile::TempDir;

use crate::interrupt;
use crate::tool::is_installed;

/// nginx, with one small page.
pub const HTTP: u16 = 80;
/// nsd, authoritative for [`ZONE`].
pub const DNS: u16 = 53;
/// `iperf3 --server`.
pub const IPERF: u16 = 5201;
/// `sockperf server --tcp`.
pub const TCP_ECHO: u16 = 5301;
/// `sockperf server`.
pub const UDP_ECHO: u16 = 5302;

/// TCP ports of the servers, which a contender carries.
pub const TCP: [u16; 3] = [HTTP, IPERF, TCP_ECHO];
/// UDP ports of the servers, which a contender carries.
pub const UDP: [u16; 2] = [DNS, UDP_ECHO];

/// The zone of the DNS names.
pub const ZONE: &str = "example.org";
/// Number of names.
pub const NAMES: usize = 1_000;

/// Settings of the client's pod only. `wrk` opens ten thousand connections per second from one address: with
/// the kernel's default it would run out of ports within three seconds, with any contender.
const CLIENT_SETTINGS: [(&str, &str); 2] =
    [("net/ipv4/tcp_tw_reuse", "1"), ("net/ipv4/ip_local_port_range", "32768 60999")];

/// A lab with servers.
pub struct Site {
    /// The lab: `pod(0)` is the client, `pod(1)` has the servers.
    pub lab: Lab,
    directory: TempDir,
    servers: Vec<Process>,
}

impl Site {
    /// Creates the lab and starts those servers that are installed.
    ///
    /// # Errors
    /// No lab can be created here, or a server does not start.
    pub fn new() -> Result<Self> {
        let lab = Lab::builder().pods(2).other_pods(0).build()?;
        lab.pod(0).ns.set_all(&CLIENT_SETTINGS)?;
        let directory = tempfile::Builder::new().prefix("sluice-bench-").tempdir().context("a directory")?;
        let mut site = Self { lab, directory, servers: Vec::new() };
        site.start_servers()?;
        Ok(site)
    }

    /// A directory for configurations, which is removed with the site.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The client, which generates the load.
    pub fn client(&self) -> &Host {
        self.lab.pod(0)
    }

    /// The host of the servers.
    pub fn server(&self) -> &Host {
        self.lab.pod(1)
    }

    fn start_servers(&mut self) -> Result<()> {
        let (ip, directory) = (self.server().v4, self.directory().to_owned());
        let cpus = cpus();
        if is_installed("nginx") {
            let config = format!(
                "user root;\nworker_processes {cpus};\npid {0}/web.pid;\nerror_log stderr error;\n\
                 events {{ worker_connections 8192; }}\n\
                 http {{ access_log off; keepalive_requests 1000000000; tcp_nodelay on;\n\
                 client_body_temp_path {0}/web; proxy_temp_path {0}/web; fastcgi_temp_path {0}/web;\n\
                 uwsgi_temp_path {0}/web; scgi_temp_path {0}/web;\n\
                 server {{ listen {ip}:{HTTP} reuseport backlog=4096;\n\
                 location / {{ default_type text/plain; return 200 \"{1}\"; }} }} }}\n",
                directory.display(),
                "sluice ".repeat(14),
            );
            let path = directory.join("web.conf");
            fs::write(&path, config)?;
            self.serve(nginx(&path, &directory))?;
            await_tcp(self.server(), (ip, HTTP).into(), &self.servers)?;
        }
        if is_installed("nsd") {
            self.serve(nsd(&directory, ip.into(), cpus)?)?;
            await_tcp(self.server(), (ip, DNS).into(), &self.servers)?;
        }
        if is_installed("iperf3") {
            let mut iperf = Command::new("iperf3");
            // Connecting to check whether it listens would count as a client.
            self.serve_at(iperf.args(["--server", "--forceflush", "--bind"]).arg(ip.to_string()), IPERF)?;
            self.last_says("Server listening")?;
        }
        if is_installed("sockperf") {
            for (port, protocol) in [(TCP_ECHO, Some("--tcp")), (UDP_ECHO, None)] {
                let mut sockperf = Command::new("sockperf");
                sockperf.arg("server").args(protocol).args(["-i", &ip.to_string()]);
                self.serve_at(&mut sockperf, port)?;
                self.last_says("to block on socket")?;
            }
        }
        Ok(())
    }

    /// Starts a server that runs as long as this site.
    fn serve(&mut self, command: Command) -> Result<()> {
        let process = self.server().spawn(&command)?;
        self.servers.push(process);
        Ok(())
    }

    fn serve_at(&mut self, command: &mut Command, port: u16) -> Result<()> {
        command.args(["-p", &port.to_string()]);
        let process = self.server().spawn(command)?;
        self.servers.push(process);
        Ok(())
    }

    /// Waits for a line of the server that was started last.
    fn last_says(&self, text: &str) -> Result<()> {
        let server = self.servers.last().context("no server was started")?;
        server.wait_for(text, PATIENCE)?;
        Ok(())
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        end(&mut self.servers);
    }
}

/// Waits until an address is listened on, as seen by a host. If it is not, the output of these processes is
/// the reason.
///
/// # Errors
/// It is not listened on in time.
pub fn await_tcp(host: &Host, address: SocketAddr, of: &[Process]) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while host.ns.run(|| TcpStream::connect_timeout(&address, Duration::from_secs(1))).is_err() {
        interrupt::check()?;
        if Instant::now() > deadline {
            let said: Vec<String> = of.iter().flat_map(Process::lines).collect();
            bail!("nobody listens on {address}: {}", said.join("\n"));
        }
        std::thread::sleep(interrupt::POLL);
    }
    Ok(())
}

/// How long a program may take to end after SIGTERM, before it is killed.
const GRACE: Duration = Duration::from_secs(2);

/// Ends processes with everything that they have started. Sends SIGTERM first, so that each waits for its
/// children.
pub fn end(processes: &mut Vec<Process>) {
    let groups = processes.iter().filter_map(|process| Pid::from_raw(process.id().try_into().ok()?));
    // It fails if the process is gone.
    for group in groups {
        let _ = kill_process_group(group, Signal::TERM);
    }
    let deadline = Instant::now() + GRACE;
    for process in processes.iter_mut() {
        // What is still running is killed when the handle is dropped.
        let _ = process.wait(deadline.saturating_duration_since(Instant::now()));
    }
    processes.clear();
}

/// Number of threads or processes of each server and each contender: one per CPU.
pub fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get)
}

/// Runs a program with children in a PID namespace of its own: when this program ends in any way, the kernel
/// kills the first process there and with it all others.
fn with_its_children(program: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", "--", program]);
    command
}

/// nginx in the foreground, with only this configuration.
pub fn nginx(config: &Path, directory: &Path) -> Command {
    let mut command = with_its_children("nginx");
    command.args(["-g", "daemon off;", "-e", "stderr", "-p"]).arg(directory).arg("-c").arg(config);
    command
}

fn nsd(directory: &Path, ip: IpAddr, servers: usize) -> Result<Command> {
    let shown = directory.display();
    let mut zone =
        format!("$ORIGIN {ZONE}.\n$TTL 60\n@ SOA ns hostmaster 1 3600 600 86400 60\n@ NS ns\nns A {ip}\n");
    for name in 0..NAMES {
        zone.push_str(&format!("name-{name} A 192.0.2.{}\n", name % 255));
    }
    fs::write(directory.join("zone"), zone)?;
    let config = format!(
        "server:\n  server-count: {servers}\n  reuseport: yes\n  ip-address: {ip}\n  username: \"\"\n  chroot: \"\"\n\
         \x20 zonesdir: \"{shown}\"\n  database: \"\"\n  zonelistfile: \"{shown}/zone.list\"\n  pidfile: \"{shown}/nsd.pid\"\n\
         \x20 xfrdfile: \"{shown}/xfrd.state\"\n  xfrdir: \"{shown}\"\n  rrl-ratelimit: 0\n\
         remote-control:\n  control-enable: no\nzone:\n  name: {ZONE}\n  zonefile: zone\n"
    );
    let path = directory.join("nsd.conf");
    fs::write(&path, config)?;
    let mut command = with_its_children("nsd");
    command.arg("-d").arg("-c").arg(path);
    Ok(command)
}
