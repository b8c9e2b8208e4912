//! Destinations of lines: writes as much at a time as there is room for.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use rustix::net::{SendFlags, send};
use rustix::termios::isatty;

/// The room that poll(2) promises in a pipe, up to which a write to it is atomic (pipe(7)).
const PIPE_BUF: usize = 4096;

/// A destination, by the way to write to it without blocking. `O_NONBLOCK` belongs to the open file
/// description, which other processes may share, so theirs is left unchanged.
#[derive(Debug)]
pub(super) enum Place {
    /// A pipe or a terminal that was opened again: this description is our own, and does not block.
    Own(File),
    /// A socket, where each call can ask not to block.
    Socket(OwnedFd),
    /// All others: files, which have no reader, and what cannot be opened again. There, poll(2) comes first;
    /// another process that writes to the same pipe may take the room in between.
    Other(File),
}

impl Place {
    pub(super) fn new(out: OwnedFd) -> Self {
        let kind = fstat(&out).map(|stat| FileType::from_raw_mode(stat.st_mode));
        match kind {
            Ok(FileType::Socket) => return Self::Socket(out),
            Ok(FileType::Fifo) => {}
            _ if isatty(&out) => {}
            _ => return Self::Other(out.into()),
        }
        let path = format!("/proc/self/fd/{}", out.as_raw_fd());
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        match open(path, flags, Mode::empty()) {
            Ok(own) => Self::Own(own.into()),
            Err(_) => Self::Other(out.into()),
        }
    }

    /// Writes as much as there is room for, and removes it from `bytes`. Returns whether nothing is left.
    pub(super) fn write(&self, bytes: &mut Vec<u8>) -> bool {
        while !bytes.is_empty() {
            let written = match self {
                Self::Own(out) => { out }.write(bytes),
                Self::Socket(out) => {
                    send(out, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL).map_err(io::Error::from)
                }
                Self::Other(_) if !self.wait(Duration::ZERO) => return false,
                Self::Other(out) => { out }.write(&bytes[..bytes.len().min(PIPE_BUF)]),
            };
            match written {
                Ok(written) if written > 0 => drop(bytes.drain(..written)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
                // If the log itself fails, there is nowhere to report it.
                _ => bytes.clear(),
            }
        }
        true
    }

    /// Waits until there is room; returns whether there is. If nothing can be written at all, the write tells.
    pub(super) fn wait(&self, patience: Duration) -> bool {
        let patience = Timespec::try_from(patience).unwrap_or_default();
        let out = self.as_fd();
        let mut polled = [PollFd::new(&out, PollFlags::OUT)];
        poll(&mut polled, Some(&patience)).map_or(true, |ready| ready > 0)
    }
}

impl AsFd for Place {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Own(out) | Self::Other(out) => out.as_fd(),
            Self::Socket(out) => out.as_fd(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use rustix::fs::fcntl_getfl;
    use rustix::pipe::pipe;

    use super::*;

    #[test]
    fn the_description_that_others_share_is_left_as_it_is() {
        let (_reader, writer) = pipe().unwrap();
        let shared = writer.try_clone().unwrap();
        let place = Place::new(writer);
        assert!(fcntl_getfl(&place).unwrap().contains(OFlags::NONBLOCK));
        assert!(!fcntl_getfl(&shared).unwrap().contains(OFlags::NONBLOCK));
    }

    #[test]
    fn a_file_is_added_to() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"before\n").unwrap();
        let place = Place::new(file.as_file().try_clone().unwrap().into());
        let mut line = vec![b'a'; 3 * PIPE_BUF];
        assert!(place.write(&mut line));
        let mut text = String::new();
        file.reopen().unwrap().read_to_string(&mut text).unwrap();
        assert!(text.starts_with("before\naaa"));
        assert_eq!(text.len(), 7 + 3 * PIPE_BUF);
    }
}
