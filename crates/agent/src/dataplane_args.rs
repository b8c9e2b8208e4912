//! What the command line says about the data plane.

use std::num::NonZeroUsize;
use std::time::Duration;

use clap::Args;
use sluice_dataplane::{Config, raise_descriptor_limit};

use crate::values;

/// Settings of the data plane.
#[derive(Debug, Args)]
#[command(next_help_heading = "Data plane")]
pub struct DataplaneArgs {
    /// Worker threads that carry traffic [default: one for each CPU].
    #[arg(long, value_name = "N", value_parser = values::at_least_one)]
    pub workers: Option<NonZeroUsize>,
    /// What one client may have, in a hundred: of TCP sessions, and of the node's ports that they have towards an
    /// endpoint, as many as leave the rest free; of UDP flows, and of the node's ports that those have, as many before
    /// its own make room for new ones first. A client is an address; from outside, all IPv6 addresses of a /64 network,
    /// where pods are told from others (--detect-local-mode).
    #[arg(long, value_name = "PERCENT", default_value_t = Config::CLIENT_SHARE,
          value_parser = clap::value_parser!(u8).range(1..=100))]
    pub client_share: u8,
    /// How long a UDP flow may be silent before it ends and the next datagram is balanced anew; four times as long
    /// once it was answered and has lasted for two seconds, and where it is decided at the client's socket. Seconds, or with a unit, as 1m30s.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = values::some_duration)]
    pub udp_idle_timeout: Duration,
    /// Which connections and flows are told of in the log when they end, with client, endpoint, bytes and duration:
    /// `off`, `all`, or one in so many, as `1/100`.
    #[arg(long, value_name = "SAMPLE", default_value = "off", value_parser = values::sample)]
    pub connection_log: values::Sample,
    /// How long a TCP connection of which one side has closed may stand still before it is cut off. Seconds, or with a unit, as 1m30s.
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = values::duration)]
    pub tcp_half_closed_timeout: Duration,
}

impl DataplaneArgs {
    /// The data plane's configuration on this machine: one worker for each CPU that this process may use unless
    /// another number was given, and as many file descriptors as possible.
    pub fn config(&self) -> Config {
        let cpus = || std::thread::available_parallelism().ok();
        let workers = self.workers.or_else(cpus).map_or(1, NonZeroUsize::get);
        Config {
            workers,
            descriptors: raise_descriptor_limit(workers),
            client_share: self.client_share,
            udp_idle: self.udp_idle_timeout,
            half_closed_idle: self.tcp_half_closed_timeout,
            marks: None,
            connection_log: self.connection_log.0,
            service_times: false,
        }
    }
}
