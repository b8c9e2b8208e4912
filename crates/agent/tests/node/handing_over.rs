//! What changes while one agent takes over from another takes effect, however long that takes.

use sluice_model::{Family, Protocol};
use sluice_testbed::lab::{PATIENCE, SILENCE};

use crate::at_sockets::Sockets;
use crate::manifests::{Service, cluster_ip};
use crate::scene::{READY, Scene, sluice, until, well};
use crate::slow_nft::SlowNft;

/// Has Service 1 on another host, and then on the first one again; each time waits until nobody is led elsewhere.
fn assert_endpoints_change(scene: &Scene) {
    let (here, there) = (scene.lab.pod(1), scene.lab.other_pod(0));
    for (service, host) in [(Service::new(1).there(there), there), (Service::new(1).here(here), here)] {
        scene.apply(&service);
        let is_led = |protocol| {
            let outcome = scene.lab.pod(0).ask(protocol, cluster_ip(1, Family::V4), SILENCE);
            outcome.by() == Some(&*host.name)
        };
        // Clients are spread over whoever listens, so some are not enough.
        let is_all = || (0..12).all(|_| is_led(Protocol::Tcp) && is_led(Protocol::Udp));
        until(&format!("the endpoint is {}", host.name), is_all);
    }
}

#[test]
fn endpoints_change_while_an_agent_takes_over_and_nft_takes_its_time() {
    let scene = Scene::new();
    let old = scene.start();
    let nft = SlowNft::after_the_first_transaction();
    let mut command = scene.command();
    nft.of(&mut command);
    let new = well(scene.lab.node().spawn(&command));
    well(old.wait_for("another agent takes new connections", PATIENCE));
    until("nft runs", || nft.is_waited_for());
    assert_endpoints_change(&scene);
    assert!(!new.lines().iter().any(|line| line.contains(READY)), "it was not slow");
    nft.go_on();
    well(new.wait_for(READY, PATIENCE));
    assert_endpoints_change(&scene);
}

#[test]
fn endpoints_change_at_sockets_while_an_agent_takes_over_and_nft_takes_its_time() {
    let sockets = Sockets::new();
    let scene = &sockets.scene;
    let old = sockets.start(1, "socket", &sockets.pins());
    let nft = SlowNft::after_the_first_transaction();
    let mut command = sluice([] as [&str; 0]);
    nft.of(&mut command);
    let new = sockets.spawn(command, 2, "socket", Some(sockets.cgroup.path()), &sockets.pins());
    old.wait_for("another agent takes new connections");
    until("nft runs", || nft.is_waited_for());
    assert_endpoints_change(scene);
    assert_eq!(old.json(&["status"])["mode"], "socket", "it keeps what nobody else could");
    assert!(!new.log().contains(READY), "it was not slow");
    nft.go_on();
    new.wait_for("connections are decided at their sockets, as");
    until("the old one lets go", || old.json(&["status"])["mode"] == "tproxy");
    assert_endpoints_change(scene);
}
