//! The server as tests see it: its address, its objects, and its faults.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rustls::ServerConfig;
use serde_json::{Value, json};
use tokio::net::TcpSocket;
use tokio::sync::watch;

use super::Shared;
use super::auth::Credential;
use super::builder::Builder;
use super::counters::Counters;
use super::faults::Faults;
use super::listener::{Running, reserve};
use super::object::{Key, text};
use super::registry::{Part, Preconditions};
use super::resource::Resource;
use super::status::Status;
use super::tls::{Certificates, Identity, Validity};

/// An apiserver that runs until it is dropped.
#[derive(Debug)]
pub struct Apiserver {
    shared: Arc<Shared>,
    tls: Option<Arc<ServerConfig>>,
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    Up(Running),
    /// Stopped, with its port still bound.
    Down(TcpSocket),
    /// While it starts or stops, or after that failed.
    Between,
}

impl Apiserver {
    /// Its settings.
    pub fn builder() -> Builder {
        Builder::default()
    }

    pub(crate) fn new(shared: Arc<Shared>, tls: Option<Arc<ServerConfig>>, running: Running) -> Self {
        Self { shared, tls, state: Mutex::new(State::Up(running)) }
    }

    /// Another server of the same cluster, as in a highly available control plane: the same objects,
    /// certificates and credentials, on a free port of the same address. It has its own faults and counters.
    ///
    /// # Errors
    /// There is no free port.
    pub fn replica(&self) -> Result<Self> {
        let socket = reserve((self.shared.address.ip(), 0).into()).context("finding a free port")?;
        let address = socket.local_addr().context("finding a free port")?;
        let shared = Shared::new(address, self.shared.config, Arc::clone(&self.shared.cluster));
        let running = Running::start(socket, &shared, self.tls.clone()).context("listening")?;
        Ok(Self::new(shared, self.tls.clone(), running))
    }

    /// The address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// `https://ADDRESS` or `http://ADDRESS`.
    pub fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.shared.address)
    }

    /// The CA certificate that clients have to trust at the moment; empty without TLS.
    pub fn ca_pem(&self) -> String {
        self.shared
            .cluster
            .certificates
            .as_ref()
            .map(|certificates| certificates.ca_pem())
            .unwrap_or_default()
    }

    /// A client certificate, signed by a CA that the server trusts.
    ///
    /// # Errors
    /// The server has no TLS.
    pub fn client_identity(&self, validity: Validity) -> Result<Identity> {
        let authority = &self.certificates()?.client_authority;
        authority.issue_client("system:serviceaccount:kube-system:sluice", &["system:masters"], validity)
    }

    /// A kubeconfig with everything that a client needs at the moment, as JSON, which is valid YAML.
    ///
    /// # Errors
    /// No client certificate could be created.
    pub fn kubeconfig(&self) -> Result<String> {
        let mut cluster = json!({ "server": self.url() });
        if self.tls.is_some() {
            cluster["certificate-authority-data"] = BASE64_STANDARD.encode(self.ca_pem()).into();
        }
        let mut user = json!({});
        match self.shared.cluster.authentication.credential() {
            Some(Credential::Token(token)) => user["token"] = token.into(),
            Some(Credential::Password { user: name, password }) => {
                user = json!({ "username": name, "password": password });
            }
            None if self.shared.cluster.authentication.asks_for_certificates() => {
                let identity = self.client_identity(Validity::Valid)?;
                user["client-certificate-data"] = BASE64_STANDARD.encode(identity.certificate_pem).into();
                user["client-key-data"] = BASE64_STANDARD.encode(identity.key_pem).into();
            }
            // Without credentials, kubectl asks for a user name on its standard input.
            None => user["token"] = "not-needed".into(),
        }
        let context = json!({ "cluster": "testbed", "user": "testbed", "namespace": "default" });
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "testbed", "cluster": cluster }],
            "users": [{ "name": "testbed", "user": user }],
            "contexts": [{ "name": "testbed", "context": context }],
            "current-context": "testbed",
        });
        Ok(format!("{config:#}\n"))
    }

    /// The revision of the latest write.
    pub fn resource_version(&self) -> u64 {
        self.shared.registry().store.revision()
    }

    /// Creates an object like a request: defaults, validation, allocation. `apiVersion` and `kind` may be
    /// left out. The namespace is `default` if it is left out.
    ///
    /// # Errors
    /// Those of a request.
    pub fn create(&self, resource: Resource, object: Value) -> Result<Value, Status> {
        let created = self.shared.write(|registry| registry.create(resource, None, object))?;
        Ok(created.full_value())
    }

    /// Replaces an object. If its metadata has a resource version, that must be the latest.
    ///
    /// # Errors
    /// Those of a request.
    pub fn update(&self, resource: Resource, object: Value) -> Result<Value, Status> {
        self.write_part(resource, Part::Main, object)
    }

    /// Replaces the status of an object.
    ///
    /// # Errors
    /// Those of a request.
    pub fn update_status(&self, resource: Resource, object: Value) -> Result<Value, Status> {
        self.write_part(resource, Part::Status, object)
    }

    fn write_part(&self, resource: Resource, part: Part, object: Value) -> Result<Value, Status> {
        let key = key(resource, text(&object, "/metadata/namespace"), text(&object, "/metadata/name"));
        let updated = self.shared.write(|registry| registry.update(resource, &key, part, object))?;
        Ok(updated.full_value())
    }

    /// Deletes an object; one with finalizers is only marked.
    ///
    /// # Errors
    /// It does not exist.
    pub fn delete(&self, resource: Resource, namespace: &str, name: &str) -> Result<(), Status> {
        let key = key(resource, namespace, name);
        self.shared.write(|registry| registry.delete(resource, &key, &Preconditions::default())).map(drop)
    }

    /// The current state of an object.
    pub fn get(&self, resource: Resource, namespace: &str, name: &str) -> Option<Value> {
        let key = key(resource, namespace, name);
        self.shared.registry().store.get(resource, &key).map(|object| object.full_value())
    }

    /// All objects of a resource, sorted by namespace and name.
    pub fn list(&self, resource: Resource) -> Vec<Value> {
        self.shared.registry().store.all(resource).map(|object| object.full_value()).collect()
    }

    /// Stores objects as they are, replacing existing ones: no defaults, no validation, only the missing
    /// metadata. Fast, and a way to store objects that an apiserver would refuse.
    pub fn load(&self, objects: impl IntoIterator<Item = (Resource, Value)>) {
        self.shared.write(|registry| {
            for (resource, object) in objects {
                registry.load(resource, object);
            }
        });
    }

    /// Forgets all history. All earlier revisions are then too old: the next watch or continued list from one
    /// gets 410, and only a new list shows what was deleted meanwhile. Open watches that are up to date
    /// continue.
    pub fn compact(&self) {
        self.shared.write(|registry| registry.store.compact());
    }

    /// Sends a bookmark now on every watch that requests bookmarks, even if nothing has changed.
    pub fn send_bookmarks(&self) {
        self.shared.faults.order_bookmarks();
    }

    /// Withholds changes to a resource from watches, from now until [`Faults::release`], so that changes to
    /// other resources overtake them. Lists show them.
    pub fn hold(&self, resource: Resource) {
        let revision = self.resource_version();
        self.shared.faults.hold_after(resource, revision);
    }

    /// The faults.
    pub fn faults(&self) -> &Faults {
        &self.shared.faults
    }

    /// The counters, with a way to wait for them: `counters().wait_for(|counters| …)`.
    pub fn counters(&self) -> watch::Receiver<Counters> {
        self.shared.counters.subscribe()
    }

    /// Replaces the accepted tokens of a server that requires tokens.
    pub fn replace_tokens(&self, tokens: &[&str]) {
        self.shared.cluster.authentication.replace_tokens(tokens);
    }

    /// Serves a new certificate of the same CA to new connections.
    ///
    /// # Errors
    /// The server has no TLS.
    pub fn replace_certificate(&self, validity: Validity) -> Result<()> {
        self.certificates()?.replace(validity)
    }

    /// Serves a certificate of a new CA to new connections.
    ///
    /// # Errors
    /// The server has no TLS.
    pub fn replace_authority(&self) -> Result<()> {
        self.certificates()?.replace_authority()
    }

    /// Closes every connection, and continues to listen.
    pub fn drop_connections(&self) {
        self.shared.connection_drops.send_modify(|()| {});
    }

    /// Accepts no new requests on existing connections: HTTP/2's GOAWAY, which apiservers send to spread
    /// clients and before they stop. Open watches on them continue.
    pub fn end_connections(&self) {
        self.shared.connection_ends.send_modify(|()| {});
    }

    /// Closes every connection, and refuses new ones until [`Apiserver::start_again`].
    ///
    /// # Errors
    /// Another process has taken the port in the meantime.
    pub async fn stop(&self) -> Result<()> {
        let before = std::mem::replace(&mut *self.state(), State::Between);
        let after = match before {
            State::Up(running) => {
                running.stop().await;
                let context = || format!("keeping port {}", self.shared.address);
                State::Down(reserve(self.shared.address).with_context(context)?)
            }
            other => other,
        };
        *self.state() = after;
        Ok(())
    }

    /// Listens again on the same port, with the same objects. Does nothing if it was not stopped.
    ///
    /// # Errors
    /// Another process has taken the port.
    pub fn start_again(&self) -> Result<()> {
        let mut state = self.state();
        *state = match std::mem::replace(&mut *state, State::Between) {
            State::Down(socket) => {
                let context = || format!("listening on {} again", self.shared.address);
                self.shared.note_start();
                State::Up(Running::start(socket, &self.shared, self.tls.clone()).with_context(context)?)
            }
            other => other,
        };
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn certificates(&self) -> Result<&Arc<Certificates>> {
        self.shared.cluster.certificates.as_ref().context("this server has no TLS: leave plain_http() out")
    }
}

fn key(resource: Resource, namespace: &str, name: &str) -> Key {
    match (resource.is_namespaced(), namespace) {
        (false, _) => Key::new("", name),
        (true, "") => Key::new("default", name),
        (true, namespace) => Key::new(namespace, name),
    }
}
