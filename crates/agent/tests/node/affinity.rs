//! Clients that keep their endpoints, where connections are decided at their sockets: the relay decides about the first one, and
//! the next ones are led there.

use std::net::TcpListener;

use sluice_model::{Family, Protocol};
use sluice_testbed::lab::{Host, PATIENCE};

use crate::at_sockets::{Agent, Sockets};
use crate::manifests::{FAMILIES, Service, cluster_ip};

const NUMBER: u8 = 7;

/// Who answers.
#[track_caller]
fn ask(host: &Host, family: Family) -> String {
    let outcome = host.ask(Protocol::Tcp, cluster_ip(NUMBER, family), PATIENCE);
    outcome.by().unwrap_or_else(|| panic!("{family} from {}: {outcome:?}", host.name)).to_owned()
}

/// How many connections of the Service there were, and how many of them were led to their endpoints at their sockets.
fn counted(agent: &Agent) -> (u64, u64) {
    let service = agent.json(&["services", &format!("s{NUMBER}")]);
    let ports = service["items"][0]["ports"].as_array().unwrap();
    let sum = |name: &str| {
        let of_tcp = ports.iter().filter(|port| port["protocol"] == "TCP");
        of_tcp.map(|port| port["traffic"][name].as_u64().unwrap()).sum()
    };
    (sum("total"), sum("translated"))
}

#[test]
fn a_client_keeps_its_endpoint_whoever_leads_it_there() {
    let sockets = Sockets::new();
    let scene = &sockets.scene;
    scene.apply(&Service { affinity: true, ..scene.service(NUMBER) });
    let first = sockets.start(1, "socket", &sockets.pins());
    let clients = [scene.lab.pod(0), scene.lab.pod(1), scene.lab.node()];
    let pairs = || FAMILIES.into_iter().flat_map(|family| clients.map(|client| (client, family)));
    let answers: Vec<String> = pairs().map(|(client, family)| ask(client, family)).collect();
    assert_eq!(counted(&first), (6, 0), "nobody was known");
    let distinct: std::collections::BTreeSet<_> = answers.iter().collect();
    assert_eq!(distinct.len(), 2, "{answers:?}");
    for _ in 0..3 {
        assert_eq!(pairs().map(|(client, family)| ask(client, family)).collect::<Vec<_>>(), answers);
    }
    assert_eq!(counted(&first), (24, 18));

    // A successor knows them.
    let second = sockets.start(2, "socket", &sockets.pins());
    second.wait_for("connections are decided at their sockets, as this agent knows all");
    first.stop();
    assert_eq!(pairs().map(|(client, family)| ask(client, family)).collect::<Vec<_>>(), answers);
    // What the node's processes come from may have changed while no agent was there: once for each pair that is the relay's to say.
    assert_eq!(counted(&second).1, 4, "pods were led at their sockets");
    assert_eq!(pairs().map(|(client, family)| ask(client, family)).collect::<Vec<_>>(), answers);
    assert_eq!(counted(&second).1, 10, "all were led at their sockets");
    // And its relay does, which the connections of a pod with a proxy are left to.
    let pod = scene.lab.pod(0);
    let _proxy = pod.ns.run(|| TcpListener::bind("[::]:15001")).unwrap();
    for (family, answer) in FAMILIES.into_iter().zip([&answers[0], &answers[3]]) {
        assert_eq!(&ask(pod, family), answer);
    }
    assert_eq!(counted(&second).1, 10);
}
