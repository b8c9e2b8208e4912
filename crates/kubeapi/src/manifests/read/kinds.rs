//! Kinds that are not read: other kinds of Kubernetes and of third parties, which are skipped, and misspelt
//! kinds. Pure.

use super::Class;

/// Kinds that are read, for recognising misspelt ones.
const READ: [&str; 4] = ["Service", "EndpointSlice", "ServiceCIDR", "Node"];

/// The other kinds of the API groups that are read. In those groups, an unknown kind is a mistake.
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

/// Classifies a kind that is not read.
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

/// Whether an `apiVersion` belongs to a third party's API group, where `Service` (Knative) and `Node` (Longhorn)
/// mean something else. Kubernetes' own groups are `v1`, `apps/v1`, `*.k8s.io/*`.
pub(super) fn is_foreign(version: &str) -> bool {
    version.split_once('/').is_some_and(|(group, _)| {
        let is_mistake =
            ["discovery.k8s.io", "networking.k8s.io"].into_iter().any(|read| is_close(group, read));
        group.contains('.') && !group.ends_with(".k8s.io") && !is_mistake
    })
}

/// Whether two words differ by one letter, or by two if they are longer. (`Role` is not close to `Node`.)
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
