//! Notifications about session affinity for socket mode, where BPF programs translate a client to the
//! endpoint that the table has chosen for it, and to no other. Only the table chooses.

use std::fmt::Debug;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::policy::SetName;
use crate::{Client, Upstream};

/// The sets of a service port in which BPF programs translate a client's connections to the endpoint that it
/// keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Led {
    cluster: bool,
    local: bool,
}

impl Led {
    /// In none.
    pub const NOWHERE: Self = Self { cluster: false, local: false };

    /// Whether the client is translated in this set.
    pub fn is_in(self, set: SetName) -> bool {
        match set {
            SetName::Cluster => self.cluster,
            SetName::Local => self.local,
        }
    }

    /// The same, plus this set.
    pub const fn and_in(self, set: SetName) -> Self {
        match set {
            SetName::Cluster => Self { cluster: true, ..self },
            SetName::Local => Self { local: true, ..self },
        }
    }
}

/// A client that BPF programs have been translating since before the table knew it.
#[derive(Debug, Clone, Copy)]
pub struct Adopted<'a> {
    /// The client's address.
    pub client: IpAddr,
    /// The set in which it is translated.
    pub set: SetName,
    /// The endpoint that it is translated to.
    pub upstream: &'a Arc<Upstream>,
    /// How long ago it was last translated.
    pub idle: Duration,
}

/// The part of socket mode that translates clients of one service port to the endpoints that they keep.
/// Workers call it while they hold the lock on the client's entry, so that the last notification matches the
/// table. An implementation may make one or two system calls, no more.
pub trait Follower: Debug + Send + Sync {
    /// From now on this client is to be translated to this endpoint, to which it has just been relayed. `led`
    /// says in which sets it was translated so far. Returns in which sets it is from now on: possibly none,
    /// if there is no room or this client is never translated. In any case it is not translated to the
    /// previous endpoint any more.
    fn follow(&self, client: Client, upstream: &Upstream, led: Led) -> Led;

    /// One more client is translated in this set, as it has been all the time.
    fn adopt(&self, set: SetName);

    /// The client is not translated any more in the sets `led`, in which it was so far.
    fn forget(&self, client: IpAddr, led: Led);

    /// How long ago a client that is translated in the sets `led` was last translated.
    fn idle(&self, client: IpAddr, led: Led) -> Option<Duration>;
}

/// A shared [`Follower`]. Behind a thin pointer, because each client has one.
pub type SharedFollower = Arc<Box<dyn Follower>>;
