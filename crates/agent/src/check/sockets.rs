//! What `--capture socket` needs of this node. Without it nothing is amiss: connections are relayed.

use sluice_socket::State;

use super::Finding;
use crate::socket_args::SocketArgs;

/// What is there and what is missing, each with its mend.
pub(super) fn finding(args: &SocketArgs) -> Finding {
    judge(&args.probe())
}

fn judge(needs: &[sluice_socket::Finding]) -> Finding {
    let missing = || needs.iter().filter(|need| need.state == State::Missing);
    let list = |say: fn(&sluice_socket::Finding) -> String| missing().map(say).collect::<Vec<_>>().join("; ");
    if missing().next().is_none() {
        let seen: Vec<String> = needs.iter().map(|need| format!("{} ({})", need.what, need.seen)).collect();
        let what = format!("--capture socket and auto have what they need: {}", seen.join("; "));
        return Finding::ok("socket mode", what);
    }
    let what = list(|need| format!("{} ({})", need.what, need.seen));
    let what = format!("--capture socket and auto relay all connections here, for want of: {what}");
    Finding { mend: list(|need| format!("{}: {}", need.what, need.mend)), ..Finding::ok("socket mode", what) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Level;

    #[test]
    fn what_is_missing_is_named_with_its_mend_and_is_no_problem() {
        let need = |what, state| sluice_socket::Finding { what, state, seen: "seen".into(), mend: "do this" };
        let all = judge(&[need("cgroup2", State::Ok), need("bpffs", State::Mendable)]);
        assert_eq!((all.level, all.mend.as_str()), (Level::Ok, ""));
        assert!(all.what.ends_with("cgroup2 (seen); bpffs (seen)"), "{}", all.what);
        let some =
            judge(&[need("cgroup2", State::Ok), need("BTF", State::Missing), need("BPF", State::Missing)]);
        assert_eq!(some.level, Level::Ok);
        assert!(
            some.what.ends_with("BTF (seen); BPF (seen)") && !some.what.contains("cgroup2"),
            "{}",
            some.what
        );
        assert_eq!(some.mend, "BTF: do this; BPF: do this");
    }
}
