//! What became of the output.

use std::path::PathBuf;

use serde::Serialize;

use crate::console::counted;

/// An amount of output. A last line without its newline counts as a line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Amount {
    pub lines: u64,
    pub bytes: u64,
}

impl Amount {
    pub(super) fn of(bytes: &[u8]) -> Self {
        Self {
            lines: memchr::memchr_iter(b'\n', bytes).count() as u64,
            bytes: bytes.len() as u64,
        }
    }

    pub(super) fn add(&mut self, other: Amount) {
        self.lines += other.lines;
        self.bytes += other.bytes;
    }

    pub(super) fn less(self, other: Amount) -> Amount {
        Amount {
            lines: self.lines.saturating_sub(other.lines),
            bytes: self.bytes.saturating_sub(other.bytes),
        }
    }
}

impl std::fmt::Display for Amount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (lines, bytes) = (counted(self.lines, "line"), counted(self.bytes, "byte"));
        write!(f, "{lines} ({bytes})")
    }
}

/// What became of the output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// All that was printed and said.
    pub produced: Amount,
    /// The part of it that was meant for the server.
    pub wanted: Amount,
    /// The part of `wanted` that the server took. Frames of a progress bar that were left out on
    /// purpose, and what was cleaned away, count as taken.
    pub accepted: Amount,
    /// The part of `wanted` that the server understood and would not have.
    pub refused: Amount,
    /// The part of `wanted` that could not be kept on disk until the server had it.
    pub missing: Amount,
    /// Where the rest is kept if the server has not decided on all of it.
    pub spool: Option<PathBuf>,
}

impl Receipt {
    /// What the server should have and has not.
    pub fn lost(&self) -> Amount {
        self.wanted.less(self.accepted)
    }

    /// One line, or one more for each thing that went wrong.
    pub fn words(&self) -> String {
        if self.wanted == Amount::default() {
            return format!("log: {}, none for the server", self.produced);
        }
        if self.lost() == Amount::default() {
            return format!("log: {}, all on the server", self.wanted);
        }
        let mut words = format!(
            "log: {}; on the server: {}; not there: {}",
            self.wanted,
            self.accepted,
            self.lost()
        );
        if self.refused != Amount::default() {
            words.push_str(&format!("\n  refused by the server: {}", self.refused));
        }
        if self.missing != Amount::default() {
            words.push_str(&format!(
                "\n  not kept, for want of space: {} (on the terminal alone; the log says where)",
                self.missing
            ));
        }
        if let Some(spool) = &self.spool {
            words.push_str(&format!(
                "\n  kept in {}: the server did not take it in time. \
                 `clearml-agent sync`, or the next run on this machine, sends it",
                spool.display()
            ));
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(lines: u64) -> Amount {
        Amount {
            lines,
            bytes: 10 * lines,
        }
    }

    #[test]
    fn the_words_say_what_is_where() {
        let all = Receipt {
            produced: lines(12),
            wanted: lines(10),
            accepted: lines(10),
            refused: lines(0),
            missing: lines(0),
            spool: None,
        };
        assert_eq!(all.words(), "log: 10 lines (100 bytes), all on the server");
        let nothing = Receipt {
            wanted: lines(0),
            accepted: lines(0),
            ..all.clone()
        };
        assert_eq!(
            nothing.words(),
            "log: 12 lines (120 bytes), none for the server"
        );
        let some = Receipt {
            accepted: lines(3),
            refused: lines(1),
            missing: lines(2),
            spool: Some("/j/x.journal".into()),
            ..all
        };
        assert_eq!(
            some.words(),
            "log: 10 lines (100 bytes); on the server: 3 lines (30 bytes); not there: 7 lines (70 bytes)\n  \
             refused by the server: 1 line (10 bytes)\n  \
             not kept, for want of space: 2 lines (20 bytes) (on the terminal alone; the log says where)\n  \
             kept in /j/x.journal: the server did not take it in time. \
             `clearml-agent sync`, or the next run on this machine, sends it"
        );
    }
}
