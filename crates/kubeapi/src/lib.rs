//! Where objects come from: the apiserver, manifest files.
//!
//! * [`apiserver`]: follows a cluster: finding the apiserver, list and watch, health. Async (tokio).
//! * [`api`]: the fields of the API's objects that are read.
//! * [`convert`]: Kubernetes API types to the compact model. Pure; shared by every source.
//! * [`manifests`]: follows Services, EndpointSlices and Nodes in YAML and JSON files. Plain std threads; no async.

pub mod api;
pub mod apiserver;
pub mod convert;
pub mod manifests;

mod mend;
