//! The program's command, with settings that clap cannot have at the flags themselves.

use clap::CommandFactory as _;

use super::Cli;
use crate::config;

/// Lists that count as one setting, of which the last one counts: kube-proxy's --cluster-cidr is a text, and a
/// user who names the pods' namespaces or sidecars' ports means all of them.
pub(super) const ONE_LIST: [&str; 3] = ["cluster_cidr", "socket_namespaces", "socket_sidecar_ports"];

/// The program's command, which also accepts kube-proxy's flags.
pub(crate) fn command() -> clap::Command {
    command_with(std::iter::empty())
}

/// The same, but of these arguments of the agent only the last one counts.
pub(super) fn command_with(one_list: impl Iterator<Item = &'static str>) -> clap::Command {
    let last_counts = |agent: clap::Command, id| agent.mut_arg(id, |arg| arg.overrides_with(id));
    let command = Cli::command()
        .mut_subcommand("agent", |agent| one_list.fold(config::with_foreign_flags(agent), last_counts));
    let mut command = command.mut_subcommands(|command| command.mut_args(with_negatives));
    command.build();
    command
}

/// Lets a flag have negative values, so that the error is about the value: otherwise they would be taken for
/// flags.
fn with_negatives(arg: clap::Arg) -> clap::Arg {
    const DURATIONS: [&str; 5] =
        ["grace_period", "udp_idle_timeout", "tcp_half_closed_timeout", "interval", "timeout"];
    if DURATIONS.contains(&arg.get_id().as_str()) {
        arg.allow_hyphen_values(true)
    } else if arg.get_action().takes_values() && !arg.is_allow_hyphen_values_set() {
        arg.allow_negative_numbers(true)
    } else {
        arg
    }
}
