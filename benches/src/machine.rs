//! The machine and the build of a measurement.

use std::fs;

use crate::site::cpus;

/// A line that describes this machine and this build.
pub fn heading() -> String {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("an unknown processor", |(_, model)| model.trim());
    let build = if cfg!(debug_assertions) { "a development build: figures mean nothing" } else { "release" };
    format!(
        "{} of {model} that client, contender and server share, Linux {}, {build}.\n",
        match cpus() {
            1 => "1 processor".to_owned(),
            n => format!("{n} processors"),
        },
        read("/proc/sys/kernel/osrelease").trim(),
    )
}
