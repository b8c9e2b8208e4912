//! The addresses at which an apiserver is reached, as they become known.

use std::net::SocketAddr;

use sluice_kubeapi::apiserver::{ApiserverSource, Config};
use sluice_testbed::apiserver::{Apiserver, Resource};

use crate::access::Lab;
use crate::cluster::{config, plain, service, soon};

async fn until_known(source: &ApiserverSource, address: SocketAddr) {
    let mut addresses = source.addresses();
    soon(addresses.wait_for(|known| known.contains(&address))).await.unwrap();
}

#[tokio::test]
async fn an_address_is_known_before_anybody_is_asked() {
    let server = plain().await;
    server.stop().await.unwrap();
    let (source, _batches) = ApiserverSource::start(config(&server)).unwrap();
    assert_eq!(*source.addresses().borrow(), [server.address()]);
}

#[tokio::test]
async fn a_name_is_known_by_what_it_resolves_to_although_nobody_answers_there() {
    let server = plain().await;
    server.stop().await.unwrap();
    let masters = vec![format!("http://localhost:{}", server.address().port())];
    let (source, _batches) = ApiserverSource::start(Config { masters, ..config(&server) }).unwrap();
    until_known(&source, server.address()).await;
}

#[tokio::test]
async fn another_name_on_the_certificate_hides_no_address() {
    let mut lab = Lab::start(Apiserver::builder().name("api.example")).await;
    lab.cluster()["tls-server-name"] = "api.example".into();
    lab.cluster()["server"] = format!("https://localhost:{}", lab.server.address().port()).into();
    let followed = lab.synced().await;
    until_known(&followed.source, lab.server.address()).await;
}

#[tokio::test]
async fn a_kubeconfig_that_leads_elsewhere_takes_the_place_of_what_it_said() {
    let mut lab = Lab::start(Apiserver::builder().token("secret")).await;
    let replica = lab.server.replica().unwrap();
    let mut followed = lab.synced().await;
    lab.cluster()["server"] = replica.url().into();
    lab.config();
    lab.server.drop_connections();
    lab.server.create(Resource::Services, service("b")).unwrap();
    followed.until_like(&lab.server).await;
    let mut addresses = followed.source.addresses();
    soon(addresses.wait_for(|known| *known == [replica.address()])).await.unwrap();
}
