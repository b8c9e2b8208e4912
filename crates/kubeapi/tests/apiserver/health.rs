//! What is said about what is wrong.

use sluice_kubeapi::apiserver::{Config, Resource as Watched};
use sluice_testbed::apiserver::{Apiserver, Failure, Resource, Target, Validity};

use crate::access::{all_well, reason};
use crate::cluster::{Followed, NODE, by_kubeconfig, config, node, plain, service, soon, start};

#[tokio::test]
async fn reasons_say_what_is_wrong_and_what_to_do() {
    let server = start(Apiserver::builder().token("secret")).await;
    let (kubeconfig, config) = by_kubeconfig(&server);
    let write = || std::fs::write(kubeconfig.path(), server.kubeconfig().unwrap()).unwrap();
    server.stop().await.unwrap();
    let mut followed = Followed::new(config);
    let url = server.url();
    reason(&followed, &format!("apiserver {url}: cannot be reached: Connection refused")).await;
    server.start_again().unwrap();
    followed.until_like(&server).await;

    server.replace_certificate(Validity::Expired).unwrap();
    server.drop_connections();
    reason(&followed, "its certificate has expired or is not valid yet: renew it").await;
    server.replace_authority().unwrap();
    server.drop_connections();
    reason(&followed, "signed by an unknown authority: configure the cluster's CA").await;
    write();
    followed.until_like(&server).await;

    server.replace_tokens(&["another"]);
    server.drop_connections();
    reason(&followed, "401: it does not accept the credentials: renew the token").await;
    write();
    server.create(Resource::Services, service("a")).unwrap();
    followed.until_like(&server).await;

    let slices = Target::resource(Resource::EndpointSlices);
    server.faults().fail(slices, Failure::Forbidden, usize::MAX);
    server.drop_connections();
    let rule = r#"apiGroups: ["discovery.k8s.io"], resources: ["endpointslices"], verbs: ["list", "watch"]"#;
    reason(&followed, rule).await;
    reason(&followed, "403: this account may not read endpointslices: apply deploy/base/rbac.yaml").await;
    server.faults().clear();
    all_well(&followed).await;

    server.faults().fail(Target::ANY, Failure::Garbage, usize::MAX);
    server.drop_connections();
    reason(&followed, "this is no apiserver, or something in between garbles it").await;
}

#[tokio::test]
async fn plain_http_on_a_tls_port_and_tls_on_a_plain_one() {
    let tls = start(Apiserver::builder()).await;
    let plain = plain().await;
    let follow = |url: String| Followed::new(Config { masters: vec![url], ..config(&plain) });
    let to_plain = follow(plain.url().replace("http:", "https:"));
    reason(&to_plain, "TLS failed: ").await;
    let to_tls = follow(tls.url().replace("https:", "http:"));
    reason(&to_tls, ": check ").await;
}

#[tokio::test]
async fn the_age_of_the_last_contact_grows_while_the_server_is_away() {
    let server = plain().await;
    let followed = Followed::synced(&server).await;
    let health = followed.health();
    for resource in Watched::ALWAYS {
        assert!(health.age(resource).is_some() && health.of(resource).is_listed());
    }
    server.stop().await.unwrap();
    reason(&followed, "cannot be reached").await;
    let before = health.last_contact().unwrap();
    // Each resource has a connection of its own, and finds out by itself.
    soon(async {
        while health.last_contact().unwrap() <= before || health.of(Watched::Services).errors() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(health.is_synced(), "what was read still counts");
}

#[tokio::test]
async fn whether_the_cluster_has_this_node_is_known() {
    let server = plain().await;
    server.create(Resource::Nodes, node("another")).unwrap();
    let mut followed = Followed::synced(&server).await;
    let known = |followed: &Followed| (followed.health().has_node(), followed.health().had_node());
    assert_eq!(known(&followed), (Some(false), false));
    server.create(Resource::Nodes, node(NODE)).unwrap();
    followed.until_like(&server).await;
    assert_eq!(known(&followed), (Some(true), true));
    server.delete(Resource::Nodes, "", NODE).unwrap();
    followed.until_like(&server).await;
    assert_eq!(known(&followed), (Some(false), true));
}
