//! One look at the cluster, without following it: whether it has this Node.

use serde::de::Error as _;

use super::config::{Config, ConfigError};
use super::decode::Page;
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

/// Whether the cluster has the Node that the configuration names. Asks once, each apiserver for as long as
/// `timing.answer` at the most.
///
/// # Errors
/// Nobody can be asked, or nobody answers.
pub async fn has_node(config: Config) -> Result<bool, LookError> {
    let (selectors, limit) = (Resource::Node.selectors(&config.node), config.timing.answer);
    let transport = Transport::new(config)?;
    let mut answer = transport.get(Resource::Node, &selectors, || {}, |_, _| {}).await?;
    let mut body = Vec::new();
    while let Some(bytes) = answer.chunk(limit).await?
        && body.len() < MAX_BYTES
    {
        body.extend_from_slice(&bytes);
    }
    let page =
        serde_json::from_slice(&body).and_then(|page: Page<'_>| match page.metadata.version.is_empty() {
            true => Err(serde_json::Error::custom("a list without a resourceVersion")),
            false => Ok(page.items.is_some_and(|items| !items.is_empty())),
        });
    Ok(page.map_err(|error| answer.failure(Reason::NotUnderstood(reason::one_line(&error.to_string()))))?)
}
