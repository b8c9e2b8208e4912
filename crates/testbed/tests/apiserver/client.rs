//! A strict client, and test objects.

use std::time::Duration;

use reqwest::header::{ACCEPT, CONTENT_TYPE};
use reqwest::{Certificate, ClientBuilder, Method, Response};
use serde_json::{Value, json};
use sluice_testbed::apiserver::{Apiserver, Builder, Counters};

/// How long anything may take before the test fails.
const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) const SERVICES: &str = "/api/v1/namespaces/default/services";
pub(crate) const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";

/// Waits for something that has to happen.
pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, what).await.expect("it took too long")
}

/// Waits until the counters satisfy `test`.
pub(crate) async fn until(server: &Apiserver, test: impl FnMut(&Counters) -> bool) {
    soon(server.counters().wait_for(test)).await.expect("the server is there");
}

pub(crate) async fn start(builder: Builder) -> (Apiserver, Client) {
    let server = builder.start().await.unwrap();
    let client = Client::new(&server);
    (server, client)
}

pub(crate) fn service(name: &str) -> Value {
    json!({ "metadata": { "name": name }, "spec": { "ports": [{ "port": 80 }] } })
}

pub(crate) fn slice(name: &str) -> Value {
    json!({
        "metadata": { "name": name, "labels": { "kubernetes.io/service-name": name } },
        "addressType": "IPv4",
        "endpoints": [{ "addresses": ["10.0.0.1"] }],
        "ports": [{ "name": "", "port": 8080 }],
    })
}

/// A response.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) body: Value,
}

impl Answer {
    pub(crate) fn names(&self) -> Vec<&str> {
        let items = self.body["items"].as_array().expect("a list");
        items.iter().map(|item| item["metadata"]["name"].as_str().unwrap()).collect()
    }

    pub(crate) fn version(&self) -> &str {
        self.body["metadata"]["resourceVersion"].as_str().expect("a resource version")
    }

    pub(crate) fn reason(&self) -> &str {
        self.body["reason"].as_str().unwrap_or_default()
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Client {
    pub(crate) http: reqwest::Client,
    pub(crate) url: String,
}

impl Client {
    pub(crate) fn new(server: &Apiserver) -> Self {
        Self::with(server, Self::builder(server))
    }

    /// Trusts the server's current CA.
    pub(crate) fn builder(server: &Apiserver) -> ClientBuilder {
        // It fails if it is installed already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let authority = server.ca_pem();
        let authorities = if authority.is_empty() {
            Vec::new()
        } else {
            vec![Certificate::from_pem(authority.as_bytes()).unwrap()]
        };
        reqwest::Client::builder().tls_certs_only(authorities).no_proxy()
    }

    pub(crate) fn with(server: &Apiserver, builder: ClientBuilder) -> Self {
        Self { http: builder.build().unwrap(), url: server.url() }
    }

    pub(crate) async fn try_get(&self, path: &str) -> reqwest::Result<Response> {
        soon(self.http.get(format!("{}{path}", self.url)).send()).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        answer(self.try_get(path).await.unwrap()).await
    }

    pub(crate) async fn table(&self, path: &str) -> Answer {
        let request = self.http.get(format!("{}{path}", self.url));
        let accept = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
        answer(soon(request.header(ACCEPT, accept).send()).await.unwrap()).await
    }

    pub(crate) async fn send(&self, method: Method, path: &str, media_type: &str, body: Value) -> Answer {
        let request = self.http.request(method, format!("{}{path}", self.url));
        let request = request.header(CONTENT_TYPE, media_type).body(body.to_string());
        answer(soon(request.send()).await.unwrap()).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        self.send(Method::POST, path, "application/json", body).await
    }

    pub(crate) async fn put(&self, path: &str, body: Value) -> Answer {
        self.send(Method::PUT, path, "application/json", body).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.send(Method::DELETE, path, "application/json", json!({})).await
    }

    /// Opens a watch. `query` follows `?watch=true&`.
    pub(crate) async fn watch(&self, path: &str, query: &str) -> Events {
        let response = self.try_get(&format!("{path}?watch=true&{query}")).await.unwrap();
        assert_eq!(response.status(), 200);
        Events { response, unread: Vec::new() }
    }
}

async fn answer(response: Response) -> Answer {
    let code = response.status().as_u16();
    let body = soon(response.bytes()).await.unwrap();
    let body = serde_json::from_slice(&body).unwrap_or_else(|error| panic!("{error}: {body:?}"));
    Answer { code, body }
}

/// The events of a watch.
#[derive(Debug)]
pub(crate) struct Events {
    response: Response,
    pub(crate) unread: Vec<u8>,
}

/// How a watch ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Normally.
    Closed,
    /// The connection broke.
    Cut,
}

impl Events {
    pub(crate) async fn next(&mut self) -> Result<Value, End> {
        soon(self.next_whenever()).await
    }

    async fn next_whenever(&mut self) -> Result<Value, End> {
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                return Ok(serde_json::from_slice(&line).expect("an event"));
            }
            match self.response.chunk().await {
                Ok(Some(bytes)) => self.unread.extend_from_slice(&bytes),
                Ok(None) => return Err(End::Closed),
                Err(_) => return Err(End::Cut),
            }
        }
    }

    /// `TYPE name` of the next event.
    pub(crate) async fn told(&mut self) -> String {
        match self.next().await {
            Ok(event) => {
                let kind = event["type"].as_str().unwrap();
                let name = event["object"]["metadata"]["name"].as_str().unwrap_or("-");
                format!("{kind} {name}")
            }
            Err(end) => format!("{end:?}"),
        }
    }
}
