//! The `queues` service: the one call that is a claim, and finding the queue a task is in.

use serde::Deserialize;
use serde_json::{Value, json};

use super::error::{ApiError, subcode};
use super::retry::Patience;
use super::session::Session;

/// A queue and the ids of the tasks in it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Queue {
    pub id: String,
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    pub entries: Vec<Entry>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Entry {
    pub task: String,
}

/// Takes `task` out of `queue`, atomically: of any number of callers exactly one gets `true`.
/// One try: where the answer is lost ([`ApiError::Unreachable`]) the task may have been taken.
pub async fn remove_task(session: &Session, queue: &str, task: &str) -> Result<bool, ApiError> {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(default)]
        removed: u32,
    }
    let request = json!({"queue": queue, "task": task});
    match session
        .call::<Answer>("queues.remove_task", &request, Patience::Once)
        .await
    {
        Ok(answer) => Ok(answer.removed > 0),
        Err(error) if error.is_refusal(subcode::TASK_NOT_IN_QUEUE) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Puts `task` at the end of `queue`; one that is in it already stays where it is.
pub async fn add_task(session: &Session, queue: &str, task: &str) -> Result<(), ApiError> {
    let request = json!({"queue": queue, "task": task});
    match session
        .call::<Value>("queues.add_task", &request, Patience::Start)
        .await
    {
        Err(error) if !error.is_refusal(subcode::TASK_ALREADY_QUEUED) => Err(error),
        _ => Ok(()),
    }
}

/// All queues with what is in them.
pub async fn get_all(session: &Session) -> Result<Vec<Queue>, ApiError> {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(default)]
        queues: Vec<Queue>,
    }
    let request = json!({"only_fields": ["id", "name", "entries.task"], "search_hidden": true});
    let answer: Answer = session
        .call("queues.get_all", &request, Patience::Start)
        .await?;
    Ok(answer.queues)
}
