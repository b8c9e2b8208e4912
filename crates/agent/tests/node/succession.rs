//! A table that another version has left is written anew under open connections.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};

use sluice_model::Family;
use sluice_testbed::lab::{Host, Lab, PATIENCE, Wiring};

use crate::manifests::{BACKEND, FAMILIES, Service, cluster_ip, node_port};
use crate::scene::{FromNowOn, Scene, until, well};

/// As a table of another version is, by what tells versions apart: everything is written but what packets have filled.
const OF_ANOTHER_VERSION: &str = "
    delete chain inet sluice structure
    add chain inet sluice structure { comment \"Kubernetes Services. Sluice 0.0.1, structure 1\"; }
    delete chain bridge sluice structure
    add chain bridge sluice structure { comment \"Kubernetes Services. Sluice 0.0.1, structure 1\"; }
";

/// An endpoint that speaks without being asked. One that answers shows nothing: by what it was asked the rules know it again.
struct Talker {
    tcp: TcpListener,
    udp: UdpSocket,
}

/// A connection and a flow, at both ends.
struct Conversation {
    what: String,
    tcp: [TcpStream; 2],
    udp: [UdpSocket; 2],
    /// Where the endpoint sends datagrams.
    peer: SocketAddr,
}

impl Talker {
    fn new(host: &Host, family: Family) -> Self {
        let at = (host.ip(family), BACKEND);
        host.ns.run(|| {
            let talker = Self { tcp: TcpListener::bind(at).unwrap(), udp: UdpSocket::bind(at).unwrap() };
            talker.tcp.set_nonblocking(true).unwrap();
            talker.udp.set_read_timeout(Some(PATIENCE)).unwrap();
            talker
        })
    }

    fn begin(&self, client: &Host, to: SocketAddr) -> Conversation {
        let what = format!("{} with {to}", client.name);
        let stream = client.tcp_stream(to, PATIENCE).unwrap();
        let mut accepted = None;
        until(&format!("the connection of {what} is there"), || {
            accepted = self.tcp.accept().ok();
            accepted.is_some()
        });
        let (endpoint, _) = accepted.unwrap();
        endpoint.set_nonblocking(false).unwrap();
        for end in [&stream, &endpoint] {
            end.set_read_timeout(Some(PATIENCE)).unwrap();
        }
        let flow = client.udp_socket(to).unwrap();
        flow.set_read_timeout(Some(PATIENCE)).unwrap();
        flow.send(b"?").unwrap();
        let (_, peer) = self.udp.recv_from(&mut [0]).unwrap();
        let udp = [flow, self.udp.try_clone().unwrap()];
        let conversation = Conversation { what, tcp: [stream, endpoint], udp, peer };
        conversation.go_on();
        conversation
    }
}

impl Conversation {
    /// The endpoint speaks first, and is answered.
    fn go_on(&self) {
        let ([mut client, mut endpoint], [flow, udp]) = (self.tcp.each_ref(), self.udp.each_ref());
        let what = &self.what;
        udp.send_to(b"!", self.peer).unwrap();
        flow.recv(&mut [0]).unwrap_or_else(|error| panic!("{what}, a flow: {error}"));
        flow.send(b"?").unwrap();
        let heard = udp.recv_from(&mut [0]).unwrap_or_else(|error| panic!("{what}, a flow, back: {error}"));
        assert_eq!(heard, (1, self.peer), "{what}: it is the same flow");
        endpoint.write_all(b"!").unwrap();
        client.read_exact(&mut [0]).unwrap_or_else(|error| panic!("{what}: {error}"));
        client.write_all(b"?").unwrap();
        endpoint.read_exact(&mut [0]).unwrap_or_else(|error| panic!("{what}, back: {error}"));
    }
}

/// Those of a pod, of this node and from outside, to a pod on the node's bridge or behind a route, to one elsewhere, and to a
/// process of the node.
#[test]
fn open_connections_and_flows_go_on_under_a_table_that_is_written_anew() {
    for wiring in [Wiring::Routed, Wiring::Bridged] {
        let scene = Scene::of(well(Lab::builder().wiring(wiring).build()));
        let lab = &scene.lab;
        scene.apply(&Service::new(3).here(lab.pod(0)));
        scene.apply(&Service::new(4).there(lab.other_pod(1)));
        scene.apply(&Service::new(5).here(lab.node()));
        let agent = scene.start();
        let mut conversations = Vec::new();
        for (number, endpoint) in [(3, lab.pod(0)), (4, lab.other_pod(1)), (5, lab.node())] {
            for family in FAMILIES {
                let talker = Talker::new(endpoint, family);
                for client in [lab.pod(1), lab.node()] {
                    conversations.push(talker.begin(client, cluster_ip(number, family)));
                }
                conversations.push(talker.begin(lab.outside(), node_port(number, family)));
            }
        }
        for _ in 0..3 {
            let from_now_on = FromNowOn::of(&agent);
            well(lab.node().ns.nft_file(OF_ANOTHER_VERSION));
            from_now_on.wait_for(&["table inet sluice is repaired", "of another version"]);
            for family in ["inet", "bridge"] {
                let listed = scene.nft(&format!("chain {family} sluice structure"));
                assert!(!listed.contains("structure 1\""), "{listed}");
            }
            conversations.iter().for_each(Conversation::go_on);
        }
    }
}
