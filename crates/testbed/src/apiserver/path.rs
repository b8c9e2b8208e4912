//! Paths of requests: `/api/v1/namespaces/NAMESPACE/PLURAL/NAME/SUBRESOURCE` and the like.

use http::Method;

use super::counters::Verb;
use super::resource::Resource;

/// A path that names a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Path {
    pub(crate) resource: Resource,
    pub(crate) namespace: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) subresource: Option<String>,
}

impl Path {
    pub(crate) fn parse(path: &str) -> Option<Self> {
        let mut parts = path.trim_matches('/').split('/');
        let (group, version) = match parts.next()? {
            "api" => ("", parts.next()?),
            "apis" => (parts.next()?, parts.next()?),
            _ => return None,
        };
        let rest: Vec<_> = parts.collect();
        let (namespace, rest) = match &rest[..] {
            // `namespaces/NAME` and `namespaces/NAME/status` are a Namespace itself.
            ["namespaces", namespace, rest @ ..] if !matches!(rest, [] | ["status" | "finalize"]) => {
                (Some(*namespace), rest)
            }
            rest => (None, rest),
        };
        let (plural, name, subresource) = match rest {
            [plural] => (plural, None, None),
            [plural, name] => (plural, Some(*name), None),
            [plural, name, subresource] => (plural, Some(*name), Some(*subresource)),
            _ => return None,
        };
        let resource = Resource::find(group, version, plural)?;
        let misplaced = match (namespace, name) {
            (Some(_), _) => !resource.is_namespaced(),
            (None, Some(_)) => resource.is_namespaced(),
            (None, None) => false,
        };
        (!misplaced).then(|| Self {
            resource,
            namespace: namespace.map(str::to_owned),
            name: name.map(str::to_owned),
            subresource: subresource.map(str::to_owned),
        })
    }

    /// The verb of a request with this method; `None` if it is not allowed.
    pub(crate) fn verb(&self, method: &Method, watch: bool) -> Option<Verb> {
        let verb = match (method.as_str(), self.name.is_some()) {
            ("GET", true) => Verb::Get,
            ("GET", false) if watch => Verb::Watch,
            ("GET", false) => Verb::List,
            ("POST", false) => Verb::Create,
            ("PUT", true) => Verb::Update,
            ("PATCH", true) => Verb::Patch,
            ("DELETE", true) if self.subresource.is_none() => Verb::Delete,
            ("DELETE", false) => Verb::DeleteCollection,
            _ => return None,
        };
        let elsewhere = verb == Verb::Create && self.resource.is_namespaced() && self.namespace.is_none();
        (!elsewhere).then_some(verb)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(path: &str) -> Option<String> {
        let path = Path::parse(path)?;
        let part = |part: Option<String>| part.unwrap_or_else(|| "-".to_owned());
        let (namespace, name, subresource) = (part(path.namespace), part(path.name), part(path.subresource));
        Some(format!("{} {namespace} {name} {subresource}", path.resource))
    }

    #[test]
    fn a_path_names_a_resource_and_maybe_an_object() {
        for (path, expected) in [
            ("/api/v1/services", "services - - -"),
            ("/api/v1/namespaces/a/services", "services a - -"),
            ("/api/v1/namespaces/a/services/b", "services a b -"),
            ("/api/v1/namespaces/a/services/b/status", "services a b status"),
            ("/api/v1/namespaces", "namespaces - - -"),
            ("/api/v1/namespaces/a", "namespaces - a -"),
            ("/api/v1/namespaces/a/status", "namespaces - a status"),
            ("/api/v1/nodes/n", "nodes - n -"),
            ("/apis/discovery.k8s.io/v1/endpointslices", "endpointslices - - -"),
        ] {
            assert_eq!(told(path).as_deref(), Some(expected), "{path}");
        }
        for path in [
            "/",
            "/api",
            "/api/v1",
            "/api/v1/secrets",
            "/api/v2/services",
            "/apis/v1/services",
            "/api/v1/services/b",
            "/api/v1/namespaces/a/nodes/n",
            "/api/v1/namespaces/a/services/b/status/c",
        ] {
            assert_eq!(told(path), None, "{path}");
        }
    }

    #[test]
    fn the_method_says_what_a_request_does() {
        let verb = |method: Method, path: &str| Path::parse(path).unwrap().verb(&method, false);
        let (many, one) = ("/api/v1/namespaces/a/services", "/api/v1/namespaces/a/services/b");
        assert_eq!(verb(Method::POST, many), Some(Verb::Create));
        assert_eq!(verb(Method::POST, "/api/v1/services"), None);
        assert_eq!(verb(Method::POST, one), None);
        assert_eq!(verb(Method::DELETE, many), Some(Verb::DeleteCollection));
        assert_eq!(verb(Method::DELETE, &format!("{one}/status")), None);
        assert_eq!(verb(Method::PUT, one), Some(Verb::Update));
        assert_eq!(verb(Method::PUT, many), None);
    }
}
