//! Where objects come from: the apiserver, manifest files.
//!
//! * [`convert`]: Kubernetes API types to the compact model. Pure; shared by every source.
//! * [`manifests`]: Services, EndpointSlices and Nodes from YAML and JSON files, followed as the files
//!   change. Plain std threads; no async.

pub mod convert;
pub mod manifests;
