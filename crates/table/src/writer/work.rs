//! How much the writer has done: counted, so that a test can tell that a change costs what it
//! touches and no more.

use std::ops::Sub;

/// What the writer did since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Work {
    /// Services whose frontends were worked out.
    pub frontend_runs: u64,
    /// Services whose endpoints were worked out.
    pub endpoint_runs: u64,
    /// Endpoints that were looked at, counted once for each service port.
    pub endpoints: u64,
    /// Ports of slices, and frontends, that were looked through for those that belong to service ports.
    pub searched: u64,
    /// Service ports whose endpoints or rules were swapped.
    pub swaps: u64,
    /// Frontends whose route and verdicts were worked out for a plan.
    pub planned: u64,
    /// Routes that were added to the table or taken out of it.
    pub routes: u64,
    /// Copies of the table's map, each for a publication that changed routes.
    pub maps: u64,
}

/// What was done between two readings.
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
