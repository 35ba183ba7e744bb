//! The task as the agent sees it: the part of the server's document that a run needs.
//! Field names are the ClearML API's (`tasks.get_by_id`); what is unset there is absent.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Task {
    pub id: String,
    #[serde(default)]
    pub name: String,
    pub status: Status,
    #[serde(default, deserialize_with = "null_as_default")]
    pub status_message: String,
    #[serde(default, deserialize_with = "null_as_default")]
    pub status_reason: String,
    #[serde(default)]
    pub project: Option<String>,
    #[serde(default)]
    pub parent: Option<String>,
    #[serde(default)]
    pub script: Option<Script>,
    #[serde(default, deserialize_with = "null_as_default")]
    pub execution: Execution,
    #[serde(default, deserialize_with = "null_as_default")]
    pub container: Container,
    /// Section → name → parameter.
    #[serde(default, deserialize_with = "null_as_default")]
    pub hyperparams: BTreeMap<String, BTreeMap<String, Parameter>>,
    #[serde(default, deserialize_with = "null_as_default")]
    pub runtime: serde_json::Map<String, serde_json::Value>,
    /// The highest iteration that was reported.
    #[serde(default)]
    pub last_iteration: Option<i64>,
    /// The worker that reported on it last.
    #[serde(default)]
    pub last_worker: Option<String>,
}

impl Task {
    /// A user property.
    pub fn property(&self, name: &str) -> Option<&str> {
        let property = self.hyperparams.get("properties")?.get(name)?;
        Some(property.value.as_str()).filter(|value| !value.is_empty())
    }
}

/// The server's task states.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    Created,
    Queued,
    InProgress,
    Stopped,
    Publishing,
    Published,
    Closed,
    Failed,
    Completed,
    #[serde(other)]
    Unknown,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Status::Created => "created",
            Status::Queued => "queued",
            Status::InProgress => "in_progress",
            Status::Stopped => "stopped",
            Status::Publishing => "publishing",
            Status::Published => "published",
            Status::Closed => "closed",
            Status::Failed => "failed",
            Status::Completed => "completed",
            Status::Unknown => "unknown",
        })
    }
}

/// `task.script`: what to run. All texts as the server holds them; empty where unset.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Script {
    #[serde(deserialize_with = "null_as_default")]
    pub repository: String,
    #[serde(deserialize_with = "null_as_default")]
    pub branch: String,
    #[serde(deserialize_with = "null_as_default")]
    pub tag: String,
    /// The commit id (a branch name in some hand-made tasks).
    #[serde(deserialize_with = "null_as_default")]
    pub version_num: String,
    #[serde(deserialize_with = "null_as_default")]
    pub entry_point: String,
    #[serde(deserialize_with = "null_as_default")]
    pub working_dir: String,
    #[serde(deserialize_with = "null_as_default")]
    pub binary: String,
    /// The uncommitted changes, or with no repository the script's text itself.
    #[serde(deserialize_with = "null_as_default")]
    pub diff: String,
    #[serde(deserialize_with = "null_as_default")]
    pub requirements: Requirements,
}

/// `task.script.requirements`: package lists by kind, kept whole so that writing them back
/// loses no key that this agent does not know.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Requirements(pub serde_json::Map<String, serde_json::Value>);

impl Requirements {
    /// The list under `key` (`pip`, `org_pip`, `conda`, …) as requirement-file text. The server
    /// holds it as one text or as a list of lines; absent and null are `None`.
    pub fn text(&self, key: &str) -> Option<String> {
        match self.0.get(key)? {
            serde_json::Value::String(text) => Some(text.clone()),
            serde_json::Value::Array(lines) => {
                let lines: Vec<&str> = lines.iter().filter_map(|l| l.as_str()).collect();
                Some(lines.join("\n"))
            }
            _ => None,
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Execution {
    /// The id of the queue that the task was put in.
    pub queue: Option<String>,
    /// Of tasks older than the section `container`: the image, and arguments behind it.
    #[serde(deserialize_with = "null_as_default")]
    pub docker_cmd: String,
    #[serde(deserialize_with = "null_as_default")]
    pub artifacts: Vec<Artifact>,
}

/// What a run in a container is made from; the whole section is read where one is made.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Container {
    #[serde(deserialize_with = "null_as_default")]
    pub image: String,
}

/// A file that belongs to the task.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Artifact {
    #[serde(deserialize_with = "null_as_default")]
    pub key: String,
    #[serde(deserialize_with = "null_as_default")]
    pub uri: String,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Parameter {
    #[serde(deserialize_with = "null_as_default")]
    pub value: String,
}

pub(crate) fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}
