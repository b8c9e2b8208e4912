//! Services that change while others, and they themselves, are used.

use sluice_model::{Family, Protocol};
use sluice_testbed::lab::{Outcome, PATIENCE, SILENCE};

use crate::manifests::{PORT, Service, cluster_ip, node_port};
use crate::scene::{Conversation, READY, Scene, until, well};
use crate::slow_nft::SlowNft;

/// A Service is added, changed and removed so often, all in all.
const CHANGES: usize = 50;

/// The Service that changes.
const CHANGING: u8 = 3;

/// What becomes of the changing Service: how it is to be, and what shows that it is.
type Step<'a> = (Option<Service>, Box<dyn Fn() -> bool + 'a>);

#[test]
fn other_services_do_not_notice_fifty_changes_of_one() {
    let scene = Scene::new();
    let _agent = scene.start();
    let loads = scene.load();
    let steps = steps(&scene);
    for (change, (service, has_taken_effect)) in steps.iter().cycle().take(CHANGES).enumerate() {
        match service {
            Some(service) => scene.apply(service),
            None => scene.delete(&Service::new(CHANGING)),
        }
        until(&format!("change {change}: {service:?}"), has_taken_effect);
    }
    loads.assert_unharmed();
}

/// A life of the changing Service. Each step is told from the one before it by an answer.
fn steps(scene: &Scene) -> Vec<Step<'_>> {
    let (here, there) = (scene.lab.pod(1), scene.lab.other_pod(0));
    let outside = scene.lab.outside();
    let ask_node_port = move || outside.ask(Protocol::Udp, node_port(CHANGING, Family::V6), SILENCE);
    let ask_port = move |port| {
        let to = (cluster_ip(CHANGING, Family::V4).ip(), port);
        scene.lab.pod(0).ask(Protocol::Tcp, to.into(), SILENCE)
    };
    let at_port = |port| Service { port, ..scene.service(CHANGING) };
    vec![
        (Some(Service::new(CHANGING)), Box::new(move || ask_port(PORT) == Outcome::Refused)),
        (Some(scene.service(CHANGING)), Box::new(move || ask_port(PORT).by().is_some())),
        (
            Some(at_port(81)),
            Box::new(move || ask_port(81).by().is_some() && ask_port(PORT) == Outcome::Refused),
        ),
        (
            Some(Service { policy: "Local", ..scene.service(CHANGING) }),
            Box::new(move || ask_node_port().source() == Some(outside.v6.into())),
        ),
        (
            Some(Service::new(CHANGING).there(there)),
            Box::new(move || ask_port(PORT).by() == Some(&*there.name)),
        ),
        (Some(Service::new(CHANGING).here(here)), Box::new(move || ask_port(PORT).by() == Some(&*here.name))),
        (None, Box::new(move || ask_node_port() == Outcome::Refused)),
    ]
}

#[test]
fn an_open_connection_outlives_its_endpoint_and_its_service() {
    let scene = Scene::new();
    let _agent = scene.start();
    let here = scene.lab.pod(1);
    scene.apply(&Service::new(CHANGING).here(here));
    let pod = scene.lab.pod(0);
    let is =
        |protocol, wanted: &Outcome| pod.ask(protocol, cluster_ip(CHANGING, Family::V4), SILENCE) == *wanted;
    until("the Service is there", || {
        scene
            .questions(CHANGING)
            .into_iter()
            .all(|(host, to)| host.ask(Protocol::Tcp, to, PATIENCE).by().is_some())
    });
    let mut conversations: Vec<_> =
        scene.questions(CHANGING).into_iter().map(|(host, to)| Conversation::begin(host, to)).collect();
    let mut all_say = |line| conversations.iter_mut().for_each(|conversation| conversation.say(line));

    scene.apply(&Service::new(CHANGING));
    until("the endpoint is gone", || is(Protocol::Tcp, &Outcome::Refused));
    all_say("without its endpoint");

    scene.delete(&Service::new(CHANGING));
    until("the Service is gone", || {
        scene.lab.outside().ask(Protocol::Tcp, node_port(CHANGING, Family::V4), SILENCE) == Outcome::Refused
    });
    all_say("without its Service");
}

#[test]
fn endpoints_change_while_nft_takes_its_time() {
    let nft = SlowNft::new();
    let scene = Scene::new();
    let mut command = scene.command();
    nft.of(&mut command);
    let agent = well(scene.lab.node().spawn(&command));
    well(agent.wait_for(READY, PATIENCE));

    nft.slow_down();
    scene.apply(&scene.service(CHANGING));
    until("nft runs", || nft.is_waited_for());
    let ask = |number| scene.lab.pod(0).ask(Protocol::Tcp, cluster_ip(number, Family::V4), SILENCE);
    for host in [scene.lab.other_pod(0), scene.lab.pod(1)] {
        let (here, there) = (scene.lab.pod(1), scene.lab.other_pod(0));
        scene.apply(&if host.name == here.name {
            Service::new(1).here(here)
        } else {
            Service::new(1).there(there)
        });
        until("the endpoint has changed", || (0..4).all(|_| ask(1).by() == Some(&*host.name)));
        assert_eq!(ask(CHANGING).by(), None, "which waits for nft");
    }
    nft.go_on();
    until("the new Service is served", || ask(CHANGING).by().is_some());
}
