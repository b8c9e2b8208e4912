//! Interns names that many objects share: nodes, zones, ports, namespaces. For example, 100,000 endpoints have
//! the names of a few nodes. Pure.

use std::collections::HashSet;
use std::sync::Arc;

use sluice_model::{EndpointSlice, Object, Service};

/// Unused names are removed when there are twice as many names as after the last sweep, and at least this many.
const MIN_SWEEP: usize = 1024;

/// The interned names.
#[derive(Debug, Default)]
pub(super) struct Names {
    known: HashSet<Arc<str>>,
    /// The number of names after the last sweep.
    in_use: usize,
}

impl Names {
    /// Makes an object share its names with earlier objects.
    pub(super) fn share(&mut self, object: &mut Object) {
        match object {
            Object::Service(service) => self.share_service(service),
            Object::EndpointSlice(slice) => self.share_slice(slice),
            Object::Pod(pod) => self.one(&mut pod.name.namespace),
            Object::Node(_) | Object::ServiceCidr(_) | Object::Namespace(_) => {}
        }
        if self.known.len() >= MIN_SWEEP.max(2 * self.in_use) {
            self.known.retain(|name| Arc::strong_count(name) > 1);
            self.in_use = self.known.len();
        }
    }

    fn share_service(&mut self, service: &mut Service) {
        self.one(&mut service.name.namespace);
        service.ports.iter_mut().for_each(|port| self.one(&mut port.name));
    }

    fn share_slice(&mut self, slice: &mut EndpointSlice) {
        self.one(&mut slice.name.namespace);
        slice.service.namespace = Arc::clone(&slice.name.namespace);
        slice.ports.iter_mut().for_each(|port| self.one(&mut port.name));
        for endpoint in &mut slice.endpoints {
            let hints = endpoint.zone_hints.iter_mut().chain(&mut endpoint.node_hints);
            endpoint.node.iter_mut().chain(hints).for_each(|name| self.one(name));
        }
    }

    fn one(&mut self, name: &mut Arc<str>) {
        match self.known.get(name) {
            Some(known) => *name = Arc::clone(known),
            None => {
                self.known.insert(Arc::clone(name));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use sluice_model::{Endpoint, Family, ObjectName};

    use super::*;

    fn slice(node: &str) -> Object {
        let endpoint = Endpoint {
            node: Some(node.into()),
            zone_hints: ["zone".into(), "zone".into()].into(),
            ..Endpoint::ready("10.0.0.1".parse().unwrap())
        };
        let name = || ObjectName::new("namespace", "name");
        let (ports, endpoints) = (Vec::new(), vec![endpoint]);
        EndpointSlice {
            name: name(),
            service: name(),
            family: Family::V4,
            ports,
            endpoints,
            last_change: None,
        }
        .into()
    }

    fn node(object: &Object) -> &Arc<str> {
        match object {
            Object::EndpointSlice(slice) => slice.endpoints[0].node.as_ref().unwrap(),
            _ => unreachable!(),
        }
    }

    #[test]
    fn equal_names_are_one_and_objects_stay_what_they_were() {
        let mut names = Names::default();
        let (mut first, mut second) = (slice("a"), slice("a"));
        names.share(&mut first);
        names.share(&mut second);
        assert!(Arc::ptr_eq(node(&first), node(&second)));
        assert_eq!((&first, &second), (&slice("a"), &slice("a")));
        assert_eq!(names.known.len(), 3);
    }

    #[test]
    fn names_that_nobody_has_any_more_are_forgotten() {
        let mut names = Names::default();
        let mut kept = slice("kept");
        names.share(&mut kept);
        for n in 0..10 * MIN_SWEEP {
            names.share(&mut slice(&n.to_string()));
            assert!(names.known.len() <= MIN_SWEEP);
        }
        assert!(names.known.contains(node(&kept)));
    }
}
