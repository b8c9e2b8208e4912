//! Writing lines to where somebody reads them, or does not: nobody waits for a reader that has stopped for good, and a
//! worker, on whose thread connections wait, for none at all. What is lost is counted, and said once there is room.
//!
//! On the thread of whoever has something to say: what it said is written when it goes on, so a program that ends has
//! nothing left to write.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tracing_subscriber::fmt::MakeWriter;

/// How long all but workers wait for a reader: it may be slow for a moment.
const PATIENCE: Duration = Duration::from_secs(1);

/// How the names of workers' threads begin.
const WORKER: &str = "sluice-";

/// Where lines go.
#[derive(Debug, Clone)]
pub(super) struct Patient(Arc<Mutex<Lines>>);

#[derive(Debug)]
struct Lines {
    out: File,
    lost: u64,
}

/// A line that is being written, as a whole when it is dropped.
#[derive(Debug)]
pub(super) struct Line<'a> {
    lines: &'a Patient,
    text: Vec<u8>,
}

impl Patient {
    /// Standard error.
    ///
    /// # Errors
    /// It is closed, or there is no descriptor left.
    pub(super) fn stderr() -> io::Result<Self> {
        Ok(Self::new(io::stderr().as_fd().try_clone_to_owned()?.into()))
    }

    fn new(out: File) -> Self {
        Self(Arc::new(Mutex::new(Lines { out, lost: 0 })))
    }

    fn write(&self, line: &[u8]) {
        let is_worker = std::thread::current().name().is_some_and(|name| name.starts_with(WORKER));
        let deadline = Instant::now() + if is_worker { Duration::ZERO } else { PATIENCE };
        loop {
            // Nobody waits while others have to wait for that.
            let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if lines.has_room(Duration::ZERO) {
                return lines.write(line);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                lines.lost += 1;
                return;
            }
            let out = lines.out.try_clone();
            drop(lines);
            match out {
                Ok(out) => has_room(&out, left),
                Err(_) => return,
            };
        }
    }
}

impl Lines {
    fn has_room(&self, patience: Duration) -> bool {
        has_room(&self.out, patience)
    }

    fn write(&mut self, line: &[u8]) {
        if self.lost > 0 {
            let lost = std::mem::take(&mut self.lost);
            let said = format!("{lost} lines of this log were lost, as whoever reads it had stopped\n");
            // A place that fails cannot be told so.
            let _ = self.out.write_all(said.as_bytes());
        }
        let _ = self.out.write_all(line);
    }
}

/// Whether a line can be written without waiting, by then: into a pipe, PIPE_BUF bytes (poll(2)). What cannot be written to
/// at all is found out by writing.
fn has_room(out: &File, patience: Duration) -> bool {
    let patience = Timespec::try_from(patience).unwrap_or_default();
    let mut polled = [PollFd::new(out, PollFlags::OUT)];
    poll(&mut polled, Some(&patience)).map_or(true, |ready| ready > 0)
}

impl<'a> MakeWriter<'a> for Patient {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { lines: self, text: Vec::new() }
    }
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        if !self.text.is_empty() {
            self.lines.write(&self.text);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};

    use super::*;

    /// On a thread of that name.
    fn say(patient: &Patient, thread: &str, line: &'static str) {
        let patient = patient.clone();
        let say = move || write!(patient.make_writer(), "{line}").unwrap();
        std::thread::Builder::new().name(thread.to_owned()).spawn(say).unwrap().join().unwrap();
    }

    #[test]
    fn a_worker_does_not_wait_for_a_reader_and_what_is_lost_is_said() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let patient = Patient::new(writer.into());
        let lost = |patient: &Patient| patient.0.lock().unwrap().lost;
        let mut written = 0;
        // More than any pipe holds.
        while lost(&patient) == 0 && written < 1 << 20 {
            say(&patient, "sluice-0", "one that nobody reads\n");
            written += 1;
        }
        say(&patient, "sluice-1", "neither\n");
        assert_eq!(lost(&patient), 2);
        // Whoever waits does so for a reader that comes back.
        let slow = {
            let patient = patient.clone();
            std::thread::spawn(move || writeln!(patient.make_writer(), "at last").unwrap())
        };
        let mut lines = BufReader::new(File::from(reader)).lines().map(Result::unwrap);
        let before: Vec<String> = lines.by_ref().take(written - 1).collect();
        assert!(before.iter().all(|line| line == "one that nobody reads"));
        slow.join().unwrap();
        assert!(lines.next().unwrap().starts_with("2 lines of this log were lost"));
        assert_eq!(lines.next().unwrap(), "at last");
        say(&patient, "sluice-0", "and on\n");
        assert_eq!(lines.next().unwrap(), "and on");
    }

    #[test]
    fn nobody_waits_for_one_that_has_gone() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        drop(reader);
        say(&Patient::new(writer.into()), "main", "nobody hears this\n");
    }
}
