//! Advice on errors of the operating system.

use std::io;

use rustix::io::Errno;
use sluice_model::mend_of_shortage;

/// Advice for a file or directory that cannot be read; `otherwise` if there is no more specific advice.
pub(crate) fn of_file(error: &io::Error, otherwise: &'static str) -> &'static str {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::IO | Errno::STALE) => "see to the disk that it is on",
        _ => mend_of_shortage(error).unwrap_or(otherwise),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_not_blamed_for_what_is_lacking_elsewhere() {
        let mend = |errno: Errno| of_file(&errno.into(), "look at the file");
        assert!(mend(Errno::MFILE).contains("ulimit -n"));
        assert_eq!(mend(Errno::ACCESS), "look at the file");
        assert_eq!(of_file(&io::ErrorKind::NotFound.into(), "look at the file"), "look at the file");
    }
}
