//! Checks that a body is an object of the resource that it is sent to, by the Kubernetes types.

use k8s_openapi::api::{
    core::v1 as core, discovery::v1 as discovery, events::v1 as events, networking::v1 as networking,
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::object::{object_mut, text};
use super::resource::Resource;
use super::status::Status;

/// Checks that `apiVersion`, `kind` and every known field have the right type.
pub(crate) fn check_type(resource: Resource, value: &Value) -> Result<(), Status> {
    fn decode<T: DeserializeOwned>(resource: Resource, value: Value) -> Result<(), Status> {
        serde_json::from_value::<T>(value).map(drop).map_err(|error| {
            let (kind, version) = (resource.kind(), resource.info().version);
            let message = format!("{kind} in version {version:?} cannot be handled as a {kind}: {error}");
            Status::bad_request(message)
        })
    }
    let mut typed = value.clone();
    if !typed.is_object() {
        return Err(Status::bad_request("couldn't get version/kind; json parse error: not an object"));
    }
    for (field, expected) in [("apiVersion", resource.api_version()), ("kind", resource.kind().to_owned())] {
        let own = text(&typed, &format!("/{field}"));
        if !own.is_empty() && own != expected {
            return Err(Status::bad_request(format!(
                "the {field} in the data ({own}) does not match the expected {field} ({expected})"
            )));
        }
        object_mut(&mut typed).insert(field.to_owned(), expected.into());
    }
    match resource {
        Resource::Namespaces => decode::<core::Namespace>(resource, typed),
        Resource::Nodes => decode::<core::Node>(resource, typed),
        Resource::Pods => decode::<core::Pod>(resource, typed),
        Resource::Services => decode::<core::Service>(resource, typed),
        Resource::EndpointSlices => decode::<discovery::EndpointSlice>(resource, typed),
        Resource::ServiceCidrs => decode::<networking::ServiceCIDR>(resource, typed),
        Resource::Events => decode::<events::Event>(resource, typed),
        Resource::CoreEvents => Ok(()),
    }
}
