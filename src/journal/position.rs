//! Where in the spool the server is.

use std::collections::VecDeque;

use super::spool::Progress;

/// Input between two marks: that much, at most, is read again after a crash to find the place.
const MARK_EACH: u64 = 64 * 1024;

/// Tells which record holds a given byte of the output, for as long as that may be asked.
#[derive(Debug)]
pub(super) struct Position {
    /// Bytes of output before a record, and the record's place: ascending, the first one at or before
    /// what is decided.
    marks: VecDeque<(u64, u64)>,
    /// Bytes of output that were read, and where the reader is.
    read: (u64, u64),
    decided: u64,
}

impl Position {
    /// As an earlier run left it. The reader must begin at `progress.resume`.
    pub fn after(progress: &Progress) -> Self {
        Self {
            marks: VecDeque::from([(0, progress.resume)]),
            read: (0, progress.resume),
            decided: progress.skip,
        }
    }

    /// A record with `bytes` of output was read; the reader is at `offset` now. Gives how many of
    /// the bytes the server has decided on already.
    pub fn read(&mut self, bytes: usize, offset: u64) -> usize {
        let (before, at) = self.read;
        if self
            .marks
            .back()
            .is_none_or(|(m, _)| before >= m + MARK_EACH)
        {
            self.marks.push_back((before, at));
        }
        self.read = (before + bytes as u64, offset);
        let skip = self.decided.saturating_sub(before);
        usize::try_from(skip).unwrap_or(usize::MAX).min(bytes)
    }

    /// The server has decided on the next `bytes`. Gives where it is: a record, and how much of it and
    /// of what follows is decided.
    pub fn decided(&mut self, bytes: u64) -> (u64, u64) {
        self.decided += bytes;
        if self.decided >= self.read.0 {
            self.marks = VecDeque::from([self.read]);
        }
        while self.marks.get(1).is_some_and(|(b, _)| *b <= self.decided) {
            self.marks.pop_front();
        }
        let (before, offset) = self.marks.front().copied().unwrap_or(self.read);
        (offset, self.decided - before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_is_found_again() {
        let start = Progress {
            resume: 4096,
            ..Progress::default()
        };
        let mut position = Position::after(&start);
        let record = 40_000_u64;
        let mut offset = 4096;
        for _ in 0..5 {
            offset += 12 + record;
            assert_eq!(position.read(record as usize, offset), 0);
        }
        // Marks are at the records 0, 2 and 4.
        assert_eq!(position.decided(10), (4096, 10));
        assert_eq!(position.decided(39_990), (4096, 40_000));
        let third = 4096 + 2 * (12 + record);
        assert_eq!(position.decided(40_000), (third, 0));
        assert_eq!(position.decided(79_999), (third, 79_999));
        assert_eq!(position.decided(1), (4096 + 4 * (12 + record), 0));
        assert_eq!(position.decided(record), (offset, 0));

        let later = Progress {
            resume: third,
            skip: 50_000,
            ..Progress::default()
        };
        let mut position = Position::after(&later);
        assert_eq!(position.read(40_000, third + 40_012), 40_000);
        assert_eq!(position.read(40_000, third + 80_024), 10_000);
        assert_eq!(position.decided(30_000), (third + 80_024, 0));
        assert_eq!(position.read(5, third + 80_041), 0);
    }
}
