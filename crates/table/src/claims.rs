//! Which Service keeps a frontend that several of them name.
//!
//! The older Service keeps it, the alphabetically first one among those of the same second. The
//! others get it, in that order, when it becomes free.

use std::collections::HashMap;

use sluice_model::{Frontend, FrontendKind, ServicePortName};

/// One Service's claim to a frontend. The order is that in which claims are honoured.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    /// When the Service was created, in seconds since the Unix epoch.
    pub created: i64,
    /// The service port that the frontend would lead to.
    pub port: ServicePortName,
    /// Which field of the Service names the frontend.
    pub kind: FrontendKind,
}

/// All claims to all frontends; those to one frontend in order. Mostly there is one: a set with nodes
/// would be ten times its size.
#[derive(Debug, Default)]
pub struct Claims(HashMap<Frontend, Vec<Claim>, foldhash::fast::RandomState>);

impl Claims {
    /// Adds a claim.
    pub fn add(&mut self, frontend: Frontend, claim: Claim) {
        let claims = self.0.entry(frontend).or_insert_with(|| Vec::with_capacity(1));
        if let Err(position) = claims.binary_search(&claim) {
            claims.insert(position, claim);
        }
    }

    /// Takes a claim back.
    pub fn remove(&mut self, frontend: &Frontend, claim: &Claim) {
        if let Some(claims) = self.0.get_mut(frontend) {
            if let Ok(position) = claims.binary_search(claim) {
                claims.remove(position);
            }
            if claims.is_empty() {
                self.0.remove(frontend);
            }
        }
    }

    /// The claim that is honoured.
    pub fn holder(&self, frontend: &Frontend) -> Option<&Claim> {
        self.0.get(frontend)?.first()
    }

    /// No Service claims any frontend.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The claims of other Services than the holder's, which are not honoured.
    pub fn losers(&self, frontend: &Frontend) -> impl Iterator<Item = &Claim> {
        let claims = self.0.get(frontend);
        let holder = claims.and_then(|claims| claims.first());
        claims
            .into_iter()
            .flatten()
            .filter(move |claim| holder.is_some_and(|holder| holder.port != claim.port))
    }
}

#[cfg(test)]
mod tests {
    use sluice_model::{ObjectName, Protocol};

    use super::*;

    fn claim(created: i64, name: &str) -> Claim {
        let port = ServicePortName {
            service: ObjectName::new("default", name),
            port: "".into(),
            protocol: Protocol::Tcp,
        };
        Claim { created, port, kind: FrontendKind::ClusterIp }
    }

    #[test]
    fn the_older_service_keeps_it_then_the_name_decides() {
        let frontend = Frontend::new([10, 96, 0, 1].into(), 80, Protocol::Tcp);
        let mut claims = Claims::default();
        for claim in [claim(7, "b"), claim(7, "a"), claim(5, "z")] {
            claims.add(frontend, claim);
        }
        assert_eq!(claims.holder(&frontend), Some(&claim(5, "z")));
        assert_eq!(claims.losers(&frontend).collect::<Vec<_>>(), [&claim(7, "a"), &claim(7, "b")]);
        claims.remove(&frontend, &claim(5, "z"));
        assert_eq!(claims.holder(&frontend), Some(&claim(7, "a")));
        claims.remove(&frontend, &claim(7, "a"));
        claims.remove(&frontend, &claim(7, "b"));
        assert_eq!(claims.holder(&frontend), None);
        assert!(claims.0.is_empty());
    }

    #[test]
    fn one_service_naming_an_address_twice_is_no_conflict() {
        let frontend = Frontend::new([10, 96, 0, 1].into(), 80, Protocol::Tcp);
        let mut claims = Claims::default();
        claims.add(frontend, Claim { kind: FrontendKind::ExternalIp, ..claim(1, "a") });
        claims.add(frontend, claim(1, "a"));
        assert_eq!(claims.holder(&frontend).map(|claim| claim.kind), Some(FrontendKind::ClusterIp));
        assert_eq!(claims.losers(&frontend).count(), 0);
    }
}
