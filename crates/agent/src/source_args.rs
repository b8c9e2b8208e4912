//! The command line's settings of the source of Services and endpoints.

use std::path::PathBuf;

use clap::Args;
use sluice_kubeapi::apiserver;

/// Where Services and endpoints come from: an apiserver, found as kubectl finds it, or files.
#[derive(Debug, Args)]
#[command(next_help_heading = "Source")]
pub struct SourceArgs {
    /// Kubernetes manifests with Services and EndpointSlices instead of an apiserver: a YAML or JSON
    /// file, or a directory of them. May be given several times. Changes on disk take effect within a
    /// second.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["kubeconfig", "context", "master"])]
    pub manifests: Vec<PathBuf>,
    /// The apiserver.
    #[command(flatten)]
    pub apiserver: ApiserverArgs,
}

/// How the apiserver is reached.
#[derive(Debug, Args)]
pub struct ApiserverArgs {
    /// The kubeconfig to reach the apiserver with [default: the files of KUBECONFIG; without them, the
    /// pod's service account].
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The kubeconfig's context to use instead of its current one.
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
    /// An apiserver's own address, such as https://10.0.0.2:6443: instead of the kubeconfig's or the
    /// `kubernetes` Service's, which this agent is to provide and must not need. May be given several
    /// times: the next one is used while one does not answer, or refuses credentials that have been
    /// renewed. None are sent to an address with http://, or with no scheme, which means that.
    #[arg(long, value_name = "URL")]
    pub master: Vec<String>,
}

impl ApiserverArgs {
    /// The configuration for following the apiserver as a node of this name.
    pub(crate) fn config(&self, node: &str) -> apiserver::Config {
        let mut config = apiserver::Config::new(node, apiserver::Environment::of_process());
        config.kubeconfig.clone_from(&self.kubeconfig);
        config.context.clone_from(&self.context);
        config.masters = self.master.iter().filter(|master| !master.is_empty()).cloned().collect();
        config
    }
}
