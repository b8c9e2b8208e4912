//! Counts the writer's work, so that a test can check that a change costs no more than it touches.

use std::ops::Sub;

/// The writer's work since it was created.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Work {
    /// Services whose frontends were computed.
    pub frontend_runs: u64,
    /// Services whose endpoints were computed.
    pub endpoint_runs: u64,
    /// Endpoints examined, counted once for each service port.
    pub endpoints: u64,
    /// Slices' ports and frontends that were searched for those that belong to service ports.
    pub searched: u64,
    /// Service ports whose endpoints or rules were swapped.
    pub swaps: u64,
    /// Frontends whose route and verdicts were computed for a plan.
    pub planned: u64,
    /// Routes added to the table or removed from it.
    pub routes: u64,
    /// Copies of the table's map: one for each publication that changed routes.
    pub maps: u64,
}

/// The work between two readings.
impl Sub for Work {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            frontend_runs: self.frontend_runs - earlier.frontend_runs,
            endpoint_runs: self.endpoint_runs - earlier.endpoint_runs,
            endpoints: self.endpoints - earlier.endpoints,
            searched: self.searched - earlier.searched,
            swaps: self.swaps - earlier.swaps,
            planned: self.planned - earlier.planned,
            routes: self.routes - earlier.routes,
            maps: self.maps - earlier.maps,
        }
    }
}
