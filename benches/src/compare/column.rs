//! The columns: the program that measures each, and its output.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use sluice_model::Protocol;

use crate::contender::Running;
use crate::site::{DNS, HTTP, IPERF, NAMES, TCP_ECHO, UDP_ECHO, ZONE};
use crate::tool::{self, number_after, number_before};
use crate::usage;

/// Number of connections of `wrk`.
const CONNECTIONS: &str = "32";
/// Number of sockets of `dnsperf`.
const RESOLVERS: &str = "8";
/// How long a program may take to start and to end, besides the time that it measures.
const PATIENCE: Duration = Duration::from_secs(30);

/// A column of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Column {
    /// One TCP stream from the client to the server, at full speed.
    Bulk,
    /// Four such streams.
    Bulk4,
    /// HTTP requests on one open connection, one after the other.
    Request,
    /// A few bytes there and back on an open TCP connection, one exchange after the other. The client does
    /// nothing else, so the latency in between shows most.
    Exchange,
    /// HTTP requests, each on its own connection.
    Connections,
    /// HTTP requests on open connections.
    Requests,
    /// DNS queries, at full rate.
    Dns,
    /// A few bytes there and back over UDP, one exchange after the other.
    Datagram,
}

/// The result of one measurement.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// In the column's unit.
    pub value: f64,
    /// What was lost or failed, as a share of the total.
    pub lost: f64,
    /// The amount of work, in the units to which CPU time is related.
    pub work: f64,
    /// CPU time of the contender's processes.
    pub own_cpu: Duration,
    /// CPU time of the whole machine: client, contender, server and kernel.
    pub all_cpu: Duration,
}

/// The output of a program.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Reading {
    value: f64,
    lost: f64,
    work: f64,
}

impl Column {
    /// All columns, in the order of the table.
    pub const ALL: [Self; 8] = [
        Self::Bulk,
        Self::Bulk4,
        Self::Request,
        Self::Exchange,
        Self::Connections,
        Self::Requests,
        Self::Dns,
        Self::Datagram,
    ];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bulk => "bulk",
            Self::Bulk4 => "bulk4",
            Self::Request => "request",
            Self::Exchange => "exchange",
            Self::Connections => "connections",
            Self::Requests => "requests",
            Self::Dns => "dns",
            Self::Datagram => "datagram",
        }
    }

    /// The title in tables and plots.
    pub fn title(self) -> &'static str {
        match self {
            Self::Bulk => "bulk, one stream",
            Self::Bulk4 => "bulk, four streams",
            Self::Request => "one request",
            Self::Exchange => "TCP round trip",
            Self::Connections => "a connection a request",
            Self::Requests => "requests kept alive",
            Self::Dns => "DNS queries",
            Self::Datagram => "UDP round trip",
        }
    }

    /// The unit of its values.
    pub fn unit(self) -> &'static str {
        match self {
            Self::Bulk | Self::Bulk4 => "Gbit/s",
            Self::Request | Self::Exchange | Self::Datagram => "us",
            Self::Connections | Self::Requests | Self::Dns => "/s",
        }
    }

    /// The unit of work to which CPU time is related.
    pub fn work(self) -> &'static str {
        match self {
            Self::Bulk | Self::Bulk4 => "GB",
            Self::Exchange | Self::Datagram => "round trip",
            Self::Request | Self::Connections | Self::Requests => "request",
            Self::Dns => "query",
        }
    }

    /// Whether less is better.
    pub fn is_time(self) -> bool {
        matches!(self, Self::Request | Self::Exchange | Self::Datagram)
    }

    /// The protocol that a contender has to carry for it.
    pub fn protocol(self) -> Protocol {
        match self {
            Self::Dns | Self::Datagram => Protocol::Udp,
            _ => Protocol::Tcp,
        }
    }

    /// The programs that it needs.
    pub fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Bulk | Self::Bulk4 => &["iperf3"],
            Self::Exchange | Self::Datagram => &["sockperf"],
            Self::Request | Self::Connections | Self::Requests => &["wrk", "nginx"],
            Self::Dns => &["dnsperf", "nsd"],
        }
    }

    /// Measures a contender once.
    ///
    /// # Errors
    /// A program has failed, or its output cannot be parsed.
    pub fn measure(self, running: &Running, seconds: u64) -> Result<Sample> {
        let command = self.command(running, seconds)?;
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        let (own, all) = (usage::cpu_of(&running.processes)?, usage::cpu_of_machine()?);
        let patience = Duration::from_secs(seconds) + PATIENCE;
        let said = running.as_client(|| tool::run(&running.site.client().ns, &command, patience))?;
        let own_cpu = usage::cpu_of(&running.processes)?.saturating_sub(own);
        let all_cpu = usage::cpu_of_machine()?.saturating_sub(all);
        let said = said.well()?;
        let Reading { value, lost, work } = self.read(&said).with_context(|| said.clone())?;
        Ok(Sample { value, lost, work, own_cpu, all_cpu })
    }

    fn command(self, running: &Running, seconds: u64) -> Result<Vec<String>> {
        let ip = running.ip;
        let line = match self {
            Self::Bulk => format!("iperf3 -J -c {ip} -p {IPERF} -t {seconds}"),
            Self::Bulk4 => format!("iperf3 -J -c {ip} -p {IPERF} -t {seconds} -P 4"),
            Self::Exchange => {
                format!("sockperf ping-pong --tcp -i {ip} -p {TCP_ECHO} -t {seconds} --full-rtt")
            }
            Self::Datagram => format!("sockperf ping-pong -i {ip} -p {UDP_ECHO} -t {seconds} --full-rtt"),
            Self::Request => format!("wrk -t 1 -c 1 -d {seconds} http://{ip}:{HTTP}/"),
            Self::Requests => format!("wrk -t 2 -c {CONNECTIONS} -d {seconds} http://{ip}:{HTTP}/"),
            Self::Connections => {
                let line = format!("wrk -t 2 -c {CONNECTIONS} -d {seconds} http://{ip}:{HTTP}/ -H");
                return Ok(words(&line).chain(["Connection: close".to_owned()]).collect());
            }
            Self::Dns => {
                let path = running.site.directory().join("queries");
                let queries: String = (0..NAMES).map(|name| format!("name-{name}.{ZONE} A\n")).collect();
                fs::write(&path, queries)?;
                // A lost query counts among the outstanding ones until its timeout.
                format!(
                    "dnsperf -s {ip} -p {DNS} -d {} -l {seconds} -c {RESOLVERS} -q 100 -t 1",
                    path.display()
                )
            }
        };
        Ok(words(&line).collect())
    }

    fn read(self, said: &str) -> Result<Reading> {
        match self {
            Self::Bulk | Self::Bulk4 => read_iperf(said),
            Self::Exchange | Self::Datagram => read_sockperf(said),
            Self::Connections | Self::Requests => read_wrk(said),
            Self::Request => {
                let reading = read_wrk(said)?;
                Ok(Reading { value: 1e6 / reading.value, ..reading })
            }
            Self::Dns => read_dnsperf(said),
        }
    }
}

fn words(line: &str) -> impl Iterator<Item = String> {
    line.split(' ').map(str::to_owned)
}

fn read_iperf(said: &str) -> Result<Reading> {
    let said: Value = serde_json::from_str(said)?;
    if let Some(error) = said.get("error") {
        bail!("{error}");
    }
    let number = |pointer| said.pointer(pointer).and_then(Value::as_f64).context(pointer);
    Ok(Reading {
        value: number("/end/sum_received/bits_per_second")? / 1e9,
        lost: 0.0,
        work: number("/end/sum_received/bytes")? / 1e9,
    })
}

fn read_sockperf(said: &str) -> Result<Reading> {
    let (sent, received) = (
        number_after(said, "SentMessages=").context("SentMessages")?,
        number_after(said, "ReceivedMessages=").context("ReceivedMessages")?,
    );
    Ok(Reading {
        value: number_after(said, "percentile 50.000 =").context("the median")?,
        // The last one is still in flight when the time is over.
        lost: (sent - received - 1.0).max(0.0) / sent.max(1.0),
        work: received,
    })
}

fn read_wrk(said: &str) -> Result<Reading> {
    let work = number_before(said, " requests in").context("how many requests")?;
    let errors: f64 = ["connect ", "read ", "write ", "timeout "]
        .iter()
        .filter_map(|kind| number_after(said.split_once("Socket errors:")?.1, kind))
        .sum();
    let odd = number_after(said, "Non-2xx or 3xx responses:").unwrap_or(0.0);
    let value = number_after(said, "Requests/sec:").context("requests a second")?;
    Ok(Reading { value, lost: (errors + odd) / (work + errors).max(1.0), work })
}

fn read_dnsperf(said: &str) -> Result<Reading> {
    let number = |label| number_after(said, label).context(label);
    let (sent, completed) = (number("Queries sent:")?, number("Queries completed:")?);
    Ok(Reading {
        value: number("Queries per second:")?,
        lost: (sent - completed) / sent.max(1.0),
        work: completed,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iperf3_is_read() {
        let said = r#"{ "end": { "sum_received": { "bytes": 2500000000, "bits_per_second": 10e9 } } }"#;
        assert_eq!(read_iperf(said).unwrap(), Reading { value: 10.0, lost: 0.0, work: 2.5 });
        assert!(read_iperf(r#"{ "error": "unable to connect" }"#).is_err());
    }

    #[test]
    fn sockperf_is_read() {
        let said = "sockperf: [Total Run] RunTime=1.000 sec; Warm up time=400 msec; SentMessages=101; ReceivedMessages=100\n\
                    sockperf: [Valid Duration] RunTime=0.550 sec; SentMessages=80; ReceivedMessages=80\n\
                    sockperf: ---> percentile 99.000 =    7.225\nsockperf: ---> percentile 50.000 =    6.386\n";
        assert_eq!(read_sockperf(said).unwrap(), Reading { value: 6.386, lost: 0.0, work: 100.0 });
    }

    #[test]
    fn wrk_is_read_with_its_errors() {
        let said = "  900 requests in 5.00s, 50.1MB read\n  Socket errors: connect 0, read 60, write 0, timeout 40\n\
                    Requests/sec:    180.00\n";
        assert_eq!(read_wrk(said).unwrap(), Reading { value: 180.0, lost: 0.1, work: 900.0 });
    }

    #[test]
    fn dnsperf_is_read_with_its_losses() {
        let said = "  Queries sent:         200\n  Queries completed:    198 (99.00%)\n  Queries lost:         2 (1.00%)\n\
                    \x20 Queries per second:   66.5\n";
        assert_eq!(read_dnsperf(said).unwrap(), Reading { value: 66.5, lost: 0.01, work: 198.0 });
    }
}
