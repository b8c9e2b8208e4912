//! Answers as text for people.

use std::fmt::Write;
use std::net::SocketAddr;

use super::api::{
    AtSocket, ConnectionList, ConnectionState, Endpoint, EndpointState, Explanation, Frontend, Origin,
    Outcome, Service, ServiceList, ServicePort, SocketVerdict, Status, Traffic, Verdict,
};
use super::output::{bytes, columns, time};

/// The counters that `sluice status` shows by default.
const COUNTERS: [(&str, &str); 10] = [
    ("tcp_active", "TCP sessions open"),
    ("tcp_established", "TCP sessions so far"),
    ("tcp_all_endpoints_failed", "TCP sessions that no endpoint took"),
    ("tcp_unroutable", "TCP connections without an endpoint"),
    ("udp_flows_active", "UDP flows open"),
    ("udp_flows_opened", "UDP flows so far"),
    ("udp_datagrams_in", "UDP datagrams from clients"),
    ("udp_unroutable", "UDP datagrams without an endpoint"),
    ("socket_connections", "connections translated so far"),
    ("socket_connections_failed", "translated ones that failed"),
];

/// An agent's state.
pub(super) fn status(status: &Status, is_wide: bool) -> String {
    let mut lines: Vec<(&str, String)> = Vec::new();
    let state = match (status.is_stopping, status.is_healthy) {
        (true, _) => "stopping: it lets connections finish",
        (false, true) => "healthy",
        (false, false) => "not healthy",
    };
    lines.push(("State", state.to_owned()));
    lines.extend(status.problems.iter().map(|problem| ("Problem", problem.clone())));
    lines.push(("Version", status.version.clone()));
    lines.push(("Node", format!("{}, process {}", status.node, status.process)));
    lines.push(("Mode", status.mode.clone()));
    lines.push(("Sockets", status.at_sockets.clone()));
    lines.push(("Started", format!("{} ({} ago)", status.started, time(status.uptime_seconds))));
    let source = match (status.is_synced, status.age_seconds) {
        (false, _) => format!("{}, not everything is known so far", status.source),
        (true, Some(age)) => format!("{}, heard of {} ago", status.source, time(whole(age))),
        (true, None) => status.source.clone(),
    };
    lines.push(("Source", source));
    lines.push(("Workers", status.workers.to_string()));
    lines.push(("Services", status.services.to_string()));
    let failed = match status.frontends_failed {
        0 => String::new(),
        failed => format!(", {failed} failed"),
    };
    lines.push(("Frontends", format!("{}{failed}", status.frontends)));
    lines.push(("Endpoints", status.endpoints.to_string()));
    let limits = &status.limits;
    lines.push((
        "Limits",
        format!(
            "{} file descriptors, {} % of them for one client; UDP idle {}, TCP half closed {}",
            limits.descriptors,
            limits.client_share_percent,
            time(limits.udp_idle_seconds),
            time(limits.tcp_half_closed_seconds)
        ),
    ));
    let mut text = pairs(&lines);
    text.push('\n');
    if is_wide {
        let rows = status.counters.iter().map(|(name, n)| vec![name.clone(), n.to_string()]);
        text += &columns(&["COUNTER", "VALUE"], rows.collect());
    } else {
        let shown = COUNTERS.iter().filter_map(|(name, words)| Some((*words, status.counters.get(*name)?)));
        let rows = shown.map(|(words, n)| vec![words.to_owned(), n.to_string()]);
        text += &columns(&["TOTALS", ""], rows.collect());
    }
    text
}

/// One line for each service port.
pub(super) fn services(list: &ServiceList, is_wide: bool) -> String {
    if list.items.is_empty() {
        return "No Service has an address here.\n".to_owned();
    }
    let mut header =
        vec!["NAMESPACE", "NAME", "PORT", "ADDRESS", "VERDICT", "ENDPOINTS", "OPEN", "TOTAL", "FAILED"];
    let more = ["TRANSLATED", "RETRIED", "FROM-CLIENTS", "TO-CLIENTS", "FAMILY", "BALANCE", "WHY"];
    if is_wide {
        header.extend(more);
    } else {
        header.extend(&more[2..4]);
    }
    let ports = list.items.iter().flat_map(|service| service.ports.iter().map(move |port| (service, port)));
    let rows = ports.map(|(service, port)| {
        let mut row = vec![
            service.namespace.clone(),
            service.name.clone(),
            name_of(port),
            addresses(&port.frontends, is_wide),
            verdicts(port),
            usable(port),
        ];
        let traffic = &port.traffic;
        row.extend([traffic.open, traffic.total, traffic.failed].map(|n| n.to_string()));
        if is_wide {
            row.extend([traffic.translated, traffic.retried].map(|n| n.to_string()));
        }
        row.extend([traffic.bytes_to_endpoint, traffic.bytes_from_endpoint].map(bytes));
        if is_wide {
            let why = port.frontends.first().map(|frontend| frontend.outside.why.clone());
            row.extend([port.family.clone(), port.balance.clone(), why.unwrap_or_default()]);
        }
        row
    });
    columns(&header, rows.collect())
}

/// Services with their frontends and endpoints.
pub(super) fn services_in_full(list: &ServiceList, is_wide: bool) -> String {
    let mut text = String::new();
    for service in &list.items {
        for port in &service.ports {
            if !text.is_empty() {
                text.push('\n');
            }
            text += &port_in_full(service, port, is_wide);
        }
    }
    text
}

fn port_in_full(service: &Service, port: &ServicePort, is_wide: bool) -> String {
    let mut balance = port.balance.clone();
    if let Some(timeout) = port.affinity_seconds {
        balance += &format!(", a client keeps its endpoint until it is idle for {}", time(timeout));
    }
    let Traffic { open, total, failed, retried, bytes_to_endpoint, bytes_from_endpoint, translated } =
        port.traffic;
    let translated = match translated {
        0 => String::new(),
        translated => format!(", {translated} of all were translated"),
    };
    let mut lines = vec![
        ("Service", format!("{}/{}", service.namespace, service.name)),
        ("Port", format!("{}, {}", name_of(port), port.family)),
        ("Balance", balance),
        (
            "Connections",
            format!("{open} open, {total} so far, {failed} attempts failed, {retried} retried{translated}"),
        ),
        (
            "Traffic",
            format!("{} from clients, {} to clients", bytes(bytes_to_endpoint), bytes(bytes_from_endpoint)),
        ),
    ];
    for frontend in &port.frontends {
        if let Some(sources) = &frontend.allowed_sources {
            lines.push(("Only for", format!("{}: {}", frontend.address, sources.join(", "))));
        }
    }
    let mut text = pairs(&lines);
    text.push('\n');
    let rows = port.frontends.iter().flat_map(|frontend| {
        let row = |clients: &str, outcome: &Outcome| {
            vec![
                frontend.address.to_string(),
                frontend.kind.clone(),
                clients.to_owned(),
                verdict(outcome.verdict).to_owned(),
                outcome.why.clone(),
            ]
        };
        if frontend.inside == frontend.outside {
            vec![row("all", &frontend.outside)]
        } else {
            vec![row("this node", &frontend.inside), row("others", &frontend.outside)]
        }
    });
    text += &columns(&["FRONTEND", "KIND", "CLIENTS", "VERDICT", "WHY"], rows.collect());
    text.push('\n');
    text + &endpoints(&port.endpoints, is_wide)
}

/// One line for each connection.
pub(super) fn connections(list: &ConnectionList, is_wide: bool) -> String {
    if list.items.is_empty() && list.ended.is_empty() {
        return "No such connection is open.\n".to_owned();
    }
    let mut header =
        vec!["PROTOCOL", "CLIENT", "SERVICE", "ENDPOINT", "STATE", "AGE", "FROM-CLIENT", "TO-CLIENT"];
    if is_wide {
        header.extend(["IDLE", "FRONTEND"]);
    }
    let known = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let address = |address: Option<SocketAddr>| known(address.map(|at| at.to_string()));
    let ended = list.ended.iter().map(|connection| (connection, true));
    let all = ended.chain(list.items.iter().map(|connection| (connection, false)));
    let rows = all.map(|(connection, has_ended)| {
        let mut service = format!("{}/{}", connection.namespace, connection.service);
        if !connection.port.is_empty() {
            service += &format!(":{}", connection.port);
        }
        let state = match connection.state {
            // Its numbers are those when it was last seen.
            _ if has_ended => "ENDED",
            ConnectionState::Connecting => "connecting",
            ConnectionState::Open => "open",
            ConnectionState::ClientClosed => "client closed",
            ConnectionState::EndpointClosed => "endpoint closed",
            ConnectionState::Resetting => "resetting",
            ConnectionState::Unanswered => "unanswered",
            ConnectionState::Answered => "answered",
            ConnectionState::Translated => "translated",
        };
        let mut row = vec![
            connection.protocol.clone(),
            connection.client.to_string(),
            service,
            address(connection.endpoint),
            state.to_owned(),
            ago(connection.age_seconds),
            known(connection.bytes_to_endpoint.map(bytes)),
            known(connection.bytes_from_endpoint.map(bytes)),
        ];
        if is_wide {
            row.extend([known(connection.idle_seconds.map(ago)), address(connection.frontend)]);
        }
        row
    });
    let mut text = columns(&header, rows.collect());
    if list.matched > list.items.len() {
        let (shown, matched) = (list.items.len(), list.matched);
        // Writing to a string does not fail.
        let _ = writeln!(text, "{shown} of {matched} are shown: --limit and the filters choose others.");
    }
    text
}

/// What would happen to a packet.
pub(super) fn explanation(explanation: &Explanation, is_wide: bool) -> String {
    let Explanation { client, destination, protocol, outcome, .. } = explanation;
    let origin = match explanation.origin {
        Origin::LocalPod => "a pod of this node",
        Origin::Node => "a process of this node",
        Origin::Outside => "a client outside of this node",
    };
    let mut lines = vec![
        ("Packet", format!("{client} -> {destination}/{protocol}")),
        ("Client", format!("{origin} ({})", explanation.origin_why)),
    ];
    if let (Some(port), Some(kind)) = (&explanation.service_port, &explanation.kind) {
        lines.push(("Service", format!("{port}, by {kind}")));
    }
    let what = match outcome.verdict {
        Verdict::Relay => "relayed",
        Verdict::Refuse if protocol == "UDP" => "refused (ICMP port unreachable)",
        Verdict::Refuse => "refused (reset)",
        Verdict::Drop => "dropped, the client hears nothing",
        Verdict::Pass => "left alone",
    };
    lines.push(("Verdict", what.to_owned()));
    lines.push(("Why", outcome.why.clone()));
    if let Some(AtSocket { verdict, why }) = &explanation.at_socket {
        let what = match verdict {
            SocketVerdict::Translate => "translated, no packet gets to the relay",
            SocketVerdict::Refuse => "refused",
            SocketVerdict::Pass => "left alone",
        };
        lines.push(("At the socket", format!("{what}: {why}")));
    }
    if let Some(balance) = &explanation.balance {
        lines.push(("Balance", balance.clone()));
    }
    if let Some(timeout) = explanation.affinity_seconds {
        lines.push((
            "Affinity",
            format!("a client keeps its endpoint until it is idle for {}", time(timeout)),
        ));
    }
    if let Some(source) = &explanation.source_address {
        lines.push(("Endpoints see", format!("the {source}'s address")));
    }
    lines.extend(explanation.hints.iter().map(|hint| ("Hint", hint.clone())));
    let mut text = pairs(&lines);
    if !explanation.endpoints.is_empty() {
        text.push('\n');
        text += &endpoints(&explanation.endpoints, is_wide);
    }
    text
}

fn endpoints(endpoints: &[Endpoint], is_wide: bool) -> String {
    let mut header =
        vec!["ENDPOINT", "STATE", "NODE", "OPEN", "TOTAL", "FAILED", "RETRIED", "FROM-CLIENTS", "TO-CLIENTS"];
    if is_wide {
        header.extend(["CLUSTER", "LOCAL"]);
    }
    let yes = |is_so| if is_so { "yes" } else { "no" }.to_owned();
    let rows = endpoints.iter().map(|endpoint| {
        let traffic = &endpoint.traffic;
        let mut row = vec![
            endpoint.address.to_string(),
            state(endpoint),
            if endpoint.is_here { "this" } else { "other" }.to_owned(),
        ];
        row.extend([traffic.open, traffic.total, traffic.failed, traffic.retried].map(|n| n.to_string()));
        row.extend([traffic.bytes_to_endpoint, traffic.bytes_from_endpoint].map(bytes));
        if is_wide {
            row.extend([yes(endpoint.in_cluster_set), yes(endpoint.in_local_set)]);
        }
        row
    });
    columns(&header, rows.collect())
}

fn state(endpoint: &Endpoint) -> String {
    let state = match endpoint.state {
        EndpointState::Ready => "ready",
        EndpointState::Serving => "terminating, serving",
        EndpointState::Terminating => "terminating",
        EndpointState::NotReady => "not ready",
    };
    match endpoint.passed_over_seconds {
        Some(seconds) => format!("{state}, passed over for {}", time(whole(seconds))),
        None => state.to_owned(),
    }
}

/// The port's label: `http/TCP`, or `80/TCP` for a port without a name.
pub(super) fn name_of(port: &ServicePort) -> String {
    let number = || port.frontends.first().map_or(0, |frontend| frontend.address.port()).to_string();
    let name = if port.name.is_empty() { number() } else { port.name.clone() };
    format!("{name}/{}", port.protocol)
}

fn addresses(frontends: &[Frontend], is_wide: bool) -> String {
    let mut addresses = frontends.iter().map(|frontend| frontend.address.to_string());
    if is_wide {
        return addresses.collect::<Vec<_>>().join(",");
    }
    let first = addresses.next().unwrap_or_default();
    match addresses.count() {
        0 => first,
        more => format!("{first} +{more}"),
    }
}

/// The distinct verdicts of a port's frontends.
fn verdicts(port: &ServicePort) -> String {
    let mut verdicts: Vec<&str> = Vec::new();
    for outcome in port.frontends.iter().flat_map(|frontend| [&frontend.outside, &frontend.inside]) {
        if !verdicts.contains(&verdict(outcome.verdict)) {
            verdicts.push(verdict(outcome.verdict));
        }
    }
    verdicts.join(",")
}

fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Relay => "relay",
        Verdict::Refuse => "refuse",
        Verdict::Drop => "drop",
        Verdict::Pass => "pass",
    }
}

/// Endpoints that take new connections, of all: `2/3`.
fn usable(port: &ServicePort) -> String {
    let is_usable = |endpoint: &&Endpoint| {
        endpoint.state == EndpointState::Ready && endpoint.passed_over_seconds.is_none()
    };
    format!("{}/{}", port.endpoints.iter().filter(is_usable).count(), port.endpoints.len())
}

/// `Name:   value` lines, aligned.
fn pairs(lines: &[(&str, String)]) -> String {
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0) + 1;
    let mut text = String::new();
    for (name, value) in lines {
        let name = format!("{name}:");
        // Writing to a string does not fail.
        let _ = writeln!(text, "{name:width$}   {value}");
    }
    text
}

/// A duration that has passed.
fn ago(seconds: f64) -> String {
    time(std::time::Duration::try_from_secs_f64(seconds).map_or(0, |time| time.as_secs()))
}

/// Seconds, rounded up: a remainder is not nothing.
fn whole(seconds: f64) -> u64 {
    std::time::Duration::try_from_secs_f64(seconds.ceil()).map_or(0, |time| time.as_secs())
}
