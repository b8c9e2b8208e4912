//! `/v1/connections`: live TCP sessions and UDP flows, from the workers in parts; and translated sockets, from
//! the kernel, which lists all of them at once.
//!
//! Workers are asked one after the other, and each for its next part once the last has come. At most twice as
//! many rows are kept as are wanted. If a client goes away, its question is dropped, and no worker is asked any
//! more.

mod translated;

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use clap::ValueEnum;
use sluice_dataplane as dataplane;
use sluice_model::ObjectName;
use tokio::sync::oneshot;

use super::api::{Connection, ConnectionList, ConnectionState};
use super::server::{Inside, Refusal, value};
use super::services;
use crate::proxy::Observer;

/// The most rows in an answer: some 4 MB.
pub(super) const MOST: usize = 10_000;

/// In which order connections are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Sort {
    /// The oldest first.
    #[default]
    Age,
    /// Those first that have been silent for longest.
    Idle,
    /// Those first that have carried most, both ways together.
    Bytes,
    /// By client.
    Client,
    /// By Service.
    Service,
    /// By endpoint.
    Endpoint,
}

impl Sort {
    fn sort(self, rows: &mut [Connection]) {
        // Ties are ordered by age, so that every answer has the same rows.
        rows.sort_by(|a, b| b.age_seconds.total_cmp(&a.age_seconds).then(a.client.cmp(&b.client)));
        match self {
            Self::Age => {}
            // Unknown times come last.
            Self::Idle => {
                let idle = |row: &Connection| row.idle_seconds.unwrap_or(-1.0);
                rows.sort_by(|a, b| idle(b).total_cmp(&idle(a)));
            }
            Self::Bytes => rows.sort_by_key(|row| {
                Reverse(row.bytes_to_endpoint.zip(row.bytes_from_endpoint).map(|(to, from)| to + from))
            }),
            Self::Client => rows.sort_by_key(|row| row.client),
            Self::Service => rows.sort_by(|a, b| {
                let key = |row: &Connection| (row.namespace.clone(), row.service.clone(), row.port.clone());
                key(a).cmp(&key(b))
            }),
            Self::Endpoint => rows.sort_by_key(|row| row.endpoint),
        }
    }
}

/// An address, with any port or with one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    ip: IpAddr,
    port: Option<u16>,
}

impl Peer {
    fn is(self, address: SocketAddr) -> bool {
        self.ip == address.ip().to_canonical() && self.port.is_none_or(|port| port == address.port())
    }

    /// The form in which it is asked for.
    pub(super) fn said(self) -> String {
        match self.port {
            Some(port) => SocketAddr::new(self.ip, port).to_string(),
            None => self.ip.to_string(),
        }
    }
}

impl FromStr for Peer {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Ok(Self { ip: ip.to_canonical(), port: None });
        }
        let address: SocketAddr =
            text.parse().map_err(|_| "write ADDRESS or ADDRESS:PORT, as 10.244.1.7 or [fd00::7]:80")?;
        Ok(Self { ip: address.ip().to_canonical(), port: Some(address.port()) })
    }
}

/// Which connections to list.
#[derive(Debug)]
pub(super) struct Question {
    namespace: Option<String>,
    service: Option<String>,
    client: Option<Peer>,
    endpoint: Option<Peer>,
    protocol: Option<String>,
    sort: Sort,
    limit: usize,
}

impl Question {
    /// Parses a query.
    pub(super) fn read(query: &str) -> Result<Self, Refusal> {
        let wrong = |what: &str, why: &str| Refusal::BadQuestion(format!("{what}: {why}"));
        let peer = |name| -> Result<Option<Peer>, Refusal> {
            value(query, name).map(|text| text.parse().map_err(|why| wrong(name, why))).transpose()
        };
        let sort =
            value(query, "sort").map(|text| Sort::from_str(&text, true).map_err(|why| wrong("sort", &why)));
        let limit = match value(query, "limit").map(|text| text.parse::<usize>()) {
            None => MOST,
            Some(Ok(limit @ 1..=MOST)) => limit,
            Some(_) => return Err(wrong("limit", &format!("a number from 1 to {MOST}"))),
        };
        Ok(Self {
            namespace: value(query, "namespace"),
            service: value(query, "service"),
            client: peer("client")?,
            endpoint: peer("endpoint")?,
            protocol: value(query, "protocol"),
            sort: sort.transpose()?.unwrap_or_default(),
            limit,
        })
    }

    fn is_meant(&self, connection: &Connection) -> bool {
        let is = |wanted: &Option<String>, is: &str| wanted.as_deref().is_none_or(|wanted| wanted == is);
        is(&self.namespace, &connection.namespace)
            && is(&self.service, &connection.service)
            && is(&self.protocol, &connection.protocol)
            && self.client.is_none_or(|peer| peer.is(connection.client))
            && self.endpoint.is_none_or(|peer| connection.endpoint.is_some_and(|endpoint| peer.is(endpoint)))
    }
}

/// The wanted part of the connections so far.
#[derive(Debug)]
pub(super) struct Found {
    question: Question,
    rows: Vec<Connection>,
    matched: usize,
}

impl Found {
    fn add(&mut self, connections: impl IntoIterator<Item = impl Into<Connection>>) {
        for connection in connections.into_iter().map(Into::into) {
            if !self.question.is_meant(&connection) {
                continue;
            }
            self.rows.push(connection);
            self.matched += 1;
            if self.rows.len() > 2 * self.question.limit {
                self.keep();
            }
        }
    }

    fn keep(&mut self) {
        self.question.sort.sort(&mut self.rows);
        self.rows.truncate(self.question.limit);
    }

    /// Completes the answer with translated sockets. Blocks, so it belongs on a thread that nobody waits for,
    /// as [`translated::add`] does.
    pub(super) fn with_translated(mut self, observer: &Observer) -> Result<ConnectionList, Refusal> {
        translated::add(observer.at_socket(), observer.table(), |connection| self.add([connection]))
            .map_err(|error| {
                Refusal::Unable(format!("the kernel does not list the sockets that are translated: {error}"))
            })?;
        self.keep();
        // A Service that is gone may still have connections.
        if self.matched == 0
            && let Some(service) = self.question.service.as_deref()
        {
            let namespace = self.question.namespace.as_deref();
            let is_it = |name: &ObjectName| {
                *name.name == *service && namespace.is_none_or(|namespace| *name.namespace == *namespace)
            };
            if !observer.table().routes().iter().any(|route| is_it(&route.service_port().name().service)) {
                return Err(services::unknown(namespace, service));
            }
        }
        Ok(ConnectionList { items: self.rows, matched: self.matched, ended: Vec::new() })
    }
}

/// The workers' connections that match.
pub(super) async fn of_workers(inside: &Inside, question: Question) -> Result<Found, Refusal> {
    let mut found = Found { question, rows: Vec::new(), matched: 0 };
    for worker in 0..inside.observer.workers() {
        let mut next = Some(dataplane::Place::default());
        while let Some(place) = next {
            let (answer, part) = oneshot::channel();
            // If the client has gone meanwhile, nobody wants the answer.
            inside.observer.look(worker, place, move |part| drop(answer.send(part)));
            let part = part.await.map_err(|_| {
                Refusal::Unable("a worker has ended, as the agent is about to: ask its successor".to_owned())
            })?;
            next = part.next;
            found.add(part.connections);
        }
    }
    Ok(found)
}

/// Notes which connections of an earlier answer have ended. If the answer is incomplete, that cannot be known
/// of missing ones.
pub(super) fn note_ended(before: &ConnectionList, now: &mut ConnectionList) {
    if now.matched > now.items.len() {
        return;
    }
    type Key<'a> = (&'a str, SocketAddr, Option<SocketAddr>, [&'a str; 3]);
    fn key(row: &Connection) -> Key<'_> {
        (&row.protocol, row.client, row.frontend, [&row.namespace, &row.service, &row.port])
    }
    let open: HashMap<Key<'_>, f64> = now.items.iter().map(|row| (key(row), row.age_seconds)).collect();
    // A client's port may have been used again: the new connection is younger. A TCP connection's age starts
    // again once, when it is established.
    let is_over = |row: &&Connection| match open.get(&key(row)) {
        Some(age) => *age < row.age_seconds && row.state != ConnectionState::Connecting,
        None => true,
    };
    let ended = before.items.iter().filter(is_over).cloned().collect();
    now.ended = ended;
}

impl From<dataplane::Connection> for Connection {
    fn from(connection: dataplane::Connection) -> Self {
        let name = &connection.service_port;
        Self {
            protocol: connection.protocol.to_string(),
            client: connection.client,
            namespace: name.service.namespace.to_string(),
            service: name.service.name.to_string(),
            port: name.port.to_string(),
            frontend: connection.frontend,
            endpoint: connection.endpoint,
            state: connection.state.into(),
            age_seconds: connection.began.elapsed().as_secs_f64(),
            idle_seconds: Some(connection.moved.elapsed().as_secs_f64()),
            bytes_to_endpoint: Some(connection.bytes_to_endpoint),
            bytes_from_endpoint: Some(connection.bytes_from_endpoint),
        }
    }
}

impl From<dataplane::ConnectionState> for ConnectionState {
    fn from(state: dataplane::ConnectionState) -> Self {
        use dataplane::ConnectionState as State;
        match state {
            State::Connecting => Self::Connecting,
            State::Open => Self::Open,
            State::ClientClosed => Self::ClientClosed,
            State::EndpointClosed => Self::EndpointClosed,
            State::Resetting => Self::Resetting,
            State::Unanswered => Self::Unanswered,
            State::Answered => Self::Answered,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use sluice_model::{ObjectName, Protocol, ServicePortName};

    use super::*;

    fn connection(client: u16, age: u64) -> dataplane::Connection {
        let service = ObjectName::new("shop", "web");
        dataplane::Connection {
            protocol: Protocol::Tcp,
            client: ([10, 0, 0, 1], client).into(),
            frontend: None,
            service_port: Arc::new(ServicePortName { service, port: "".into(), protocol: Protocol::Tcp }),
            endpoint: Some("[::ffff:10.0.1.1]:80".parse().unwrap()),
            state: dataplane::ConnectionState::Open,
            began: Instant::now().checked_sub(Duration::from_secs(age)).unwrap(),
            moved: Instant::now(),
            bytes_to_endpoint: u64::from(client),
            bytes_from_endpoint: 0,
        }
    }

    fn found(query: &str, connections: impl Iterator<Item = dataplane::Connection>) -> Found {
        let mut found = Found { question: Question::read(query).unwrap(), rows: Vec::new(), matched: 0 };
        for connection in connections {
            found.add(vec![connection]);
            assert!(found.rows.len() <= 2 * found.question.limit);
        }
        found.keep();
        found
    }

    #[test]
    fn of_many_the_first_in_order_are_kept_and_no_more_than_twice_as_many_meanwhile() {
        let all = || (1..=100).map(|n| connection(n, u64::from(n * 37 % 101)));
        for (query, first) in [("limit=3", 30), ("limit=3&sort=bytes", 100), ("limit=3&sort=client", 1)] {
            let found = found(query, all());
            assert_eq!((found.rows.len(), found.matched), (3, 100));
            assert_eq!(found.rows[0].client.port(), first, "{query}");
        }
    }

    #[test]
    fn what_is_missing_has_ended_unless_not_all_are_told() {
        let list = |rows: &[(u16, u64)]| {
            let items: Vec<Connection> = rows.iter().map(|(n, age)| connection(*n, *age).into()).collect();
            ConnectionList { matched: items.len(), items, ended: Vec::new() }
        };
        let ended = |now: &mut ConnectionList| {
            note_ended(&list(&[(1, 10), (2, 10), (3, 10)]), now);
            now.ended.iter().map(|row| row.client.port()).collect::<Vec<_>>()
        };
        assert_eq!(ended(&mut list(&[(1, 12), (2, 12), (3, 12), (4, 1)])), [0; 0]);
        assert_eq!(ended(&mut list(&[(2, 12), (3, 1)])), [1, 3], "3 is another one by now");
        let mut some = list(&[(2, 12)]);
        some.matched = 3;
        assert_eq!(ended(&mut some), [0; 0]);
    }

    #[test]
    fn filters() {
        for (query, count) in [
            ("namespace=shop&service=web&protocol=TCP&endpoint=10.0.1.1", 2),
            ("endpoint=10.0.1.1:80&client=10.0.0.1:2", 1),
            ("endpoint=10.0.1.1:81", 0),
            ("namespace=other", 0),
            ("protocol=UDP", 0),
        ] {
            assert_eq!(found(query, [1, 2].map(|n| connection(n, 0)).into_iter()).matched, count, "{query}");
        }
        for wrong in ["client=web", "limit=0", "limit=10001", "sort=luck"] {
            assert!(Question::read(wrong).is_err(), "{wrong}");
        }
    }
}
