//! The balancing policies: which endpoint of a set a connection gets.
//!
//! A policy chooses among the endpoints that are usable for this connection: not yet tried, not ejected
//! ([`passive_health`](crate::passive_health)), and with a route from this node. It takes no lock.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::Upstream;
use crate::endpoint_set::EndpointSet;

mod least_connections;
pub(crate) mod maglev;
pub(crate) mod mix;
mod random;
pub(crate) mod rotation;
mod round_robin;

pub(crate) use least_connections::Connecting;

use rotation::Rotation;

/// How the connections of a Service spread over its endpoints: annotation `sluice.dev/balance`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Balance {
    /// In turns, exactly even across all workers.
    #[default]
    RoundRobin,
    /// The endpoint with the fewest connections of this node; round robin among equals.
    LeastConnections,
    /// Any endpoint, with equal probability.
    Random,
    /// By a hash of the client's address, the same on every node. Few clients move when endpoints come and go
    /// (Maglev).
    SourceHash,
}

impl Balance {
    /// The annotation, without the prefix `sluice.dev/`.
    pub const ANNOTATION: &str = "balance";

    /// Every policy.
    pub const ALL: [Self; 4] = [Self::RoundRobin, Self::LeastConnections, Self::Random, Self::SourceHash];

    /// The policy of this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|balance| balance.name() == name)
    }

    /// The name, as the annotation spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::RoundRobin => "round-robin",
            Self::LeastConnections => "least-connections",
            Self::Random => "random",
            Self::SourceHash => "source-hash",
        }
    }
}

impl fmt::Display for Balance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The state of one set's balancing that outlives every version of the set.
#[derive(Debug)]
pub(crate) struct Balancer {
    pub(crate) rotation: Rotation,
    /// The start of this set's sequence of random numbers.
    seed: u64,
}

impl Balancer {
    pub(crate) fn new(seed: u64) -> Self {
        Self { rotation: Rotation::default(), seed }
    }

    /// The endpoint that the policy chooses among the usable ones.
    pub(crate) fn choose<'a>(
        &self,
        balance: Balance,
        set: &'a EndpointSet,
        client: IpAddr,
        is_usable: impl Fn(&Arc<Upstream>) -> bool,
    ) -> Option<&'a Arc<Upstream>> {
        match balance {
            Balance::RoundRobin => round_robin::choose(set, &self.rotation, self.seed, is_usable),
            Balance::LeastConnections => least_connections::choose(set, &self.rotation, is_usable),
            Balance::Random => random::choose(set.upstreams(), self.seed, self.rotation.next(), is_usable),
            Balance::SourceHash => maglev::choose(set, client, is_usable),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        #[rustfmt::skip]
        let cases = [
            ("the default",                 "round-robin", Some(Balance::RoundRobin)),
            ("fewest connections",          "least-connections", Some(Balance::LeastConnections)),
            ("random",                      "random", Some(Balance::Random)),
            ("by the client's address",     "source-hash", Some(Balance::SourceHash)),
            ("case counts",                 "Random", None),
            ("spaces count",                " random", None),
            ("other words are unknown",     "leastconn", None),
            ("the empty value is unknown",  "", None),
        ];
        for (name, text, wanted) in cases {
            assert_eq!(Balance::parse(text), wanted, "{name}");
        }
    }
}
