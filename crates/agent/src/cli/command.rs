//! The program's command, with what clap cannot be told at the flags themselves.

use clap::CommandFactory as _;

use super::Cli;
use crate::config;

/// Lists that are one setting, of which the last one counts: kube-proxy's --cluster-cidr is a text, and who names the pods'
/// namespaces, or sidecars' ports, means all of them.
pub(super) const ONE_LIST: [&str; 3] = ["cluster_cidr", "socket_namespaces", "socket_sidecar_ports"];

/// The program's command, taking kube-proxy's flags as well.
pub(crate) fn command() -> clap::Command {
    command_with(std::iter::empty())
}

/// The same, with the last one counting of these arguments of the agent's.
pub(super) fn command_with(one_list: impl Iterator<Item = &'static str>) -> clap::Command {
    let last_counts = |agent: clap::Command, id| agent.mut_arg(id, |arg| arg.overrides_with(id));
    let command = Cli::command()
        .mut_subcommand("agent", |agent| one_list.fold(config::with_foreign_flags(agent), last_counts));
    let mut command = command.mut_subcommands(|command| command.mut_args(with_negatives));
    command.build();
    command
}

/// Has a flag get values that are negative, to say what is wrong with them: otherwise they would be taken for flags.
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
