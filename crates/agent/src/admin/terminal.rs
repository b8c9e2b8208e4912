//! Draws on a terminal, and restores it afterwards.

use std::io::{self, BufReader, Read, Write};

use rustix::termios::{
    LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetwinsize, tcsetattr,
};
use tokio::sync::mpsc::{Receiver, channel};

/// How many keys wait while the agent is asked; more wait in the terminal.
const KEYS: usize = 16;

/// Switch to the alternate screen without a cursor, and back.
const ENTER: &[u8] = b"\x1b[?1049h\x1b[?25l";
const LEAVE: &[u8] = b"\x1b[?25h\x1b[?1049l";

/// The process's terminal, until it is dropped.
#[derive(Debug)]
pub(super) struct Terminal {
    before: Option<Termios>,
}

impl Terminal {
    /// Takes over the terminal. Typed keys are not echoed; Ctrl-C stays a signal, Ctrl-Z does not.
    pub(super) fn take() -> io::Result<Self> {
        let before = tcgetattr(io::stdin()).ok();
        if let Some(before) = &before {
            let mut modes = before.clone();
            modes.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO);
            modes.special_codes[SpecialCodeIndex::VSUSP] = 0;
            tcsetattr(io::stdin(), OptionalActions::Now, &modes)?;
        }
        let terminal = Self { before };
        write(ENTER)?;
        Ok(terminal)
    }

    /// The keys that are typed from now on.
    ///
    /// # Errors
    /// The system refuses the thread.
    pub(super) fn keys() -> io::Result<Receiver<u8>> {
        let (sender, keys) = channel(KEYS);
        // The thread ends with the process: nothing can interrupt it while it waits.
        std::thread::Builder::new().name("keys".to_owned()).spawn(move || {
            BufReader::new(io::stdin())
                .bytes()
                .map_while(Result::ok)
                .all(|key| sender.blocking_send(key).is_ok())
        })?;
        Ok(keys)
    }

    /// The terminal's lines and columns.
    pub(super) fn size() -> (usize, usize) {
        match tcgetwinsize(io::stdout()) {
            Ok(size) if size.ws_row > 0 && size.ws_col > 0 => (size.ws_row.into(), size.ws_col.into()),
            _ => (24, 80),
        }
    }

    /// Shows as many lines of a text as fit.
    pub(super) fn draw(&self, text: &str) -> io::Result<()> {
        let (lines, columns) = Self::size();
        let mut frame = String::from("\x1b[H");
        for (n, line) in text.lines().take(lines).enumerate() {
            if n > 0 {
                frame.push_str("\r\n");
            }
            frame.extend(line.chars().filter(|c| !c.is_control()).take(columns));
            frame.push_str("\x1b[K");
        }
        frame.push_str("\x1b[J");
        write(frame.as_bytes())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // If the terminal is gone, there is nothing to restore.
        let _ = write(LEAVE);
        if let Some(before) = &self.before {
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
    }
}

fn write(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()
}
