//! Where objects come from: the apiserver, manifest files.
//!
//! * [`apiserver`]: a cluster, followed: where it is, list and watch, what is wrong. Async (tokio).
//! * [`api`]: what is read of the API's objects.
//! * [`convert`]: Kubernetes API types to the compact model. Pure; shared by every source.
//! * [`manifests`]: Services, EndpointSlices and Nodes from YAML and JSON files, followed as the files
//!   change. Plain std threads; no async.

pub mod api;
pub mod apiserver;
pub mod convert;
pub mod manifests;

mod mend;
