//! What the demo plays on: backends, loopback addresses, and the manifests that tie them together.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;

use anyhow::{Context, Result};
use sluice_kubeapi::manifests::ManifestSource;
use sluice_testbed::samples::Sample;
use tempfile::TempDir;

/// The Services' ports: unprivileged, and the ones a reader would expect.
const HTTP_PORT: u16 = 8080;
const UDP_PORT: u16 = 5300;

/// Backends, Services and manifests.
#[derive(Debug)]
pub(super) struct Scene {
    directory: TempDir,
    network: Network,
    http: Vec<Sample>,
    udp: Vec<Sample>,
    /// HTTP backends that ever were: the next one gets the next letter.
    http_names: u8,
}

/// A backend that is no more.
#[derive(Debug)]
pub(super) struct Stopped {
    pub(super) name: String,
    pub(super) address: SocketAddr,
}

/// A piece of 127.0.0.0/8: `127.96.N.0/24`.
#[derive(Debug, Clone, Copy)]
struct Network(u8);

impl Network {
    /// The first one whose Service addresses nobody uses.
    fn find() -> Result<Self> {
        let is_free = |network: &Self| {
            TcpListener::bind(network.http()).is_ok() && UdpSocket::bind(network.udp()).is_ok()
        };
        (0..=u8::MAX)
            .map(Self)
            .find(is_free)
            .with_context(|| format!("ports {HTTP_PORT} and {UDP_PORT} are taken on all of 127.96.0.0/16"))
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
        let network = Network::find()?;
        let directory = tempfile::Builder::new().prefix("sluice-demo-").tempdir();
        let directory = directory.context("cannot make a directory for the manifests")?;
        let mut scene = Self { directory, network, http: Vec::new(), udp: Vec::new(), http_names: 0 };
        for number in 1..=3 {
            let sample = scene.next_http().await?;
            scene.http.push(sample);
            let name = format!("dns-{}", letter(number));
            let udp = Sample::udp(&name, network.pod(100 + number).into()).await;
            scene.udp.push(udp.context("cannot start a UDP backend")?);
        }
        scene.write("services.yaml", &services(network))?;
        scene.write_slices()?;
        Ok(scene)
    }

    /// Where the manifests are.
    pub(super) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A source of the manifests.
    pub(super) fn source(&self) -> Result<ManifestSource> {
        Ok(ManifestSource::new(vec![self.directory.path().to_owned()])?)
    }

    pub(super) fn http_frontend(&self) -> SocketAddr {
        self.network.http()
    }

    pub(super) fn udp_frontend(&self) -> SocketAddr {
        self.network.udp()
    }

    /// What a person can try.
    pub(super) fn commands(&self) -> [String; 3] {
        let (http, udp) = (self.network.http(), self.network.udp());
        [
            format!("curl http://{http}/"),
            format!("bash -c 'exec 3<>/dev/udp/{}/{}; echo hello >&3; head -1 <&3'", udp.ip(), udp.port()),
            format!("cat {}", self.directory.path().join("*.yaml").display()),
        ]
    }

    /// The name of the backend at an address.
    pub(super) fn name_of(&self, address: SocketAddr) -> Option<&str> {
        self.http.iter().chain(&self.udp).find(|sample| sample.address == address).map(|s| &*s.name)
    }

    /// Starts another HTTP backend and adds it to the Service; returns its name.
    pub(super) async fn add_http_backend(&mut self) -> Result<String> {
        let sample = self.next_http().await?;
        let name = sample.name.clone();
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

    /// Writes the manifests without the backends that have stopped.
    pub(super) fn forget_stopped_backends(&self) -> Result<()> {
        self.write_slices()
    }

    async fn next_http(&mut self) -> Result<Sample> {
        self.http_names += 1;
        let name = format!("web-{}", letter(self.http_names));
        let sample = Sample::http(&name, self.network.pod(self.http_names).into()).await;
        sample.context("cannot start an HTTP backend")
    }

    fn write_slices(&self) -> Result<()> {
        self.write("endpoints.yaml", &self.slices())
    }

    /// One EndpointSlice a backend: each has a port of its own, and a slice has one for all.
    fn slices(&self) -> String {
        let http = self.http.iter().map(|sample| (sample, "web", "http", "TCP"));
        let udp = self.udp.iter().map(|sample| (sample, "dns", "dns", "UDP"));
        http.chain(udp).fold(String::new(), |mut text, (sample, service, port, protocol)| {
            // Writing to a string cannot fail.
            let _ = write!(
                text,
                "---\n\
                 apiVersion: discovery.k8s.io/v1\n\
                 kind: EndpointSlice\n\
                 metadata:\n  name: {name}\n  namespace: demo\n  labels:\n    kubernetes.io/service-name: {service}\n\
                 addressType: IPv4\n\
                 ports:\n- name: {port}\n  protocol: {protocol}\n  port: {number}\n\
                 endpoints:\n- addresses: [{ip}]\n  conditions:\n    ready: true\n",
                name = sample.name,
                number = sample.address.port(),
                ip = sample.address.ip(),
            );
            text
        })
    }

    /// Replaces a file in one step, as every program that writes manifests should.
    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.directory.path().join(name);
        let draft = self.directory.path().join(format!(".{name}.draft"));
        std::fs::write(&draft, text)
            .and_then(|()| std::fs::rename(&draft, &path))
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

fn services(network: Network) -> String {
    let service = |name: &str, ip, port: &str, protocol: &str, number: u16| {
        format!(
            "---\n\
             apiVersion: v1\n\
             kind: Service\n\
             metadata:\n  name: {name}\n  namespace: demo\n\
             spec:\n  clusterIP: {ip}\n  ports:\n  - name: {port}\n    protocol: {protocol}\n    port: {number}\n"
        )
    };
    service("web", network.http().ip(), "http", "TCP", HTTP_PORT)
        + &service("dns", network.udp().ip(), "dns", "UDP", UDP_PORT)
}

/// 1 is a, 2 is b, and so on.
fn letter(number: u8) -> char {
    char::from(b'a' + (number - 1) % 26)
}
