//! Reads the cluster once, without following it: whether it has this Node, and which addresses Services get.

use std::time::Duration;

use serde::de::Error as _;
use serde_json::value::RawValue;
use sluice_model::{Node, Object, ServiceCidr};

use super::config::{Config, ConfigError};
use super::decode::{self, Meaning, Page};
use super::reason::{self, Failure, Reason};
use super::resource::Resource;
use super::transport::Transport;

/// The maximum size of a response. An object of an apiserver's has at most 1.5 MiB, and a Node is a page of its own.
const MAX_BYTES: usize = 4 << 20;

/// Why the cluster could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LookError {
    /// The configuration is invalid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The apiserver does not answer properly.
    #[error("the apiserver {server}: {reason}")]
    Apiserver {
        /// Its address.
        server: String,
        /// The failure, and how to fix it.
        reason: Reason,
    },
}

impl From<Failure> for LookError {
    fn from(Failure { server, reason, .. }: Failure) -> Self {
        Self::Apiserver { server, reason }
    }
}

/// Facts about a node before an agent runs there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The Node of the configured name; `None` if the cluster has none, or it cannot be understood.
    pub node: Option<Node>,
    /// Whether the cluster has such a Node.
    pub has_node: bool,
    /// The ranges of the Services' addresses; empty if the cluster does not publish them.
    pub service_cidrs: Vec<ServiceCidr>,
}

/// Reads the Node that the configuration names, and the ranges of Services, once. Each apiserver may take at
/// most `timing.answer`.
///
/// # Errors
/// No apiserver can be asked, or none answers about the Node.
pub async fn look(config: Config) -> Result<Seen, LookError> {
    let (name, limit) = (config.node.clone(), config.timing.answer);
    let transport = Transport::new(config)?;
    let nodes = list(&transport, Resource::Node, &name, limit).await?;
    // Older clusters have none, and the account may not be allowed to list them. The Node matters more.
    let cidrs = list(&transport, Resource::ServiceCidrs, &name, limit).await.unwrap_or_default();
    let node = |object| match object {
        Object::Node(node) => Some(node),
        _ => None,
    };
    let cidr = |object| match object {
        Object::ServiceCidr(cidr) => Some(cidr),
        _ => None,
    };
    Ok(Seen {
        has_node: !nodes.is_empty(),
        node: nodes.into_iter().flatten().find_map(node),
        service_cidrs: cidrs.into_iter().flatten().filter_map(cidr).collect(),
    })
}

/// The objects of the first page, which is normally the only one, except those that cannot be understood.
async fn list(
    transport: &Transport,
    resource: Resource,
    node: &str,
    limit: Duration,
) -> Result<Vec<Option<Object>>, LookError> {
    let mut answer = transport.get(resource, &resource.selectors(node), || {}, |_, _| {}).await?;
    let mut body = Vec::new();
    while let Some(bytes) = answer.chunk(limit).await?
        && body.len() < MAX_BYTES
    {
        body.extend_from_slice(&bytes);
    }
    let object = |json: &RawValue| match decode::object(resource, json.get()).meaning {
        Meaning::Counts(object, _) => Some(object),
        Meaning::Ignored(_) | Meaning::Broken(_) => None,
    };
    let page =
        serde_json::from_slice(&body).and_then(|page: Page<'_>| match page.metadata.version.is_empty() {
            true => Err(serde_json::Error::custom("a list without a resourceVersion")),
            false => Ok(page.items.unwrap_or_default().into_iter().map(object).collect()),
        });
    Ok(page.map_err(|error| answer.failure(Reason::NotUnderstood(reason::one_line(&error.to_string()))))?)
}
