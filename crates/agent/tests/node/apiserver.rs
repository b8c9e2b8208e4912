//! The agent on an apiserver in the node's network, driven by the real kubectl.

use std::fs;

use sluice_model::{Family, Protocol};
use sluice_testbed::apiserver::Apiserver;
use sluice_testbed::lab::{Lab, Outcome, PATIENCE, SILENCE};
use tempfile::TempDir;

use crate::manifests::{BACKEND, FAMILIES, PORT, Service, cluster_ip, node_port};
use crate::scene::{AGENT, READY, sluice, until, well};

#[test]
fn what_kubectl_creates_is_served_and_what_it_deletes_is_not() {
    let lab = well(Lab::new());
    let _server = well(lab.pod(1).serve(BACKEND));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let cidrs = ["10.96.0.0/16", "fd00:96::/112"].map(|cidr| cidr.parse().unwrap());
    let builder =
        Apiserver::builder().bind((lab.node().v4, 6443).into()).token("secret").service_cidrs(&cidrs);
    let apiserver = lab.node().ns.run(|| runtime.block_on(builder.start())).unwrap();
    let directory = TempDir::new().unwrap();
    let kubeconfig = directory.path().join("kubeconfig");
    fs::write(&kubeconfig, apiserver.kubeconfig().unwrap()).unwrap();
    let kubectl = |arguments: &str, manifest: &str| {
        let cache = directory.path().join("cache");
        let mut words =
            vec!["--kubeconfig", kubeconfig.to_str().unwrap(), "--cache-dir", cache.to_str().unwrap()];
        words.extend(arguments.split(' '));
        well(lab.node().ns.output_with_input("kubectl", &words, manifest));
    };
    kubectl("create -f -", &lab.node_object().to_string());
    let arguments = ["--kubeconfig", kubeconfig.to_str().unwrap(), "--admin-socket", "0"];
    let agent = sluice(AGENT.into_iter().chain(arguments));
    let agent = well(lab.node().spawn(&agent));
    well(agent.wait_for(READY, PATIENCE));

    let pod = lab.pod(0);
    // The apiserver gives addresses within its ServiceCIDRs: none of them is anybody's so far.
    assert_eq!(pod.ask(Protocol::Tcp, cluster_ip(9, Family::V4), SILENCE), Outcome::Silent);
    let service = Service::new(9).here(lab.pod(1));
    kubectl("create -f -", &service.manifest());
    for family in FAMILIES {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for (host, to) in [(pod, cluster_ip(9, family)), (lab.outside(), node_port(9, family))] {
                let is_answered = || host.ask(protocol, to, SILENCE).by() == Some("pod-1");
                until(&format!("{protocol} {to} is served"), is_answered);
            }
        }
        let other_port = (cluster_ip(9, family).ip(), PORT + 1).into();
        assert_eq!(
            pod.ask(Protocol::Tcp, other_port, PATIENCE),
            Outcome::Refused,
            "the Service has no such port"
        );
    }

    kubectl("delete service s9", "");
    for family in FAMILIES {
        until("its addresses are nobody's", || {
            pod.ask(Protocol::Tcp, cluster_ip(9, family), SILENCE) == Outcome::Silent
        });
        let outcome = lab.outside().ask(Protocol::Tcp, node_port(9, family), PATIENCE);
        assert_eq!(outcome, Outcome::Refused, "its nodePort is the node's own again");
    }
}
