//! The program `sluice` as a person runs it.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]
#![expect(clippy::panic, reason = "how a test fails")]

mod apiserver;
mod browser;
mod common;
mod config;
mod connections;
mod crowd;
mod demo;
mod events;
mod exposition;
mod health;
mod inside;
mod logs;
mod manifests;
mod status_page;
mod taking_over;
mod top;
mod version;
