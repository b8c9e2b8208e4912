//! Who follows what is remembered of clients, where connections are decided at their sockets: programs that lead a client to
//! the endpoint that it has here, and to no other. Only the table chooses.

use std::fmt::Debug;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::policy::SetName;
use crate::{Client, Upstream};

/// In which sets of a service port a client is led.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Led {
    cluster: bool,
    local: bool,
}

impl Led {
    /// In none.
    pub const NOWHERE: Self = Self { cluster: false, local: false };

    /// Whether it is led in this one.
    pub fn is_in(self, set: SetName) -> bool {
        match set {
            SetName::Cluster => self.cluster,
            SetName::Local => self.local,
        }
    }

    /// The same, and in this one.
    pub const fn and_in(self, set: SetName) -> Self {
        match set {
            SetName::Cluster => Self { cluster: true, ..self },
            SetName::Local => Self { local: true, ..self },
        }
    }
}

/// A client that those who lead clients have led since before the table knew it.
#[derive(Debug, Clone, Copy)]
pub struct Adopted<'a> {
    /// Who it is.
    pub client: IpAddr,
    /// In which set it is led.
    pub set: SetName,
    /// Where to.
    pub upstream: &'a Arc<Upstream>,
    /// How long ago it was led last.
    pub idle: Duration,
}

/// Whoever leads clients of one service port to the endpoints that they keep. Called by workers with a lock held on the client,
/// so that what is said of it last is what the table knows: a system call or two is what it may take.
pub trait Follower: Debug + Send + Sync {
    /// From now on this client is to be led to this endpoint, to which it has been led just now. `led` is where it was led so
    /// far, and the answer where it is from now on: there may be no room, or it may be nobody who is led. Whatever it was led to
    /// before it is not any more, in either case.
    fn follow(&self, client: Client, upstream: &Upstream, led: Led) -> Led;

    /// One more is led in this set, as it has been all the time.
    fn adopt(&self, set: SetName);

    /// The client is led nowhere any more, where it was so far.
    fn forget(&self, client: IpAddr, led: Led);

    /// How long ago a client was led last that is led there.
    fn idle(&self, client: IpAddr, led: Led) -> Option<Duration>;
}

/// The same, shared. Behind a thin pointer, of which each client has one.
pub type SharedFollower = Arc<Box<dyn Follower>>;
