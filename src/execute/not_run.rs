//! Why a run ended before its task was taken.

use super::claim::{Left, Refused};
use super::outcome::{Outcome, Stage, StopCause, exit, for_signal};
use super::result::Reason;
use super::settings::SettingsError;
use crate::api::ApiError;
use crate::container::error::ContainerError;
use crate::journal::JournalError;
use crate::process::signal;

/// Why no script was started and no task was touched (or the claim itself could not be finished).
#[derive(Debug, thiserror::Error)]
pub(super) enum NotRun {
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Log(#[from] JournalError),
    #[error("cannot write the result file {path}: {cause} (given by --result)")]
    ResultFile { path: String, cause: std::io::Error },
    #[error(transparent)]
    Login(ApiError),
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error("stopped by {} before the task was taken: it is as it was", signal::name(*.0))]
    Interrupted(i32),
    #[error("{cause} while task {task} was being taken: {left}")]
    CutOff {
        cause: StopCause,
        task: String,
        left: Left,
    },
    #[error("{0}, before the task was taken: it is as it was")]
    Timeout(String),
    #[error(
        "this machine is not fit to run the task, which is as it was (agent.gpu_health_check): {}",
        .0.join("; ")
    )]
    Unfit(Vec<String>),
    #[error("no container can be had, the task is as it was: {0}")]
    Container(ContainerError),
    #[error("{0}")]
    Agent(String),
}

impl NotRun {
    pub fn exit_code(&self) -> u8 {
        match self {
            NotRun::Settings(error) => error.exit_code(),
            NotRun::Log(_) | NotRun::ResultFile { .. } => exit::CANNOT_WRITE,
            NotRun::Login(error) => exit::for_api(error),
            NotRun::Refused(refused) => refused.exit_code(),
            NotRun::Interrupted(signal)
            | NotRun::CutOff {
                cause: StopCause::Signal(signal),
                ..
            } => for_signal(*signal),
            NotRun::CutOff {
                cause: StopCause::Timeout { .. },
                ..
            } => exit::TIMEOUT,
            NotRun::CutOff { .. } => exit::AGENT,
            NotRun::Timeout(_) => exit::TIMEOUT,
            NotRun::Unfit(_) => exit::UNFIT,
            NotRun::Container(error) => Stage::Container(error.kind()).exit_code(),
            NotRun::Agent(_) => exit::AGENT,
        }
    }

    pub fn reason(&self) -> Reason {
        match self {
            NotRun::Settings(_) => Reason::ConfigInvalid,
            NotRun::Log(_) | NotRun::ResultFile { .. } => Reason::LogFileFailed,
            NotRun::Login(error) | NotRun::Refused(Refused::Api(error)) => match error {
                ApiError::Unauthorized { .. } | ApiError::Refused { code: 403, .. } => {
                    Reason::NotAllowed
                }
                ApiError::Setup { .. } | ApiError::NotAnApiServer { .. } => Reason::ConfigInvalid,
                ApiError::Refused { .. } => Reason::Refused,
                ApiError::Unreachable { .. }
                | ApiError::AnswerLost { .. }
                | ApiError::UnexpectedAnswer { .. } => Reason::NoServer,
            },
            NotRun::Refused(refused) => match refused {
                Refused::NoSuchTask { .. } => Reason::NotFound,
                Refused::NotQueued { .. } => Reason::NotQueued,
                Refused::TooSlow { .. } | Refused::CopyUnknown { .. } => Reason::NoServer,
                Refused::TakenByAnother { .. }
                | Refused::Held { .. }
                | Refused::RunsStill { .. } => Reason::TakenByAnother,
                Refused::FirstRankSilent { .. } => Reason::NotQueued,
                Refused::Ended { .. } => Reason::AlreadyEnded,
                Refused::ReadOnly { .. } => Reason::ReadOnly,
                Refused::GivenUp { .. } => Reason::Interrupted,
                Refused::Api(_) => Reason::Refused,
            },
            NotRun::Interrupted(_) => Reason::Interrupted,
            NotRun::CutOff { cause, .. } => Reason::from(&Outcome::Stopped(cause.clone())),
            NotRun::Timeout(_) => Reason::Timeout,
            NotRun::Unfit(_) => Reason::NodeUnfit,
            NotRun::Container(error) => Reason::from(&Outcome::Failed {
                stage: Stage::Container(error.kind()),
                cause: String::new(),
            }),
            NotRun::Agent(_) => Reason::AgentFailed,
        }
    }
}
