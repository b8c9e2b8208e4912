//! The server as tests hold it: where it is, what it holds, and its switches.

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
    /// The port is kept.
    Down(TcpSocket),
    /// On the way from one to the other, or failed there.
    Between,
}

impl Apiserver {
    /// What it is to be like.
    pub fn builder() -> Builder {
        Builder::default()
    }

    pub(crate) fn new(shared: Arc<Shared>, tls: Option<Arc<ServerConfig>>, running: Running) -> Self {
        Self { shared, tls, state: Mutex::new(State::Up(running)) }
    }

    /// Another server of the same cluster, as in a control plane of several: the same objects,
    /// certificates and credentials, on a free port of the same address. It has faults and counters
    /// of its own.
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

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// `https://ADDRESS` or `http://ADDRESS`.
    pub fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.shared.address)
    }

    /// The certificate of the authority that clients are to trust now; empty without TLS.
    pub fn ca_pem(&self) -> String {
        self.shared
            .cluster
            .certificates
            .as_ref()
            .map(|certificates| certificates.ca_pem())
            .unwrap_or_default()
    }

    /// A certificate for a client, signed by the authority that the server trusts.
    ///
    /// # Errors
    /// The server has no TLS.
    pub fn client_identity(&self, validity: Validity) -> Result<Identity> {
        let authority = &self.certificates()?.client_authority;
        authority.issue_client("system:serviceaccount:kube-system:sluice", &["system:masters"], validity)
    }

    /// A kubeconfig with all that a client needs now, as JSON, which is YAML too.
    ///
    /// # Errors
    /// No certificate could be made for it.
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
            // Without anything, kubectl asks for a user name on its standard input.
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

    /// Creates an object as a request would: defaults, validation, allocation. `apiVersion` and
    /// `kind` may be left out; so may the namespace, which is `default` then.
    ///
    /// # Errors
    /// What a request would be told.
    pub fn create(&self, resource: Resource, object: Value) -> Result<Value, Status> {
        let created = self.shared.write(|registry| registry.create(resource, None, object))?;
        Ok(created.full_value())
    }

    /// Replaces an object. With a resource version in its metadata, only if it is still the latest.
    ///
    /// # Errors
    /// What a request would be told.
    pub fn update(&self, resource: Resource, object: Value) -> Result<Value, Status> {
        self.write_part(resource, Part::Main, object)
    }

    /// Replaces the status of an object.
    ///
    /// # Errors
    /// What a request would be told.
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
    /// There is none.
    pub fn delete(&self, resource: Resource, namespace: &str, name: &str) -> Result<(), Status> {
        let key = key(resource, namespace, name);
        self.shared.write(|registry| registry.delete(resource, &key, &Preconditions::default())).map(drop)
    }

    /// An object as it is now.
    pub fn get(&self, resource: Resource, namespace: &str, name: &str) -> Option<Value> {
        let key = key(resource, namespace, name);
        self.shared.registry().store.get(resource, &key).map(|object| object.full_value())
    }

    /// All objects of a resource, in the order of namespace and name.
    pub fn list(&self, resource: Resource) -> Vec<Value> {
        self.shared.registry().store.all(resource).map(|object| object.full_value()).collect()
    }

    /// Stores objects as they are, new or in place of others: no defaults, no validation, only
    /// metadata that they have not. Fast, and the way for objects that no apiserver would take.
    pub fn load(&self, objects: impl IntoIterator<Item = (Resource, Value)>) {
        self.shared.write(|registry| {
            for (resource, object) in objects {
                registry.load(resource, object);
            }
        });
    }

    /// Forgets all history. Every revision handed out so far is too old then: the next watch or
    /// continued list from one gets 410, and only a new list shows what was deleted meanwhile.
    /// Open watches that are up to date go on.
    pub fn compact(&self) {
        self.shared.write(|registry| registry.store.compact());
    }

    /// Sends a bookmark on every watch that wants bookmarks, now, also where nothing has changed.
    pub fn send_bookmarks(&self) {
        self.shared.faults.order_bookmarks();
    }

    /// Holds changes to a resource back from watches, from now until [`Faults::release`]: changes
    /// to other resources overtake them. Lists show them.
    pub fn hold(&self, resource: Resource) {
        let revision = self.resource_version();
        self.shared.faults.hold_after(resource, revision);
    }

    /// The switches for faults.
    pub fn faults(&self) -> &Faults {
        &self.shared.faults
    }

    /// Numbers, and a way to wait for them: `counters().wait_for(|counters| …)`.
    pub fn counters(&self) -> watch::Receiver<Counters> {
        self.shared.counters.subscribe()
    }

    /// The only tokens that are accepted from now on, of a server that asks for tokens.
    pub fn replace_tokens(&self, tokens: &[&str]) {
        self.shared.cluster.authentication.replace_tokens(tokens);
    }

    /// Serves a new certificate of the same authority to new connections.
    ///
    /// # Errors
    /// The server has no TLS.
    pub fn replace_certificate(&self, validity: Validity) -> Result<()> {
        self.certificates()?.replace(validity)
    }

    /// Serves a certificate of a new authority to new connections.
    ///
    /// # Errors
    /// The server has no TLS.
    pub fn replace_authority(&self) -> Result<()> {
        self.certificates()?.replace_authority()
    }

    /// Closes every connection, and goes on listening.
    pub fn drop_connections(&self) {
        self.shared.connection_drops.send_modify(|()| {});
    }

    /// Takes no new requests on any connection that there is: HTTP/2's GOAWAY, as apiservers send it to spread clients and before
    /// they stop. Open watches go on there.
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

    /// Listens again where it did, with all that it held. Does nothing if it was not stopped.
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
