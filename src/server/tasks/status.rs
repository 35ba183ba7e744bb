//! Changing a task's status.

use jiff::SignedDuration;
use serde_json::{Value, json};

use super::super::call::{Access, Call, Endpoint, endpoint};
use super::super::document::{self, Document, iso, text};
use super::super::refusal::Refusal;
use super::super::state::{Change, also, status_of};
use super::super::store::Kind;
use super::super::{USER_NAME, queues};
use super::{fetch, status_before_queue, updated};
use crate::task::Status;

pub const ENDPOINTS: &[Endpoint] = &[
    endpoint("tasks.enqueue", "1.0", Access::Write, enqueue),
    endpoint("tasks.dequeue", "1.0", Access::Write, dequeue),
    endpoint("tasks.started", "1.0", Access::Write, started),
    endpoint("tasks.stop", "1.0", Access::Write, stop),
    endpoint("tasks.stopped", "1.0", Access::Write, stopped),
    endpoint("tasks.failed", "1.0", Access::Write, failed),
    endpoint("tasks.completed", "2.2", Access::Write, completed),
    endpoint("tasks.close", "1.0", Access::Write, close),
    endpoint("tasks.publish", "1.0", Access::Write, publish),
];

/// A running task whose worker was silent for longer is stopped without asking the worker.
pub const WORKER_SILENT_AFTER: SignedDuration = SignedDuration::from_secs(600);
/// `status_message` by which a worker is asked to end the job.
pub const STOPPING: &str = "stopping";

/// The change to `to` with what the call says of it.
fn asked<'a>(call: &Call<'a>, to: Status) -> Result<Change<'a>, Refusal> {
    Ok(Change {
        to,
        reason: call.request.text("status_reason")?.unwrap_or_default(),
        message: call.request.text("status_message")?.unwrap_or_default(),
        force: call.request.flag("force")?,
    })
}

/// A change that writes the time under `stamp` besides.
fn change_to(
    call: &Call<'_>,
    to: Status,
    stamp: Option<&str>,
) -> Result<(Document, Document), Refusal> {
    let (_, mut task) = fetch(call)?;
    let mut fields = asked(call, to)?.apply(&mut task, call.now)?;
    if let Some(stamp) = stamp {
        also(&mut task, &mut fields, stamp, json!(iso(call.now)));
    }
    Ok((task, fields))
}

fn put(call: &Call<'_>, task: &Document) -> Result<(), Refusal> {
    let id = text(task, "id").unwrap_or_default().to_owned();
    call.transaction.put(Kind::Tasks, &id, task)
}

fn enqueue(call: &Call<'_>) -> Result<Value, Refusal> {
    let (id, mut task) = fetch(call)?;
    let before = status_of(&task);
    let before = match before {
        Status::Queued => status_before_queue(&task),
        other => other,
    };
    let mut fields = asked(call, Status::Queued)?.apply(&mut task, call.now)?;
    let queue = queues::enqueue(call, &id)?;
    also(&mut task, &mut fields, "enqueue_status", json!(before));
    also(&mut task, &mut fields, "execution.queue", json!(queue));
    put(call, &task)?;
    Ok(json!({"fields": fields, "queued": 1, "updated": 1}))
}

/// Works on queued tasks and on running ones: it claims nothing.
fn dequeue(call: &Call<'_>) -> Result<Value, Refusal> {
    let (id, mut task) = fetch(call)?;
    let queued = matches!(status_of(&task), Status::Queued | Status::InProgress);
    queues::remove_everywhere(call, &id)?;
    if !queued {
        return Ok(json!({"dequeued": 1, "fields": {}, "updated": 0}));
    }
    let to = match call.request.get("new_status") {
        Some(status) => serde_json::from_value(status.clone())
            .map_err(|_| Refusal::invalid_field("new_status", "expected a task status"))?,
        None => status_before_queue(&task),
    };
    let mut fields = asked(call, to)?.apply(&mut task, call.now)?;
    also(&mut task, &mut fields, "enqueue_status", Value::Null);
    put(call, &task)?;
    Ok(json!({"dequeued": 1, "fields": fields, "updated": 1}))
}

fn started(call: &Call<'_>) -> Result<Value, Refusal> {
    let (mut task, mut fields) = change_to(call, Status::InProgress, None)?;
    // The earliest start stays.
    if !task.contains_key("started") {
        also(&mut task, &mut fields, "started", json!(iso(call.now)));
    }
    put(call, &task)?;
    Ok(json!({"fields": fields, "started": 1, "updated": 1}))
}

/// Whether a worker is there that can be asked to stop: it told of the task not long ago.
fn has_live_worker(task: &Document, now: jiff::Timestamp) -> bool {
    let heard = text(task, "last_update").and_then(document::time);
    task.contains_key("last_worker")
        && heard.is_some_and(|heard| now.duration_since(heard) < WORKER_SILENT_AFTER)
}

/// The web page's abort. A running task is stopped by its worker, which sees the message.
fn stop(call: &Call<'_>) -> Result<Value, Refusal> {
    let (id, mut task) = fetch(call)?;
    let development = task
        .get("system_tags")
        .and_then(Value::as_array)
        .is_some_and(|tags| tags.iter().any(|tag| tag == "development"));
    let ask_the_worker =
        status_of(&task) == Status::InProgress && !development && has_live_worker(&task, call.now);
    let by_user = format!("Stopped by {USER_NAME}");
    let mut change = asked(call, Status::Stopped)?;
    if ask_the_worker {
        change.to = Status::InProgress;
        change.message = STOPPING;
    } else if change.message.is_empty() {
        change.message = &by_user;
    }
    let fields = change.apply(&mut task, call.now)?;
    if !ask_the_worker {
        queues::remove_everywhere(call, &id)?;
    }
    put(call, &task)?;
    Ok(updated(fields))
}

fn stopped(call: &Call<'_>) -> Result<Value, Refusal> {
    let (task, fields) = change_to(call, Status::Stopped, Some("completed"))?;
    leave_queue(call, &task)?;
    put(call, &task)?;
    Ok(updated(fields))
}

fn failed(call: &Call<'_>) -> Result<Value, Refusal> {
    let (task, fields) = change_to(call, Status::Failed, None)?;
    leave_queue(call, &task)?;
    put(call, &task)?;
    Ok(updated(fields))
}

fn completed(call: &Call<'_>) -> Result<Value, Refusal> {
    let (mut task, fields) = change_to(call, Status::Completed, Some("completed"))?;
    leave_queue(call, &task)?;
    let mut published = 0;
    if call.request.flag("publish")? {
        let change = Change {
            force: false,
            ..asked(call, Status::Published)?
        };
        let mut more = change.apply(&mut task, call.now)?;
        also(&mut task, &mut more, "published", json!(iso(call.now)));
        published = 1;
    }
    put(call, &task)?;
    Ok(json!({"fields": fields, "published": published, "updated": 1}))
}

/// A task with a final status waits for nobody.
fn leave_queue(call: &Call<'_>, task: &Document) -> Result<(), Refusal> {
    queues::remove_everywhere(call, text(task, "id").unwrap_or_default())
}

fn close(call: &Call<'_>) -> Result<Value, Refusal> {
    let (task, fields) = change_to(call, Status::Closed, None)?;
    put(call, &task)?;
    Ok(updated(fields))
}

fn publish(call: &Call<'_>) -> Result<Value, Refusal> {
    let (mut task, mut fields) = change_to(call, Status::Published, Some("published"))?;
    let output = task.get("output").cloned().unwrap_or_else(|| json!({}));
    also(&mut task, &mut fields, "output", output);
    put(call, &task)?;
    Ok(updated(fields))
}
