//! What the server says no with: HTTP code, subcode and words, as ClearML's own server has them.

use crate::task::Status;

use super::COMPANY;

/// A call that was refused. `code` is the HTTP status.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}/{subcode}: {message}")]
pub struct Refusal {
    pub code: u16,
    pub subcode: u32,
    pub message: String,
}

impl Refusal {
    pub fn new(code: u16, subcode: u32, message: impl Into<String>) -> Self {
        Self {
            code,
            subcode,
            message: message.into(),
        }
    }

    pub fn no_endpoint(name: &str, version: &str) -> Self {
        let message = format!("Unable to find endpoint for name {name} and version {version}");
        Self::new(404, 0, message)
    }

    pub fn bad_version(version: &str) -> Self {
        Self::new(
            400,
            2,
            format!("Invalid version in the request path: {version}"),
        )
    }

    pub fn invalid_field(field: &str, why: &str) -> Self {
        let message = format!("Validation error (error for field '{field}'. {why})");
        Self::new(400, 12, message)
    }

    pub fn missing_field(field: &str) -> Self {
        Self::invalid_field(field, "field is required!")
    }

    pub fn bad_body(why: impl std::fmt::Display) -> Self {
        Self::new(400, 12, format!("Validation error ({why})"))
    }

    pub fn no_items() -> Self {
        Self::new(400, 17, "Batch request contains no items")
    }

    pub fn no_task(id: &str) -> Self {
        Self::no_document(101, "task", id)
    }

    /// `subcode`: the one that the kind of document has.
    pub fn no_document(subcode: u32, noun: &str, id: &str) -> Self {
        let message = format!("Invalid {noun} id: id={id}, company={COMPANY}");
        Self::new(400, subcode, message)
    }

    pub fn no_such_change(from: Status, to: Status) -> Self {
        let message = format!(
            "Invalid task status (Invalid status change): current_status={from}, new_status={to}"
        );
        Self::new(400, 110, message)
    }

    pub fn status_must_be(expected: &str, found: Status) -> Self {
        let message = format!("Invalid task status: expected={expected}, status={found}");
        Self::new(400, 110, message)
    }

    pub fn not_in_queue(task: &str, queue: &str) -> Self {
        let message = format!(
            "Invalid queue id or task not in queue: task={task}, id={queue}, company={COMPANY}"
        );
        Self::new(400, 703, message)
    }

    pub fn already_queued(task: &str) -> Self {
        let message =
            format!("Failed adding task to queue since task is already queued: task={task}");
        Self::new(400, 706, message)
    }

    pub fn bad_value(field: &str, why: &str) -> Self {
        Self::new(400, 800, format!("Data validation error: {field}={why}"))
    }

    pub fn not_unique(noun: &str, name: &str) -> Self {
        let message = format!("Value combination already exists: {noun} named {name:?}");
        Self::new(400, 801, message)
    }

    /// The database failed, or holds what it should not.
    pub fn data_error(cause: impl std::fmt::Display) -> Self {
        Self::new(500, 100, format!("General data error: {cause}"))
    }
}
