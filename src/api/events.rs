//! The `events` service.

use serde::Deserialize;

use super::error::ApiError;
use super::retry::Patience;
use super::session::Session;

/// How many of a batch the server took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Added {
    #[serde(default)]
    pub added: u64,
    #[serde(default)]
    pub errors: u64,
}

/// Sends events, one JSON object a line. A log event sent twice is shown twice.
pub async fn add_batch(session: &Session, lines: Vec<u8>) -> Result<Added, ApiError> {
    session
        .call_batch("events.add_batch", lines, Patience::Passing)
        .await
}
