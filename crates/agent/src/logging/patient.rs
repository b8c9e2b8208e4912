//! Writes lines to a reader that may stop: nobody waits for good, and a worker, on whose thread connections
//! wait, does not wait at all. Lost lines are counted and reported once there is room.
//!
//! A line is written on the thread that logs it, before that thread goes on, so a program that ends has nothing
//! left to write. Lines go through a bounded queue. One thread at a time writes the queue; that takes no time,
//! because only as much is written as there is room for. A worker that finds another thread writing leaves its
//! line to that one.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use tracing_subscriber::fmt::MakeWriter;

use super::place::Place;

/// How long all threads but workers wait for a reader, which may be slow for a moment.
const PATIENCE: Duration = Duration::from_secs(1);

/// Bytes of lines that may wait for a reader; one more line may exceed it.
const WAITING: usize = 64 << 10;

/// The prefix of workers' thread names.
const WORKER: &str = "sluice-";

/// The destination of lines. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Patient(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    place: Place,
    /// Held only for short moments.
    queue: Mutex<Queue>,
    /// The rest of the item before those in the queue. The thread that holds the lock writes.
    rest: Mutex<Vec<u8>>,
    /// Lines for which there was no room.
    lost: AtomicU64,
    /// How often a thread has waited for the reader.
    #[cfg(test)]
    waits: std::sync::atomic::AtomicUsize,
}

#[derive(Debug, Default)]
struct Queue {
    items: VecDeque<Item>,
    /// The size of its lines.
    bytes: usize,
    /// A thread has waited in vain. No thread waits again before the whole queue has been written.
    has_stopped: bool,
}

#[derive(Debug)]
enum Item {
    Line(Vec<u8>),
    /// This many lines are missing here.
    Lost(u64),
}

impl Queue {
    /// Takes a line, or counts it as lost. Returns whether it was taken.
    fn push(&mut self, line: Vec<u8>) -> bool {
        let has_room = self.bytes < WAITING;
        if has_room {
            self.bytes += line.len();
            self.items.push_back(Item::Line(line));
        } else if let Some(Item::Lost(lost)) = self.items.back_mut() {
            *lost += 1;
        } else {
            self.items.push_back(Item::Lost(1));
        }
        has_room
    }

    /// The next item to write.
    fn pop(&mut self) -> Option<Vec<u8>> {
        Some(match self.items.pop_front()? {
            Item::Line(line) => {
                self.bytes -= line.len();
                line
            }
            Item::Lost(lost) => {
                format!("{lost} lines of this log were lost, as whoever reads it had stopped\n").into_bytes()
            }
        })
    }
}

/// A line under construction; it is written as a whole when this is dropped.
#[derive(Debug)]
pub(super) struct Line<'a> {
    lines: &'a Patient,
    text: Vec<u8>,
}

impl Patient {
    /// Writes to standard error.
    ///
    /// # Errors
    /// It is closed, or no file descriptor is left.
    pub(super) fn stderr() -> io::Result<Self> {
        Ok(Self::new(Place::new(io::stderr().as_fd().try_clone_to_owned()?)))
    }

    fn new(place: Place) -> Self {
        Self(Arc::new(Shared {
            place,
            queue: Mutex::default(),
            rest: Mutex::default(),
            lost: AtomicU64::new(0),
            #[cfg(test)]
            waits: Default::default(),
        }))
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, line: Vec<u8>) {
        if !self.queue().push(line) {
            self.0.lost.fetch_add(1, Ordering::Relaxed);
        }
        let is_worker = std::thread::current().name().is_some_and(|name| name.starts_with(WORKER));
        let deadline = Instant::now() + PATIENCE;
        while !self.write_waiting(is_worker) {
            if is_worker || self.queue().has_stopped {
                return;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.queue().has_stopped = true;
                return;
            }
            #[cfg(test)]
            self.0.waits.fetch_add(1, Ordering::Relaxed);
            self.0.place.wait(left);
        }
    }

    /// How many lines were lost so far.
    pub(super) fn lost(&self) -> u64 {
        self.0.lost.load(Ordering::Relaxed)
    }

    /// Writes what waits, as far as there is room.
    pub(super) fn flush(&self) {
        self.write_waiting(true);
    }

    /// Writes all that waits, with the same patience as for one line.
    pub(super) fn finish(&self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.write_waiting(false) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || !self.0.place.wait(left) {
                return;
            }
        }
    }

    /// Writes what waits, as far as there is room; returns whether that was all. If another thread is writing,
    /// a worker leaves its lines to that one.
    fn write_waiting(&self, is_worker: bool) -> bool {
        loop {
            let mut rest = match self.0.rest.try_lock() {
                Ok(rest) => rest,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) if is_worker => return true,
                Err(TryLockError::WouldBlock) => self.0.rest.lock().unwrap_or_else(PoisonError::into_inner),
            };
            loop {
                if !self.0.place.write(&mut rest) {
                    return false;
                }
                match self.queue().pop() {
                    Some(item) => *rest = item,
                    None => break,
                }
            }
            drop(rest);
            let mut queue = self.queue();
            // A worker may have added a line before this thread released the lock.
            if queue.items.is_empty() {
                queue.has_stopped = false;
                return true;
            }
        }
    }
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
            self.lines.write(std::mem::take(&mut self.text));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{BufRead, BufReader};
    use std::sync::atomic::Ordering;
    use std::sync::mpsc;

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    use rustix::pipe::pipe;

    use super::*;

    /// How long a test waits for what must happen.
    const DEADLINE: Duration = Duration::from_secs(20);

    /// On a thread of that name, which must not be held up for good.
    fn say(patient: &Patient, thread: &str, line: impl Into<String>) {
        let (patient, line) = (patient.clone(), line.into());
        let (done, is_done) = mpsc::channel();
        let say = move || {
            write!(patient.make_writer(), "{line}").unwrap();
            done.send(()).unwrap();
        };
        std::thread::Builder::new().name(thread.to_owned()).spawn(say).unwrap();
        is_done.recv_timeout(DEADLINE).expect("nobody waits for good");
    }

    fn lost(patient: &Patient) -> u64 {
        let of = |item: &Item| if let Item::Lost(lost) = item { *lost } else { 0 };
        patient.queue().items.iter().map(of).sum()
    }

    /// Writes what waits, with the reader at work.
    fn write_all(patient: &Patient) {
        while !patient.write_waiting(false) {
            assert!(patient.0.place.wait(DEADLINE));
        }
    }

    fn waits(patient: &Patient) -> usize {
        patient.0.waits.load(Ordering::Relaxed)
    }

    /// All kinds of places, with who reads there.
    fn places() -> [(File, Patient); 3] {
        let (reader, writer) = pipe().unwrap();
        let own = Place::new(writer);
        assert!(matches!(own, Place::Own(_)), "{own:?}");
        let (second, writer) = pipe().unwrap();
        let (third, socket) =
            socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        let socket = Place::new(socket);
        assert!(matches!(socket, Place::Socket(_)), "{socket:?}");
        [(reader, own), (second, Place::Other(writer.into())), (third, socket)]
            .map(|(reader, place)| (reader.into(), Patient::new(place)))
    }

    #[test]
    fn a_worker_does_not_wait_for_a_reader_and_what_is_lost_is_said() {
        for (reader, patient) in places() {
            let mut written = 0;
            while lost(&patient) == 0 && written < 1 << 14 {
                say(&patient, "sluice-0", format!("{:1000}\n", "one that nobody reads"));
                written += 1;
            }
            say(&patient, "sluice-1", "neither\n");
            assert_eq!((lost(&patient), waits(&patient)), (2, 0));
            assert_eq!(patient.lost(), 2);
            // Whoever waits does so for a reader that comes back.
            let slow = {
                let patient = patient.clone();
                std::thread::spawn(move || writeln!(patient.make_writer(), "too many").unwrap())
            };
            let deadline = Instant::now() + DEADLINE;
            while lost(&patient) < 3 {
                assert!(Instant::now() < deadline, "its line has no room either");
                std::thread::yield_now();
            }
            let writing = {
                let patient = patient.clone();
                std::thread::spawn(move || write_all(&patient))
            };
            let mut lines = BufReader::new(reader).lines().map(Result::unwrap);
            let before: Vec<String> = lines.by_ref().take(written - 1).collect();
            assert!(before.iter().all(|line| line.starts_with("one that nobody reads")));
            slow.join().unwrap();
            writing.join().unwrap();
            assert!(lines.next().unwrap().starts_with("3 lines of this log were lost"));
            say(&patient, "sluice-0", "and on\n");
            assert_eq!(lines.next().unwrap(), "and on");
        }
    }

    #[test]
    fn of_a_reader_that_has_stopped_one_wait_is_enough_for_all_lines() {
        for (reader, patient) in places() {
            for _ in 0..2_000 {
                say(&patient, "main", format!("{:1000}\n", "one that nobody reads"));
            }
            assert_eq!(waits(&patient), 1);
            assert!(lost(&patient) > 0);
            let said = format!("{} lines of this log were lost", lost(&patient));
            let reading = std::thread::spawn(move || {
                BufReader::new(reader).lines().map(Result::unwrap).any(|line| line.starts_with(&said))
            });
            write_all(&patient);
            assert!(reading.join().unwrap());
        }
    }

    #[test]
    fn a_line_that_has_no_room_holds_up_nobody_and_is_written_as_a_whole() {
        let long = "long".repeat(250_000);
        for (reader, patient) in places() {
            say(&patient, "main", format!("{long}\n"));
            assert_eq!(waits(&patient), 1);
            say(&patient, "sluice-0", "a worker's\n");
            say(&patient, "main", "another\n");
            assert_eq!(waits(&patient), 1);
            let reading = std::thread::spawn(|| {
                let lines = BufReader::new(reader).lines().map(Result::unwrap);
                lines.take(3).collect::<Vec<_>>()
            });
            write_all(&patient);
            assert!(reading.join().unwrap() == [long.as_str(), "a worker's", "another"]);
        }
    }

    #[test]
    fn what_a_worker_says_while_another_thread_writes_is_left_to_that_one() {
        for (reader, patient) in places() {
            let writing = patient.0.rest.lock().unwrap();
            say(&patient, "sluice-0", "a worker's\n");
            drop(writing);
            say(&patient, "main", "another\n");
            let lines: Vec<_> = BufReader::new(reader).lines().take(2).map(Result::unwrap).collect();
            assert_eq!(lines, ["a worker's", "another"]);
        }
    }

    #[test]
    fn what_waits_is_written_though_nothing_more_is_said() {
        for (reader, patient) in places() {
            // As much as there is room for, and a line more.
            say(&patient, "main", format!("{}\n", "long".repeat(250_000)));
            say(&patient, "sluice-0", "the last\n");
            let reading = std::thread::spawn(|| BufReader::new(reader).lines().map(Result::unwrap).nth(1));
            let deadline = Instant::now() + DEADLINE;
            while !reading.is_finished() && Instant::now() < deadline {
                patient.flush();
                std::thread::yield_now();
            }
            assert_eq!(reading.join().unwrap().as_deref(), Some("the last"));
            patient.finish();
        }
    }

    #[test]
    fn nobody_waits_for_one_that_has_gone() {
        for (reader, patient) in places() {
            drop(reader);
            say(&patient, "main", "nobody hears this\n");
            assert_eq!(waits(&patient), 0);
        }
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        say(&Patient::new(Place::new(writer)), "main", "nor this\n");
    }
}
