//! `/v1/explain`: what would happen to a packet, and by which rule.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Instant;

use ipnet::IpNet;
use sluice_model::{Frontend, FrontendKind, Protocol};
use sluice_socket::Fate;
use sluice_socket_maps::verdict;
use sluice_table::{self as table, Client, FrontendKey, Route, SocketOutcomes, SourceAddress};

use super::api::{AtSocket, Explanation, Origin, Outcome, SocketVerdict, Verdict};
use super::server::{Inside, Refusal, value};
use super::services::endpoint;
use crate::at_socket::View;
use crate::capture_args::PodAddresses;

/// The question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Question {
    client: IpAddr,
    destination: SocketAddr,
    protocol: Protocol,
    /// The client's place, if it is given.
    origin: Option<Origin>,
}

impl Question {
    pub(super) fn read(query: &str) -> Result<Self, Refusal> {
        let bad = |name: &str, wanted: &str| Refusal::BadQuestion(format!("{name} is to be {wanted}"));
        let get = |name: &str| value(query, name).unwrap_or_default();
        let client = get("client").parse::<IpAddr>().map_err(|_| bad("client", "an IP address"))?;
        let destination = get("destination").parse::<SocketAddr>();
        let destination = destination.map_err(|_| bad("destination", "ADDRESS:PORT"))?;
        let protocol = match get("protocol").as_str() {
            "" | "TCP" => Protocol::Tcp,
            "UDP" => Protocol::Udp,
            _ => return Err(bad("protocol", "TCP or UDP")),
        };
        let origin = match get("origin").as_str() {
            "" => None,
            "localPod" => Some(Origin::LocalPod),
            "node" => Some(Origin::Node),
            "outside" => Some(Origin::Outside),
            _ => return Err(bad("origin", "localPod, node or outside")),
        };
        let (client, ip) = (client.to_canonical(), destination.ip().to_canonical());
        if client.is_ipv4() != ip.is_ipv4() {
            return Err(Refusal::BadQuestion("client and destination are of two families".to_owned()));
        }
        Ok(Self { client, destination: SocketAddr::new(ip, destination.port()), protocol, origin })
    }
}

/// What would happen now.
pub(super) async fn explain(inside: &Inside, question: Question) -> Result<Explanation, Refusal> {
    let Question { client, destination, protocol, .. } = question;
    let (origin, origin_why) = origin(inside, question);
    let key = FrontendKey::new(destination.ip(), destination.port(), protocol);
    let route = inside.observer.table().reader().lookup(key).cloned();
    let mut explanation = Explanation {
        client,
        origin,
        origin_why,
        destination,
        protocol: protocol.to_string(),
        outcome: Outcome { verdict: Verdict::Pass, why: String::new() },
        at_socket: None,
        service_port: None,
        kind: None,
        balance: None,
        affinity_seconds: None,
        source_address: None,
        endpoints: Vec::new(),
        hints: Vec::new(),
    };
    match route {
        Some(route) => {
            by_route(&mut explanation, &route);
            explanation.at_socket =
                at_socket(inside.observer.at_socket(), &route, explanation.origin, client);
            if !inside.is_capturing && inside.observer.unserved() > 0 {
                explanation.hints.push("some frontends cannot be listened on: the log says which".to_owned());
            }
        }
        None if is_left_out(inside, destination, protocol) => {
            let why = "this agent reaches the apiserver at this address, or at this nodePort, so Services that name it do not \
                       get it on this node: sluice status names them";
            explanation.outcome.why = why.to_owned();
        }
        None => {
            explanation.outcome = without_route(inside, destination.ip()).await?;
            explanation.hints = nearby(inside, destination, protocol);
        }
    }
    Ok(explanation)
}

fn by_route(explanation: &mut Explanation, route: &Route) {
    let now = Instant::now();
    let origin = match explanation.origin {
        Origin::LocalPod => table::Origin::LocalPod,
        Origin::Node => table::Origin::Node,
        Origin::Outside => table::Origin::Outside,
    };
    let answer = route.answer(Client { ip: explanation.client, origin });
    let backends = route.service_port().backends();
    explanation.outcome = Outcome { verdict: answer.verdict.into(), why: answer.why.to_string() };
    explanation.service_port = Some(answer.port.to_string());
    explanation.kind = Some(answer.kind.to_string());
    explanation.affinity_seconds = answer.affinity.map(|timeout| timeout.as_secs());
    if answer.verdict == table::Verdict::Relay {
        explanation.balance = Some(answer.balance.to_string());
        let source = match answer.source {
            SourceAddress::Client => "client",
            SourceAddress::Node => "node",
        };
        explanation.source_address = Some(source.to_owned());
    }
    explanation.endpoints = answer.endpoints.iter().map(|found| endpoint(found, &backends, now)).collect();
}

/// What happens at the client's socket: the verdict by what the programs in the kernel know, the reason by the
/// table.
fn at_socket(view: &View, route: &Route, origin: Origin, client: IpAddr) -> Option<AtSocket> {
    let pass = |why: String| Some(AtSocket { verdict: SocketVerdict::Pass, why });
    let Some(looks) = view.looks() else {
        return view.reason().and_then(|reason| pass((*reason).clone()));
    };
    let names = &looks.names;
    let detector = looks.detector.as_ref().map_or("", |detector| detector.what());
    if origin != Origin::Node && names.is_outside(client) {
        return pass(format!(
            "the client is a pod of this node that has an address outside of {detector}, and is left to the relay"
        ));
    }
    if origin == Origin::Outside && names.ignores_detector() {
        return pass(format!(
            "the client is not on this node; a pod of this node outside of {detector} would get an endpoint that sees its \
             own address, as pods cannot be told apart"
        ));
    }
    if origin == Origin::Outside {
        return pass("the client is not on this node".to_owned());
    }
    if looks.host_only && origin != Origin::Node {
        return pass(format!("it is that of a pod, and connections are decided {}", names.words()));
    }
    match looks.pods.as_ref().filter(|_| origin != Origin::Node).map(|pods| pods.fate(&[client])) {
        None | Some(Fate::Led) => {}
        Some(Fate::LeftAlone) => {
            return pass(
                "an annotation of the pod, or of its namespace, keeps it out (sluice.dev/socket-mode)"
                    .to_owned(),
            );
        }
        Some(Fate::Unknown) => {
            return pass("no pod of this node is known to have the client's address".to_owned());
        }
    }
    let known = match looks.frontends.get(&route.frontend().into()) {
        Ok(known) => known,
        Err(error) => return pass(format!("not known: {error}")),
    };
    let verdict = known.map_or(verdict::RELAY, |value| {
        if origin == Origin::Node { value.node.verdict } else { value.pod.verdict }
    });
    let ip = route.frontend().address.ip();
    let [node, pod] = SocketOutcomes::with_reasons(route.service_port(), route.kind(), ip, is_own(ip));
    let said = if origin == Origin::Node { node } else { pod };
    match (verdict, said) {
        (verdict::BALANCE, _) => Some(AtSocket {
            verdict: SocketVerdict::Translate,
            why: "each new one gets the endpoint whose turn it is".to_owned(),
        }),
        (verdict::REFUSE, _) => Some(AtSocket {
            verdict: SocketVerdict::Refuse,
            why: "there is no endpoint for it".to_owned(),
        }),
        (_, Err(why)) => pass(why.to_string()),
        (_, Ok(_)) => pass(
            "an endpoint is itself a frontend, or the maps have no room for the Service (sluice_socket_waiting)"
                .to_owned(),
        ),
    }
}

/// Whether Services name the address but do not get it.
fn is_left_out(inside: &Inside, address: SocketAddr, protocol: Protocol) -> bool {
    inside.observer.left_out().contains(&Frontend { address, protocol })
}

/// What happens if no Service has that address and port.
async fn without_route(inside: &Inside, ip: IpAddr) -> Result<Outcome, Refusal> {
    let verdict = inside.feed.verdict_without_frontend(ip).await;
    let verdict = verdict.map_err(|_| Refusal::Unable("the agent is about to end".to_owned()))?;
    Ok(match verdict {
        Some(verdict) if inside.is_capturing => {
            let why = match verdict {
                table::Verdict::Refuse(reason) | table::Verdict::Drop(reason) => reason.to_string(),
                table::Verdict::Relay => String::new(),
            };
            Outcome { verdict: verdict.into(), why }
        }
        Some(verdict) => {
            let why = match verdict {
                table::Verdict::Refuse(reason) | table::Verdict::Drop(reason) => reason.to_string(),
                table::Verdict::Relay => String::new(),
            };
            let why = format!("{why}; frontends are listened on, so all else is left to this machine");
            Outcome { verdict: Verdict::Pass, why }
        }
        None => Outcome {
            verdict: Verdict::Pass,
            why: "no Service has this address and port, nor is it a cluster IP".to_owned(),
        },
    })
}

/// Frontends that the user may have meant.
fn nearby(inside: &Inside, destination: SocketAddr, protocol: Protocol) -> Vec<String> {
    /// As many as a person reads.
    const HINTS: usize = 8;
    let routes = inside.observer.table().routes();
    let mut hints: Vec<String> = Vec::new();
    for route in &routes {
        let (frontend, port) = (route.frontend(), route.service_port().name());
        let address = frontend.address;
        if address == destination && frontend.protocol != protocol {
            hints
                .push(format!("{frontend} is one, of {port}: ask for it with /{}", lower(frontend.protocol)));
        } else if address.ip() == destination.ip() && frontend.protocol == protocol {
            hints.push(format!("{frontend} is one, of {port}"));
        } else if route.kind() == FrontendKind::NodePort
            && address.port() == destination.port()
            && frontend.protocol == protocol
            && address.is_ipv4() == destination.is_ipv4()
        {
            hints.push(format!("{} is a nodePort of {port}, served on {}", address.port(), address.ip()));
        }
    }
    hints.sort_unstable();
    hints.truncate(HINTS);
    hints
}

fn lower(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}

/// The client's place, and how it is known.
fn origin(inside: &Inside, question: Question) -> (Origin, String) {
    let Question { client, destination, origin, .. } = question;
    if let Some(origin) = origin {
        return (origin, "as asked".to_owned());
    }
    if client.is_loopback() || client == destination.ip() || is_own(client) {
        return (Origin::Node, "an address of this machine".to_owned());
    }
    if !inside.is_capturing {
        return (Origin::Outside, "frontends are listened on: pods of this node are not told".to_owned());
    }
    by_address(&inside.pod_addresses, &inside.observer.node_pod_cidrs(), client)
}

/// The client's place by its address, and how it is known.
fn by_address(pods: &PodAddresses, of_node: &[IpNet], client: IpAddr) -> (Origin, String) {
    let (cidrs, what, unknown) = match pods {
        PodAddresses::Given(cidrs) => {
            (cidrs.as_slice(), "--cluster-cidr", "pods of this node are not told by address")
        }
        PodAddresses::OfNode => (of_node, "the Node's podCIDRs", "the Node has no podCIDRs so far"),
    };
    match cidrs.iter().find(|cidr| cidr.contains(&client)) {
        Some(cidr) => (Origin::LocalPod, format!("inside {what} {cidr}")),
        None if cidrs.is_empty() => (Origin::Outside, format!("assumed: {unknown}; see --from")),
        None => (Origin::Outside, format!("outside of {what}")),
    }
}

/// Whether an interface has the address: then, and mostly only then, a socket can have it.
fn is_own(ip: IpAddr) -> bool {
    UdpSocket::bind((ip, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_told_by_what_tells_pods() {
        let cidrs =
            |text: &str| -> Vec<IpNet> { text.split_whitespace().map(|c| c.parse().unwrap()).collect() };
        let given = |text| PodAddresses::Given(cidrs(text));
        #[rustfmt::skip]
        let cases = [
            (given("10.244.0.0/16"), "", Origin::LocalPod, "inside --cluster-cidr 10.244.0.0/16"),
            (given("10.1.0.0/16"), "10.244.1.0/24", Origin::Outside, "outside of --cluster-cidr"),
            (given(""), "10.244.1.0/24", Origin::Outside, "assumed: pods of this node are not told by address"),
            (PodAddresses::OfNode, "fd00::/64 10.244.1.0/24", Origin::LocalPod, "inside the Node's podCIDRs 10.244.1.0/24"),
            (PodAddresses::OfNode, "10.244.2.0/24", Origin::Outside, "outside of the Node's podCIDRs"),
            (PodAddresses::OfNode, "", Origin::Outside, "assumed: the Node has no podCIDRs so far"),
        ];
        for (pods, of_node, origin, why) in cases {
            let (found, said) = by_address(&pods, &cidrs(of_node), [10, 244, 1, 9].into());
            assert_eq!((found, said.starts_with(why)), (origin, true), "{pods:?} {of_node}: {said}");
        }
    }

    #[test]
    fn questions() {
        let read = |query: &str| Question::read(query);
        let question = read("client=10.0.0.1&destination=10.96.0.1:80&protocol=UDP&origin=node").unwrap();
        assert_eq!(question.protocol, Protocol::Udp);
        assert_eq!(question.origin, Some(Origin::Node));
        assert_eq!(read("client=fd00::1&destination=[fd00::2]:80").unwrap().protocol, Protocol::Tcp);
        assert!(read("client=::ffff:10.0.0.1&destination=10.0.0.2:80").is_ok());
        for wrong in [
            "",
            "client=10.0.0.1",
            "client=a&destination=10.96.0.1:80",
            "client=10.0.0.1&destination=10.96.0.1",
            "client=10.0.0.1&destination=10.96.0.1:99999",
            "client=10.0.0.1&destination=[fd00::2]:80",
            "client=10.0.0.1&destination=10.96.0.1:80&protocol=SCTP",
            "client=10.0.0.1&destination=10.96.0.1:80&origin=moon",
        ] {
            assert!(matches!(read(wrong), Err(Refusal::BadQuestion(_))), "{wrong}");
        }
    }
}
