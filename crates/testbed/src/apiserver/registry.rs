//! Writes: the steps of an apiserver between a request and the store.
//!
//! Metadata that only the server sets, defaults, validation, optimistic locking, finalizers, subresources. No
//! HTTP.

use std::ops::RangeInclusive;
use std::sync::Arc;

use ipnet::IpNet;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::allocator::Allocator;
use super::decode::check_type;
use super::object::{Key, Object, key_of, list, metadata_mut, object_mut, strip_type_meta, text, texts};
use super::resource::Resource;
use super::service;
use super::status::{Cause, Status};
use super::store::Store;
use super::validation;

/// The whole object, or the part that another endpoint writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Everything but the status, where the resource has a status subresource.
    Main,
    /// The status only.
    Status,
}

/// The preconditions of a delete.
#[derive(Debug, Clone, Default)]
pub(crate) struct Preconditions {
    pub(crate) uid: Option<String>,
    pub(crate) resource_version: Option<String>,
}

/// The result of a delete.
#[derive(Debug)]
pub(crate) enum Deletion {
    /// It is gone.
    Gone(Arc<Object>),
    /// It has finalizers and waits for them, with a deletion timestamp.
    Pending(Arc<Object>),
}

/// The objects, and the state needed to write them.
#[derive(Debug)]
pub(crate) struct Registry {
    pub(crate) store: Store,
    allocator: Allocator,
    /// A counter for UIDs and generated names.
    serial: u64,
}

impl Registry {
    /// An empty cluster: the namespaces that always exist, and a ServiceCIDR.
    pub(crate) fn new(window: usize, service_cidrs: &[IpNet], node_ports: RangeInclusive<u16>) -> Self {
        let mut registry =
            Self { store: Store::new(window), allocator: Allocator::new(node_ports), serial: 0 };
        for namespace in ["default", "kube-system"] {
            let labels = json!({ "kubernetes.io/metadata.name": namespace });
            let value = json!({
                "metadata": { "name": namespace, "labels": labels },
                "spec": { "finalizers": ["kubernetes"] },
                "status": { "phase": "Active" },
            });
            registry.load(Resource::Namespaces, value);
        }
        let cidrs: Vec<_> = service_cidrs.iter().map(ToString::to_string).collect();
        let ready = json!({ "type": "Ready", "status": "True", "reason": "", "message": "",
                            "lastTransitionTime": now() });
        let cidr = json!({
            "metadata": { "name": "kubernetes" },
            "spec": { "cidrs": cidrs },
            "status": { "conditions": [ready] },
        });
        registry.load(Resource::ServiceCidrs, cidr);
        registry
    }

    /// Stores an object as it is: no validation, no defaults, only the metadata that all objects have.
    pub(crate) fn load(&mut self, resource: Resource, mut value: Value) -> Arc<Object> {
        strip_type_meta(&mut value);
        if resource.is_namespaced() && text(&value, "/metadata/namespace").is_empty() {
            metadata_mut(&mut value).insert("namespace".to_owned(), "default".into());
        }
        let key = key_of(&value);
        let before = self.store.get(resource, &key).cloned();
        let uid = before.as_ref().map(|before| before.uid().to_owned()).unwrap_or_else(|| self.next_uid());
        let metadata = metadata_mut(&mut value);
        metadata.entry("uid").or_insert(uid.into());
        metadata.entry("creationTimestamp").or_insert_with(|| now().into());
        metadata.entry("generation").or_insert(1.into());
        self.put(resource, key, value)
    }

    /// Creates an object. `namespace` is the one in the request's path.
    pub(crate) fn create(
        &mut self,
        resource: Resource,
        namespace: Option<&str>,
        mut value: Value,
    ) -> Result<Arc<Object>, Status> {
        check_type(resource, &value)?;
        strip_type_meta(&mut value);
        self.place(resource, namespace, &mut value)?;
        if !text(&value, "/metadata/resourceVersion").is_empty() {
            return Err(Status::bad_request("resourceVersion should not be set on objects to be created"));
        }
        let uid = self.next_uid();
        let suffix = self.name_suffix();
        let metadata = metadata_mut(&mut value);
        if metadata.get("name").is_none_or(|name| name == "")
            && let Some(prefix) = metadata.get("generateName").and_then(Value::as_str)
        {
            let name = format!("{prefix}{suffix}");
            metadata.insert("name".to_owned(), name.into());
        }
        for field in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "managedFields"] {
            metadata.remove(field);
        }
        metadata.insert("uid".to_owned(), uid.into());
        metadata.insert("creationTimestamp".to_owned(), now().into());
        metadata.insert("generation".to_owned(), 1.into());
        let key = key_of(&value);
        if resource.is_namespaced() {
            match self.store.get(Resource::Namespaces, &Key::new("", &key.namespace)) {
                None => return Err(Status::not_found(Resource::Namespaces, &key.namespace)),
                Some(namespace) if !text(namespace.value(), "/metadata/deletionTimestamp").is_empty() => {
                    return Err(Status::namespace_terminating(resource, &key.name, &key.namespace));
                }
                Some(_) => {}
            }
        }
        if self.store.get(resource, &key).is_some() {
            return Err(Status::already_exists(resource, &key.name));
        }
        self.admit(resource, &mut value, None)?;
        Ok(self.put(resource, key, value))
    }

    /// Replaces an object, or its status.
    pub(crate) fn update(
        &mut self,
        resource: Resource,
        key: &Key,
        part: Part,
        mut value: Value,
    ) -> Result<Arc<Object>, Status> {
        check_type(resource, &value)?;
        strip_type_meta(&mut value);
        self.place(
            resource,
            Some(&key.namespace).filter(|_| resource.is_namespaced()).map(|s| s.as_str()),
            &mut value,
        )?;
        let name = text(&value, "/metadata/name");
        if name != key.name {
            return Err(Status::bad_request(format!(
                "the name of the object ({name}) does not match the name on the URL ({})",
                key.name
            )));
        }
        let old = self.find(resource, key)?;
        self.check_preconditions(
            &old,
            &Preconditions {
                uid: non_empty(text(&value, "/metadata/uid")),
                resource_version: non_empty(text(&value, "/metadata/resourceVersion")),
            },
        )?;
        if part == Part::Status {
            let status = value["status"].take();
            value = old.value().clone();
            object_mut(&mut value).insert("status".to_owned(), status);
        } else if resource.info().status {
            restore(&mut value, old.value(), "status");
        }
        let old_metadata = old.metadata();
        for field in ["uid", "creationTimestamp", "deletionTimestamp", "generation", "resourceVersion"] {
            let kept = old_metadata.get(field).cloned();
            let metadata = metadata_mut(&mut value);
            match kept {
                Some(kept) => metadata.insert(field.to_owned(), kept),
                None => metadata.remove(field),
            };
        }
        metadata_mut(&mut value).remove("managedFields");
        if part == Part::Main {
            self.admit(resource, &mut value, Some(old.value()))?;
        }
        if value == *old.value() {
            // As in a real apiserver: a write that changes nothing has no effect, and no watch sees it.
            return Ok(old);
        }
        if is_different_besides_metadata(&value, old.value()) {
            let generation = old_metadata["generation"].as_u64().unwrap_or_default() + 1;
            metadata_mut(&mut value).insert("generation".to_owned(), generation.into());
        }
        if !text(&value, "/metadata/deletionTimestamp").is_empty()
            && list(&value, "/metadata/finalizers").is_empty()
        {
            return Ok(self.remove(resource, key).unwrap_or(old));
        }
        Ok(self.put(resource, key.clone(), value))
    }

    /// Deletes an object, or marks it for deletion if it has finalizers.
    pub(crate) fn delete(
        &mut self,
        resource: Resource,
        key: &Key,
        preconditions: &Preconditions,
    ) -> Result<Deletion, Status> {
        let object = self.find(resource, key)?;
        self.check_preconditions(&object, preconditions)?;
        if !list(object.value(), "/metadata/finalizers").is_empty() {
            if !text(object.value(), "/metadata/deletionTimestamp").is_empty() {
                return Ok(Deletion::Pending(object));
            }
            let mut value = object.value().clone();
            let metadata = metadata_mut(&mut value);
            metadata.insert("deletionTimestamp".to_owned(), now().into());
            metadata.insert("deletionGracePeriodSeconds".to_owned(), 0.into());
            return Ok(Deletion::Pending(self.put(resource, key.clone(), value)));
        }
        if resource == Resource::Namespaces {
            self.empty_namespace(&key.name);
        }
        let gone = self.remove(resource, key);
        Ok(Deletion::Gone(gone.unwrap_or(object)))
    }

    /// The object, or 404.
    pub(crate) fn find(&self, resource: Resource, key: &Key) -> Result<Arc<Object>, Status> {
        let object = self.store.get(resource, key).map(Arc::clone);
        object.ok_or_else(|| Status::not_found(resource, &key.name))
    }

    fn empty_namespace(&mut self, namespace: &str) {
        for resource in Resource::ALL.into_iter().filter(|resource| resource.is_namespaced()) {
            let keys: Vec<_> = self.store.all(resource).map(|object| object.key()).collect();
            for key in keys.into_iter().filter(|key| key.namespace == namespace) {
                self.remove(resource, &key);
            }
        }
    }

    fn put(&mut self, resource: Resource, key: Key, value: Value) -> Arc<Object> {
        if resource == Resource::Services {
            if let Some(before) = self.store.get(resource, &key) {
                self.allocator.release(before.value());
            }
            self.allocator.claim(&value);
        }
        self.store.put(resource, key, value)
    }

    fn remove(&mut self, resource: Resource, key: &Key) -> Option<Arc<Object>> {
        let gone = self.store.remove(resource, key)?;
        if resource == Resource::Services {
            self.allocator.release(gone.value());
        }
        Some(gone)
    }

    /// Sets the object's namespace to the request's.
    fn place(&self, resource: Resource, namespace: Option<&str>, value: &mut Value) -> Result<(), Status> {
        let own = text(value, "/metadata/namespace");
        match (resource.is_namespaced(), namespace) {
            (true, Some(namespace)) if !own.is_empty() && own != namespace => Err(Status::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            )),
            (true, namespace) => {
                let namespace = namespace.or(non_empty_ref(own)).unwrap_or("default").to_owned();
                metadata_mut(value).insert("namespace".to_owned(), namespace.into());
                Ok(())
            }
            (false, _) => {
                metadata_mut(value).remove("namespace");
                Ok(())
            }
        }
    }

    fn check_preconditions(&self, object: &Object, wanted: &Preconditions) -> Result<(), Status> {
        let (resource, name) = (object.resource(), text(object.metadata(), "/name"));
        if let Some(uid) = &wanted.uid
            && uid != object.uid()
        {
            let why = format!(
                "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                object.uid()
            );
            return Err(Status::conflict(resource, name, &why));
        }
        if wanted.resource_version.as_ref().is_some_and(|version| *version != object.revision().to_string()) {
            let why =
                "the object has been modified; please apply your changes to the latest version and try again";
            return Err(Status::conflict(resource, name, why));
        }
        Ok(())
    }

    /// Applies defaults and validates.
    fn admit(&self, resource: Resource, value: &mut Value, old: Option<&Value>) -> Result<(), Status> {
        let mut causes = validation::metadata(resource, value);
        match resource {
            Resource::Services => {
                let pools = service::Pools { ranges: self.service_ranges(), allocator: &self.allocator };
                causes.extend(service::admit(value, old, &pools).err().unwrap_or_default());
            }
            Resource::EndpointSlices => {
                set_slice_defaults(value);
                causes.extend(validation::endpoint_slice(value, old));
            }
            Resource::Events => causes.extend(validation::event(value, old)),
            Resource::ServiceCidrs => {
                for (i, cidr) in texts(value, "/spec/cidrs").into_iter().enumerate() {
                    if cidr.parse::<IpNet>().is_err() {
                        let why = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
                        causes.push(Cause::invalid(format!("spec.cidrs[{i}]"), &cidr.into(), why));
                    }
                }
            }
            _ => {}
        }
        if causes.is_empty() {
            return Ok(());
        }
        let (kind, group) = (resource.kind(), resource.info().group);
        Err(Status::invalid(kind, group, text(value, "/metadata/name"), &causes))
    }

    /// The ranges of all ServiceCIDRs.
    fn service_ranges(&self) -> Vec<IpNet> {
        let cidrs = self.store.all(Resource::ServiceCidrs);
        cidrs
            .flat_map(|cidr| texts(cidr.value(), "/spec/cidrs"))
            .filter_map(|cidr| cidr.parse().ok())
            .collect()
    }

    fn next_uid(&mut self) -> String {
        self.serial += 1;
        format!("5107ce00-0000-4000-8000-{:012x}", self.serial)
    }

    /// Five characters for a generated name.
    fn name_suffix(&self) -> String {
        const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
        let digit = |i: u32| {
            let digit = self.serial / 27_u64.pow(i) % 27;
            ALPHABET.get(usize::try_from(digit).unwrap_or(0)).copied().map_or('b', char::from)
        };
        (0..5).rev().map(digit).collect()
    }
}

/// The current time in the API's format.
fn now() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn non_empty(text: &str) -> Option<String> {
    non_empty_ref(text).map(str::to_owned)
}

fn non_empty_ref(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

fn set_slice_defaults(slice: &mut Value) {
    object_mut(slice).entry("endpoints").or_insert_with(|| json!([]));
    let ports = object_mut(slice).entry("ports").or_insert_with(|| json!([]));
    for port in ports.as_array_mut().into_iter().flatten() {
        let port = object_mut(port);
        port.entry("name").or_insert("".into());
        port.entry("protocol").or_insert("TCP".into());
    }
}

/// Restores the old value of a field.
fn restore(value: &mut Value, old: &Value, field: &str) {
    let object = object_mut(value);
    match old.get(field) {
        Some(old) => object.insert(field.to_owned(), old.clone()),
        None => object.remove(field),
    };
}

/// Whether a change increases the generation: if it affects anything but metadata and status.
fn is_different_besides_metadata(a: &Value, b: &Value) -> bool {
    let rest = |value: &Value| {
        let mut value = value.clone();
        object_mut(&mut value).retain(|field, _| field != "metadata" && field != "status");
        value
    };
    rest(a) != rest(b)
}

#[cfg(test)]
mod tests;
