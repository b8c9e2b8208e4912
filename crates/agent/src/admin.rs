//! Inspecting a running agent: the local socket by which commands ask it, and the commands.
//!
//! ```text
//! sluice services … ── client ──► /run/sluice/admin.sock ── server ──► what the agent shares: table, counters,
//!   (a process)          HTTP, JSON (api)                   (tokio)    health; nothing is changed
//! ```
//!
//! The status page shows the same to people with a browser: `page`, on the metrics port.
//!
//! During a hand-over, the newer of two agents answers as soon as it has started. If it ends first, the older
//! one answers again.

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
