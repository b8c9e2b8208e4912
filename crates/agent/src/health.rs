//! Whether the proxy as a whole is healthy: `/healthz` and the health check node ports answer by it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use sluice_kubeapi::apiserver;

use crate::proxy::Observer;

/// How long changes may fail to reach the kernel. kube-proxy: twice its sync period of 30 s.
const FAILING_MAX: Duration = Duration::from_secs(60);

/// What is asked for the answer. Cloning it is cheap.
#[derive(Debug, Clone)]
pub(crate) struct Health {
    observer: Observer,
    /// None where manifests are followed.
    apiserver: Option<Arc<apiserver::Health>>,
}

/// Why the proxy is not healthy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unhealthy {
    /// It does not know all Services so far.
    NotSynced,
    /// The kernel could not be brought in line for this long.
    Failing(Duration),
}

impl fmt::Display for Unhealthy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotSynced => f.write_str("the apiserver has not told everything so far"),
            Self::Failing(time) => write!(
                f,
                "the kernel's rules and routes could not be brought up to date for {} s: the log says why",
                time.as_secs()
            ),
        }
    }
}

impl Health {
    pub(crate) fn new(observer: Observer, apiserver: Option<Arc<apiserver::Health>>) -> Self {
        Self { observer, apiserver }
    }

    /// How it is now.
    ///
    /// # Errors
    /// The proxy is not healthy.
    pub(crate) fn verdict(&self) -> Result<(), Unhealthy> {
        let is_synced = self.apiserver.as_ref().is_none_or(|health| health.is_synced());
        judge(is_synced, self.observer.capture_failing_for())
    }
}

fn judge(is_synced: bool, failing_for: Option<Duration>) -> Result<(), Unhealthy> {
    match failing_for {
        _ if !is_synced => Err(Unhealthy::NotSynced),
        Some(time) if time > FAILING_MAX => Err(Unhealthy::Failing(time)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases() {
        let seconds = Duration::from_secs;
        let cases = [
            ("all is well", true, None, Ok(())),
            ("nothing is known", false, None, Err(Unhealthy::NotSynced)),
            ("it fails for a while", true, Some(seconds(60)), Ok(())),
            ("it fails for too long", true, Some(seconds(61)), Err(Unhealthy::Failing(seconds(61)))),
        ];
        for (name, is_synced, failing_for, wanted) in cases {
            assert_eq!(judge(is_synced, failing_for), wanted, "{name}");
        }
        assert!(Unhealthy::Failing(seconds(61)).to_string().contains("for 61 s"));
    }
}
