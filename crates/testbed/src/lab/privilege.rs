//! Being allowed to make network namespaces without being root: as root of a user namespace.

use std::env;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use super::LabError;

/// Set in a program that was started anew, so that it happens once.
const RESTARTED: &str = "SLUICE_LAB_RESTARTED";

/// User, network and mount namespaces, the current user being root there.
const UNSHARE: [&str; 2] = ["unshare", "-Urnm"];

/// Starts this program anew as root of a user namespace of its own, and does not return if that works.
///
/// Why not just enter one: a process with several threads, which test programs are, may not. The program
/// keeps its process id, arguments and streams; its threads end here and all of it runs from the start.
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
