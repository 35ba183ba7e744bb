//! The `tasks` service.

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::error::{ApiError, subcode};
use super::retry::Patience;
use super::session::Session;
use crate::task::{Requirements, Status, Task, null_as_default};

/// `status_reason` and `status_message` of a status change; each change replaces both.
#[derive(Debug, Clone, Copy)]
pub struct StatusNote<'a> {
    pub reason: &'a str,
    pub message: &'a str,
}

/// A final status that the agent writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinalStatus {
    Completed,
    Failed,
    Stopped,
}

impl std::fmt::Display for FinalStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            FinalStatus::Completed => "completed",
            FinalStatus::Failed => "failed",
            FinalStatus::Stopped => "stopped",
        })
    }
}

/// Whether a final status was taken.
#[derive(Debug, PartialEq, Eq)]
pub enum StatusWrite {
    Written,
    /// The task already has a status that does not lead to the asked one (the script set it, or
    /// somebody reset the task): it was left as it is.
    NotFromHere {
        message: String,
    },
}

/// The task's document. `Ok(None)`: the server knows no such task.
pub async fn get_by_id(session: &Session, id: &str) -> Result<Option<Task>, ApiError> {
    #[derive(Deserialize)]
    struct Answer {
        task: Task,
    }
    match session
        .call::<Answer>("tasks.get_by_id", &json!({"task": id}), Patience::Start)
        .await
    {
        Ok(answer) => Ok(Some(answer.task)),
        Err(error) if error.is_refusal(subcode::INVALID_TASK_ID) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The task's document as the server has it, with parts that no run but one in a container needs.
/// Null where the task is gone.
pub async fn document(session: &Session, id: &str) -> Result<Value, ApiError> {
    let request = json!({"id": [id], "search_hidden": true});
    let mut answer: Value = session
        .call("tasks.get_all", &request, Patience::Start)
        .await?;
    Ok(answer["tasks"][0].take())
}

/// Replaces the task's `container` section.
pub async fn set_container(
    session: &Session,
    id: &str,
    image: &str,
    arguments: &str,
    setup_shell_script: &str,
) -> Result<(), ApiError> {
    let request = json!({"task": id, "force": true, "container": {
        "image": image, "arguments": arguments, "setup_shell_script": setup_shell_script,
    }});
    session
        .call::<Value>("tasks.edit", &request, Patience::Passing)
        .await
        .map(drop)
}

/// What an agent looks at while the task runs.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Standing {
    pub status: Status,
    #[serde(default)]
    pub status_message: Option<String>,
    /// The user who changed the task last.
    #[serde(default)]
    pub last_changed_by: Option<String>,
    #[serde(default)]
    pub runtime: serde_json::Map<String, Value>,
    /// The worker that reported on the task last.
    #[serde(default)]
    pub last_worker: Option<String>,
}

/// The key of `runtime` that says by which claim the task runs.
pub const CLAIM: &str = "clearml_agent_claim";
/// The key that says which claim's agent was killed, where the status was set for that.
pub const KILLED: &str = "clearml_agent_killed";

impl Standing {
    /// What the task's runtime has under `key`, where that is text and not empty.
    pub fn said(&self, key: &str) -> Option<&str> {
        said(&self.runtime, key)
    }
}

/// What `runtime` has under `key`, where that is text and not empty.
pub fn said<'a>(runtime: &'a serde_json::Map<String, Value>, key: &str) -> Option<&'a str> {
    let text = runtime.get(key).and_then(Value::as_str);
    text.filter(|text| !text.is_empty())
}

/// The task's present status. `Ok(None)`: it was deleted.
pub async fn standing(session: &Session, id: &str) -> Result<Option<Standing>, ApiError> {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(default)]
        tasks: Vec<Standing>,
    }
    let fields = [
        "status",
        "status_message",
        "last_changed_by",
        "runtime",
        "last_worker",
    ];
    let request = json!({"id": [id], "only_fields": fields, "search_hidden": true});
    let answer: Answer = session
        .call("tasks.get_all", &request, Patience::Passing)
        .await?;
    Ok(answer.tasks.into_iter().next())
}

/// Puts a task that has a final status at the end of `queue`.
pub async fn enqueue(session: &Session, id: &str, queue: &str) -> Result<(), ApiError> {
    let request = json!({
        "task": id, "queue": queue,
        "status_reason": "put back after preemption", "status_message": "",
    });
    change_status::<Value>(session, "tasks.enqueue", &request, Patience::Persistent)
        .await
        .map(drop)
}

/// Copies a task; gives the copy's id. Its status is `created`. Where the answer is lost
/// ([`ApiError::AnswerLost`]) there may be a copy, of which nobody knows the id.
pub async fn clone(session: &Session, source: &Task) -> Result<String, ApiError> {
    #[derive(Deserialize)]
    struct Answer {
        id: String,
    }
    let request = json!({
        "task": source.id,
        "new_task_name": format!("Clone of {}", source.name),
        "new_task_parent": source.parent.as_ref().unwrap_or(&source.id),
    });
    let answer: Answer = session
        .call("tasks.clone", &request, Patience::Unsent)
        .await?;
    Ok(answer.id)
}

/// Takes the task out of its queue and sets it `in_progress`. No claim: any number of callers
/// succeed. `false`: the task was neither queued nor running.
pub async fn dequeue(session: &Session, id: &str) -> Result<bool, ApiError> {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(default)]
        updated: u32,
    }
    let request = json!({"task": id, "new_status": "in_progress"});
    let answer: Answer = change_status(session, "tasks.dequeue", &request, Patience::Start).await?;
    Ok(answer.updated > 0)
}

/// A call that changes the status. The server compares and sets: a call that met another change did
/// nothing, and is made again on what that one left.
async fn change_status<T: DeserializeOwned>(
    session: &Session,
    endpoint: &'static str,
    request: &Value,
    patience: Patience,
) -> Result<T, ApiError> {
    const TRIES: u32 = 5;
    for _ in 1..TRIES {
        match session.call(endpoint, request, patience).await {
            Err(error) if error.is_refusal(subcode::STATUS_CHANGE_LOST) => {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            result => return result,
        }
    }
    session.call(endpoint, request, patience).await
}

/// Sets the task `in_progress`. `force`: whatever its status.
pub async fn started(
    session: &Session,
    id: &str,
    note: StatusNote<'_>,
    force: bool,
) -> Result<(), ApiError> {
    let request = json!({
        "task": id, "force": force,
        "status_reason": note.reason, "status_message": note.message,
    });
    change_status::<Value>(session, "tasks.started", &request, Patience::Persistent)
        .await
        .map(drop)
}

/// Writes the final status, from `in_progress` or what the server allows besides; never by force.
pub async fn finish(
    session: &Session,
    id: &str,
    status: FinalStatus,
    note: StatusNote<'_>,
) -> Result<StatusWrite, ApiError> {
    let endpoint = match status {
        FinalStatus::Completed => "tasks.completed",
        FinalStatus::Failed => "tasks.failed",
        FinalStatus::Stopped => "tasks.stopped",
    };
    let request = json!({
        "task": id, "force": false,
        "status_reason": note.reason, "status_message": note.message,
    });
    match change_status::<Value>(session, endpoint, &request, Patience::Persistent).await {
        Ok(_) => Ok(StatusWrite::Written),
        Err(ApiError::Refused {
            code: 400,
            subcode: subcode::INVALID_TASK_STATUS,
            message,
            ..
        }) => Ok(StatusWrite::NotFromHere { message }),
        Err(error) => Err(error),
    }
}

/// Records the commit that was run. Only this key is sent: the server merges `script`.
pub async fn set_version_num(session: &Session, id: &str, commit: &str) -> Result<(), ApiError> {
    let request = json!({"task": id, "force": true, "script": {"version_num": commit}});
    session
        .call::<Value>("tasks.edit", &request, Patience::Passing)
        .await
        .map(drop)
}

/// Replaces `script.requirements` as a whole.
pub async fn set_requirements(
    session: &Session,
    id: &str,
    requirements: &Requirements,
) -> Result<(), ApiError> {
    let request = json!({"task": id, "requirements": requirements});
    session
        .call::<Value>("tasks.set_requirements", &request, Patience::Passing)
        .await
        .map(drop)
}

/// What a running script changes in its task.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Progress {
    #[serde(deserialize_with = "null_as_default")]
    pub status_reason: String,
    /// Of what was reported; the machine's figures do not count.
    #[serde(deserialize_with = "null_as_default")]
    pub last_iteration: i64,
    #[serde(deserialize_with = "null_as_default")]
    pub runtime: serde_json::Map<String, Value>,
}

/// How far the task's script is. `Ok(None)`: the task was deleted.
pub async fn progress(session: &Session, id: &str) -> Result<Option<Progress>, ApiError> {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(default)]
        tasks: Vec<Progress>,
    }
    let request = json!({
        "id": [id], "only_fields": ["status_reason", "last_iteration", "runtime"], "search_hidden": true,
    });
    let answer: Answer = session
        .call("tasks.get_all", &request, Patience::Passing)
        .await?;
    Ok(answer.tasks.into_iter().next())
}

/// The task's `runtime`; empty where the task is gone.
pub async fn runtime(
    session: &Session,
    id: &str,
) -> Result<serde_json::Map<String, Value>, ApiError> {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(default)]
        tasks: Vec<One>,
    }
    #[derive(Deserialize)]
    struct One {
        #[serde(default)]
        runtime: serde_json::Map<String, Value>,
    }
    let request = json!({"id": [id], "only_fields": ["runtime"], "search_hidden": true});
    let answer: Answer = session
        .call("tasks.get_all", &request, Patience::Passing)
        .await?;
    let task = answer.tasks.into_iter().next();
    Ok(task.map(|task| task.runtime).unwrap_or_default())
}

/// Changes the task's `runtime` on the ground of what it is now; `change` says whether there is anything to
/// write, and so does the answer. The server takes it as a whole: what others write in between is lost.
pub async fn change_runtime(
    session: &Session,
    id: &str,
    change: impl FnOnce(&mut serde_json::Map<String, Value>) -> bool,
) -> Result<bool, ApiError> {
    let mut all = runtime(session, id).await?;
    if !change(&mut all) {
        return Ok(false);
    }
    set_runtime(session, id, &all).await?;
    Ok(true)
}

/// Replaces `runtime` as a whole: read it first and keep what others put there.
pub async fn set_runtime(
    session: &Session,
    id: &str,
    runtime: &serde_json::Map<String, Value>,
) -> Result<(), ApiError> {
    let request = json!({"task": id, "force": true, "runtime": runtime});
    session
        .call::<Value>("tasks.edit", &request, Patience::Passing)
        .await
        .map(drop)
}

/// Tells the server that somebody still runs the task.
pub async fn ping(session: &Session, id: &str) -> Result<(), ApiError> {
    session
        .call::<Value>("tasks.ping", &json!({"task": id}), Patience::Passing)
        .await
        .map(drop)
}
