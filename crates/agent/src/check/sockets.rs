//! What `--capture socket` needs of this node. If something is missing, nothing breaks: connections are
//! relayed.

use sluice_socket::State;

use super::Finding;
use crate::socket_args::SocketArgs;

/// What is present and what is missing, each with its fix.
pub(super) fn finding(args: &SocketArgs) -> Finding {
    judge(&args.probe())
}

fn judge(needs: &[sluice_socket::Finding]) -> Finding {
    let list = |state: Option<State>, say: fn(&sluice_socket::Finding) -> String| {
        let needs = needs.iter().filter(|need| state.is_none_or(|state| need.state == state));
        needs.map(say).collect::<Vec<_>>().join("; ")
    };
    let seen = |need: &sluice_socket::Finding| format!("{} ({})", need.what, need.seen);
    let fix = |need: &sluice_socket::Finding| format!("{}: {}", need.what, need.mend);
    let is_missing = needs.iter().any(|need| need.state == State::Missing);
    let (what, wanting) = if is_missing {
        let missing = list(Some(State::Missing), seen);
        let what = format!("--capture socket and auto relay all connections here, for want of: {missing}");
        (what, State::Missing)
    } else {
        let all = list(None, seen);
        (format!("--capture socket and auto have what they need: {all}"), State::Lesser)
    };
    Finding::note("socket mode", what, list(Some(wanting), fix))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Level;

    #[test]
    fn what_is_missing_is_a_note_with_its_fix_and_is_no_problem() {
        let need = |what, state| sluice_socket::Finding { what, state, seen: "seen".into(), mend: "do this" };
        let all = judge(&[need("cgroup2", State::Ok), need("bpffs", State::Mendable)]);
        assert_eq!((all.level, all.fix.as_str()), (Level::Ok, ""));
        assert!(all.what.ends_with("cgroup2 (seen); bpffs (seen)"), "{}", all.what);
        let less = judge(&[need("cgroup2", State::Ok), need("ending", State::Lesser)]);
        assert_eq!((less.level, less.fix.as_str()), (Level::Note, "ending: do this"));
        assert!(less.what.contains("have what they need"), "{}", less.what);
        let some =
            judge(&[need("cgroup2", State::Ok), need("BTF", State::Missing), need("BPF", State::Missing)]);
        assert_eq!(some.level, Level::Note);
        assert!(
            some.what.ends_with("BTF (seen); BPF (seen)") && !some.what.contains("cgroup2"),
            "{}",
            some.what
        );
        assert_eq!(some.fix, "BTF: do this; BPF: do this");
    }
}
