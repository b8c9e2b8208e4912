//! TCP: from an accepted connection to bytes moving both ways.
//!
//! ```text
//! listener ─accept─► session: Connecting ─► Relaying ─► ended
//!                      │ connect: which endpoint next, and for how long
//!                      └ relaying: direction x 2: buffer or pipe, one way
//! ```

mod attempt;
pub(crate) mod client_sessions;
mod complaints;
pub(crate) mod connect;
pub(crate) mod delivering;
mod direction;
pub(crate) mod exhausted;
mod failed;
pub(crate) mod listener;
pub(crate) mod orphans;
pub(crate) mod peer;
pub(crate) mod pipe;
pub(crate) mod port_shares;
pub(crate) mod relay;
pub(crate) mod relaying;
pub(crate) mod session;
pub(crate) mod socket;
