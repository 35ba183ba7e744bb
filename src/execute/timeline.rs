//! When a run came to its phases.

use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use serde::Serialize;
use serde::ser::SerializeMap as _;

/// What a run comes to, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    Started,
    Claimed,
    /// The code is there, its changes applied.
    CodeReady,
    /// All packages are installed.
    EnvironmentReady,
    ScriptStarted,
    ScriptEnded,
    /// The log is on the server, or kept.
    LogSent,
    Finished,
}

/// The phases that a run came to, and when (UTC).
#[derive(Debug, Default)]
pub struct Timeline(Mutex<Vec<(Phase, Timestamp)>>);

impl Timeline {
    pub fn started() -> Self {
        let timeline = Self::default();
        timeline.mark(Phase::Started);
        timeline
    }

    pub fn mark(&self, phase: Phase) {
        let mut marks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        marks.push((phase, Timestamp::now()));
    }
}

impl Serialize for Timeline {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let marks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut map = serializer.serialize_map(Some(marks.len()))?;
        for (phase, at) in marks.iter() {
            map.serialize_entry(phase, &format!("{at:.3}"))?;
        }
        map.end()
    }
}
