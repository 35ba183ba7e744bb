//! The `workers` service.

use serde::Serialize;
use serde_json::{Value, json};

use super::error::ApiError;
use super::retry::Patience;
use super::session::Session;

/// Tells what `worker` is doing; an unknown worker is registered by its first report.
/// `timestamp` in epoch milliseconds.
pub async fn status_report(
    session: &Session,
    worker: &str,
    task: &str,
    timestamp: i64,
    machine_stats: Option<&impl Serialize>,
) -> Result<(), ApiError> {
    let request = json!({
        "worker": worker, "task": task, "timestamp": timestamp,
        "machine_stats": machine_stats, "tags": null, "is_daemon": false,
    });
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
