//! The `tasks` service.

mod edit;
mod make;
mod parts;
mod read;
mod status;
pub mod watchdog;

use serde_json::{Value, json};

use super::USER_ID;
use super::call::{Call, Endpoint};
use super::document::{Document, iso, text};
use super::refusal::Refusal;
use super::state::status_of;
use super::store::Kind;
use crate::task::Status;

/// The tables of the service's parts.
pub const ENDPOINTS: &[&[Endpoint]] = &[
    make::ENDPOINTS,
    read::ENDPOINTS,
    edit::ENDPOINTS,
    parts::ENDPOINTS,
    status::ENDPOINTS,
];

/// The task that the call names.
pub fn fetch(call: &Call<'_>) -> Result<(String, Document), Refusal> {
    let id = call.request.required("task")?;
    match call.transaction.get(Kind::Tasks, id)? {
        Some(task) => Ok((id.to_owned(), task)),
        None => Err(Refusal::no_task(id)),
    }
}

/// Where a task goes that is taken out of its queue without running.
pub fn status_before_queue(task: &Document) -> Status {
    text(task, "enqueue_status")
        .and_then(|text| serde_json::from_value(json!(text)).ok())
        .unwrap_or(Status::Created)
}

/// What every change of a task writes besides.
fn touched(call: &Call<'_>) -> Document {
    let mut fields = Document::new();
    fields.insert("last_change".into(), json!(iso(call.now)));
    fields.insert("last_changed_by".into(), json!(USER_ID));
    fields.insert("last_update".into(), json!(iso(call.now)));
    fields
}

fn touch(call: &Call<'_>, task: &mut Document) {
    task.extend(touched(call));
}

/// Refuses the change of a task that is past `created`, if not forced.
fn check_editable(call: &Call<'_>, task: &Document) -> Result<(), Refusal> {
    let status = status_of(task);
    if status == Status::Created || call.request.flag("force")? {
        return Ok(());
    }
    Err(Refusal::status_must_be("created", status))
}

/// Refuses the change of a task that is published, if not forced. What a running task adds to
/// itself needs no more than this.
fn check_not_published(call: &Call<'_>, task: &Document) -> Result<(), Refusal> {
    let status = status_of(task);
    if matches!(status, Status::Published | Status::Publishing) && !call.request.flag("force")? {
        return Err(Refusal::status_must_be("created", status));
    }
    Ok(())
}

fn updated(fields: Document) -> Value {
    json!({"fields": fields, "updated": 1})
}
