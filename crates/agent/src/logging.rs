//! Logs to standard error, one line for each event, as text or as JSON.

mod json;
mod patient;
mod place;

use std::ffi::OsStr;
use std::fmt;
use std::io::IsTerminal;
use std::sync::Arc;

use clap::ValueEnum;
use patient::Patient;
use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber, warn};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{self, Writer};
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// `--logging-format`, as kube-proxy has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// An object a line, with the names that Kubernetes' components have for its members.
    Json,
}

/// The running log. Clones share it.
#[derive(Clone)]
pub struct Logging {
    /// `None` if `RUST_LOG` decides.
    reload: Option<Arc<dyn Fn(EnvFilter) + Send + Sync>>,
    lines: Option<Patient>,
}

impl fmt::Debug for Logging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Logging")
    }
}

/// The filter of `-v`: everything of Sluice's own. Libraries are left out, because they log each HTTP/2 frame
/// at this level.
const DEBUG: &str = "debug,h2=info,hyper=info,hyper_util=info,reqwest=info,rustls=info";

/// The filter for `-v` and kube-proxy's `--v`, whichever is larger, starting from `default`. kube-proxy logs
/// details from 4 on, and single requests from 6 on.
pub fn level(verbose: u8, kube_proxy: Option<u32>, default: &str) -> &str {
    let theirs = match kube_proxy {
        None | Some(0..=3) => 0,
        Some(4..=5) => 1,
        Some(_) => 2,
    };
    match verbose.max(theirs) {
        0 => default,
        1 => DEBUG,
        _ => "trace",
    }
}

/// Starts logging. `RUST_LOG` decides what is logged if it is set; otherwise the number of `-v`, starting from
/// `default` (a level such as `info`).
pub fn start(verbose: u8, default: &str) -> Logging {
    start_at(level(verbose, None, default), Format::Text)
}

/// Starts logging. `RUST_LOG` decides what is logged if it is set to something usable; otherwise a level such
/// as `info`.
pub fn start_at(level: &str, format: Format) -> Logging {
    let wanted = std::env::var_os(EnvFilter::DEFAULT_ENV);
    let wanted = wanted.map(|wanted| wanted.to_string_lossy().into_owned());
    let (filter, complaint) = match wanted.as_deref().map(str::trim) {
        None | Some("") => (None, None),
        Some(wanted) => match read(wanted) {
            Ok(filter) => (Some(filter), None),
            Err(reason) => (None, Some(format!("RUST_LOG={wanted} is not used: {reason}"))),
        },
    };
    let is_fixed = filter.is_some();
    let filter = filter.unwrap_or_else(|| EnvFilter::new(level));
    let lines = Patient::stderr().ok();
    let writer = match lines.clone() {
        Some(patient) => BoxMakeWriter::new(patient),
        // Standard error is closed: there is no reader to wait for.
        None => BoxMakeWriter::new(std::io::stderr),
    };
    let builder = tracing_subscriber::fmt()
        .with_writer(writer)
        .with_ansi(
            std::io::stderr().is_terminal() && may_have_colours(std::env::var_os("NO_COLOR").as_deref()),
        )
        .event_format(Lines(format))
        .with_env_filter(filter)
        .with_filter_reloading();
    let handle = builder.reload_handle();
    builder.init();
    complaint.iter().for_each(|complaint| warn!("{complaint}"));
    // If the subscriber is gone, there is nothing to change.
    let reload = (!is_fixed).then(|| Arc::new(move |filter| drop(handle.reload(filter))) as _);
    Logging { reload, lines }
}

/// Whether the user allows colours: a non-empty `NO_COLOR` forbids them (<https://no-color.org>).
fn may_have_colours(no_color: Option<&OsStr>) -> bool {
    no_color.is_none_or(OsStr::is_empty)
}

/// Parses a filter of tracing. A single word that is no level is refused: it would be taken for the only module
/// to log, and silence all others.
fn read(filter: &str) -> Result<EnvFilter, String> {
    const MEND: &str =
        "write error, warn, info, debug or trace, or levels of single parts, as info,sluice_capture=debug";
    let is_word = |part: &&str| {
        let is_part = part.contains(['=', '[', ':']) || part.starts_with("sluice");
        !part.is_empty() && !is_part && part.parse::<LevelFilter>().is_err()
    };
    if let Some(word) = filter.split(',').map(str::trim).find(is_word) {
        return Err(format!("{word:?} is no level; {MEND}"));
    }
    EnvFilter::builder().parse(filter).map_err(|error| format!("{error}; {MEND}"))
}

impl Logging {
    /// Changes the level; returns false if `RUST_LOG` decides.
    pub fn set(&self, level: &str) -> bool {
        let Some(reload) = &self.reload else { return false };
        reload(EnvFilter::new(level));
        true
    }

    /// How many lines were lost because the reader had stopped.
    pub fn lost(&self) -> u64 {
        self.lines.as_ref().map_or(0, Patient::lost)
    }

    /// Writes waiting lines as far as there is room. To be called from time to time: each new line does it too,
    /// but the next one may be far off.
    pub fn flush(&self) {
        if let Some(lines) = &self.lines {
            lines.flush();
        }
    }

    /// The same at the end of the process, waiting a short time for the reader.
    pub fn finish(&self) {
        if let Some(lines) = &self.lines {
            lines.finish();
        }
    }
}

/// Writes an event in a format.
struct Lines(Format);

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        match self.0 {
            Format::Text => format::format().with_target(false).format_event(context, writer, event),
            Format::Json => writeln!(writer, "{}", json::line(event, jiff::Timestamp::now())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_that_would_silence_everything_by_mistake_are_refused() {
        for good in [
            "info",
            "WARN",
            "off",
            "4",
            "sluice",
            "info,sluice_capture=debug",
            "hyper=trace,info",
            "[span]=debug",
        ] {
            assert!(read(good).is_ok(), "{good}");
        }
        for bad in ["verbose", "warning", "info,all", "info,sluice=loud", "7"] {
            assert!(read(bad).is_err_and(|said| said.contains("write error, warn")), "{bad}");
        }
    }

    #[test]
    fn the_larger_of_both_levels_counts() {
        let cases = [
            (0, None, "info"),
            (0, Some(2), "info"),
            (0, Some(4), DEBUG),
            (1, Some(10), "trace"),
            (2, None, "trace"),
        ];
        assert!(read(DEBUG).is_ok());
        for (verbose, kube_proxy, wanted) in cases {
            assert_eq!(level(verbose, kube_proxy, "info"), wanted, "{verbose} {kube_proxy:?}");
        }
    }
}
