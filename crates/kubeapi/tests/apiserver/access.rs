//! Every way to reach an apiserver, for real.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use sluice_kubeapi::apiserver::{ApiserverSource, Config, Environment, Timing};
use sluice_testbed::apiserver::{Apiserver, Builder, Counters, Failure, Resource, Target, Validity, Verb};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::cluster::{Followed, NODE, config, service, slice, soon, start, timing, until};

/// A server with TLS, and the files that lead to it.
pub(crate) struct Lab {
    pub(crate) server: Apiserver,
    pub(crate) directory: tempfile::TempDir,
    kubeconfig: Value,
}

impl Lab {
    pub(crate) async fn start(builder: Builder) -> Self {
        let server = start(builder).await;
        server.create(Resource::Services, service("a")).unwrap();
        server.create(Resource::EndpointSlices, slice("a", "a-1", &["10.0.0.1"])).unwrap();
        let kubeconfig = serde_json::from_str(&server.kubeconfig().unwrap()).unwrap();
        Self { server, directory: tempfile::tempdir().unwrap(), kubeconfig }
    }

    pub(crate) fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    pub(crate) fn cluster(&mut self) -> &mut Value {
        &mut self.kubeconfig["clusters"][0]["cluster"]
    }

    pub(crate) fn user(&mut self, user: Value) {
        self.kubeconfig["users"][0]["user"] = user;
    }

    pub(crate) fn config(&self) -> Config {
        let path = self.write("kubeconfig", self.kubeconfig.to_string());
        Config { kubeconfig: Some(path), masters: Vec::new(), ..config(&self.server) }
    }

    /// Follows the server as the kubeconfig has it.
    pub(crate) async fn synced(&self) -> Followed {
        let mut followed = Followed::new(self.config());
        followed.until_like(&self.server).await;
        followed
    }

    /// Something new arrives, over a connection that is made after this.
    pub(crate) async fn assert_goes_on(&self, followed: &mut Followed, name: &str) {
        self.server.drop_connections();
        self.server.create(Resource::Services, service(name)).unwrap();
        followed.until_like(&self.server).await;
    }
}

#[tokio::test]
async fn a_token_inline_and_an_authority_inline_or_in_a_file() {
    let mut lab = Lab::start(Apiserver::builder().token("secret")).await;
    lab.synced().await;
    let ca = lab.server.ca_pem();
    lab.write("ca.crt", ca);
    lab.cluster()["certificate-authority-data"] = Value::Null;
    lab.cluster()["certificate-authority"] = "ca.crt".into();
    lab.synced().await;
}

#[tokio::test]
async fn a_password() {
    Lab::start(Apiserver::builder().password("admin", "secret")).await.synced().await;
}

#[tokio::test]
async fn without_verification_any_certificate_will_do() {
    let mut lab = Lab::start(Apiserver::builder().token("secret")).await;
    lab.server.replace_certificate(Validity::Expired).unwrap();
    *lab.cluster() = json!({ "server": lab.server.url(), "insecure-skip-tls-verify": true });
    lab.synced().await;
}

#[tokio::test]
async fn a_client_certificate_in_files_is_renewed_without_a_restart() {
    let mut lab = Lab::start(Apiserver::builder().client_certificates()).await;
    lab.synced().await;
    let write = |lab: &Lab, validity| {
        let identity = lab.server.client_identity(validity).unwrap();
        lab.write("tls.key", identity.key_pem);
        lab.write("tls.crt", identity.certificate_pem);
    };
    write(&lab, Validity::Expired);
    lab.user(json!({ "client-certificate": "tls.crt", "client-key": "tls.key" }));
    let mut followed = Followed::new(lab.config());
    reason(&followed, "401: it does not accept the credentials").await;
    write(&lab, Validity::Valid);
    followed.until_like(&lab.server).await;
}

#[tokio::test]
async fn a_token_file_is_read_again_after_a_401_and_in_time() {
    let mut lab = Lab::start(Apiserver::builder().token("one")).await;
    let token = lab.write("token", "one\n");
    lab.user(json!({ "tokenFile": "token" }));
    // At 401 only: otherwise the files would not be looked at for an hour.
    let timing = Timing { reload: Duration::from_secs(3600), ..timing() };
    let mut followed = Followed::new(Config { timing, ..lab.config() });
    followed.until_like(&lab.server).await;
    lab.server.replace_tokens(&["two"]);
    fs::write(&token, "two").unwrap();
    lab.assert_goes_on(&mut followed, "b").await;
    all_well(&followed).await;
    // A file that is being written takes nothing away.
    fs::write(&token, "").unwrap();
    lab.assert_goes_on(&mut followed, "c").await;

    let mut followed = lab_with_token(&lab, &token, "two").await;
    fs::write(&token, "three").unwrap();
    lab.server.replace_tokens(&["two", "three"]);
    lab.assert_goes_on(&mut followed, "d").await;
    lab.server.replace_tokens(&["three"]);
    lab.assert_goes_on(&mut followed, "e").await;
    all_well(&followed).await;
}

#[tokio::test]
async fn a_token_file_on_a_volume_that_hangs_holds_nothing_up() {
    let mut lab = Lab::start(Apiserver::builder().token("one")).await;
    let (token, hung) = (lab.write("token", "one"), lab.directory.path().join("hung"));
    lab.user(json!({ "tokenFile": "token" }));
    let timing = Timing { read: Duration::from_millis(100), ..timing() };
    let mut followed = Followed::new(Config { timing, ..lab.config() });
    followed.until_like(&lab.server).await;
    fs::remove_file(&token).unwrap();
    assert!(Command::new("mkfifo").arg(&token).status().unwrap().success());
    lab.assert_goes_on(&mut followed, "b").await;
    lab.assert_goes_on(&mut followed, "c").await;
    // It answers again, and there is another token.
    fs::rename(&token, &hung).unwrap();
    fs::write(&token, "two").unwrap();
    fs::write(&hung, "one").unwrap();
    lab.server.replace_tokens(&["two"]);
    lab.assert_goes_on(&mut followed, "d").await;
    all_well(&followed).await;
}

async fn lab_with_token(lab: &Lab, path: &Path, token: &str) -> Followed {
    fs::write(path, token).unwrap();
    lab.synced().await
}

#[tokio::test]
async fn a_new_authority_in_the_file_is_trusted_without_a_restart() {
    let mut lab = Lab::start(Apiserver::builder().token("secret")).await;
    let ca = lab.server.ca_pem();
    lab.write("ca.crt", ca);
    *lab.cluster() = json!({ "server": lab.server.url(), "certificate-authority": "ca.crt" });
    let timing = Timing { reload: Duration::from_secs(3600), ..timing() };
    let mut followed = Followed::new(Config { timing, ..lab.config() });
    followed.until_like(&lab.server).await;
    lab.server.replace_authority().unwrap();
    lab.server.drop_connections();
    reason(&followed, "signed by an unknown authority: configure the cluster's CA").await;
    lab.write("ca.crt", lab.server.ca_pem());
    lab.assert_goes_on(&mut followed, "b").await;
    all_well(&followed).await;
}

#[tokio::test]
async fn no_credentials_go_out_over_plain_http() {
    let mut lab = Lab::start(Apiserver::builder().plain_http().token("secret")).await;
    let followed = Followed::new(lab.config());
    reason(&followed, "401: it does not accept the credentials").await;
    let ran = lab.directory.path().join("ran");
    let api = "client.authentication.k8s.io/v1";
    lab.user(json!({ "exec": { "apiVersion": api, "command": "touch", "args": [ran] } }));
    let followed = Followed::new(lab.config());
    reason(&followed, "401: it does not accept the credentials").await;
    assert!(!ran.exists(), "nobody asks for what is not sent");
}

#[tokio::test]
async fn of_a_bundle_of_authorities_those_count_that_can_be_read() {
    let mut lab = Lab::start(Apiserver::builder().token("secret")).await;
    let block = |text: &str| format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n");
    let (no_base64, no_certificate) = (block("%%%"), block("AAAA"));
    let bundle = format!("{no_base64}{no_certificate}{}{no_certificate}", lab.server.ca_pem());
    lab.write("ca.crt", bundle);
    *lab.cluster() = json!({ "server": lab.server.url(), "certificate-authority": "ca.crt" });
    lab.synced().await;
    lab.write("ca.crt", no_base64 + &no_certificate);
    let error = ApiserverSource::start(lab.config()).unwrap_err().to_string();
    assert!(error.contains("certificate authority: none of its 2 certificates can be used"), "{error}");
}

#[tokio::test]
async fn the_certificate_may_be_for_another_name() {
    let mut lab = Lab::start(Apiserver::builder().token("secret").name("api.example")).await;
    lab.cluster()["tls-server-name"] = "other.example".into();
    let followed = Followed::new(lab.config());
    reason(&followed, "its certificate is for another name").await;
    lab.cluster()["tls-server-name"] = "api.example".into();
    // The same file: the source that runs finds it.
    lab.config();
    let mut followed = followed;
    followed.until_like(&lab.server).await;
}

#[tokio::test]
async fn through_a_proxy() {
    let mut lab = Lab::start(Apiserver::builder().token("secret")).await;
    let proxy = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = proxy.local_addr().unwrap();
    let (count, mut counted) = tokio::sync::watch::channel(0);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut tunnels = JoinSet::new();
        while let Ok((connection, _)) = proxy.accept().await {
            count.send_modify(|count| *count += 1);
            tunnels.spawn(tunnel(connection));
        }
    });
    lab.cluster()["proxy-url"] = format!("http://{address}").into();
    lab.synced().await;
    soon(counted.wait_for(|count| *count > 0)).await.unwrap();
}

/// Serves `CONNECT`.
async fn tunnel(mut client: TcpStream) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    let target = head.strip_prefix("CONNECT ").unwrap().split(' ').next().unwrap();
    let mut server = TcpStream::connect(target).await.unwrap();
    client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
    // Either side may break off.
    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
}

#[tokio::test]
async fn the_service_account_of_a_pod() {
    let lab = Lab::start(Apiserver::builder().token("one")).await;
    lab.write("token", "one\n");
    lab.write("ca.crt", lab.server.ca_pem());
    let address = lab.server.address();
    let environment = Environment {
        service: Some((address.ip().to_string(), address.port().to_string())),
        service_account: Some(lab.directory.path().to_owned()),
        ..Environment::default()
    };
    let in_pod = Config { timing: timing(), ..Config::new(NODE, environment.clone()) };
    let mut followed = Followed::new(in_pod.clone());
    followed.until_like(&lab.server).await;
    lab.write("token", "two\n");
    lab.server.replace_tokens(&["two"]);
    lab.assert_goes_on(&mut followed, "b").await;
    // The address of the Service does not matter when there is a direct one.
    let service = Some(("192.0.2.1".to_owned(), "443".to_owned()));
    let environment = Environment { service, ..environment };
    let mut followed = Followed::new(Config { masters: vec![lab.server.url()], environment, ..in_pod });
    followed.until_like(&lab.server).await;
}

#[tokio::test]
async fn the_next_of_several_servers_is_used_and_then_the_first_again() {
    for how in ["stopped", "unavailable", "silent"] {
        let first = start(Apiserver::builder().plain_http()).await;
        let second = first.replica().unwrap();
        first.create(Resource::Services, service("a")).unwrap();
        let timing = Timing {
            fail_back: Duration::from_millis(200),
            answer: Duration::from_millis(200),
            watch: Duration::from_secs(1),
            ..timing()
        };
        let down = || async {
            match how {
                "stopped" => first.stop().await.unwrap(),
                "unavailable" => first.faults().fail(Target::ANY, Failure::Unavailable, usize::MAX),
                _ => first.faults().fail(Target::ANY, Failure::Hang, usize::MAX),
            }
        };
        let up = || {
            first.start_again().unwrap();
            first.faults().clear();
        };
        // From the start.
        down().await;
        let masters = vec![first.url(), second.url()];
        let mut followed = Followed::new(Config { masters, timing, ..config(&first) });
        followed.until_like(&second).await;
        // And back, when the watches on the second one end.
        up();
        until(&first, |counters| counters.open_watches(Resource::Services) == 1).await;
        // In the middle.
        down().await;
        first.drop_connections();
        until(&second, |counters| counters.open_watches(Resource::Services) == 1).await;
        second.create(Resource::Services, service("b")).unwrap();
        followed.until_like(&second).await;
        up();
        until(&first, |counters| counters.open_watches(Resource::Services) == 1).await;
        first.create(Resource::Services, service("c")).unwrap();
        followed.until_like(&first).await;
        assert_eq!(followed.names().len(), 4, "{how}");
    }
}

#[tokio::test]
async fn a_server_that_refuses_good_credentials_is_left_for_another_one() {
    let first = start(Apiserver::builder().plain_http()).await;
    let second = first.replica().unwrap();
    first.create(Resource::Services, service("a")).unwrap();
    first.faults().fail(Target::ANY, Failure::Unauthorized, usize::MAX);
    let timing = Timing { fail_back: Duration::from_millis(1), watch: Duration::from_secs(1), ..timing() };
    let masters = vec![first.url(), second.url()];
    let mut followed = Followed::new(Config { masters, timing, ..config(&first) });
    followed.until_like(&second).await;
    // The first one is asked whether it is ready each time.
    until(&second, |counters| counters.requests(Verb::Watch, Resource::Services) > 3).await;
    let asked = first.counters().borrow().requests(Verb::List, Resource::Services)
        + first.counters().borrow().requests(Verb::Watch, Resource::Services);
    assert!(asked <= 1, "{asked} requests to the one that refuses");
    first.faults().clear();
    until(&first, |counters| counters.open_watches(Resource::Services) == 1).await;
}

#[tokio::test]
async fn one_that_is_ready_for_anybody_but_refuses_credentials_is_tried_now_and_then_and_nothing_is_missed() {
    let first = start(Apiserver::builder().plain_http()).await;
    let second = first.replica().unwrap();
    first.create(Resource::Services, service("a")).unwrap();
    // Whoever is in front of it answers /readyz himself.
    for resource in [Resource::Services, Resource::EndpointSlices, Resource::Nodes, Resource::ServiceCidrs] {
        first.faults().fail(Target::resource(resource), Failure::Unauthorized, usize::MAX);
    }
    let timing = Timing { fail_back: Duration::from_secs(3_600), watch: Duration::from_secs(1), ..timing() };
    for (fail_back, is_back) in [(timing.fail_back, false), (Duration::from_millis(1), true)] {
        let watched = second.counters().borrow().requests(Verb::Watch, Resource::Services);
        let sum = |counters: &Counters| {
            counters.requests(Verb::List, Resource::Services)
                + counters.requests(Verb::Watch, Resource::Services)
        };
        let before = sum(&first.counters().borrow());
        let timing = Timing { fail_back, ..timing.clone() };
        let masters = vec![first.url(), second.url()];
        let mut followed = Followed::new(Config { masters, timing, ..config(&first) });
        followed.until_like(&second).await;
        until(&second, |counters| counters.requests(Verb::Watch, Resource::Services) > watched + 3).await;
        if is_back {
            until(&first, |counters| sum(counters) > before + 1).await;
        }
        second.create(Resource::Services, service(if is_back { "c" } else { "b" })).unwrap();
        followed.until_like(&second).await;
        let asked = sum(&first.counters().borrow()) - before;
        assert_eq!(asked > 1, is_back, "{asked} requests to the one that refuses");
    }
}

#[tokio::test]
async fn what_cannot_work_is_said_at_the_start() {
    let mut lab = Lab::start(Apiserver::builder().token("secret")).await;
    let fails = |lab: &Lab, part: &str| {
        let error = ApiserverSource::start(lab.config()).unwrap_err().to_string();
        assert!(error.contains(part) && !error.contains('\n'), "{error}");
    };
    let original = lab.kubeconfig.clone();
    lab.cluster()["certificate-authority-data"] = BASE64_STANDARD.encode("no certificate").into();
    fails(&lab, "certificate authority: it holds no certificate: write certificates in the PEM format");
    lab.kubeconfig = original.clone();
    lab.user(json!({ "client-certificate-data": "QQ==", "client-key-data": "QQ==" }));
    fails(&lab, "client certificate: ");
    lab.kubeconfig = original;
    let context = Some("production".to_owned());
    let error = ApiserverSource::start(Config { context, ..lab.config() }).unwrap_err().to_string();
    assert!(error.contains("no context \"production\"") && error.contains("there are testbed"), "{error}");
}

/// Waits until this is what is wrong with Services.
pub(crate) async fn reason(followed: &Followed, part: &str) {
    let mut last = Vec::new();
    let waited = tokio::time::timeout(crate::cluster::DEADLINE, async {
        loop {
            last = followed.health().reasons();
            if last.iter().any(|(_, reason)| reason.contains(part)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    if waited.await.is_err() {
        panic!("not {part:?} but {last:#?}");
    }
    assert!(last.iter().all(|(_, reason)| !reason.contains('\n')), "{last:#?}");
}

/// Waits until nothing is wrong.
pub(crate) async fn all_well(followed: &Followed) {
    soon(async {
        while !followed.health().reasons().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}
