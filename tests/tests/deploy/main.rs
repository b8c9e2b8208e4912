//! What is in `deploy/`: that it says what Kubernetes and the agent understand, and (`image`) that the image runs as the
//! DaemonSet would have it.
//!
//! `kubectl` renders: the one of `$KUBECTL`, else the one on `PATH`, 1.21 or newer.

// All of it is test code, helpers too, where clippy does not see that by itself.
#![allow(clippy::expect_used, clippy::panic, clippy::print_stderr, clippy::unwrap_used)]

mod manifests;
mod pod;

mod chart;
mod daemonset;
mod image;
mod kinds;
mod monitoring;
mod unit;
