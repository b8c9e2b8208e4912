//! `sluice top`: which Services carry most, again and again.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::fmt::Write;
use std::future::pending;
use std::io::{self, IsTerminal};
use std::pin::Pin;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

use super::api::{Service, ServiceList, ServicePort, Status, Traffic};
use super::client;
use super::output::{self, columns, size};
use super::terminal::Terminal;
use super::text::name_of;
use crate::signals::Signals;
use crate::values;

/// The shortest interval between two questions.
const SHORTEST: Duration = Duration::from_millis(100);

/// Arguments of `sluice top`.
#[derive(Debug, Args)]
pub struct TopArgs {
    /// By what Services are sorted; on a terminal the first letter of each does that, too, and q ends it.
    #[arg(long, value_enum, value_name = "KEY", default_value_t)]
    pub sort: TopSort,
    /// How often to look: rates are of so long. Seconds, or with a unit, as 1m30s.
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = values::duration)]
    pub interval: Duration,
    /// Write one table and end, as where the output is no terminal.
    #[arg(long)]
    pub once: bool,
    /// Service ports in that table, at the most.
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub limit: usize,
    /// Where the agent answers: its --admin-socket.
    #[arg(long, value_name = "PATH", default_value = super::DEFAULT_PATH)]
    pub admin_socket: std::path::PathBuf,
}

/// What comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum TopSort {
    /// New connections a second.
    #[default]
    Connections,
    /// Bytes a second, both ways together.
    Bytes,
    /// Attempts to connect that failed, a second.
    Failures,
    /// Open connections.
    Open,
    /// By name.
    Name,
}

impl TopSort {
    fn of_key(key: u8) -> Option<Self> {
        let first = |sort: &&Self| {
            sort.to_possible_value().is_some_and(|name| name.get_name().as_bytes().first() == Some(&key))
        };
        Self::value_variants().iter().find(first).copied()
    }
}

/// An agent's answer, and when it came.
#[derive(Debug)]
struct Sample {
    at: Instant,
    status: Status,
    services: ServiceList,
}

impl Sample {
    async fn take(args: &TopArgs) -> Result<Self> {
        let status = client::ask(&args.admin_socket, "/v1/status").await?;
        let services = client::ask(&args.admin_socket, "/v1/services?brief=yes").await?;
        Ok(Self { at: Instant::now(), status, services })
    }
}

/// A service port between two samples.
#[derive(Debug, Clone, PartialEq)]
struct Row {
    service: String,
    port: String,
    open: u64,
    /// Per second.
    connections: f64,
    failures: f64,
    to_endpoint: f64,
    from_endpoint: f64,
}

/// Shows the table until it is told to end, or once.
///
/// # Errors
/// There is no answer, or the terminal is gone.
pub async fn top(args: &TopArgs) -> Result<()> {
    let interval = args.interval.max(SHORTEST);
    let mut before = Sample::take(args).await?;
    if args.once || !io::stdout().is_terminal() {
        tokio::time::sleep(interval).await;
        let now = Sample::take(args).await?;
        return output::print(&table(&before, &now, args.sort, args.limit)).map(drop);
    }
    let mut signals = Signals::new()?;
    let mut sort = args.sort;
    let terminal = Terminal::take().context("cannot draw on this terminal: try --once")?;
    let mut keys = Terminal::keys().context("cannot read keys: try --once")?;
    let mut shown: Option<Sample> = None;
    // The first rates come soon.
    let mut next = Instant::now() + interval.min(Duration::from_millis(500));
    // The question under way: it may take long, and must not delay signals and keys.
    let mut asked = None;
    terminal.draw("looking ...")?;
    loop {
        tokio::select! {
            _ = signals.next() => return Ok(()),
            Some(key) = keys.recv() => match TopSort::of_key(key) {
                Some(other) => sort = other,
                None if key == b'q' => return Ok(()),
                None => continue,
            },
            () = tokio::time::sleep_until(next.into()), if asked.is_none() => {
                next = Instant::now() + interval;
                asked = Some(Box::pin(Sample::take(args)));
                continue;
            }
            answer = answered(&mut asked) => {
                asked = None;
                match answer {
                    Ok(now) => {
                        if let Some(last) = shown.replace(now) {
                            before = last;
                        }
                    }
                    // One agent may be replacing another.
                    Err(error) => {
                        terminal.draw(&format!("{error:#}\nIt is asked again."))?;
                        continue;
                    }
                }
            }
        }
        if let Some(now) = &shown {
            terminal.draw(&table(&before, now, sort, Terminal::size().0))?;
        }
    }
}

/// Waits for the answer to a question; never returns if there is none.
async fn answered<T>(asked: &mut Option<Pin<Box<impl Future<Output = T>>>>) -> T {
    match asked {
        Some(asked) => asked.await,
        None => pending().await,
    }
}

/// The text of the whole table.
fn table(before: &Sample, now: &Sample, sort: TopSort, limit: usize) -> String {
    let seconds = now.at.saturating_duration_since(before.at).as_secs_f64().max(0.001);
    let status = &now.status;
    let mut text = String::new();
    let state = if status.is_healthy { "healthy" } else { "not healthy" };
    let counter = |name| status.counters.get(name).copied().unwrap_or_default();
    // Writing to a string does not fail.
    let _ = writeln!(
        text,
        "{}: {state}, {} Services, {} endpoints, {} TCP sessions, {} UDP flows",
        status.node,
        status.services,
        status.endpoints,
        counter("tcp_active"),
        counter("udp_flows_active")
    );
    for problem in &status.problems {
        let _ = writeln!(text, "problem: {problem}");
    }
    let loads = status.worker_loads.iter().zip(&before.status.worker_loads);
    let loads = loads.map(|(now, before)| {
        format!("{:.0} %", 100.0 * (now.cpu_seconds - before.cpu_seconds).max(0.0) / seconds)
    });
    let _ = writeln!(text, "workers: {}\n", loads.collect::<Vec<_>>().join(", "));
    let mut rows = rows(before, now, seconds);
    order(&mut rows, sort);
    let header = ["SERVICE", "PORT", "OPEN", "CONNECTIONS/S", "FAILED/S", "FROM-CLIENTS/S", "TO-CLIENTS/S"];
    let rows = rows.into_iter().take(limit).map(|row| {
        vec![
            row.service,
            row.port,
            row.open.to_string(),
            format!("{:.1}", row.connections),
            format!("{:.1}", row.failures),
            size(row.to_endpoint),
            size(row.from_endpoint),
        ]
    });
    text + &columns(&header, rows.collect())
}

fn order(rows: &mut [Row], sort: TopSort) {
    // Ties are ordered by name.
    rows.sort_by(|a, b| (&a.service, &a.port).cmp(&(&b.service, &b.port)));
    match sort {
        TopSort::Connections => rows.sort_by(|a, b| b.connections.total_cmp(&a.connections)),
        TopSort::Failures => rows.sort_by(|a, b| b.failures.total_cmp(&a.failures)),
        TopSort::Bytes => {
            let bytes = |row: &Row| row.to_endpoint + row.from_endpoint;
            rows.sort_by(|a, b| bytes(b).total_cmp(&bytes(a)));
        }
        TopSort::Open => rows.sort_by_key(|row| Reverse(row.open)),
        TopSort::Name => {}
    }
}

fn rows(before: &Sample, now: &Sample, seconds: f64) -> Vec<Row> {
    type Key<'a> = (&'a str, &'a str, &'a str, &'a str, &'a str);
    fn ports(list: &ServiceList) -> impl Iterator<Item = (Key<'_>, &Service, &ServicePort)> {
        list.items.iter().flat_map(|service| {
            service.ports.iter().map(move |port| {
                let key = (&*service.namespace, &*service.name, &*port.name, &*port.protocol, &*port.family);
                (key, service, port)
            })
        })
    }
    let former: HashMap<Key<'_>, Traffic> =
        ports(&before.services).map(|(key, _, port)| (key, port.traffic)).collect();
    let row = |(key, service, port): (Key<'_>, &Service, &ServicePort)| {
        let (now, before) = (&port.traffic, former.get(&key).copied().unwrap_or_default());
        // The counters of a Service that was recreated start at zero.
        let rate = |now: u64, before: u64| now.checked_sub(before).unwrap_or(now) as f64 / seconds;
        Row {
            service: format!("{}/{}", service.namespace, service.name),
            port: name_of(port),
            open: now.open,
            connections: rate(now.total, before.total),
            failures: rate(now.failed, before.failed),
            to_endpoint: rate(now.bytes_to_endpoint, before.bytes_to_endpoint),
            from_endpoint: rate(now.bytes_from_endpoint, before.bytes_from_endpoint),
        }
    };
    ports(&now.services).map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_first() {
        let row = |service: &str, open, connections, to_endpoint| Row {
            service: service.to_owned(),
            port: String::new(),
            open,
            connections,
            failures: 0.0,
            to_endpoint,
            from_endpoint: 0.0,
        };
        let mut rows = [row("c", 1, 5.0, 1.0), row("b", 2, 5.0, 2.0), row("a", 3, 1.0, 9.0)];
        for (key, wanted) in [(b'c', "bca"), (b'b', "abc"), (b'o', "abc"), (b'n', "abc"), (b'f', "abc")] {
            order(&mut rows, TopSort::of_key(key).unwrap());
            assert_eq!(rows.iter().map(|row| row.service.as_str()).collect::<String>(), wanted);
        }
        assert_eq!(TopSort::of_key(b'x'), None);
    }
}
