//! What is wrong with single Services, and why: one sentence each, for people.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;
use sluice_model::{Frontend, ObjectName};
use sluice_table::{Origin, Route, SourceAddress, Upstream, Verdict};

use super::super::server::{Inside, Refusal};
use crate::proxy::Standing;

/// Those that an answer has at the most; there may be as many as endpoints.
const MOST: usize = 100;

/// Sentences about one service port.
const MOST_OF_PORT: usize = 5;

/// Something that is wrong.
#[derive(Debug, Serialize)]
pub(super) struct Trouble {
    /// `NAMESPACE/NAME`.
    service: String,
    /// With the port's name.
    what: String,
}

/// All that is wrong.
#[derive(Debug, Default, Serialize)]
pub(super) struct Troubles {
    /// Some of it, the worst first.
    items: Vec<Trouble>,
    /// What comes after all others: Services that nobody serves, of which a cluster may have many.
    #[serde(skip)]
    lesser: Vec<Trouble>,
    /// How much there is.
    count: usize,
}

impl Troubles {
    /// What does not concern a port that is served: objects that do not fit together, and health checks.
    pub(super) async fn of_objects(inside: &Inside) -> Result<Self, Refusal> {
        let Standing { notices, count, .. } = inside.feed.notices(MOST).await.map_err(|_| {
            Refusal::Unable(
                "the controller has ended, as the agent is about to: ask its successor".to_owned(),
            )
        })?;
        let mut troubles = Self::default();
        for notice in &notices {
            // It begins with the Service's name.
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

    /// Adds what is wrong with a port of a Service.
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

    /// All have been added.
    pub(super) fn finish(&mut self) {
        let room = MOST - self.items.len();
        self.items.extend(self.lesser.drain(..).take(room));
    }

    /// Adds one, as far as there is room.
    fn add(&mut self, service: String, what: String) {
        self.count += 1;
        if self.items.len() < MOST {
            self.items.push(Trouble { service, what });
        }
    }
}

/// What is wrong with a service port.
#[derive(Debug, Default)]
pub(super) struct OfPort {
    /// What somebody should look at.
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

/// What is wrong with a service port, by all routes to it.
pub(super) fn of_port(
    routes: &[Arc<Route>],
    endpoints: &[Arc<Upstream>],
    failures: &BTreeMap<Frontend, String>,
    now: Instant,
) -> OfPort {
    let mut unserved = BTreeSet::new();
    let mut broken = Vec::new();
    for route in routes {
        // That others are dropped is what policy Local is for: their load balancer goes elsewhere.
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
