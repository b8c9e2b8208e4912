//! Splits a byte stream into lines: a watch sends one event per line. Pure.

/// Received bytes that have not been read, in lines of bounded length.
#[derive(Debug)]
pub(super) struct Lines {
    buffer: Vec<u8>,
    /// Where the next line begins.
    start: usize,
    /// There is no end of line before this index.
    searched: usize,
    max: usize,
    /// The current line is too long and is being skipped.
    skipping: bool,
}

/// A line without its newline.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line<'a> {
    Whole(&'a [u8]),
    /// It was longer than the limit, and has been dropped.
    TooLong,
}

impl Lines {
    /// Lines of up to `max` bytes.
    pub(super) fn new(max: usize) -> Self {
        Self { buffer: Vec::new(), start: 0, searched: 0, max, skipping: false }
    }

    /// Appends received bytes. All complete lines must have been read before.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.start);
        self.searched -= self.start;
        self.start = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// Whether no part of an unfinished line is left.
    pub(super) fn is_empty(&self) -> bool {
        self.start == self.buffer.len() && !self.skipping
    }

    /// The next complete line.
    pub(super) fn next(&mut self) -> Option<Line<'_>> {
        let unsearched = self.buffer.get(self.searched..).unwrap_or_default();
        let Some(end) = unsearched.iter().position(|byte| *byte == b'\n') else {
            self.searched = self.buffer.len();
            if self.searched - self.start > self.max {
                self.skipping = true;
                self.buffer = Vec::new();
                (self.start, self.searched) = (0, 0);
            }
            return None;
        };
        let (start, end) = (self.start, self.searched + end);
        self.start = end + 1;
        self.searched = end + 1;
        if std::mem::take(&mut self.skipping) || end - start > self.max {
            return Some(Line::TooLong);
        }
        self.buffer.get(start..end).map(Line::Whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pieces: &[&str]) -> Vec<String> {
        let mut lines = Lines::new(5);
        let mut read = Vec::new();
        for piece in pieces {
            lines.push(piece.as_bytes());
            while let Some(line) = lines.next() {
                read.push(match line {
                    Line::Whole(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
                    Line::TooLong => "TOO LONG".to_owned(),
                });
            }
            assert!(lines.buffer.len() - lines.start <= 5);
        }
        read
    }

    #[test]
    fn lines_are_whole_however_they_arrive() {
        let whole = "a\n\nbcdef\ng\nh";
        for cut in 0..=whole.len() {
            let (first, second) = whole.split_at(cut);
            assert_eq!(read(&[first, second]), ["a", "", "bcdef", "g"], "cut at {cut}");
        }
        let bytes: Vec<String> = whole.chars().map(String::from).collect();
        let bytes: Vec<&str> = bytes.iter().map(String::as_str).collect();
        assert_eq!(read(&bytes), ["a", "", "bcdef", "g"]);
    }

    #[test]
    fn a_line_that_is_too_long_is_dropped_and_the_next_one_read() {
        assert_eq!(read(&["123456\nb\n"]), ["TOO LONG", "b"]);
        assert_eq!(read(&["1234", "567", "89", "0\nb", "\n"]), ["TOO LONG", "b"]);
    }

    #[test]
    fn what_has_no_end_yet_is_not_nothing() {
        let mut lines = Lines::new(5);
        for (piece, expected) in [("", true), ("a", false), ("b\n", true), ("123456", false), ("7\n", true)] {
            lines.push(piece.as_bytes());
            while lines.next().is_some() {}
            assert_eq!(lines.is_empty(), expected, "{piece:?}");
        }
    }
}
