//! The problems of single Services and their reasons: one sentence each, for people.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;
use sluice_model::{Frontend, ObjectName};
use sluice_table::{Origin, Route, SourceAddress, Upstream, Verdict};

use super::super::server::{Inside, Refusal};
use crate::proxy::Standing;

/// The most problems in an answer; there may be as many as endpoints.
const MOST: usize = 100;

/// The most sentences about one service port.
const MOST_OF_PORT: usize = 5;

/// A problem.
#[derive(Debug, Serialize)]
pub(super) struct Trouble {
    /// `NAMESPACE/NAME`.
    service: String,
    /// Begins with the port's name.
    what: String,
}

/// All problems.
#[derive(Debug, Default, Serialize)]
pub(super) struct Troubles {
    /// The worst ones first.
    items: Vec<Trouble>,
    /// Minor problems, which come last: Services that nobody serves, of which a cluster may have many.
    #[serde(skip)]
    lesser: Vec<Trouble>,
    /// How many there are.
    count: usize,
}

impl Troubles {
    /// Problems that concern no served port: conflicts between objects, and health checks.
    pub(super) async fn of_objects(inside: &Inside) -> Result<Self, Refusal> {
        let Standing { notices, count, .. } = inside.feed.notices(MOST).await.map_err(|_| {
            Refusal::Unable(
                "the controller has ended, as the agent is about to: ask its successor".to_owned(),
            )
        })?;
        let mut troubles = Self::default();
        for notice in &notices {
            // The text begins with the Service's name.
            let said = notice.to_string();
            let what = said.split_once(": ").map_or(said.as_str(), |(_, what)| what);
            troubles.add(notice.service().to_string(), what.to_owned());
        }
        troubles.count = count;
        for failure in inside.health_checks.failures().iter() {
            troubles.add(failure.service.to_string(), failure.what.clone());
        }
        Ok(troubles)
    }

    /// Adds the problems of a Service's port.
    pub(super) fn add_port(&mut self, service: &ObjectName, port: &str, of_port: &OfPort) {
        for what in &of_port.broken {
            self.add(service.to_string(), format!("{port}: {what}"));
        }
        for what in &of_port.unserved {
            self.count += 1;
            if self.lesser.len() < MOST {
                let (service, what) = (service.to_string(), format!("{port}: {what}"));
                self.lesser.push(Trouble { service, what });
            }
        }
    }

    /// To be called when all have been added.
    pub(super) fn finish(&mut self) {
        let room = MOST - self.items.len();
        self.items.extend(self.lesser.drain(..).take(room));
    }

    /// Adds a problem if there is room.
    fn add(&mut self, service: String, what: String) {
        self.count += 1;
        if self.items.len() < MOST {
            self.items.push(Trouble { service, what });
        }
    }
}

/// The problems of a service port.
#[derive(Debug, Default)]
pub(super) struct OfPort {
    /// Problems that somebody should look at.
    broken: Vec<String>,
    /// Clients that nobody serves.
    unserved: Vec<String>,
}

impl OfPort {
    pub(super) fn is_empty(&self) -> bool {
        self.broken.is_empty() && self.unserved.is_empty()
    }

    pub(super) fn all(&self) -> Vec<String> {
        [self.broken.as_slice(), &self.unserved].concat()
    }
}

/// The problems of a service port, from all routes to it.
pub(super) fn of_port(
    routes: &[Arc<Route>],
    endpoints: &[Arc<Upstream>],
    failures: &BTreeMap<Frontend, String>,
    now: Instant,
) -> OfPort {
    let mut unserved = BTreeSet::new();
    let mut broken = Vec::new();
    for route in routes {
        // Under policy Local, others are dropped on purpose: their load balancer uses other nodes.
        match (route.outlook(Origin::LocalPod), route.outlook(Origin::Outside)) {
            ((Verdict::Refuse(_), why), _) | (_, (Verdict::Refuse(_), why)) => {
                unserved.insert(format!("clients are refused: {why}"));
            }
            ((Verdict::Drop(_), why), _) => {
                unserved.insert(format!("clients on this node hear nothing: {why}"));
            }
            _ => {}
        }
        let failure = failures.get(&route.frontend());
        broken.extend(failure.map(|why| format!("cannot listen on {}: {why}", route.frontend())));
    }
    broken.extend(endpoints.iter().filter_map(|endpoint| {
        let sources = [SourceAddress::Client, SourceAddress::Node];
        let time = sources.into_iter().filter_map(|source| endpoint.passed_over_for(source, now)).max()?;
        let left = time.as_secs() + 1;
        Some(format!("endpoint {} keeps failing and is passed over for {left} s", endpoint.address()))
    }));
    if broken.len() > MOST_OF_PORT {
        let more = broken.len() - MOST_OF_PORT;
        broken.truncate(MOST_OF_PORT);
        broken.push(format!("and {more} more"));
    }
    OfPort { broken, unserved: unserved.into_iter().take(MOST_OF_PORT).collect() }
}
