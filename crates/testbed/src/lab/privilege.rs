//! Creating network namespaces without being root: as root of a user namespace.

use std::env;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use super::LabError;

/// Set in a restarted program, so that it is restarted only once.
const RESTARTED: &str = "SLUICE_LAB_RESTARTED";

/// Creates user, network and mount namespaces in which the current user is root.
const UNSHARE: [&str; 2] = ["unshare", "-Urnm"];

/// Restarts this program as root of a user namespace of its own. Does not return if that works.
///
/// A process with several threads, such as a test program, may not simply enter one. The program keeps its
/// process id, arguments and streams, but its threads end and it runs from the beginning.
pub(crate) fn restart(refusal: LabError) -> LabError {
    if env::var_os(RESTARTED).is_some() {
        return refusal;
    }
    let [unshare, flags] = UNSHARE;
    let probe = Command::new(unshare).args([flags, "true"]).stdin(Stdio::null()).output();
    if !probe.is_ok_and(|output| output.status.success()) {
        return refusal;
    }
    let Ok(program) = env::current_exe() else { return refusal };
    let mut command = Command::new(unshare);
    let error = command.arg(flags).arg(program).args(env::args_os().skip(1)).env(RESTARTED, "1").exec();
    LabError::Program { program: unshare.into(), source: error }
}
