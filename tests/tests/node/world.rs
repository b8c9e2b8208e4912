//! A node with a proxy that captures, in a lab, and Services on it.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use sluice::at_socket::{AtSocketConfig, AtSocketWish};
use sluice::proxy::{CaptureConfig, Proxy, ProxyConfig};
use sluice_capture::tproxy;
use sluice_dataplane::{Config, EPHEMERAL_PORTS};
use sluice_model::{
    Change, Endpoint, EndpointSlice, Family, Node, Object, ObjectName, Protocol, Service, ServicePort,
    SlicePort, TrafficPolicy,
};
use sluice_table::{LocalPods, NodePortAddresses, WriterConfig};
use sluice_testbed::lab::{Bpffs, Cgroup, Host, Lab};

/// The port that all backends listen on.
pub const BACKEND: u16 = 8080;

/// The port that all Services have.
pub const PORT: u16 = 80;

pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
pub const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

/// A lab whose node has a proxy.
pub struct World {
    pub lab: Lab,
    proxy: Option<Proxy>,
    config: ProxyConfig,
    /// Last: it goes when all threads of the lab have.
    sockets: Option<Sockets>,
}

/// A place where programs decide at sockets: those of the thread that makes it, and of all that it starts.
pub struct Sockets {
    cgroup: Cgroup,
    bpffs: Bpffs,
}

impl Sockets {
    /// Before the lab is made, whose clients are to be decided about.
    pub fn new() -> Self {
        let bpffs = Bpffs::mount().expect("these tests take root");
        Self { cgroup: Cgroup::enter().expect("cgroup2 is mounted"), bpffs }
    }

    fn config(&self) -> AtSocketConfig {
        AtSocketConfig::new(Some(self.cgroup.path().into()), self.bpffs.path().join("sluice"))
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        let _ = sluice_socket::remove(&self.bpffs.path().join("sluice"));
    }
}

impl World {
    /// With `--cluster-cidr`, and whatever else is changed about it.
    pub fn new(lab: Lab, change: impl FnOnce(&mut ProxyConfig)) -> Self {
        let cluster: Vec<IpNet> = ["10.244.0.0/16", "fd00:244::/32"].map(|cidr| cidr.parse().unwrap()).into();
        let table =
            WriterConfig { local_pods: LocalPods::DetectedIn(FAMILIES.into()), ..WriterConfig::new("node") };
        let dataplane = Config {
            workers: 2,
            descriptors: 4_096,
            client_share: Config::CLIENT_SHARE,
            udp_idle: Config::UDP_IDLE,
            half_closed_idle: Config::HALF_CLOSED_IDLE,
            connection_log: None,
            service_times: true,
            marks: None,
        };
        let capture = CaptureConfig::Tproxy(tproxy::Config {
            ports: tproxy::Ports::from_first(10_265),
            local_pods: tproxy::LocalPods::Cidrs(cluster.clone()),
            cluster_cidrs: cluster,
            track: false,
            asks_conntrack: false,
            bridge_netfilter_off: true,
            pod_ports: EPHEMERAL_PORTS,
            flow_idle: flow_idle(&dataplane),
        });
        let mut config = ProxyConfig::bind(table, dataplane);
        config.capture = capture;
        change(&mut config);
        let mut world = Self { lab, proxy: None, config, sockets: None };
        world.start(Vec::new());
        world
    }

    /// The same, and what can be decided at sockets is.
    pub fn with_sockets(sockets: Sockets, lab: Lab) -> Self {
        Self::with_sockets_and(sockets, lab, |_| {})
    }

    /// The same with something changed about it.
    pub fn with_sockets_and(sockets: Sockets, lab: Lab, change: impl FnOnce(&mut AtSocketConfig)) -> Self {
        let mut at_socket = sockets.config();
        change(&mut at_socket);
        let mut world = Self::new(lab, |config| config.at_socket = AtSocketWish::Wanted(at_socket));
        world.sockets = Some(sockets);
        world
    }

    /// The same where it is wanted, and nodePorts are served on these addresses.
    pub fn with_node_ports(sockets: Option<Sockets>, lab: Lab, node_ports: NodePortAddresses) -> Self {
        let mut world = Self::new(lab, |config| {
            config.node_ports = node_ports;
            config.at_socket =
                sockets.as_ref().map_or(AtSocketWish::None, |sockets| AtSocketWish::Wanted(sockets.config()));
        });
        world.sockets = sockets;
        world
    }

    /// Whether what can be decided at sockets is.
    pub fn has_sockets(&self) -> bool {
        self.sockets.is_some()
    }

    /// Makes something outside of the cgroup below which sockets are decided about; by the thread that made that.
    pub fn outside_of_cgroup<T>(&self, make: impl FnOnce() -> T) -> T {
        let cgroup = &self.sockets.as_ref().expect("there is one").cgroup;
        cgroup.leave().expect("whoever entered it may leave");
        let made = make();
        cgroup.join().expect("and come back");
        made
    }

    /// Has the next agent decide at sockets in another way.
    pub fn change_sockets(&mut self, change: impl FnOnce(&mut AtSocketConfig)) {
        if let AtSocketWish::Wanted(config) = &mut self.config.at_socket {
            change(config);
        }
    }

    /// Ends the agent: its connections are cut off, and what it has made in the kernel stays.
    pub fn stop(&mut self) {
        let proxy = self.proxy.take();
        self.lab.node().ns.run(|| drop(proxy));
    }

    /// Starts an agent, which knows the node and, at once, this.
    pub fn start(&mut self, changes: Vec<Change>) {
        // Threads and programs that are started there stay there.
        let (config, world) = (self.config.clone(), self);
        let proxy = world.lab.node().ns.run(|| Proxy::start(config)).expect("a proxy starts");
        world.proxy = Some(proxy);
        let node = Node {
            name: "node".into(),
            zone: None,
            addresses: vec![world.lab.node().v4.into(), world.lab.node().v6.into()],
            pod_cidrs: ["10.244.1.0/24", "fd00:244:1::/64"].map(|cidr| cidr.parse().unwrap()).into(),
            eligible: true,
        };
        let cidrs = ["10.96.0.0/16", "fd00:96::/112"].map(|cidr| cidr.parse().unwrap()).into();
        let range = sluice_model::ServiceCidr { name: "kubernetes".into(), cidrs };
        let node = [Change::Apply(Object::Node(node)), Change::Apply(range.into())];
        world.apply(node.into_iter().chain(changes).collect::<Vec<_>>());
    }

    /// Makes changes take effect.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = Change> + Send) {
        let (node, proxy) = (&self.lab.node().ns, self.proxy.as_mut().expect("it runs"));
        node.run(|| proxy.apply(changes));
    }

    /// Lets the proxy do what is due.
    pub fn tick(&mut self) {
        let (node, proxy) = (&self.lab.node().ns, self.proxy.as_mut().expect("it runs"));
        node.run(|| proxy.tick());
    }

    pub fn proxy(&self) -> &Proxy {
        self.proxy.as_ref().expect("it runs")
    }

    /// Whether an address is one of the node's own.
    pub fn is_nodes(&self, address: IpAddr) -> bool {
        let found =
            self.lab.node().ns.ip(&format!("-o address show to {address}")).expect("the node can be asked");
        !found.trim().is_empty()
    }

    /// The Service's address of a kind.
    pub fn address(&self, kind: super::rules::Kind, number: u8, family: Family) -> SocketAddr {
        use super::rules::Kind;
        match kind {
            Kind::ClusterIp => (ip("10.96.0", "fd00:96::", number, family), PORT).into(),
            Kind::ExternalIp => (ip("203.0.113", "fd00:cb::", number, family), PORT).into(),
            Kind::LoadBalancer => (ip("203.0.113", "fd00:cb::", number + 100, family), PORT).into(),
            Kind::NodePort => (self.lab.node().ip(family), node_port(number)).into(),
        }
    }
}

fn ip(v4: &str, v6: &str, number: u8, family: Family) -> IpAddr {
    match family {
        Family::V4 => format!("{v4}.{number}"),
        Family::V6 => format!("{v6}{number:x}"),
    }
    .parse()
    .expect("an address")
}

fn node_port(number: u8) -> u16 {
    30_000 + u16::from(number)
}

/// A Service with addresses of all kinds, both families and both protocols, told by its number.
pub fn service(number: u8, policy: TrafficPolicy) -> Service {
    let both = |v4, v6, number| FAMILIES.map(|family| ip(v4, v6, number, family)).to_vec();
    let port = |name: &str, protocol| ServicePort {
        name: name.into(),
        protocol,
        port: PORT,
        node_port: Some(node_port(number)),
    };
    let ports = vec![port("tcp", Protocol::Tcp), port("udp", Protocol::Udp)];
    let mut service = Service::new(name(number), both("10.96.0", "fd00:96::", number), ports);
    service.external_ips = both("203.0.113", "fd00:cb::", number);
    service.load_balancer_ips = both("203.0.113", "fd00:cb::", number + 100);
    service.internal_policy = policy;
    service.external_policy = policy;
    service
}

/// Ready endpoints of a Service: pods with the nodes that they are on; one slice a family.
pub fn slices(number: u8, endpoints: &[(&Host, &str)]) -> Vec<Change> {
    let slice = |family| EndpointSlice {
        last_change: None,
        name: ObjectName::new("default", format!("s{number}-{family}")),
        service: name(number),
        family,
        ports: vec![
            SlicePort { name: "tcp".into(), protocol: Protocol::Tcp, number: BACKEND },
            SlicePort { name: "udp".into(), protocol: Protocol::Udp, number: BACKEND },
        ],
        endpoints: endpoints
            .iter()
            .map(|(host, node)| Endpoint { node: Some((*node).into()), ..Endpoint::ready(host.ip(family)) })
            .collect(),
    };
    FAMILIES.map(|family| Change::Apply(slice(family).into())).into()
}

pub fn name(number: u8) -> ObjectName {
    ObjectName::new("default", format!("s{number}"))
}

/// How long such a data plane keeps flows.
pub fn flow_idle(dataplane: &Config) -> tproxy::FlowIdle {
    tproxy::FlowIdle { any: dataplane.udp_idle, conversation: dataplane.udp_conversation_idle() }
}

/// Names of hosts.
pub fn names<'a>(hosts: impl IntoIterator<Item = &'a Host>) -> BTreeSet<String> {
    hosts.into_iter().map(|host| host.name.clone()).collect()
}
