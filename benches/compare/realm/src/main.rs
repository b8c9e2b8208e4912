//! A realm relay for one port, with the options of realm's own program that the comparison uses: `-l LISTEN
//! -r REMOTE`, and `-u -t` for UDP instead of TCP.

use std::net::SocketAddr;
use std::process::ExitCode;

use realm_core::endpoint::{BindOpts, ConnectOpts, Endpoint, RemoteAddr};
use realm_core::{tcp, udp};

/// The timeouts of realm's own program, in seconds.
const CONNECT_TIMEOUT: usize = 5;
const ASSOCIATE_TIMEOUT: usize = 30;

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let after = |option: &str| {
        let at = arguments.iter().position(|argument| argument == option)?;
        arguments.get(at + 1)?.parse::<SocketAddr>().ok()
    };
    let (Some(laddr), Some(remote)) = (after("-l"), after("-r")) else {
        eprintln!("usage: realm-relay [-u -t] -l ADDRESS -r ADDRESS");
        return ExitCode::FAILURE;
    };
    let conn_opts = ConnectOpts {
        connect_timeout: CONNECT_TIMEOUT,
        associate_timeout: ASSOCIATE_TIMEOUT,
        ..ConnectOpts::default()
    };
    let endpoint = Endpoint {
        laddr,
        raddr: RemoteAddr::SocketAddr(remote),
        bind_opts: BindOpts::default(),
        conn_opts,
        extra_raddrs: Vec::new(),
    };
    let ended = if arguments.iter().any(|argument| argument == "-u") {
        udp::run_udp(endpoint).await
    } else {
        tcp::run_tcp(endpoint).await
    };
    eprintln!("the relay has ended: {ended:?}");
    ExitCode::FAILURE
}
