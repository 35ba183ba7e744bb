//! `--result FILE`: how the run ended, for programs.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::outcome::{Outcome, Stage, StopCause};
use super::timeline::Timeline;
use crate::api::tasks::FinalStatus;
use crate::container::error::Kind;
use crate::journal::{Amount, Receipt};
use crate::mask::Masked;
use crate::process::{Ended, Usage};

/// Why a run ended as it did: what a scheduler decides on. Names stay; new ones may come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The script ended with 0.
    Completed,
    /// The script ended with another code.
    Failed,
    /// The agent got a signal and stopped the run.
    Interrupted,
    /// Stopped on the server: aborted, reset, or deleted there.
    Aborted,
    /// `--timeout`.
    Timeout,
    /// A batch system wanted its machine back.
    Preempted,
    /// Another rank of several failed.
    RankFailed,
    /// The task asks for something that nobody can run.
    TaskInvalid,
    CheckoutFailed,
    EnvFailed,
    LaunchFailed,
    /// A defect or a limit of the agent or its machine.
    AgentFailed,
    /// `--require-queue`, and the task waits in no queue.
    NotQueued,
    /// `--require-queue`, and another agent was faster.
    TakenByAnother,
    /// `--require-queue`, and the task has ended.
    AlreadyEnded,
    NotFound,
    /// The task is published.
    ReadOnly,
    NoServer,
    NotAllowed,
    /// The server understood a call and refused it.
    Refused,
    ConfigInvalid,
    LogFileFailed,
    /// `agent.gpu_health_check` refused: a GPU of this machine is not well.
    NodeUnfit,
    NoEngine,
    EngineNotAllowed,
    NoSuchImage,
    PullDenied,
    RegistryUnreachable,
    ContainerArgumentsInvalid,
    PortTaken,
    ContainerNameTaken,
    EngineDiskFull,
    NoGpu,
    ImageUnsuitable,
    /// Another word of the engine's.
    EngineFailed,
    /// The script failed, and why is known: the word for its [`crate::process::death::Death`].
    #[serde(untagged)]
    Died(&'static str),
    /// What the agent in the container says.
    #[serde(untagged)]
    Inside(String),
}

impl From<&Outcome> for Reason {
    fn from(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Exited { code: 0 } => Reason::Completed,
            Outcome::Exited { .. } => Reason::Failed,
            Outcome::Died { death, .. } => Reason::Died(death.kind()),
            Outcome::Stopped(StopCause::Signal(_)) => Reason::Interrupted,
            Outcome::Stopped(StopCause::Server { .. }) => Reason::Aborted,
            Outcome::Stopped(StopCause::Timeout { .. }) => Reason::Timeout,
            Outcome::Stopped(StopCause::Preempted { .. }) => Reason::Preempted,
            Outcome::Stopped(StopCause::Rank { .. }) => Reason::RankFailed,
            Outcome::Stopped(StopCause::TakenOver) => Reason::TakenByAnother,
            Outcome::Failed { stage, .. } => match stage {
                Stage::Task => Reason::TaskInvalid,
                Stage::Checkout | Stage::CodeServer => Reason::CheckoutFailed,
                Stage::Environment => Reason::EnvFailed,
                Stage::Launch => Reason::LaunchFailed,
                Stage::Agent => Reason::AgentFailed,
                Stage::Container(kind) => match kind {
                    Kind::NoEngine => Reason::NoEngine,
                    Kind::EngineNotAllowed => Reason::EngineNotAllowed,
                    Kind::NoSuchImage => Reason::NoSuchImage,
                    Kind::PullDenied => Reason::PullDenied,
                    Kind::RegistryUnreachable => Reason::RegistryUnreachable,
                    Kind::BadArguments => Reason::ContainerArgumentsInvalid,
                    Kind::PortTaken => Reason::PortTaken,
                    Kind::NameTaken => Reason::ContainerNameTaken,
                    Kind::DiskFull => Reason::EngineDiskFull,
                    Kind::NoGpu => Reason::NoGpu,
                    Kind::ImageUnsuitable => Reason::ImageUnsuitable,
                    Kind::NoServer => Reason::NoServer,
                    Kind::OutOfMemory => Reason::Died("oom_killed"),
                    Kind::Engine => Reason::EngineFailed,
                },
            },
            Outcome::Inside(report) => Reason::Inside(report.reason.clone()),
        }
    }
}

/// The file's one object.
#[derive(Debug, Serialize)]
pub struct RunResult<'a> {
    /// The task that was run: the copy, with `--clone`.
    pub task: String,
    /// Counted from 1: more where this went on with an attempt that was broken off. Null where the task
    /// was not taken.
    pub attempt: Option<u32>,
    /// Null where the configuration was not understood, or the task not taken.
    pub worker: Option<String>,
    /// What the task's status was set to; null where the task was not taken.
    pub status: Option<FinalStatus>,
    pub reason: Reason,
    /// The reason in words, as in the task's status.
    pub message: Masked,
    /// The agent's own.
    pub exit_code: u8,
    /// How the script ended, where it was started and was not stopped.
    pub script: Script,
    pub times: &'a Timeline,
    /// Of the script and everything that it started; null where it was not started.
    pub usage: Option<Usage>,
    pub log: Option<Log>,
    pub versions: Versions,
}

/// What took part in the run.
#[derive(Debug, Clone, Serialize)]
pub struct Versions {
    pub agent: &'static str,
    /// The script's Python; null where it has none, or was not started.
    pub python: Option<String>,
    /// The commit that was checked out.
    pub commit: Option<String>,
}

impl Default for Versions {
    fn default() -> Self {
        Self {
            agent: env!("CARGO_PKG_VERSION"),
            python: None,
            commit: None,
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Script {
    pub exit_code: Option<i32>,
    pub signal: Option<i32>,
}

impl From<&Outcome> for Script {
    fn from(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Exited { code }
            | Outcome::Died {
                ended: Ended::Exited { code },
                ..
            } => Script {
                exit_code: Some(*code),
                signal: None,
            },
            Outcome::Died {
                ended: Ended::Signalled { signal },
                ..
            } => Script {
                exit_code: None,
                signal: Some(*signal),
            },
            Outcome::Inside(report) => report.script.clone(),
            Outcome::Stopped(_) | Outcome::Failed { .. } => Script::default(),
        }
    }
}

/// What became of the log.
#[derive(Debug, Serialize)]
pub struct Log {
    produced: Amount,
    on_server: Amount,
    lost: Amount,
    /// The journal that `clearml-agent sync` can still send.
    kept_in: Option<PathBuf>,
}

impl From<&Receipt> for Log {
    fn from(receipt: &Receipt) -> Self {
        Log {
            produced: receipt.produced,
            on_server: receipt.accepted,
            lost: receipt.lost(),
            kept_in: receipt.spool.clone(),
        }
    }
}

/// Where the result goes. Made before anything runs, so that a place that cannot be written is told in
/// time.
#[derive(Debug)]
pub struct ResultFile {
    path: PathBuf,
    folder: PathBuf,
}

impl ResultFile {
    /// Takes away an older result, which could be mistaken for this run's.
    pub fn at(path: &Path) -> std::io::Result<Self> {
        let path = std::path::absolute(path)?;
        let folder = path.parent().unwrap_or(Path::new("/")).to_owned();
        tempfile::Builder::new()
            .prefix(".result-")
            .tempfile_in(&folder)?;
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(Self { path, folder }),
        }
    }

    /// Writes it in one step: whoever sees the file sees all of it.
    pub fn write(&self, result: &RunResult<'_>) -> std::io::Result<()> {
        let mut text = serde_json::to_vec_pretty(result)?;
        text.push(b'\n');
        let mut file = tempfile::Builder::new()
            .prefix(".result-")
            .tempfile_in(&self.folder)?;
        file.write_all(&text)?;
        file.persist(&self.path)?;
        Ok(())
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}
