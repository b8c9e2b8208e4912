//! A small dual-stack cluster made of network namespaces, for end-to-end tests of Sluice on a node.
//!
//! ```text
//!   pod-0  pod-1 ...            other-pod-0 ...
//!     |      |                      |
//!   veth0  veth1                  veth0
//!   +-----------+              +-----------+
//!   |   node    |              |   other   |
//!   +---eth0----+              +---eth0----+
//!        |     192.168.10.0/24      |
//!        +----------[lan]-----------+
//!                  router
//!                   wan  192.168.20.0/24
//!                    |
//!                  outside
//! ```
//!
//! | host | IPv4 | IPv6 |
//! |---|---|---|
//! | `node`, where the agent runs | 192.168.10.10 | fd00:10::10 |
//! | `pod-N`, on the node behind `vethN` | 10.244.1.(10+N) | fd00:244:1::(10+N), the same digits |
//! | `other`, a node without a proxy | 192.168.10.11 | fd00:10::11 |
//! | `other-pod-N`, on the other node | 10.244.2.(10+N) | fd00:244:2::(10+N) |
//! | `outside` | 192.168.20.20 | fd00:20::20 |
//!
//! All hosts reach each other, without NAT. The router routes Services' addresses to the node: 10.96.0.0/16
//! and fd00:96::/112 for ClusterIPs, 203.0.113.0/24 and fd00:cb::/64 for the others.
//!
//! ```no_run
//! # fn example() -> Result<(), sluice_testbed::lab::LabError> {
//! use std::process::Command;
//! use std::time::Duration;
//! use sluice_model::Protocol;
//! use sluice_testbed::lab::{Lab, PATIENCE};
//!
//! let lab = Lab::new()?;
//! let backend = lab.pod(0).serve(8080)?;
//! let agent = lab.node().spawn(Command::new("sluice").args(["agent", "--capture", "tproxy"]))?;
//! agent.wait_for("ready", PATIENCE)?;
//! let outcome = lab.outside().ask(Protocol::Tcp, ([10, 96, 0, 1], 80).into(), PATIENCE);
//! assert_eq!(outcome.by(), Some("pod-0"), "{outcome:?}");
//! lab.node().ns.nft("list ruleset")?;
//! # Ok(())
//! # }
//! ```
//!
//! Namespaces have no names. Any number of labs can run side by side, and all of a lab is gone when it is
//! dropped or the process ends in any way. (After a `kill -9`, the kernel may need some minutes for
//! connections that were being closed.) Creating a lab takes root, or a kernel with unprivileged user
//! namespaces; see [`Lab::new`]. It uses the programs `ip`, `nft`, `setpriv` and `unshare`.

mod bpffs;
mod cgroup;
mod error;
mod names;
mod namespace;
mod peer;
mod privilege;
mod process;
mod wiring;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sluice_model::Family;

pub use bpffs::Bpffs;
pub use cgroup::Cgroup;
pub use error::LabError;
pub use names::Names;
pub use namespace::Namespace;
pub use peer::{Load, Outcome, Report, Server, WHO, ask_on};
pub use process::Process;
use wiring::PodNetwork;

/// How long a test waits for what must happen before it fails: much longer than that takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// How long a test listens to find that nothing arrives.
pub const SILENCE: Duration = Duration::from_millis(500);

/// The maximum number of pods on a node: their addresses end in two digits.
const PODS: usize = 90;

/// How pods are connected to their node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Wiring {
    /// Each by a route to its veth; the node has no address there. Like Calico, and much like kindnet.
    #[default]
    Routed,
    /// All on a bridge `cni0`, on which the node has 10.244.1.1: like flannel, and others that use the bridge
    /// plugin.
    Bridged,
}

/// Whether packets are dropped because of their source and interface (`rp_filter`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RpFilter {
    /// No check: the kernel's default.
    Off,
    /// Dropped unless the best route to the source is through the interface: the default of some
    /// distributions.
    Strict,
    /// Dropped unless there is a route to the source: systemd's default.
    #[default]
    Loose,
}

/// A host of a lab. Clones are the same host.
#[derive(Debug, Clone)]
pub struct Host {
    /// Its name, which its servers report.
    pub name: String,
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
    /// Its network namespace, for running code and programs, and checking their effects.
    pub ns: Namespace,
}

impl Host {
    /// Its address of a family.
    pub fn ip(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }

    /// Both addresses, as `wiring` uses them.
    fn addresses(&self) -> (Ipv4Addr, Ipv6Addr) {
        (self.v4, self.v6)
    }

    fn new(name: &str, (v4, v6): (Ipv4Addr, Ipv6Addr), rp_filter: RpFilter) -> Result<Self, LabError> {
        let ns = Namespace::new(name)?;
        ns.set_all(&wiring::settings(rp_filter))?;
        Ok(Self { name: name.into(), v4, v6, ns })
    }

    /// Waits until packets can pass these links: a veth loses the first packets after its second end comes
    /// up.
    fn await_links(&self, links: &[&str]) -> Result<(), LabError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let up = self.ns.links_up().map_err(LabError::io("looking at interfaces"))?;
            let down = links.iter().filter(|link| !up.iter().any(|up| up == *link));
            let down: Vec<String> = down.map(|link| (*link).to_owned()).collect();
            if down.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(LabError::Link { namespace: self.name.clone(), links: down });
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Settings of a lab. [`Lab::builder`] creates them.
#[derive(Debug, Clone)]
pub struct Builder {
    wiring: Wiring,
    rp_filter: RpFilter,
    pods: usize,
    other_pods: usize,
}

impl Builder {
    /// How the node's pods are connected. The other node's are always routed.
    #[must_use]
    pub fn wiring(mut self, wiring: Wiring) -> Self {
        self.wiring = wiring;
        self
    }

    /// `rp_filter` on all hosts.
    #[must_use]
    pub fn rp_filter(mut self, rp_filter: RpFilter) -> Self {
        self.rp_filter = rp_filter;
        self
    }

    /// How many pods the node has at the start. Default: 2.
    #[must_use]
    pub fn pods(mut self, pods: usize) -> Self {
        self.pods = pods;
        self
    }

    /// How many pods the other node has at the start. Default: 2.
    #[must_use]
    pub fn other_pods(mut self, pods: usize) -> Self {
        self.other_pods = pods;
        self
    }

    /// Creates the lab. All hosts are reachable when it returns.
    ///
    /// # Errors
    /// Like [`Lab::new`].
    pub fn build(self) -> Result<Lab, LabError> {
        match self.build_with_privilege() {
            Err(refusal @ LabError::NotPermitted(_)) => Err(privilege::restart(refusal)),
            result => result,
        }
    }

    fn build_with_privilege(self) -> Result<Lab, LabError> {
        let host = |name, v4, v6| Host::new(name, (v4, v6), self.rp_filter);
        let router =
            host("router", Ipv4Addr::new(192, 168, 10, 1), Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, 0, 1))?;
        let node =
            host("node", Ipv4Addr::new(192, 168, 10, 10), Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, 0, 0x10))?;
        let other =
            host("other", Ipv4Addr::new(192, 168, 10, 11), Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, 0, 0x11))?;
        let outside = host(
            "outside",
            Ipv4Addr::new(192, 168, 20, 20),
            Ipv6Addr::new(0xfd00, 0x20, 0, 0, 0, 0, 0, 0x20),
        )?;
        for forwarding in [&router, &node, &other] {
            forwarding.ns.set_all(&wiring::FORWARDING)?;
        }
        for loaded in [&other, &outside] {
            loaded.ns.set_all(&wiring::LOAD)?;
        }

        let local = PodNetwork { number: 1, wiring: self.wiring };
        let remote = PodNetwork { number: 2, wiring: Wiring::Routed };
        let to_local = local.routes(node.addresses());
        let to_remote = remote.routes(other.addresses());
        router.ns.ip_batch(
            &[
                &wiring::router([&node.ns, &other.ns], &outside.ns),
                &*wiring::service_routes(node.addresses()),
                &to_local,
                &to_remote,
            ]
            .concat(),
        )?;
        node.ns.ip_batch(&[wiring::node(node.addresses()), local.on_node(), to_remote].concat())?;
        other.ns.ip_batch(&[wiring::node(other.addresses()), remote.on_node(), to_local].concat())?;
        outside.ns.ip_batch(&wiring::outside(outside.addresses()))?;
        router.await_links(&["lan", "wan", "node", "other"])?;
        for host in [&node, &other, &outside] {
            host.await_links(&["eth0"])?;
        }

        let rp_filter = self.rp_filter;
        let mut lab =
            Lab { router, node, other, outside, pods: vec![], other_pods: vec![], local, remote, rp_filter };
        for _ in 0..self.pods {
            lab.add_pod()?;
        }
        for _ in 0..self.other_pods {
            lab.add_other_pod()?;
        }
        Ok(lab)
    }
}

/// A lab. Dropping it takes it down. A socket or process that still exists keeps its own namespace, cut off
/// from the others.
#[derive(Debug)]
pub struct Lab {
    router: Host,
    node: Host,
    other: Host,
    outside: Host,
    pods: Vec<Host>,
    other_pods: Vec<Host>,
    local: PodNetwork,
    remote: PodNetwork,
    rp_filter: RpFilter,
}

impl Lab {
    /// Creates a lab with two routed pods on each node.
    ///
    /// If this process may not create network namespaces but may have a user namespace, **the program is
    /// restarted** once as root of one: all of it, with the same arguments. So a test program for labs should
    /// contain nothing else.
    ///
    /// # Errors
    /// The kernel refuses both ([`LabError::NotPermitted`] says what helps), or a program is missing.
    pub fn new() -> Result<Self, LabError> {
        Self::builder().build()
    }

    /// Settings of another lab.
    pub fn builder() -> Builder {
        Builder { wiring: Wiring::Routed, rp_filter: RpFilter::Loose, pods: 2, other_pods: 2 }
    }

    /// The node where the agent runs.
    pub fn node(&self) -> &Host {
        &self.node
    }

    /// The Node object of that node, as an apiserver has it; its name is `node`.
    pub fn node_object(&self) -> Value {
        let addresses = [Family::V4, Family::V6]
            .map(|family| json!({ "type": "InternalIP", "address": self.node.ip(family) }));
        json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": { "name": self.node.name },
            "spec": { "podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:244:1::/64"] },
            "status": { "addresses": addresses },
        })
    }

    /// A pod on the node.
    ///
    /// # Panics
    /// There is no pod with this index.
    pub fn pod(&self, index: usize) -> &Host {
        &self.pods[index]
    }

    /// The other node.
    pub fn other(&self) -> &Host {
        &self.other
    }

    /// A pod on the other node.
    ///
    /// # Panics
    /// There is no pod with this index.
    pub fn other_pod(&self, index: usize) -> &Host {
        &self.other_pods[index]
    }

    /// The host outside the cluster.
    pub fn outside(&self) -> &Host {
        &self.outside
    }

    /// The router between the nodes and the outside host.
    pub fn router(&self) -> &Host {
        &self.router
    }

    /// Adds a pod to the node.
    ///
    /// # Errors
    /// The node already has 90 pods, or those of [`Lab::new`].
    pub fn add_pod(&mut self) -> Result<Host, LabError> {
        let pod = plug_in(self.local, &self.node, self.pods.len(), "pod", self.rp_filter)?;
        self.pods.push(pod.clone());
        Ok(pod)
    }

    /// Adds a pod to the other node.
    ///
    /// # Errors
    /// Like [`Lab::add_pod`].
    pub fn add_other_pod(&mut self) -> Result<Host, LabError> {
        let pod = plug_in(self.remote, &self.other, self.other_pods.len(), "other-pod", self.rp_filter)?;
        self.other_pods.push(pod.clone());
        Ok(pod)
    }

    /// Disconnects a pod from the node, as when it is evicted: its veth is removed. Indices are not reused.
    ///
    /// # Errors
    /// It was removed before.
    pub fn unplug_pod(&self, index: usize) -> Result<(), LabError> {
        self.node.ns.ip(&format!("link delete veth{index}")).map(drop)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let hosts = [&self.router, &self.node, &self.other, &self.outside];
        for host in hosts.into_iter().chain(&self.pods).chain(&self.other_pods) {
            // If this fails, a namespace may stay for a while, nothing worse.
            let _ = host.ns.set_all(&wiring::LAST_SETTINGS);
        }
    }
}

/// Adds a new pod to a node.
fn plug_in(
    network: PodNetwork,
    node: &Host,
    index: usize,
    kind: &str,
    rp_filter: RpFilter,
) -> Result<Host, LabError> {
    if index >= PODS {
        let source = std::io::Error::other(format!("{} has {PODS} pods already", node.name));
        return Err(LabError::Io { what: "adding a pod".into(), source });
    }
    let pod = Host::new(&format!("{kind}-{index}"), network.addresses(index), rp_filter)?;
    node.ns.ip_batch(&network.host_side(index, &pod.ns))?;
    pod.ns.ip_batch(&network.pod_side(index))?;
    node.await_links(&[&format!("veth{index}")])?;
    if network.wiring == Wiring::Bridged {
        node.await_links(&["cni0"])?;
    }
    pod.await_links(&["eth0"])?;
    Ok(pod)
}
