//! Why a task is not taken, in words and as exit codes.

use std::time::Duration;

use super::Left;
use crate::api::ApiError;
use crate::execute::outcome::exit;
use crate::task::Status;

#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error(
        "the server {host} has no task {id}. Is the id complete, and is this the right server and workspace \
         (`api.api_server`, `api.credentials`)?"
    )]
    NoSuchTask { id: String, host: String },
    #[error(
        "task {id} is not waiting in a queue (its status is {status}), and --require-queue asks for that: \
         enqueue it, give it time with --wait, or leave --require-queue out"
    )]
    NotQueued { id: String, status: Status },
    #[error(
        "task {id} is in_progress, and it is not this job that has it: {by}. To have it run elsewhere, stop it \
         in the web UI, reset and enqueue it"
    )]
    Held { id: String, by: String },
    #[error(
        "task {id} runs still: an earlier agent of this job ({job}) still runs it, or another one of the same \
         name goes on with it. Jobs that are two and have one name are told apart by CLEARML_AGENT_CLAIM_ID"
    )]
    RunsStill { id: String, job: String },
    #[error(
        "whether task {id} runs still could not be asked: the server {host} takes more than {} s, time and \
         again, for a read and a write. The task is as it was: try again when the server is quicker",
        limit.as_secs()
    )]
    TooSlow {
        id: String,
        host: String,
        limit: Duration,
    },
    #[error(
        "task {id} has ended already (its status is {status}): nothing to do. To run it again, reset and \
         enqueue it; `--if-done ok` makes this no failure"
    )]
    Ended { id: String, status: Status },
    #[error(
        "rank 0 has not taken task {id} (its status is {status}): look at rank 0's output, or give it more \
         time with --wait"
    )]
    FirstRankSilent { id: String, status: Status },
    #[error(
        "task {id} was taken out of its queue by another agent in the same moment: it runs there"
    )]
    TakenByAnother { id: String },
    #[error(
        "whether task {id} was copied is not known: {cause}. It is not tried again, since that might make a \
         second copy. If the web UI shows a new \"Clone of {name}\", run that one with --id, or delete it and \
         start this again"
    )]
    CopyUnknown {
        id: String,
        name: String,
        cause: ApiError,
    },
    /// A stop was asked for.
    #[error("given up while task {id} was being taken: {left}")]
    GivenUp { id: String, left: Left },
    #[error("task {id} is {status} and cannot be changed: run a copy of it with --clone")]
    ReadOnly { id: String, status: Status },
    #[error(transparent)]
    Api(#[from] ApiError),
}

impl Refused {
    pub fn exit_code(&self) -> u8 {
        match self {
            Refused::Api(error) => exit::for_api(error),
            Refused::NoSuchTask { .. } => exit::NOT_FOUND,
            Refused::TooSlow { .. } | Refused::CopyUnknown { .. } => exit::NO_SERVER,
            Refused::NotQueued { .. } | Refused::FirstRankSilent { .. } => exit::NOT_QUEUED,
            Refused::TakenByAnother { .. } | Refused::Held { .. } | Refused::RunsStill { .. } => {
                exit::HELD_BY_ANOTHER
            }
            Refused::Ended { .. } | Refused::ReadOnly { .. } => exit::ENDED,
            // Whoever asked for the stop has a code of its own.
            Refused::GivenUp { .. } => exit::AGENT,
        }
    }
}
