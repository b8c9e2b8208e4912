//! ServiceCIDR (networking.k8s.io/v1) to [`ServiceCidr`].

use sluice_model::ServiceCidr;

use super::{Converted, MAX_SUBDOMAIN, Problems, Skip, each};
use crate::api;

/// Converts a ServiceCIDR.
pub fn service_cidr(object: &api::ServiceCidr) -> Converted<ServiceCidr> {
    let mut problems = Problems::default();
    let name = object.metadata.name.as_deref().unwrap_or_default();
    let Some(name) = problems.name("metadata.name", name, MAX_SUBDOMAIN) else {
        return problems.skip(Skip::Broken);
    };
    let cidrs: Vec<_> = each(&object.spec.cidrs)
        .filter_map(|(i, text)| problems.cidr(format!("spec.cidrs[{i}]"), text))
        .collect();
    if cidrs.is_empty() {
        problems.note("spec.cidrs", "no range", "write the range that cluster IPs come from");
    }
    problems.object(ServiceCidr { name: name.into(), cidrs })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// The ranges, and the fields with problems.
    fn convert(spec: Value) -> (Vec<String>, Vec<String>) {
        let value = json!({"metadata": {"name": "kubernetes"}, "spec": spec});
        let converted = service_cidr(&serde_json::from_value(value).unwrap());
        let cidrs = converted.result.unwrap().cidrs.iter().map(ToString::to_string).collect();
        (cidrs, converted.problems.into_iter().map(|problem| problem.field).collect())
    }

    #[test]
    fn valid_ranges_count() {
        assert_eq!(
            convert(json!({"cidrs": ["10.96.0.0/12", "fd00::/112"]})),
            (vec!["10.96.0.0/12".to_owned(), "fd00::/112".to_owned()], vec![])
        );
        assert_eq!(
            convert(json!({"cidrs": ["10.96.0.0", "fd00::/112"]})),
            (vec!["fd00::/112".to_owned()], vec!["spec.cidrs[0]".to_owned()])
        );
        assert_eq!(convert(json!({})), (vec![], vec!["spec.cidrs".to_owned()]));
        assert_eq!(service_cidr(&api::ServiceCidr::default()).result, Err(Skip::Broken));
    }
}
