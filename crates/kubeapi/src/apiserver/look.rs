//! One look at the cluster, without following it: whether it has this Node, and what addresses Services get.

use std::time::Duration;

use serde::de::Error as _;
use serde_json::value::RawValue;
use sluice_model::{Node, Object, ServiceCidr};

use super::config::{Config, ConfigError};
use super::decode::{self, Meaning, Page};
use super::reason::{self, Failure, Reason};
use super::resource::Resource;
use super::transport::Transport;

/// A Node has a page of its own, which may be large: an object of an apiserver's has 1.5 MiB at the most.
const MAX_BYTES: usize = 4 << 20;

/// Why that cannot be said.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LookError {
    /// It is not known how to ask.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// It does not answer as it should.
    #[error("the apiserver {server}: {reason}")]
    Apiserver {
        /// Its address.
        server: String,
        /// What is the matter, with what to do about it.
        reason: Reason,
    },
}

impl From<Failure> for LookError {
    fn from(Failure { server, reason, .. }: Failure) -> Self {
        Self::Apiserver { server, reason }
    }
}

/// What there is to know of a node before an agent runs there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The Node of the name that the configuration has; none where the cluster has none, or not one that can be understood.
    pub node: Option<Node>,
    /// Whether there is one.
    pub has_node: bool,
    /// Where Services get their addresses from. None where the cluster does not say so.
    pub service_cidrs: Vec<ServiceCidr>,
}

/// Asks for the Node that the configuration names, and for the ranges of Services. Once, each apiserver for as long as
/// `timing.answer` at the most.
///
/// # Errors
/// Nobody can be asked, or nobody answers about the Node.
pub async fn look(config: Config) -> Result<Seen, LookError> {
    let (name, limit) = (config.node.clone(), config.timing.answer);
    let transport = Transport::new(config)?;
    let nodes = list(&transport, Resource::Node, &name, limit).await?;
    // Older clusters have none, and an account may not see them: it is not what was asked for in the first place.
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

/// All objects of the first page, of which there is one as a rule; none for each that cannot be understood.
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
