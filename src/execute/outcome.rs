//! How a run ended, and what follows from it alone: the task's status and reason, the last line of
//! the log, the agent's exit code.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::report::Report;
use crate::api::tasks::FinalStatus;
use crate::cli::OnPreempt;
use crate::container::error::Kind;
use crate::journal::Ending;
use crate::mask::{Mask, Masked};
use crate::process::death::{Death, Sender};
use crate::process::{Ended, signal};

/// Every way in which a claimed task can end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The script ended by itself, for reasons of its own.
    Exited { code: i32 },
    /// The script failed, and why is known: a signal that this agent did not send, no memory, no space.
    Died { ended: Ended, death: Death },
    /// The run was asked to stop, and did.
    Stopped(StopCause),
    /// The script was never started, or could not be followed.
    Failed { stage: Stage, cause: String },
    /// It ran in a container, and the agent in there says how it ended.
    Inside(Arc<Report>),
}

/// Who asked for the stop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopCause {
    /// The agent got this signal.
    Signal(i32),
    /// The server: an abort, a reset, or the task is gone.
    Server { what: String },
    /// `--timeout`, in seconds.
    Timeout { after: u64 },
    /// The machine is wanted back. `by`: the batch system and its job; `out_of_time`: it had its time.
    Preempted {
        by: String,
        then: OnPreempt,
        out_of_time: bool,
    },
    /// Another rank of several failed.
    Rank { what: String },
    /// Another agent has the task by now: all of it is that one's business.
    TakenOver,
}

/// As part of a sentence.
impl std::fmt::Display for StopCause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            StopCause::Signal(signal) => write!(f, "the agent received {}", signal::name(*signal)),
            StopCause::Server { what } => f.write_str(what),
            StopCause::Timeout { after } => {
                write!(f, "the run took longer than its --timeout of {after} s")
            }
            StopCause::Preempted {
                by,
                then,
                out_of_time,
            } => {
                let then = match then {
                    OnPreempt::Stop => "",
                    OnPreempt::Requeue => ", the task goes back to its queue",
                    OnPreempt::Keep => ", the task is kept for this job's next start",
                };
                match out_of_time {
                    false => write!(f, "{by} was asked to end (SIGTERM){then}"),
                    true => write!(f, "{by} has come to its time limit{then}"),
                }
            }
            StopCause::Rank { what } => f.write_str(what),
            StopCause::TakenOver => f.write_str("another agent has taken the task over"),
        }
    }
}

/// Where a run that failed was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Reading the task: what it asks for cannot be run by anybody.
    Task,
    Checkout,
    /// The repository's server does not answer.
    CodeServer,
    Environment,
    Launch,
    /// Something of the agent's own: its folders, its log.
    Agent,
    /// The container that it is to run in.
    Container(Kind),
}

/// The agent's own exit codes: sysexits(3), so that they are told from a script's. Usage errors
/// have 2, as with the Python agent.
pub mod exit {
    use crate::api::ApiError;

    /// The command line is wrong (clap's code, and the Python agent's).
    pub const USAGE: u8 = 2;
    /// The task asks for something that cannot be run.
    pub const TASK: u8 = 65;
    /// The task, its repository or its commit is not there.
    pub const NOT_FOUND: u8 = 66;
    /// The server does not answer.
    pub const NO_SERVER: u8 = 69;
    /// A defect or a limit of the agent or its machine.
    pub const AGENT: u8 = 70;
    /// This machine's GPUs are not fit for work: drain it, and run the task elsewhere.
    pub const UNFIT: u8 = 71;
    /// The container engine is not there, or this machine cannot give what the container needs.
    pub const ENGINE: u8 = 74;
    /// The Python environment could not be built.
    pub const ENVIRONMENT: u8 = 72;
    /// A file that was asked for cannot be written.
    pub const CANNOT_WRITE: u8 = 73;
    /// The task has ended already, or is published: there is nothing to do.
    pub const ENDED: u8 = 67;
    /// The task waits in no queue.
    pub const NOT_QUEUED: u8 = 75;
    /// Another agent has the task.
    pub const HELD_BY_ANOTHER: u8 = 76;
    /// The server does not accept the credentials.
    pub const NOT_ALLOWED: u8 = 77;
    /// The configuration is missing or wrong.
    pub const CONFIG: u8 = 78;

    /// The run was stopped after `--timeout`: timeout(1)'s code.
    pub const TIMEOUT: u8 = 124;

    /// For a call that could not be made before there was a task to end.
    pub fn for_api(error: &ApiError) -> u8 {
        match error {
            // What it understood and refused, it refuses again.
            ApiError::Unauthorized { .. } | ApiError::Refused { code: 403, .. } => NOT_ALLOWED,
            ApiError::Refused { .. } => TASK,
            ApiError::Setup { .. } | ApiError::NotAnApiServer { .. } => CONFIG,
            _ => NO_SERVER,
        }
    }
}

/// What is written and returned at the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub status: FinalStatus,
    /// The task's `status_reason`: one line.
    pub reason: Masked,
    /// The last line of the log; none where the log has it already.
    pub last_line: Option<Masked>,
    pub exit_code: u8,
}

impl Verdict {
    /// What a journal keeps of it.
    pub fn ending(&self) -> Ending {
        Ending {
            status: self.status,
            reason: self.reason.as_str().to_owned(),
        }
    }
}

impl Outcome {
    /// Of a script that was not stopped.
    pub fn of_script(ended: Ended, death: Option<Death>) -> Outcome {
        match (ended, death) {
            (ended, Some(death)) => Outcome::Died { ended, death },
            (Ended::Exited { code }, None) => Outcome::Exited { code },
            (Ended::Signalled { signal }, None) => {
                let by = Sender::Unknown;
                let death = Death::Signalled { signal, by };
                Outcome::Died { ended, death }
            }
        }
    }

    /// Whether the script ran to an end of its own.
    pub fn is_of_script(&self) -> bool {
        match self {
            Outcome::Exited { .. } | Outcome::Died { .. } => true,
            Outcome::Inside(report) => report.is_of_script(),
            Outcome::Stopped(_) | Outcome::Failed { .. } => false,
        }
    }

    /// Status words are the Python agent's where it has them (`worker execution done`,
    /// `worker execution exit code N`, negative for signals).
    pub fn verdict(&self, mask: &Mask) -> Verdict {
        let (status, reason, last_line, exit_code) = match self {
            Outcome::Exited { code: 0 } => (
                FinalStatus::Completed,
                "worker execution done".into(),
                "Process completed successfully".into(),
                0,
            ),
            Outcome::Exited { code } => (
                FinalStatus::Failed,
                format!("worker execution exit code {code}"),
                format!("Process failed, exit code {code}"),
                u8::try_from(*code).unwrap_or(u8::MAX),
            ),
            Outcome::Died { ended, death } => {
                let why = death.reason();
                let (exit_code, shown) = match ended {
                    Ended::Exited { code } => {
                        (u8::try_from(*code).unwrap_or(u8::MAX), code.to_string())
                    }
                    Ended::Signalled { signal } => (for_signal(*signal), format!("-{signal}")),
                };
                (
                    FinalStatus::Failed,
                    format!("worker execution exit code {shown}: {why}"),
                    format!("Process failed, exit code {shown}: {why}"),
                    exit_code,
                )
            }
            Outcome::Stopped(cause) => {
                let (status, reason, exit_code) = match cause {
                    StopCause::Signal(signal) => {
                        (FinalStatus::Stopped, cause.to_string(), for_signal(*signal))
                    }
                    StopCause::Server { what } => (
                        FinalStatus::Stopped,
                        format!("user abort: {what}"),
                        for_signal(signal::TERM),
                    ),
                    StopCause::Timeout { .. } => (
                        FinalStatus::Failed,
                        format!("timeout: {cause}"),
                        exit::TIMEOUT,
                    ),
                    StopCause::Preempted { .. } => (
                        FinalStatus::Stopped,
                        format!("preempted: {cause}"),
                        for_signal(signal::TERM),
                    ),
                    // Not written.
                    StopCause::TakenOver => (
                        FinalStatus::Stopped,
                        cause.to_string(),
                        exit::HELD_BY_ANOTHER,
                    ),
                    StopCause::Rank { .. } => (
                        FinalStatus::Failed,
                        cause.to_string(),
                        for_signal(signal::TERM),
                    ),
                };
                (
                    status,
                    reason,
                    format!("Process stopped: {cause}"),
                    exit_code,
                )
            }
            Outcome::Failed { stage, cause } => (
                FinalStatus::Failed,
                format!("{}: {}", stage.words(), one_line(cause)),
                format!("{}: {cause}", stage.words()),
                stage.exit_code(),
            ),
            Outcome::Inside(report) => {
                let message = report.message();
                let unsaid = !report.came_to_the_task();
                let stopped = report.status() == FinalStatus::Stopped;
                let last_line = match () {
                    () if unsaid => Some(format!("Process failed {message}")),
                    () if stopped => Some(format!("Process stopped: {message}")),
                    // The agent inside has said it.
                    () => None,
                };
                return Verdict {
                    status: report.status(),
                    reason: mask.mask(&message),
                    last_line: last_line.map(|line| mask.mask(&line)),
                    exit_code: report.exit_code,
                };
            }
        };
        Verdict {
            status,
            reason: mask.mask(&reason),
            last_line: Some(mask.mask(&last_line)),
            exit_code,
        }
    }
}

impl Stage {
    fn words(self) -> &'static str {
        match self {
            Stage::Task => "the task cannot be run",
            Stage::Checkout | Stage::CodeServer => "failed getting the code",
            Stage::Environment => "failed building the Python environment",
            Stage::Launch => "failed starting the script",
            Stage::Agent => "the agent failed",
            Stage::Container(_) => "failed running the container",
        }
    }

    pub fn exit_code(self) -> u8 {
        match self {
            Stage::Task | Stage::Launch => exit::TASK,
            Stage::Checkout => exit::NOT_FOUND,
            Stage::CodeServer => exit::NO_SERVER,
            Stage::Environment => exit::ENVIRONMENT,
            Stage::Agent => exit::AGENT,
            Stage::Container(kind) => match kind {
                Kind::NoEngine
                | Kind::PortTaken
                | Kind::NameTaken
                | Kind::DiskFull
                | Kind::NoGpu
                | Kind::Engine => exit::ENGINE,
                Kind::EngineNotAllowed | Kind::PullDenied => exit::NOT_ALLOWED,
                Kind::NoSuchImage => exit::NOT_FOUND,
                Kind::OutOfMemory => for_signal(signal::KILL),
                Kind::RegistryUnreachable | Kind::NoServer => exit::NO_SERVER,
                Kind::BadArguments | Kind::ImageUnsuitable => exit::TASK,
            },
        }
    }
}

/// 128 + the signal, as shells have it.
pub fn for_signal(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}

/// The server shows the reason on one line; the log has the whole text. A tool's output, which errors
/// hold indented below a line that ends in a colon, is left to the log.
fn one_line(text: &str) -> String {
    const LONGEST: usize = 600;
    let own_words = text
        .lines()
        .filter(|line| !line.starts_with(' ') && !line.ends_with(':'));
    let mut joined = String::new();
    for line in own_words {
        let words: Vec<&str> = line.split_whitespace().collect();
        if words.is_empty() {
            continue;
        }
        if !joined.is_empty() {
            // Lines are sentences.
            let ended = joined.ends_with(['.', '!', '?', ';', ',']);
            joined.push_str(if ended { " " } else { ". " });
        }
        joined.push_str(&words.join(" "));
    }
    match joined.char_indices().nth(LONGEST) {
        Some((cut, _)) => format!("{}…", &joined[..cut]),
        None => joined,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use FinalStatus::{Completed, Failed, Stopped};

    #[test]
    fn status_reason_and_exit_code_follow_from_the_end() {
        let server = StopCause::Server {
            what: "aborted on the server".into(),
        };
        for (outcome, status, reason, exit_code) in [
            (
                Outcome::Exited { code: 0 },
                Completed,
                "worker execution done",
                0,
            ),
            (
                Outcome::Exited { code: 3 },
                Failed,
                "worker execution exit code 3",
                3,
            ),
            (
                Outcome::of_script(Ended::Signalled { signal: 11 }, None),
                Failed,
                "worker execution exit code -11: ended by SIGSEGV, not by this agent: by itself, or by somebody \
                 with the right to (the batch system, a user)",
                139,
            ),
            (
                Outcome::of_script(
                    Ended::Exited { code: 1 },
                    Some(Death::NoSharedMemory { size: None }),
                ),
                Failed,
                "worker execution exit code 1: shared memory (/dev/shm) is used up: in a container give it more \
                 (--shm-size, or --ipc=host), or use fewer data loader workers",
                1,
            ),
            (
                Outcome::Stopped(StopCause::Signal(2)),
                Stopped,
                "the agent received SIGINT",
                130,
            ),
            (
                Outcome::Stopped(server),
                Stopped,
                "user abort: aborted on the server",
                143,
            ),
            (
                Outcome::Stopped(StopCause::Timeout { after: 7 }),
                Failed,
                "timeout: the run took longer than its --timeout of 7 s",
                exit::TIMEOUT,
            ),
            (
                Outcome::Failed {
                    stage: Stage::Checkout,
                    cause: "no branch x\nThe last lines of git:\n    fatal\nnearest: y".into(),
                },
                Failed,
                "failed getting the code: no branch x. nearest: y",
                exit::NOT_FOUND,
            ),
        ] {
            let verdict = outcome.verdict(&Mask::default());
            assert_eq!((verdict.status, verdict.reason.as_str()), (status, reason));
            assert_eq!(verdict.exit_code, exit_code, "{outcome:?}");
        }
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let verdict = Outcome::Failed {
            stage: Stage::Agent,
            cause: "é".repeat(2000),
        }
        .verdict(&Mask::default());
        let reason = verdict.reason.as_str();
        assert!(reason.ends_with("é…") && reason.chars().count() < 640);
        let last_line = verdict.last_line.unwrap();
        assert!(last_line.as_str().chars().count() > 2000);
    }
}
