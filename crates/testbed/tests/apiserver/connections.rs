use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use reqwest::{Identity, Version};
use sluice_testbed::apiserver::{Apiserver, Authority, Resource, Validity};

use crate::client::{Client, SERVICES, service, start, until};

fn with_header(server: &Apiserver, value: &str) -> Client {
    let headers = HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_str(value).unwrap())]);
    Client::with(server, Client::builder(server).default_headers(headers))
}

fn with_identity(server: &Apiserver, identity: &sluice_testbed::apiserver::Identity) -> Client {
    let pem = format!("{}{}", identity.certificate_pem, identity.key_pem);
    Client::with(server, Client::builder(server).identity(Identity::from_pem(pem.as_bytes()).unwrap()))
}

#[tokio::test]
async fn both_protocols_are_spoken_with_and_without_tls() {
    let tls = Apiserver::builder().start().await.unwrap();
    let plain = Apiserver::builder().plain_http().start().await.unwrap();
    for (server, builder, version) in [
        (&tls, Client::builder(&tls), Version::HTTP_2),
        (&tls, Client::builder(&tls).http1_only(), Version::HTTP_11),
        (&plain, Client::builder(&plain), Version::HTTP_11),
        (&plain, Client::builder(&plain).http2_prior_knowledge(), Version::HTTP_2),
    ] {
        let response = Client::with(server, builder).try_get(SERVICES).await.unwrap();
        assert_eq!((response.version(), response.status().as_u16()), (version, 200));
    }
}

#[tokio::test]
async fn a_token_is_asked_for_and_can_be_rotated() {
    let server = Apiserver::builder().token("one").password("a", "b").start().await.unwrap();
    let nobody = Client::new(&server);
    let refused = nobody.get(SERVICES).await;
    assert_eq!((refused.code, refused.reason()), (401, "Unauthorized"));
    assert_eq!(nobody.try_get("/healthz").await.unwrap().status(), 200);
    assert_eq!(with_header(&server, "Basic YTpi").get(SERVICES).await.code, 200);
    let (one, two) = (with_header(&server, "Bearer one"), with_header(&server, "Bearer two"));
    assert_eq!((one.get(SERVICES).await.code, two.get(SERVICES).await.code), (200, 401));
    assert_eq!(two.try_get("/healthz").await.unwrap().status(), 401, "as whoever is nobody that it knows");
    server.replace_tokens(&["two"]);
    assert_eq!((one.get(SERVICES).await.code, two.get(SERVICES).await.code), (401, 200));
}

#[tokio::test]
async fn a_client_certificate_is_asked_for_and_must_be_good() {
    let server = Apiserver::builder().client_certificates().start().await.unwrap();
    assert_eq!(Client::new(&server).get(SERVICES).await.code, 401);
    let good = server.client_identity(Validity::Valid).unwrap();
    assert_eq!(with_identity(&server, &good).get(SERVICES).await.code, 200);
    let expired = server.client_identity(Validity::Expired).unwrap();
    assert_eq!(with_identity(&server, &expired).get(SERVICES).await.code, 401);
    let stranger = Authority::new("stranger").unwrap().issue_client("sluice", &[], Validity::Valid).unwrap();
    assert_eq!(with_identity(&server, &stranger).get(SERVICES).await.code, 401);
}

#[tokio::test]
async fn the_server_certificate_is_replaced_while_it_runs() {
    let (server, client) = start(Apiserver::builder()).await;
    let mut events = client.watch(SERVICES, "").await;
    let fresh = |server: &Apiserver| Client::new(server);
    server.replace_certificate(Validity::Expired).unwrap();
    assert!(fresh(&server).try_get(SERVICES).await.is_err(), "expired");
    server.create(Resource::Services, service("a")).unwrap();
    assert_eq!(events.told().await, "ADDED a", "an open connection goes on");
    let old = fresh(&server);
    server.replace_authority().unwrap();
    assert!(old.try_get(SERVICES).await.is_err(), "an authority that is not trusted");
    assert_eq!(fresh(&server).get(SERVICES).await.code, 200);
    server.drop_connections();
    assert!(client.try_get(SERVICES).await.is_err(), "the old authority, over a new connection");
}

#[tokio::test]
async fn a_server_that_is_dropped_is_gone() {
    let (server, client) = start(Apiserver::builder()).await;
    assert_eq!(client.get(SERVICES).await.code, 200);
    let mut counters = server.counters();
    drop(server);
    // The last connection is the last owner of the counters.
    crate::client::soon(async { while counters.changed().await.is_ok() {} }).await;
    assert!(client.try_get(SERVICES).await.is_err());
}

#[tokio::test]
async fn clients_that_go_away_end_their_watches() {
    let (server, client) = start(Apiserver::builder()).await;
    let first = client.watch(SERVICES, "").await;
    let second = client.watch(SERVICES, "").await;
    until(&server, |counters| counters.open_watches(Resource::Services) == 2).await;
    drop(first);
    until(&server, |counters| counters.open_watches(Resource::Services) == 1).await;
    drop((second, client));
    until(&server, |counters| counters.open_watches(Resource::Services) == 0).await;
}

#[tokio::test]
async fn the_kubeconfig_has_what_a_client_needs() {
    let config = async |builder: sluice_testbed::apiserver::Builder| {
        let server = builder.start().await.unwrap();
        let config: serde_json::Value = serde_json::from_str(&server.kubeconfig().unwrap()).unwrap();
        (config["clusters"][0]["cluster"].clone(), config["users"][0]["user"].clone())
    };
    let (cluster, user) = config(Apiserver::builder().token("one")).await;
    assert!(cluster["server"].as_str().unwrap().starts_with("https://127.0.0.1:"));
    assert!(cluster["certificate-authority-data"].is_string());
    assert_eq!(user["token"], "one");
    let (_, user) = config(Apiserver::builder().client_certificates()).await;
    assert!(user["client-certificate-data"].is_string() && user["client-key-data"].is_string());
    let (cluster, user) = config(Apiserver::builder().plain_http().password("a", "b")).await;
    assert!(cluster.get("certificate-authority-data").is_none());
    assert_eq!(user["password"], "b");
}

#[tokio::test]
async fn replicas_share_objects_and_credentials_but_no_faults() {
    let (server, client) = start(Apiserver::builder()).await;
    let replica = server.replica().unwrap();
    assert_ne!(server.address(), replica.address());
    let other = Client::with(&replica, Client::builder(&server));
    let mut events = other.watch(SERVICES, "").await;
    server.create(Resource::Services, service("a")).unwrap();
    assert_eq!(events.told().await, "ADDED a");
    server.faults().cut_watches();
    server.stop().await.unwrap();
    assert!(client.try_get(SERVICES).await.is_err());
    replica.create(Resource::Services, service("b")).unwrap();
    assert_eq!(events.told().await, "ADDED b");
    server.start_again().unwrap();
    assert_eq!(client.get(SERVICES).await.names(), ["a", "b"]);
    drop(server);
    assert_eq!(other.get(SERVICES).await.names(), ["a", "b"]);
}
