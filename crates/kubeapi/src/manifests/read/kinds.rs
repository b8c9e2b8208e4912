//! Kinds that are not read: others of Kubernetes and of other people, which are passed over, and names that are wrong.
//! Pure.

use super::Class;

/// Kinds that are read, to be found in what is written a little differently.
const READ: [&str; 4] = ["Service", "EndpointSlice", "ServiceCIDR", "Node"];

/// The other kinds of the groups that are read: here a name that is none is a mistake.
const CORE: [&str; 15] = [
    "Binding",
    "ComponentStatus",
    "ConfigMap",
    "Endpoints",
    "Event",
    "LimitRange",
    "Namespace",
    "PersistentVolume",
    "PersistentVolumeClaim",
    "Pod",
    "PodTemplate",
    "ReplicationController",
    "ResourceQuota",
    "Secret",
    "ServiceAccount",
];
const NETWORKING: [&str; 4] = ["IPAddress", "Ingress", "IngressClass", "NetworkPolicy"];

/// What a kind is that is not read.
pub(super) fn unknown(version: Option<&str>, written: &str) -> Class {
    let group = match version {
        Some(version) if is_foreign(version) => return Class::Other,
        Some(version) => version.split_once('/').map_or("", |(group, _)| group),
        None => "",
    };
    let stem = written.strip_suffix("List").unwrap_or(written);
    let others: Option<&[&str]> = match (group, version) {
        ("", Some(_)) => Some(&CORE),
        ("discovery.k8s.io", _) => Some(&[]),
        ("networking.k8s.io", _) => Some(&NETWORKING),
        _ => None,
    };
    if others.is_some_and(|others| others.contains(&stem)) {
        return Class::Other;
    }
    let meant = READ.into_iter().find(|read| is_close(stem, read));
    if others.is_none() && meant.is_none() {
        return Class::Other;
    }
    let mend = match meant {
        Some(meant) => format!("write {meant}{}", written.strip_prefix(stem).unwrap_or_default()),
        None => "correct it, or take the document out".to_owned(),
    };
    Class::Wrong { field: "kind", what: format!("{written:?} is not a kind"), mend }
}

/// Whether an `apiVersion` belongs to somebody else's API group, where `Service` (Knative) and `Node`
/// (Longhorn) are other things. Kubernetes' own groups are `v1`, `apps/v1`, `*.k8s.io/*`.
pub(super) fn is_foreign(version: &str) -> bool {
    version.split_once('/').is_some_and(|(group, _)| {
        let is_mistake =
            ["discovery.k8s.io", "networking.k8s.io"].into_iter().any(|read| is_close(group, read));
        group.contains('.') && !group.ends_with(".k8s.io") && !is_mistake
    })
}

/// Whether one is the other with one letter wrong, or two of a longer word. (`Role` is not meant to be `Node`.)
fn is_close(written: &str, meant: &str) -> bool {
    let limit = if meant.len() > 5 { 2 } else { 1 };
    written.len().abs_diff(meant.len()) <= limit && distance(written.as_bytes(), meant.as_bytes()) <= limit
}

/// Letters to insert, remove or replace (Levenshtein).
fn distance(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut next = vec![i + 1];
        for ((y, above), both) in b.iter().zip(row.iter().skip(1)).zip(&row) {
            let left = next.last().copied().unwrap_or_default();
            let same = usize::from(!x.eq_ignore_ascii_case(y));
            next.push((both + same).min(above + 1).min(left + 1));
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}
