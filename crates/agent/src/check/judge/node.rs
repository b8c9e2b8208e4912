//! The Node object: whether the cluster has it under the name that an agent would use.

use super::super::facts::{Facts, NodeObject};
use super::super::finding::Finding;

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    const ABOUT: &str = "node";
    let Some((name, node)) = &facts.node else { return Vec::new() };
    vec![match node {
        NodeObject::There => Finding::ok(ABOUT, format!("the cluster has the Node {name:?}")),
        NodeObject::Missing => Finding::warning(
            ABOUT,
            format!("the cluster has no Node {name:?}: nodePorts, health checks and zones will not work"),
            "see kubectl get nodes, and give the agent this one's name with --hostname-override",
        ),
        NodeObject::NobodyToAsk => Finding::ok(
            ABOUT,
            format!(
                "is to be {name:?}, which was not looked for: give --kubeconfig or --master as the agent gets it, \
                 and --hostname-override"
            ),
        ),
        NodeObject::Unknown(error) => Finding::problem(
            ABOUT,
            format!("it cannot be seen whether the cluster has the Node {name:?}: {error}"),
            "see that the agent has an apiserver: its --kubeconfig, --context and --master may be given here, too",
        ),
    }]
}
