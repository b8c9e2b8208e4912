//! Looking inside: the local socket by which commands ask a running agent, and the commands.
//!
//! ```text
//! sluice services … ── client ──► /run/sluice/admin.sock ── server ──► what the agent shares: table, counters,
//!   (a process)          HTTP, JSON (api)                   (tokio)    health; nothing is changed
//! ```
//!
//! The same is on the status page, for people with a browser: `page`, on the port of metrics.
//!
//! Of two agents at a hand-over the newer one answers, from when it has started; if it goes first, the older one
//! answers again.

pub mod api;

mod client;
mod commands;
mod connections;
mod explain;
mod output;
mod page;
mod server;
mod services;
mod socket;
mod status;
mod terminal;
mod text;
mod top;
mod watch;

pub use commands::{
    AskArgs, ConnectionsArgs, Expected, ExplainArgs, ServicesArgs, StatusArgs, connections, explain,
    services, status,
};
pub use connections::{Peer, Sort};
pub use output::Output;
pub(crate) use page::Page;
pub use page::StatusPage;
pub(crate) use server::{Admin, Inside};
pub use socket::DEFAULT_PATH;
pub use top::{TopArgs, TopSort, top};
pub use watch::WatchArgs;
