//! Logs whether the cluster has the Node that the agent runs on, when that changes.

/// The last observation of the Node.
#[derive(Debug, Default)]
pub(super) struct OwnNode {
    /// Whether it existed; `None` before the first lookup.
    is_there: Option<bool>,
}

impl OwnNode {
    /// Logs once that the cluster has no Node of this name, and once that it has it again.
    pub(super) fn seen(&mut self, name: &str, is_there: bool) {
        match (self.is_there, is_there) {
            (None, false) => tracing::warn!(
                "the cluster has no Node {name:?}: nodePorts, health checks and zones do not work until it has: see \
                 kubectl get nodes, and give this one's name with --hostname-override"
            ),
            (Some(true), false) => tracing::warn!(
                "the cluster has no Node {name:?} any more: nodePorts and zones go by what it said last, and load balancers \
                 are told not to send here until there is one again"
            ),
            (Some(false), true) => tracing::info!("the cluster has the Node {name:?} now"),
            _ => {}
        }
        self.is_there = Some(is_there);
    }
}
