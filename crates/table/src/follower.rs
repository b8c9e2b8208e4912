//! Who follows what is remembered of clients, where connections are decided at their sockets: programs that lead a client to
//! the endpoint that it has here, and to no other. Only the table chooses.

use std::fmt::Debug;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::Upstream;

/// Whoever leads clients of one service port to the endpoints that they keep. Called by workers with a lock held on the
/// client: a system call or two is what it may take.
pub trait Follower: Debug + Send + Sync {
    /// From now on this client is to be led to this endpoint, to which it has been led just now; whether it will be, as there may
    /// be no room. Whatever it was led to before it is not any more, in either case.
    fn follow(&self, client: IpAddr, upstream: &Upstream) -> bool;

    /// The client is led nowhere any more.
    fn forget(&self, client: IpAddr);

    /// How long ago a client that is led was led last.
    fn idle(&self, client: IpAddr) -> Option<Duration>;
}

/// The same, shared. Behind a thin pointer, of which each client has one.
pub type SharedFollower = Arc<Box<dyn Follower>>;
