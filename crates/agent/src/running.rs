//! Finds others that serve Services on this node: kube-proxy, or another agent.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

/// A process in this network namespace. Processes in others do not serve this node's Services, but for example
/// those of clusters in containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Process {
    pub id: u32,
    /// The kernel's name of the process.
    pub name: String,
    pub arguments: Vec<String>,
}

/// A sign that a kube-proxy runs here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Sign {
    /// A kube-proxy process.
    Process(u32),
    /// A process that contains a kube-proxy unless told not to.
    Inside(Process),
    /// It answers with its mode on the port for its metrics.
    Answers { mode: String },
}

/// How to stop a kube-proxy with a process of its own.
pub(crate) const STOP: &str =
    "kubectl --namespace kube-system delete daemonset kube-proxy, or keep it off this node";

/// How to stop a kube-proxy inside another program.
pub(crate) const DISABLE: &str =
    "start that program with --disable-kube-proxy (in the config file of k3s disable-kube-proxy: true)";

impl Sign {
    /// Whether the sign leaves no doubt that a kube-proxy runs.
    pub(crate) fn is_certain(&self) -> bool {
        match self {
            Self::Process(_) | Self::Answers { .. } => true,
            Self::Inside(_) => false,
        }
    }
}

impl fmt::Display for Sign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process(id) => write!(f, "process {id}"),
            Self::Inside(Process { id, name, .. }) => write!(f, "maybe inside {name}, process {id}"),
            Self::Answers { mode } => write!(f, "it answers on {METRICS}, mode {mode}"),
        }
    }
}

/// Where kube-proxy tells its mode (`--metrics-bind-address`) to anybody in the node's network.
const METRICS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 10249);

/// How long an answer from this machine may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// Inode number of the first PID namespace (`PROC_PID_INIT_INO` of the kernel).
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";

/// All visible processes of this network namespace, except this one.
pub(crate) fn processes() -> Vec<Process> {
    let own_network = fs::read_link("/proc/thread-self/ns/net").ok();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let others = ids.filter(|id| *id != std::process::id());
    others.filter_map(|id| process(id, own_network.as_deref())).collect()
}

fn process(id: u32, own_network: Option<&Path>) -> Option<Process> {
    let directory = Path::new("/proc").join(id.to_string());
    // If the namespace cannot be read, it may be ours.
    let network = fs::read_link(directory.join("ns/net")).ok();
    if network.is_some() && network.as_deref() != own_network {
        return None;
    }
    let name = fs::read_to_string(directory.join("comm")).ok()?.trim().to_owned();
    let line = fs::read(directory.join("cmdline")).ok()?;
    let arguments = line.split(|byte| *byte == 0).filter(|argument| !argument.is_empty());
    let arguments: Vec<String> = arguments.map(|a| String::from_utf8_lossy(a).into_owned()).collect();
    // A zombie has a name, but neither arguments nor a namespace.
    (!arguments.is_empty()).then_some(Process { id, name, arguments })
}

/// Whether this process can see those outside of its container (`hostPID`).
pub(crate) fn sees_all_processes() -> bool {
    fs::read_link("/proc/self/ns/pid").is_ok_and(|namespace| namespace == Path::new(FIRST_PID_NAMESPACE))
}

/// Signs of a kube-proxy.
pub(crate) fn kube_proxy(processes: &[Process]) -> Vec<Sign> {
    let mut signs: Vec<Sign> = processes.iter().filter_map(sign).collect();
    signs.extend(ask(METRICS).ok().as_deref().and_then(mode).map(|mode| Sign::Answers { mode }));
    signs
}

fn sign(process: &Process) -> Option<Sign> {
    match process.name.as_str() {
        "kube-proxy" => Some(Sign::Process(process.id)),
        "k3s-server" | "k3s-agent" | "kubelite" => {
            let is_off = |argument: &String| {
                matches!(argument.as_str(), "--disable-kube-proxy" | "--disable-kube-proxy=true")
            };
            (!process.arguments.iter().any(is_off)).then(|| Sign::Inside(process.clone()))
        }
        _ => None,
    }
}

/// Agents that serve this node by rules in the kernel, or may do so. Those that only listen (`--capture bind`)
/// make no rules.
pub(crate) fn agents(processes: &[Process]) -> BTreeSet<u32> {
    let is_agent =
        |p: &&Process| p.name == "sluice" && p.arguments.iter().skip(1).any(|argument| argument == "agent");
    let makes_rules = |p: &&Process| !only_listens(&p.arguments);
    processes.iter().filter(is_agent).filter(makes_rules).map(|process| process.id).collect()
}

/// Whether an agent's arguments prove that its mode is bind: they name it, or they name manifests and nothing
/// that might select another mode.
fn only_listens(arguments: &[String]) -> bool {
    let is_given = |flag: &str| {
        arguments
            .iter()
            .any(|a| a.strip_prefix(flag).is_some_and(|rest| rest.is_empty() || rest.starts_with('=')))
    };
    if is_given("--capture") {
        let follows = arguments.windows(2).any(|pair| pair == ["--capture", "bind"]);
        return follows || arguments.iter().any(|argument| argument == "--capture=bind");
    }
    is_given("--manifests") && !is_given("--config")
}

/// Asks for kube-proxy's mode; returns the raw answer.
fn ask(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /proxyMode HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    // A longer answer is no mode.
    stream.take(4096).read_to_string(&mut answer)?;
    Ok(answer)
}

/// The mode in an answer, if it is one of kube-proxy's. Anybody may listen on that port.
fn mode(answer: &str) -> Option<String> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let is_good = head.split(' ').nth(1) == Some("200");
    let mode = body.trim();
    (is_good && matches!(mode, "iptables" | "ipvs" | "nftables")).then(|| mode.to_owned())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::time::Instant;

    use super::*;

    fn process(line: &str) -> Process {
        let arguments: Vec<String> = line.split(' ').skip(1).map(str::to_owned).collect();
        Process { id: 7, name: line.split(' ').next().unwrap().to_owned(), arguments }
    }

    #[test]
    fn who_is_who() {
        #[rustfmt::skip]
        let cases = [
            ("kube-proxy /usr/local/bin/kube-proxy --config=/var/lib/c", Some("process 7"), false),
            ("k3s-server /usr/local/bin/k3s server",          Some("maybe inside k3s-server, process 7"), false),
            ("k3s-server /usr/local/bin/k3s server --disable-kube-proxy", None, false),
            ("kubelite /snap/microk8s/kubelite",              Some("maybe inside kubelite, process 7"), false),
            ("kube-proxy-metr kube-proxy-metrics",            None, false),
            ("bash /bin/bash kube-proxy",                     None, false),
            ("sluice /usr/bin/sluice agent --capture tproxy", None, true),
            ("sluice /usr/bin/sluice -v agent",               None, true),
            ("sluice /usr/bin/sluice agent --capture bind",   None, false),
            ("sluice /usr/bin/sluice agent --capture=bind --config c", None, false),
            ("sluice /usr/bin/sluice agent --capture=auto --manifests m", None, true),
            ("sluice /usr/bin/sluice agent --manifests m",    None, false),
            ("sluice /usr/bin/sluice agent --manifests=m --config=c", None, true),
            ("sluice /usr/bin/sluice agent --kubeconfig bind", None, true),
            ("sluice /usr/bin/sluice demo",                   None, false),
            ("sluice agent",                                  None, false),
        ];
        for (line, wanted, is_agent) in cases {
            let process = process(line);
            assert_eq!(sign(&process).map(|sign| sign.to_string()).as_deref(), wanted, "{line}");
            assert_eq!(!agents(&[process]).is_empty(), is_agent, "{line}");
        }
    }

    #[test]
    fn which_answers_are_kube_proxys() {
        #[rustfmt::skip]
        let cases = [
            ("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\niptables", Some("iptables")),
            ("HTTP/1.1 200 OK\r\n\r\nnftables\n",                    Some("nftables")),
            ("HTTP/1.1 404 Not Found\r\n\r\niptables",               None),
            ("HTTP/1.1 200 OK\r\n\r\ntry /metrics",                  None),
            ("SSH-2.0-OpenSSH\r\n",                                  None),
            ("",                                                     None),
        ];
        for (answer, wanted) in cases {
            assert_eq!(mode(answer).as_deref(), wanted, "{answer}");
        }
    }

    #[test]
    fn a_server_is_asked_and_one_that_is_not_there_is_none() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            let read = stream.read(&mut request).unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nipvs").unwrap();
            String::from_utf8_lossy(&request[..read]).into_owned()
        });
        assert_eq!(mode(&ask(address).unwrap()).as_deref(), Some("ipvs"));
        assert!(server.join().unwrap().starts_with("GET /proxyMode HTTP/1.1\r\n"));
        assert!(ask(address).is_err());
    }

    #[test]
    fn processes_of_this_network_are_seen_and_this_one_is_not() {
        let mut sleeper = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        // A process that has just started has no arguments for a moment.
        let deadline = Instant::now() + Duration::from_secs(30);
        let is_seen = |id| processes().iter().any(|process| process.id == id);
        let sleeper_is_seen = std::iter::repeat_with(|| is_seen(sleeper.id()))
            .take_while(|_| Instant::now() < deadline)
            .any(|seen| seen);
        let this_one_is_seen = is_seen(std::process::id());
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
        assert!(sleeper_is_seen && !this_one_is_seen);
    }
}
