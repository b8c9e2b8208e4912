//! Content negotiation: JSON, and JSON as a Table for kubectl.

use super::status::Status;

/// The form of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// The objects.
    Json,
    /// A `meta.k8s.io/v1` Table that names columns and cells.
    Table,
}

/// The first supported form in an `Accept` header.
///
/// # Errors
/// 406 if there is none.
pub(crate) fn response_format(accept: Option<&str>) -> Result<Format, Status> {
    let Some(accept) = accept.filter(|accept| !accept.trim().is_empty()) else {
        return Ok(Format::Json);
    };
    accept.split(',').find_map(format_of).ok_or_else(|| Status::not_acceptable("application/json"))
}

fn format_of(clause: &str) -> Option<Format> {
    let mut parts = clause.split(';').map(str::trim);
    if !matches!(parts.next()?, "application/json" | "application/*" | "*/*") {
        return None;
    }
    let parameter = |name: &str| {
        let mut pairs = parts.clone().filter_map(|part| part.split_once('='));
        pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
    };
    match (parameter("as"), parameter("g"), parameter("v")) {
        (None, _, _) => Some(Format::Json),
        (Some("Table"), Some("meta.k8s.io"), Some("v1")) => Some(Format::Table),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_form_that_is_served_wins() {
        let format = |accept: &str| response_format(Some(accept)).map_err(|status| status.code);
        assert_eq!(response_format(None), Ok(Format::Json));
        assert_eq!(format("*/*"), Ok(Format::Json));
        assert_eq!(format("application/vnd.kubernetes.protobuf,application/json"), Ok(Format::Json));
        assert_eq!(
            format("application/json;as=Table;v=v1;g=meta.k8s.io,application/json"),
            Ok(Format::Table)
        );
        assert_eq!(
            format("application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json"),
            Ok(Format::Json)
        );
        let discovery =
            "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
        assert_eq!(format(discovery), Ok(Format::Json));
        assert_eq!(format("application/vnd.kubernetes.protobuf"), Err(406));
        assert_eq!(format("application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"), Err(406));
    }
}
