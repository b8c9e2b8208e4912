//! Loads programs.

use std::ffi::CStr;
use std::io;
use std::os::fd::OwnedFd;

use super::{Command, address, bpf_fd, length, name};

/// Size of an instruction in bytes.
const INSTRUCTION: usize = 8;
/// How often loading a program is attempted: the verifier returns `EAGAIN` if a signal is pending. As in
/// libbpf.
const ATTEMPTS: usize = 5;
/// Size of the verifier's log. It keeps the end, which contains the reason.
const LOG: usize = 64 * 1024;

/// A program to load.
#[derive(Debug, Clone, Copy)]
pub struct ProgramSpec<'a> {
    /// Its name, of which the kernel keeps 15 characters.
    pub name: &'a str,
    /// `enum bpf_prog_type`.
    pub kind: u32,
    /// `enum bpf_attach_type`.
    pub attach: u32,
    /// Instructions of 8 bytes each, which contain the maps' descriptors.
    pub instructions: &'a [u8],
    /// Its licence: some helpers are for GPL programs only.
    pub license: &'a CStr,
    /// The kernel's BTF type that it is attached to; 0 if it is attached in another way.
    pub target: u32,
}

/// The kernel's refusal to load a program.
#[derive(Debug)]
pub struct Rejected {
    /// The error.
    pub error: io::Error,
    /// The end of the verifier's log; empty if it was not requested.
    pub log: String,
}

/// Loads a program.
///
/// # Errors
/// `EPERM` without CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON; `EACCES` and `EINVAL` from the verifier.
pub fn load_program(spec: &ProgramSpec<'_>) -> Result<OwnedFd, Rejected> {
    while_disturbed(|| try_load(spec, None)).or_else(|_| {
        let mut log = vec![0; LOG];
        while_disturbed(|| try_load(spec, Some(&mut log))).map_err(|error| {
            let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
            let text = String::from_utf8_lossy(log.get(..end).unwrap_or_default());
            let lines: Vec<&str> = text.trim_end().lines().collect();
            let last = lines.get(lines.len().saturating_sub(12)..).unwrap_or_default();
            Rejected { error, log: last.join("\n") }
        })
    })
}

/// Retries while the result is `EAGAIN`, [`ATTEMPTS`] times in total.
fn while_disturbed<T>(mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let mut answer = attempt();
    for _ in 1..ATTEMPTS {
        if !answer.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
            break;
        }
        answer = attempt();
    }
    answer
}

fn try_load(spec: &ProgramSpec<'_>, log: Option<&mut Vec<u8>>) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attributes {
        kind: u32,
        instruction_count: u32,
        instructions: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
        kernel_version: u32,
        flags: u32,
        name: [u8; 16],
        interface: u32,
        attach: u32,
        btf: u32,
        function_size: u32,
        functions: u64,
        function_count: u32,
        line_size: u32,
        lines: u64,
        line_count: u32,
        target: u32,
    }
    if !spec.instructions.len().is_multiple_of(INSTRUCTION) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let (log_level, log_size, log) = match log {
        Some(log) => (1, length(log.len())?, address(log.as_mut_ptr())),
        None => (0, 0, 0),
    };
    let mut attributes = Attributes {
        kind: spec.kind,
        instruction_count: length(spec.instructions.len() / INSTRUCTION)?,
        instructions: address(spec.instructions.as_ptr()),
        license: address(spec.license.as_ptr()),
        log_level,
        log_size,
        log,
        kernel_version: 0,
        flags: 0,
        name: name(spec.name),
        interface: 0,
        attach: spec.attach,
        btf: 0,
        function_size: 0,
        functions: 0,
        function_count: 0,
        line_size: 0,
        lines: 0,
        line_count: 0,
        target: spec.target,
    };
    // SAFETY: the kernel reads that many instructions, and the licence up to its terminating zero, and writes
    // up to `log_size` bytes to the log.
    unsafe { bpf_fd(Command::ProgramLoad, &mut attributes) }
}

/// Loads the BTF types that maps refer to.
///
/// # Errors
/// The kernel does not support such types.
pub fn load_btf(btf: &[u8]) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attributes {
        btf: u64,
        log: u64,
        size: u32,
        log_size: u32,
        log_level: u32,
        pad: u32,
    }
    let mut attributes = Attributes {
        btf: address(btf.as_ptr()),
        log: 0,
        size: length(btf.len())?,
        log_size: 0,
        log_level: 0,
        pad: 0,
    };
    // SAFETY: the kernel reads `size` bytes.
    unsafe { bpf_fd(Command::BtfLoad, &mut attributes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_a_signal_disturbs_is_tried_five_times_and_one_that_is_refused_once() {
        let try_with = |kind: io::ErrorKind, good: usize| {
            let mut attempts = 0;
            let answer = while_disturbed(|| {
                attempts += 1;
                if attempts == good { Ok(()) } else { Err(io::Error::from(kind)) }
            });
            (attempts, answer.is_ok())
        };
        assert_eq!(try_with(io::ErrorKind::WouldBlock, 1), (1, true));
        assert_eq!(try_with(io::ErrorKind::WouldBlock, 5), (5, true));
        assert_eq!(try_with(io::ErrorKind::WouldBlock, 6), (5, false));
        assert_eq!(try_with(io::ErrorKind::PermissionDenied, 2), (1, false));
    }
}
