//! The `workers` service.

use serde::Serialize;
use serde_json::{Value, json};

use super::error::ApiError;
use super::retry::Patience;
use super::session::Session;

/// What a worker is doing.
#[derive(Debug)]
pub struct Status<'a, Stats> {
    pub worker: &'a str,
    pub task: &'a str,
    /// The id of the queue that the task came from.
    pub queue: Option<&'a str>,
    pub tags: &'a [String],
    /// Epoch milliseconds.
    pub timestamp: i64,
    pub machine_stats: Option<&'a Stats>,
}

/// Tells it; an unknown worker is registered by its first report.
pub async fn status_report(
    session: &Session,
    status: &Status<'_, impl Serialize>,
) -> Result<(), ApiError> {
    // As the Python agent: without tags the field is null.
    let tags = Some(status.tags).filter(|tags| !tags.is_empty());
    let mut request = json!({
        "worker": status.worker, "task": status.task, "timestamp": status.timestamp,
        "machine_stats": status.machine_stats, "tags": tags, "is_daemon": false,
    });
    if let Some(queue) = status.queue {
        request["queue"] = json!(queue);
    }
    session
        .call::<Value>("workers.status_report", &request, Patience::Passing)
        .await
        .map(drop)
}

/// Takes `worker` off the list.
pub async fn unregister(session: &Session, worker: &str) -> Result<(), ApiError> {
    let request = json!({"worker": worker});
    session
        .call::<Value>("workers.unregister", &request, Patience::Passing)
        .await
        .map(drop)
}
