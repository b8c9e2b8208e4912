//! The demo's environment: backends, loopback addresses, manifests, and an apiserver that has them.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;
use sluice_kubeapi::apiserver::{Config, Environment};
use sluice_testbed::apiserver::{Apiserver, Resource};
use sluice_testbed::samples::Sample;
use tempfile::TempDir;

/// The namespace of all objects.
const NAMESPACE: &str = "demo";

/// The Services' ports: unprivileged, and as a reader would expect.
const HTTP_PORT: u16 = 8080;
const UDP_PORT: u16 = 5300;

/// Backends, Services, manifests and the apiserver.
pub(super) struct Scene {
    directory: TempDir,
    apiserver: Apiserver,
    network: Network,
    /// Keeps other demos off the network.
    _claim: TcpListener,
    http: Vec<Sample>,
    udp: Vec<Sample>,
    /// How many HTTP backends there were so far: the next one gets the next letter.
    http_names: u8,
}

/// A backend that has stopped.
#[derive(Debug)]
pub(super) struct Stopped {
    pub(super) name: String,
    pub(super) address: SocketAddr,
}

/// A piece of 127.0.0.0/8: `127.96.N.0/24`.
#[derive(Debug, Clone, Copy)]
struct Network(u8);

impl Network {
    /// Takes the first network whose Service addresses nobody uses, and a socket that keeps it for this demo.
    /// The Services' own sockets would not: they could share their addresses with those of another demo that
    /// starts at the same time.
    fn claim() -> Result<(Self, TcpListener)> {
        let claim = |network: Self| {
            let claim = TcpListener::bind(network.claimed()).ok()?;
            let is_free = TcpListener::bind(network.http()).is_ok() && UdpSocket::bind(network.udp()).is_ok();
            is_free.then_some((network, claim))
        };
        (0..=u8::MAX)
            .map(Self)
            .find_map(claim)
            .with_context(|| format!("ports {HTTP_PORT} and {UDP_PORT} are taken on all of 127.96.0.0/16"))
    }

    /// The address that the owner of the network listens on.
    fn claimed(self) -> SocketAddr {
        (Ipv4Addr::new(127, 96, self.0, 1), HTTP_PORT).into()
    }

    fn http(self) -> SocketAddr {
        (Ipv4Addr::new(127, 96, self.0, 80), HTTP_PORT).into()
    }

    fn udp(self) -> SocketAddr {
        (Ipv4Addr::new(127, 96, self.0, 53), UDP_PORT).into()
    }

    /// The address of a backend, like a pod's.
    fn pod(self, number: u8) -> Ipv4Addr {
        Ipv4Addr::new(127, 97, self.0, number)
    }
}

impl Scene {
    /// Starts three backends of each kind and writes the manifests.
    pub(super) async fn set_up() -> Result<Self> {
        let (network, claim) = Network::claim()?;
        let directory = tempfile::Builder::new().prefix("sluice-demo-").tempdir();
        let directory = directory.context(
            "cannot make a directory for the manifests; set TMPDIR to one that files can be written to",
        )?;
        let apiserver = Apiserver::builder().token("demo").service_cidrs(&["127.96.0.0/16".parse()?]);
        let apiserver = apiserver.start().await.context("cannot start the apiserver")?;
        let mut scene = Self {
            directory,
            apiserver,
            network,
            _claim: claim,
            http: Vec::new(),
            udp: Vec::new(),
            http_names: 0,
        };
        scene.write("kubeconfig", &scene.apiserver.kubeconfig()?)?;
        scene.create(&format!("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {NAMESPACE}\n"))?;
        scene.create(&format!("apiVersion: v1\nkind: Node\nmetadata:\n  name: {}\n", super::NODE))?;
        let services = services(network);
        scene.write("services.yaml", &services)?;
        scene.create(&services)?;
        for number in 1..=3 {
            scene.add_http_backend().await?;
            let name = format!("dns-{}", letter(number));
            let sample = Sample::udp(&name, network.pod(100 + number).into()).await;
            let sample = sample.context("cannot start a UDP backend")?;
            scene.create(&slice(&sample, "dns", "dns", "UDP"))?;
            scene.udp.push(sample);
        }
        scene.write_slices()?;
        Ok(scene)
    }

    /// The directory of the manifests.
    pub(super) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The configuration for following the apiserver.
    pub(super) fn source(&self, node: &str) -> Config {
        let mut config = Config::new(node, Environment::default());
        config.kubeconfig = Some(self.kubeconfig());
        config
    }

    fn kubeconfig(&self) -> PathBuf {
        self.directory.path().join("kubeconfig")
    }

    pub(super) fn http_frontend(&self) -> SocketAddr {
        self.network.http()
    }

    pub(super) fn udp_frontend(&self) -> SocketAddr {
        self.network.udp()
    }

    /// Commands that a person can try.
    pub(super) fn commands(&self) -> [String; 3] {
        let (http, udp) = (self.network.http(), self.network.udp());
        [
            format!("curl http://{http}/"),
            format!("bash -c 'exec 3<>/dev/udp/{}/{}; echo hello >&3; head -1 <&3'", udp.ip(), udp.port()),
            format!(
                "kubectl --kubeconfig {} -n {NAMESPACE} get services,endpointslices",
                self.kubeconfig().display()
            ),
        ]
    }

    /// The name of the backend at an address.
    pub(super) fn name_of(&self, address: SocketAddr) -> Option<&str> {
        self.http.iter().chain(&self.udp).find(|sample| sample.address == address).map(|s| &*s.name)
    }

    /// Starts another HTTP backend and adds it to the Service; returns its name.
    pub(super) async fn add_http_backend(&mut self) -> Result<String> {
        self.http_names += 1;
        let name = format!("web-{}", letter(self.http_names));
        let sample = Sample::http(&name, self.network.pod(self.http_names).into()).await;
        let sample = sample.context("cannot start an HTTP backend")?;
        self.create(&slice(&sample, "web", "http", "TCP"))?;
        self.http.push(sample);
        self.write_slices()?;
        Ok(name)
    }

    /// Stops the first HTTP backend and leaves it in the manifests.
    pub(super) async fn stop_http_backend(&mut self) -> Stopped {
        let sample = self.http.remove(0);
        let stopped = Stopped { name: sample.name.clone(), address: sample.address };
        sample.stop().await;
        stopped
    }

    /// Removes a stopped backend from the Service.
    pub(super) fn forget(&self, stopped: &Stopped) -> Result<()> {
        self.apiserver
            .delete(Resource::EndpointSlices, NAMESPACE, &stopped.name)
            .map_err(|status| anyhow!("cannot delete EndpointSlice {}: {status:?}", stopped.name))?;
        self.write_slices()
    }

    /// Creates the objects of a manifest.
    fn create(&self, manifest: &str) -> Result<()> {
        for object in serde_saphyr::from_multiple::<Value>(manifest)? {
            let resource = match object.get("kind").and_then(Value::as_str) {
                Some("Namespace") => Resource::Namespaces,
                Some("Node") => Resource::Nodes,
                Some("Service") => Resource::Services,
                Some("EndpointSlice") => Resource::EndpointSlices,
                kind => bail!("no such kind here: {kind:?}"),
            };
            let created = self.apiserver.create(resource, object);
            created.map_err(|status| anyhow!("the apiserver refuses an object of the demo: {status:?}"))?;
        }
        Ok(())
    }

    /// Writes all slices to files, for people.
    fn write_slices(&self) -> Result<()> {
        let http = self.http.iter().map(|sample| slice(sample, "web", "http", "TCP"));
        let udp = self.udp.iter().map(|sample| slice(sample, "dns", "dns", "UDP"));
        self.write("endpoints.yaml", &http.chain(udp).collect::<String>())
    }

    /// Replaces a file in one step, as every program that writes manifests should.
    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.directory.path().join(name);
        let draft = self.directory.path().join(format!(".{name}.draft"));
        std::fs::write(&draft, text)
            .and_then(|()| std::fs::rename(&draft, &path))
            .with_context(|| format!("cannot write {}; set TMPDIR to a directory with room", path.display()))
    }
}

fn services(network: Network) -> String {
    let service = |name: &str, ip, port: &str, protocol: &str, number: u16| {
        format!(
            "---\n\
             apiVersion: v1\n\
             kind: Service\n\
             metadata:\n  name: {name}\n  namespace: {NAMESPACE}\n\
             spec:\n  clusterIP: {ip}\n  ports:\n  - name: {port}\n    protocol: {protocol}\n    port: {number}\n"
        )
    };
    service("web", network.http().ip(), "http", "TCP", HTTP_PORT)
        + &service("dns", network.udp().ip(), "dns", "UDP", UDP_PORT)
}

/// The EndpointSlice of one backend: a slice has one port for all endpoints, and each backend has a port of its
/// own.
fn slice(sample: &Sample, service: &str, port: &str, protocol: &str) -> String {
    let Sample { name, address, .. } = sample;
    format!(
        "---\n\
         apiVersion: discovery.k8s.io/v1\n\
         kind: EndpointSlice\n\
         metadata:\n  name: {name}\n  namespace: {NAMESPACE}\n  labels:\n    kubernetes.io/service-name: {service}\n\
         addressType: IPv4\n\
         ports:\n- name: {port}\n  protocol: {protocol}\n  port: {}\n\
         endpoints:\n- addresses: [{}]\n  conditions:\n    ready: true\n",
        address.port(),
        address.ip(),
    )
}

/// 1 is a, 2 is b, and so on.
fn letter(number: u8) -> char {
    char::from(b'a' + (number - 1) % 26)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn demos_that_begin_together_have_networks_of_their_own() {
        let claims: Vec<_> = (0..3).map(|_| Network::claim().unwrap()).collect();
        let mut numbers: Vec<u8> = claims.iter().map(|(network, _)| network.0).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), 3);
    }
}
