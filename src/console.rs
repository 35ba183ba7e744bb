//! The agent's own words while it runs: which step it is at and what it found.
//!
//! Every module that has something to say is given a [`Console`]; where the lines go (terminal,
//! log file, server) is decided once, by whoever made it.

use std::fmt;
use std::sync::Arc;

/// A cheap handle; usable from async and blocking code alike.
#[derive(Clone)]
pub struct Console {
    sink: Arc<dyn Fn(&str) + Send + Sync>,
}

impl Console {
    /// `sink` is given one line at a time, without its newline. It must not block for long.
    pub fn new(sink: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self {
            sink: Arc::new(sink),
        }
    }

    /// Says `text`, which may have several lines. It must hold no secret.
    pub fn say(&self, text: impl AsRef<str>) {
        for line in text.as_ref().lines() {
            (self.sink)(line);
        }
    }
}

/// `1 file`, `2 files`: a number and what there is of it, for people.
pub fn counted(number: u64, one: &str) -> String {
    let s = if number == 1 { "" } else { "s" };
    format!("{number} {one}{s}")
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Console")
    }
}
