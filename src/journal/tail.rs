//! The end of what a job printed, in memory: its last words say why it failed.

/// Bytes that are kept at least.
const KEPT: usize = 32 * 1024;
const LINES: usize = 100;

#[derive(Debug, Default)]
pub(super) struct Tail(Vec<u8>);

impl Tail {
    pub fn push(&mut self, bytes: &[u8]) {
        let bytes = &bytes[bytes.len().saturating_sub(KEPT)..];
        // Moved seldom, whatever the size of the pieces.
        if self.0.len() + bytes.len() > 2 * KEPT {
            let surplus = (self.0.len() + bytes.len() - KEPT).min(self.0.len());
            self.0.drain(..surplus);
        }
        self.0.extend_from_slice(bytes);
    }

    /// The last lines, the oldest first; of a line that was drawn over and over, its last state.
    pub fn lines(&self) -> Vec<String> {
        let text = String::from_utf8_lossy(&self.0);
        let shown = |line: &str| {
            let line = line.trim_end_matches('\r');
            line.rsplit('\r').next().unwrap_or(line).to_owned()
        };
        let mut lines: Vec<String> = text.lines().rev().take(LINES).map(shown).collect();
        lines.reverse();
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_kept_and_memory_bounded() {
        let mut tail = Tail::default();
        for number in 0..100_000 {
            tail.push(format!("line {number}\n").as_bytes());
            assert!(tail.0.len() <= 2 * KEPT);
        }
        let lines = tail.lines();
        assert_eq!(lines.len(), LINES);
        assert_eq!(lines[LINES - 1], "line 99999");
        tail.push(&vec![b'x'; 10 * KEPT]);
        tail.push(b"\n 10%\r 20%\r 30%\r\nKilled");
        let lines = tail.lines();
        assert_eq!(lines[lines.len() - 2..], [" 30%", "Killed"]);
        assert!(lines.iter().all(|line| line.len() <= 2 * KEPT));
    }
}
