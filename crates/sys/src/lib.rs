//! The few system calls that no crate wraps safely. The only unsafe code of the workspace: every module has a
//! safe interface and contains no policy.

pub mod bpf;
pub mod local_port;
pub mod memory;
pub mod netlink;
mod skipped;
pub mod sock_diag;
pub mod tcp;
pub mod udp;

pub use skipped::skipped;
