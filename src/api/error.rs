//! What can go wrong in a call to the API server, in the words a person gets.

use std::time::Duration;

/// A call that failed for good: what could be retried has been.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// No answer at all within the patience of the call.
    #[error(
        "no answer from the ClearML API server {host} ({cause}; {tries} tries in {} s). \
         Is it up, and is the address right? It comes from `api.api_server` in clearml.conf or CLEARML_API_HOST",
        waited.as_secs()
    )]
    Unreachable {
        host: String,
        cause: String,
        tries: u32,
        waited: Duration,
    },

    /// No answer to a call that must not be made twice.
    #[error(
        "no answer from the ClearML API server {host} ({cause}) to a call that it may have carried out"
    )]
    AnswerLost { host: String, cause: String },

    /// The key pair or token is not accepted.
    #[error(
        "the ClearML API server {host} does not accept the credentials: {message}. \
         Check `api.credentials` in clearml.conf or CLEARML_API_ACCESS_KEY and CLEARML_API_SECRET_KEY \
         (the web UI makes a new pair under Settings, Workspace, App Credentials)"
    )]
    Unauthorized { host: String, message: String },

    /// The server understood the call and refused it.
    #[error("{endpoint}: the server refused ({code}/{subcode}): {message}")]
    Refused {
        endpoint: &'static str,
        code: u16,
        subcode: u32,
        message: String,
    },

    /// Something answered, but not as a ClearML API server does.
    #[error(
        "{host} answered {endpoint} with {found}, not as a ClearML API server. `api.api_server` must be the \
         API's address (often port 8008 or a host named api.…), not the web page's"
    )]
    NotAnApiServer {
        host: String,
        endpoint: &'static str,
        found: String,
    },

    /// The answer lacks what the call promises.
    #[error("{endpoint}: the server's answer could not be read: {cause}")]
    UnexpectedAnswer {
        endpoint: &'static str,
        cause: String,
    },

    /// The HTTP client itself could not be set up (a certificate bundle that cannot be read …).
    #[error("cannot set up the connection to {host}: {cause}")]
    Setup { host: String, cause: String },
}

/// Error subcodes that decisions depend on (the ClearML API's own numbers).
pub mod subcode {
    /// 400: no task with this id.
    pub const INVALID_TASK_ID: u32 = 101;
    /// 400: the status change is not allowed from the present status.
    pub const INVALID_TASK_STATUS: u32 = 110;
    /// 400: somebody else changed the status in the same moment; the call did nothing.
    pub const STATUS_CHANGE_LOST: u32 = 121;
    /// 400: the task is in a queue already.
    pub const TASK_ALREADY_QUEUED: u32 = 706;
    /// 400: no such queue, or the task is not in it.
    pub const TASK_NOT_IN_QUEUE: u32 = 703;
}

impl ApiError {
    /// Whether the server refused with HTTP 400 and this subcode.
    pub fn is_refusal(&self, wanted: u32) -> bool {
        matches!(self, ApiError::Refused { code: 400, subcode, .. } if *subcode == wanted)
    }
}
