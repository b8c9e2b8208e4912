//! Converts objects of the Kubernetes API to the model: the parts that matter to a proxy.
//!
//! Pure functions, one module per kind, by the rules of kube-proxy 1.36. Nothing here fails: a wrong element is
//! left out and described by a [`Problem`], and the rest of the object counts. An object is skipped as a whole
//! ([`Skip`]) only if it has nothing usable.

mod address;
mod node;
mod pod;
mod service;
mod service_cidr;
mod slice;

use std::fmt;

use sluice_model::{ObjectName, Protocol};

pub use node::node;
pub use pod::{namespace, pod};
pub use service::service;
pub use service_cidr::service_cidr;
pub use slice::slice;

use crate::api::{List, Meta};

/// The result of converting one API object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Converted<T> {
    /// The object of the model, or why there is none.
    pub result: Result<T, Skip>,
    /// Elements that were left out.
    pub problems: Vec<Problem>,
}

/// Why an object does not count at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Skip {
    /// `spec.type: ExternalName`: a DNS alias, even with a stray cluster IP.
    ExternalName,
    /// `spec.clusterIP: None`, or an EndpointSlice labelled as that of such a Service: clients connect
    /// to the endpoints directly.
    Headless,
    /// Label `service.kubernetes.io/service-proxy-name`: another proxy serves it.
    OtherProxy,
    /// `addressType: FQDN`: no addresses that packets could be sent to.
    Fqdn,
    /// The pod has ended, or it uses its node's network: it has no network of its own.
    NoNetwork,
    /// There is no cluster IP. An apiserver will allocate one; in a file it stays missing.
    NoClusterIp,
    /// Its name or an essential field is missing or wrong: see the problems.
    Broken,
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ExternalName => "an ExternalName Service is served by DNS",
            Self::Headless => "headless: clients connect to the endpoints directly",
            Self::OtherProxy => "label service.kubernetes.io/service-proxy-name: another proxy serves it",
            Self::Fqdn => "addressType FQDN: not a thing to send packets to",
            Self::NoNetwork => "a pod without a network of its own",
            Self::NoClusterIp => "no clusterIP: nothing to listen on",
            Self::Broken => "unusable",
        })
    }
}

/// One error in an object.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Problem {
    /// The field in `kubectl`'s notation: `endpoints[3].addresses[0]`.
    pub field: String,
    /// What is wrong.
    pub what: String,
    /// How to correct it.
    pub mend: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.field, self.what, self.mend)
    }
}

/// The problems found so far.
#[derive(Debug, Default)]
struct Problems(Vec<Problem>);

impl Problems {
    fn note(&mut self, field: impl Into<String>, what: impl Into<String>, mend: impl Into<String>) {
        self.0.push(Problem { field: field.into(), what: what.into(), mend: mend.into() });
    }

    fn skip<T>(self, skip: Skip) -> Converted<T> {
        Converted { result: Err(skip), problems: self.0 }
    }

    fn object<T>(self, object: T) -> Converted<T> {
        Converted { result: Ok(object), problems: self.0 }
    }

    /// A required port number.
    fn port(&mut self, field: impl Into<String>, number: Option<i32>) -> Option<u16> {
        let number = number.unwrap_or_default();
        let port = u16::try_from(number).ok().filter(|port| *port != 0);
        if port.is_none() {
            let what = if number == 0 {
                "missing or 0, which is no port".to_owned()
            } else {
                format!("{number} is not a port")
            };
            self.note(field, what, "write a number from 1 to 65535");
        }
        port
    }

    /// A protocol. If it is absent it is TCP, the apiserver's default.
    fn protocol(&mut self, field: impl Into<String>, protocol: Option<&str>) -> Option<Protocol> {
        match protocol {
            None | Some("" | "TCP") => return Some(Protocol::Tcp),
            Some("UDP") => return Some(Protocol::Udp),
            Some("SCTP") => self.note(field, "SCTP is not carried", "use TCP or UDP; this port is left out"),
            Some(other) => self.note(field, format!("{other:?} is not a protocol"), "write TCP or UDP"),
        }
        None
    }

    /// Namespace and name. An absent namespace is `default`, as in kubectl; an apiserver never leaves it out.
    fn object_name<L>(&mut self, metadata: &Meta<L>) -> Option<ObjectName> {
        let namespace = metadata.namespace.as_deref().filter(|text| !text.is_empty()).unwrap_or("default");
        let namespace = self.name("metadata.namespace", namespace, MAX_LABEL);
        let name = self.name("metadata.name", metadata.name.as_deref().unwrap_or_default(), MAX_SUBDOMAIN);
        Some(ObjectName::new(namespace?, name?))
    }

    /// A DNS name, as object names are (RFC 1123). The check is loose: it ensures that the name is one word in a
    /// log line and a metric.
    fn name<'a>(&mut self, field: &str, text: &'a str, max: usize) -> Option<&'a str> {
        let is_name_byte = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b);
        if text.is_empty() {
            self.note(field, "missing", "give the object a name");
        } else if text.len() > max {
            self.note(field, format!("longer than {max} characters"), "shorten it");
        } else if !text.bytes().all(is_name_byte) {
            self.note(field, format!("{text:?} is not a name"), "use a-z, 0-9, '-' and '.' only");
        } else {
            return Some(text);
        }
        None
    }
}

/// RFC 1123 label: namespaces, Services.
const MAX_LABEL: usize = 63;
/// RFC 1123 subdomain: every other name.
const MAX_SUBDOMAIN: usize = 253;

/// Iterates over a list that may be absent.
fn each<T>(list: &List<T>) -> impl Iterator<Item = (usize, &T)> {
    list.iter().flatten().map(|element| &element.0).enumerate()
}
