//! How a run in a container ended, in the words of the agent inside: its result document, read back by
//! the agent on the host.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::outcome::exit;
use super::result::Script;
use super::timeline::Phase;
use crate::api::tasks::FinalStatus;
use crate::process::Usage;

/// The part of the document that the outer agent makes its own.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Report {
    /// Null where the inner agent did not come as far as the task.
    status: Option<FinalStatus>,
    pub reason: String,
    message: String,
    pub exit_code: u8,
    pub script: Script,
    /// Phases that this version does not know are left out.
    #[serde(deserialize_with = "known")]
    pub times: BTreeMap<Phase, jiff::Timestamp>,
    pub usage: Option<Usage>,
    pub versions: Took,
}

/// What took part inside.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Took {
    pub python: Option<String>,
    pub commit: Option<String>,
}

fn known<'de, D: serde::Deserializer<'de>>(
    times: D,
) -> Result<BTreeMap<Phase, jiff::Timestamp>, D::Error> {
    let times = BTreeMap::<String, String>::deserialize(times)?;
    let known = times.into_iter().filter_map(|(phase, at)| {
        let phase = serde_json::from_value(phase.into()).ok()?;
        Some((phase, at.parse().ok()?))
    });
    Ok(known.collect())
}

impl Report {
    pub fn status(&self) -> FinalStatus {
        self.status.unwrap_or(FinalStatus::Failed)
    }

    /// The inner agent had the task; else it ended before.
    pub fn came_to_the_task(&self) -> bool {
        self.status.is_some()
    }

    /// Whether the script ran to an end of its own.
    pub fn is_of_script(&self) -> bool {
        self.script != Script::default()
    }

    /// The task's status reason.
    pub fn message(&self) -> String {
        if self.status.is_none() && self.exit_code == exit::NO_SERVER {
            return format!(
                "in the container: {}. Is the API server's address one that holds in there? With \
                 `--network host` in the container's arguments it is this machine's",
                self.message
            );
        }
        match self.status {
            None => format!("in the container: {}", self.message),
            Some(_) => self.message.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_is_read_as_it_is_written() {
        let report: Report = serde_json::from_value(serde_json::json!({
            "task": "t", "worker": "w", "status": "failed", "reason": "env_failed",
            "message": "failed building the Python environment: no such package", "exit_code": 72,
            "script": {"exit_code": null, "signal": null},
            "times": {"started": "2026-11-24T09:12:01.104Z", "of_tomorrow": "x"},
            "usage": {"peak_memory_bytes": 5, "cpu_seconds": 1.25},
            "log": null, "versions": {"agent": "9", "python": "3.11.2", "commit": null},
        }))
        .unwrap();
        assert_eq!(report.status(), FinalStatus::Failed);
        assert!(!report.is_of_script());
        assert_eq!(report.times.len(), 1);
        assert_eq!(report.usage.unwrap().peak_memory, Some(5));
        let not_reached = Report {
            status: None,
            exit_code: exit::NO_SERVER,
            ..report
        };
        assert!(not_reached.message().contains("--network host"));
    }
}
