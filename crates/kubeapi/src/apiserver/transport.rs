//! Sends requests to an available apiserver with the current credentials.
//!
//! reqwest does HTTP/1.1, HTTP/2 and gzip, rustls with ring does TLS. This module adds fail-over between
//! apiservers, re-reading of files with credentials and certificates, and exec plugins.

use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use jiff::Timestamp;
use reqwest::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, RequestBuilder, StatusCode, Url};
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::access::{Access, Auth, Identity, Secret};
use super::addresses::Addresses;
use super::answer::Answer;
use super::client::{self, Server};
use super::config::{self, Config, ConfigError, Timing};
use super::exec::{self, Credential};
use super::files::{Disk, Files};
use super::health::Outcome;
use super::reason::{self, Failure, Reason};
use super::resource::Resource;

/// Sends requests. Shared by all watches.
#[derive(Debug)]
pub(super) struct Transport {
    timing: Timing,
    /// The addresses of apiservers.
    addresses: Arc<Addresses>,
    /// Locked while the files are read, and before the session, which is not locked during that time.
    files: Mutex<Files>,
    session: Arc<Mutex<Session>>,
}

/// The apiserver in use, and the means to talk to it.
#[derive(Debug)]
struct Session {
    access: Access,
    /// A client for each server of `access`.
    servers: Vec<Server>,
    /// The last result of the exec plugin.
    credential: Option<Credential>,
    /// The last failure of the exec plugin: when, and why.
    plugin_failed: Option<(Instant, String)>,
    /// The client certificate from an exec plugin that the clients use, even if it is no longer in `credential`.
    identity: Option<Identity>,
    /// When the files were read.
    loaded: Instant,
    /// The files have to be read again before the next request.
    stale: bool,
    /// Grows with every change.
    generation: u64,
    /// Index of the apiserver in use.
    active: usize,
    /// When the first apiserver was given up.
    left_first: Option<Instant>,
    /// The error of the last re-reading of the files.
    problem: Option<ConfigError>,
}

/// A request that changes something.
#[derive(Debug)]
pub(super) struct Write {
    pub(super) method: Method,
    /// The path below the apiserver's address.
    pub(super) path: String,
    /// The content type of the body.
    pub(super) kind: &'static str,
    pub(super) body: Bytes,
}

/// A request that is ready to be sent.
struct Ready {
    server: Server,
    index: usize,
    servers: usize,
    authorization: Option<HeaderValue>,
    generation: u64,
}

impl Ready {
    /// Sends a request, and waits for the head of the response.
    async fn answer(
        &self,
        request: RequestBuilder,
        method: &Method,
        limit: Duration,
        on_answer: &impl Fn(Outcome, Duration),
    ) -> Result<Answer, Failure> {
        let asked = Instant::now();
        let sent = timeout(limit, request.send()).await;
        let status =
            sent.as_ref().ok().and_then(|sent| sent.as_ref().ok()).map(|sent| sent.status().as_u16());
        on_answer(
            Outcome { host: host(&self.server.url), method: method.to_string(), status },
            asked.elapsed(),
        );
        let server = name(&self.server.url);
        let failed = |reason| Failure { reason, server: server.clone(), retry_after: None };
        match sent {
            Err(_) => Err(failed(Reason::Silent(limit))),
            Ok(Err(error)) => Err(failed(reason::of_transport(&error))),
            Ok(Ok(response)) => Ok(Answer::new(response, server, self.index)),
        }
    }
}

impl Transport {
    /// Reads and checks the configuration. Blocks on files. Sends nothing.
    pub(super) fn new(config: Config) -> Result<Self, ConfigError> {
        // Another part of the process may have installed a provider.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let access = config::load(&config, &Disk::default())?;
        warn_of_withheld(&access);
        let addresses = Arc::new(Addresses::new(&access));
        let session = Session {
            servers: client::build(&access, None, &config.timing, &addresses)?,
            access,
            credential: None,
            plugin_failed: None,
            identity: None,
            loaded: Instant::now(),
            stale: false,
            generation: 0,
            active: 0,
            left_first: None,
            problem: None,
        };
        let timing = config.timing.clone();
        let (files, session) = (Mutex::new(Files::new(config)), Arc::new(Mutex::new(session)));
        Ok(Self { timing, addresses, files, session })
    }

    /// The addresses at which apiservers are reached.
    pub(super) fn addresses(&self) -> &Arc<Addresses> {
        &self.addresses
    }

    /// The URLs of the apiservers.
    pub(super) async fn servers(&self) -> Vec<Url> {
        self.session.lock().await.access.servers.clone()
    }

    /// Sends a GET. Before it fails, it tries every apiserver once, and other credentials if there are any. The
    /// outcome of each request is counted.
    ///
    /// # Errors
    /// No response had status 200.
    pub(super) async fn get(
        &self,
        resource: Resource,
        query: &[(&str, String)],
        on_request: impl Fn(),
        on_answer: impl Fn(Outcome, Duration),
    ) -> Result<Answer, Failure> {
        let mut tried = 0;
        let mut refreshed = false;
        loop {
            let ready = self.prepare().await?;
            on_request();
            let failure = match self.send(&ready, resource, query, &on_answer).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            if failure.reason == Reason::Unauthorized
                && !std::mem::replace(&mut refreshed, true)
                && self.refresh(ready.generation).await
            {
                continue;
            }
            tried += 1;
            if !self.give_up(ready.index, &failure.reason).await || tried >= ready.servers {
                return Err(failure);
            }
        }
    }

    /// Sends a request that changes something, to the apiserver in use. It does not fail over: the watches do
    /// that, and no write is that urgent. The outcome of each request is counted.
    ///
    /// # Errors
    /// No response had a status of success. 403 and 404 are a [`Reason::Status`].
    pub(super) async fn write(
        &self,
        write: &Write,
        on_answer: impl Fn(Outcome, Duration),
    ) -> Result<(), Failure> {
        let mut refreshed = false;
        loop {
            let ready = self.prepare().await?;
            match self.send_write(&ready, write, &on_answer).await {
                Err(failure)
                    if failure.reason == Reason::Unauthorized
                        && !std::mem::replace(&mut refreshed, true)
                        && self.refresh(ready.generation).await => {}
                sent => return sent,
            }
        }
    }

    async fn send_write(
        &self,
        ready: &Ready,
        write: &Write,
        on_answer: &impl Fn(Outcome, Duration),
    ) -> Result<(), Failure> {
        let mut url = ready.server.base.clone();
        url.set_path(&format!("{}{}", url.path().trim_end_matches('/'), write.path));
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(write.kind));
        headers.extend(ready.authorization.clone().map(|value| (AUTHORIZATION, value)));
        let request = ready.server.http.request(write.method.clone(), url).headers(headers);
        let limit = self.timing.answer;
        let request = request.body(write.body.clone());
        let answer = ready.answer(request, &write.method, limit, on_answer).await?;
        if answer.status().is_success() {
            return Ok(());
        }
        Err(answer.into_failure(None, limit).await)
    }

    async fn send(
        &self,
        ready: &Ready,
        resource: Resource,
        query: &[(&str, String)],
        on_answer: &impl Fn(Outcome, Duration),
    ) -> Result<Answer, Failure> {
        let mut url = ready.server.base.clone();
        url.set_path(&format!("{}{}", url.path().trim_end_matches('/'), resource.path()));
        url.query_pairs_mut().extend_pairs(query);
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        if query.iter().any(|(key, _)| *key == "watch") {
            // An apiserver compresses no watch, and a proxy must not hold events back for a better ratio.
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        }
        headers.extend(ready.authorization.clone().map(|value| (AUTHORIZATION, value)));
        let request = ready.server.http.get(url).headers(headers);
        let limit = self.timing.answer;
        let answer = ready.answer(request, &Method::GET, limit, on_answer).await?;
        if answer.status() == StatusCode::OK {
            return match answer.foreign_type() {
                None => Ok(answer),
                Some(what) => Err(answer.failure(Reason::NotUnderstood(what))),
            };
        }
        Err(answer.into_failure(Some(resource), limit).await)
    }

    /// Switches to another apiserver after a failure of this one. Returns whether there is another one.
    pub(super) async fn give_up(&self, index: usize, reason: &Reason) -> bool {
        let mut session = self.session.lock().await;
        // Certificates may have been replaced on either side.
        session.stale |= reason.is_tls();
        let servers = session.servers.len();
        if servers < 2 || !reason.is_of_server() {
            return false;
        }
        if session.active == index {
            session.active = (index + 1) % servers;
            session.left_first = (session.active != 0).then(Instant::now);
        }
        true
    }

    /// Goes back to the first apiserver if it is ready again and accepts the credentials. It is tried in a
    /// separate task: if it does not answer, that must not delay a watch.
    fn try_first(&self, session: &Session) {
        let Some(first) = session.servers.first().cloned() else { return };
        // Credentials that do not fit into a header make the current request fail anyway.
        let Ok(authorization) = authorization(session, &first) else { return };
        let (limit, session) = (self.timing.answer, Arc::clone(&self.session));
        tokio::spawn(async move {
            let mut url = first.base;
            url.set_path(&format!("{}readyz", url.path()));
            let headers: HeaderMap = authorization.map(|value| (AUTHORIZATION, value)).into_iter().collect();
            let answer = timeout(limit, first.http.get(url).headers(headers).send()).await;
            // 403 shows that it is there. 401 does not count: that may be why it was given up.
            let is_ready =
                |status: StatusCode| !status.is_server_error() && status != StatusCode::UNAUTHORIZED;
            if answer.is_ok_and(|answer| answer.is_ok_and(|answer| is_ready(answer.status()))) {
                let mut session = session.lock().await;
                (session.active, session.left_first) = (0, None);
            }
        });
    }

    /// Looks for credentials newer than those of a generation. Returns whether there are any.
    async fn refresh(&self, generation: u64) -> bool {
        let mut session = self.session.lock().await;
        if session.generation != generation {
            return true;
        }
        if session.credential.take().is_some() {
            session.generation += 1;
            return true;
        }
        drop(session);
        self.reload().await;
        self.session.lock().await.generation != generation
    }

    async fn prepare(&self) -> Result<Ready, Failure> {
        let Timing { reload, fail_back, .. } = self.timing;
        let asked = Instant::now();
        let mut session = self.session.lock().await;
        if session.stale || session.loaded.elapsed() >= reload {
            drop(session);
            self.reload().await;
            session = self.session.lock().await;
        }
        let index = session.active;
        let server = session.servers.get(index).map(|server| name(&server.url)).unwrap_or_default();
        let failed = |reason| Failure { reason, server: server.clone(), retry_after: None };
        if let Auth::Exec(exec) = session.access.auth.clone()
            && session.access.servers.iter().any(is_encrypted)
            && !session.credential.as_ref().is_some_and(|held| held.is_fresh(Timestamp::now()))
        {
            // A plugin that hangs is not run again for each request that waited for it.
            if let Some((_, what)) = session.plugin_failed.as_ref().filter(|(at, _)| *at >= asked) {
                return Err(failed(Reason::ExecPlugin(what.clone())));
            }
            let credential = match exec::run(&exec).await {
                Ok(credential) => credential,
                Err(what) => {
                    session.plugin_failed = Some((Instant::now(), what.clone()));
                    return Err(failed(Reason::ExecPlugin(what)));
                }
            };
            if credential.identity != session.identity {
                let identity = credential.identity.as_ref();
                session.servers = client::build(&session.access, identity, &self.timing, &self.addresses)
                    .map_err(|error| failed(Reason::ExecPlugin(error.to_string())))?;
                session.identity.clone_from(&credential.identity);
            }
            session.credential = Some(credential);
            session.generation += 1;
        }
        if session.left_first.is_some_and(|at| at.elapsed() >= fail_back) {
            session.left_first = Some(Instant::now());
            self.try_first(&session);
        }
        let Some(server) = session.servers.get(index).cloned() else {
            return Err(failed(Reason::Config("no apiserver is configured".to_owned())));
        };
        let authorization = authorization(&session, &server).map_err(|what| failed(Reason::Config(what)))?;
        Ok(Ready {
            server,
            index,
            servers: session.servers.len(),
            authorization,
            generation: session.generation,
        })
    }

    /// Reads all files again. If they cannot be used, or reading takes too long, nothing changes.
    async fn reload(&self) {
        let mut session = self.session.lock().await;
        (session.loaded, session.stale) = (Instant::now(), false);
        drop(session);
        let mut files = self.files.lock().await;
        let Some(loaded) = files.read().await else { return };
        self.adopt(loaded, &mut *self.session.lock().await);
    }

    fn adopt(&self, loaded: Result<Access, ConfigError>, session: &mut Session) {
        let renewed = loaded.and_then(|access| {
            if access == session.access {
                return Ok(None);
            }
            // A plugin's certificate counts as long as the same plugin is configured.
            let identity = session.identity.clone().filter(|_| access.auth == session.access.auth);
            let is_same_client = access.tls == session.access.tls
                && access.servers == session.access.servers
                && identity == session.identity;
            let servers = match is_same_client {
                true => session.servers.clone(),
                false => client::build(&access, identity.as_ref(), &self.timing, &self.addresses)?,
            };
            Ok(Some((access, servers, identity)))
        });
        match renewed {
            Ok(renewed) => {
                session.problem = None;
                if let Some((access, servers, identity)) = renewed {
                    tracing::info!("the apiserver's address, credentials or certificates have changed");
                    if (&access.servers, &access.tls.proxy)
                        != (&session.access.servers, &session.access.tls.proxy)
                    {
                        self.addresses.set(&access);
                    }
                    if access.servers != session.access.servers {
                        (session.active, session.left_first) = (0, None);
                    }
                    if access.auth != session.access.auth {
                        session.credential = None;
                    }
                    if withheld(&session.access).is_none() {
                        warn_of_withheld(&access);
                    }
                    (session.access, session.servers, session.identity) = (access, servers, identity);
                    session.generation += 1;
                }
            }
            Err(problem) => {
                if session.problem.as_ref() != Some(&problem) {
                    tracing::warn!("{problem}; what was read before counts until then");
                }
                session.problem = Some(problem);
            }
        }
    }
}

/// The name of an apiserver in reports.
fn name(url: &Url) -> String {
    url.as_str().trim_end_matches('/').to_owned()
}

/// The name of an apiserver in metrics, as in client-go.
fn host(url: &Url) -> String {
    let port = url.port_or_known_default().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{}{port}", url.host_str().unwrap_or_default())
}

/// Whether the connection is encrypted, so that nobody in between can read it.
fn is_encrypted(url: &Url) -> bool {
    url.scheme() == "https"
}

/// An apiserver that gets no credentials although some are configured. client-go reads none for an address
/// without TLS (`clientcmd.DirectClientConfig.ClientConfig`).
fn withheld(access: &Access) -> Option<&Url> {
    let has_any = access.auth != Auth::None || access.tls.identity.is_some();
    access.servers.iter().find(|url| has_any && !is_encrypted(url))
}

fn warn_of_withheld(access: &Access) {
    if let Some(url) = withheld(access) {
        tracing::warn!(
            "apiserver {}: the connection is not encrypted, so no credentials are sent over it: unless it asks for none, \
             as kubectl proxy, write its address with https://",
            name(url)
        );
    }
}

/// The header `Authorization` of a request to this apiserver.
fn authorization(session: &Session, server: &Server) -> Result<Option<HeaderValue>, String> {
    if !is_encrypted(&server.url) {
        return Ok(None);
    }
    let value = match &session.access.auth {
        Auth::None => return Ok(None),
        Auth::Token(Secret(token)) => format!("Bearer {token}"),
        Auth::Basic { user, password: Secret(password) } => {
            format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")))
        }
        Auth::Exec(_) => match session.credential.as_ref().and_then(|held| held.token.as_ref()) {
            Some(Secret(token)) => format!("Bearer {token}"),
            None => return Ok(None),
        },
    };
    let mut value = HeaderValue::try_from(value)
        .map_err(|_| "the token has characters in it that no token has: write it anew".to_owned())?;
    value.set_sensitive(true);
    Ok(Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_apiserver_has_its_port_in_metrics() {
        for (url, wanted) in [
            ("https://10.0.0.2:6443", "10.0.0.2:6443"),
            ("https://10.0.0.2/base", "10.0.0.2:443"),
            ("https://[fd00::1]:6443/", "[fd00::1]:6443"),
            ("http://a.example", "a.example:80"),
        ] {
            assert_eq!(host(&Url::parse(url).unwrap()), wanted);
        }
    }
}
