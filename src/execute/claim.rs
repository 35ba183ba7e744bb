//! Taking hold of the task. After this the task is ours to end; a refusal leaves it as it was.

pub mod asking;
mod queue_entry;
mod ready;
mod refused;

use self::queue_entry::take_from_queue;
use self::ready::Attempt;
pub use self::ready::{Ready, is_aborted, ready};
pub use self::refused::Refused;
use super::runtime::{CLAIM, Record, said};
use super::scheduler::Claimant;
use crate::api::tasks::{self, FinalStatus, StatusNote, StatusWrite};
use crate::api::{Session, queues};
use crate::console::Console;
use crate::task::{Status, Task};

/// A task that this agent has set in progress. Only [`claim`] makes one, and whoever has one must
/// see to it that a final status is written (unless it is the first rank's to write).
#[derive(Debug)]
pub struct Claimed {
    task: Task,
    /// Counted from 1; more where the run goes on with what was interrupted.
    pub attempt: u32,
    /// How the attempt before ended, in words, where this goes on with one.
    pub former_end: Option<String>,
    /// The claim by which the task was held before.
    pub former_claim: Option<String>,
}

impl Claimed {
    pub fn task(&self) -> &Task {
        &self.task
    }

    fn of(task: Task, attempt: &Attempt) -> Self {
        Claimed {
            former_claim: said(&task.runtime, CLAIM).map(str::to_owned),
            task,
            attempt: attempt.number,
            former_end: attempt.former_end.clone(),
        }
    }
}

/// Who takes the task, and how.
#[derive(Debug, Clone, Copy)]
pub struct Taking<'a> {
    pub mode: Mode,
    pub worker: &'a str,
    /// The run's own id.
    pub run: &'a str,
    pub claimant: Option<&'a Claimant>,
}

/// How the task is to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Whatever its status, as a person at a shell wants it.
    Any,
    /// Only out of a queue, and only if nobody else takes it.
    FromQueue,
    /// A copy of it.
    Clone,
    /// As another rank of a run that the first one takes: nothing is done to it.
    AfterFirst { first: First },
}

/// How the first of several ranks takes the task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum First {
    Any,
    FromQueue,
}

/// The reason that a task is set `started` with.
pub const STARTED: &str = "worker started execution";

/// What was done to the task before it was started.
enum TakenFrom {
    Nowhere,
    /// Its entry was removed; its status is still `queued`.
    Queue(String),
    QueueAndSetInProgress,
    /// An earlier run of the same job: whatever becomes of this one, the job may come back for it.
    Claimant,
}

/// Takes `task`; says what it did on `console`.
///
/// Not to be abandoned: half taken, nobody would run it.
pub async fn claim(
    session: &Session,
    mut task: Task,
    taking: &Taking<'_>,
    console: &Console,
) -> Result<Claimed, Refused> {
    let Taking {
        mode,
        worker,
        claimant,
        ..
    } = *taking;
    let attempt = Attempt::of(&task, claimant);
    let id = task.id.clone();
    let id = id.as_str();
    let mut taken_from = TakenFrom::Nowhere;
    match mode {
        Mode::AfterFirst { .. } => {
            // What the first rank has counted already.
            let attempt = Attempt {
                number: Attempt::recorded(&task),
                former_end: None,
            };
            return Ok(Claimed::of(task, &attempt));
        }
        Mode::Clone => {
            let copy = tasks::clone(session, &task).await?;
            console.say(format!("Cloned task {id}: new task id={copy}"));
            task = fetch(session, &copy).await?;
        }
        Mode::FromQueue if task.status != Status::Queued => {
            taken_from = TakenFrom::Claimant;
            console.say(format!(
                "Task {id} is this job's already: going on with it, attempt {}",
                attempt.number
            ));
        }
        Mode::FromQueue => {
            let queue = take_from_queue(session, &task).await?;
            console.say(format!("Took task {id} out of queue {queue}"));
            taken_from = TakenFrom::Queue(queue);
        }
        Mode::Any => match task.status {
            Status::Published | Status::Publishing => {
                return Err(Refused::ReadOnly {
                    id: id.to_owned(),
                    status: task.status,
                });
            }
            Status::Queued => {
                tasks::dequeue(session, id).await?;
                taken_from = TakenFrom::QueueAndSetInProgress;
                console.say(format!("Took task {id} out of its queue"));
            }
            Status::InProgress => console.say(format!(
                "Note: task {id} is in_progress already; running it all the same \
                 (--require-queue refuses a task that runs elsewhere)"
            )),
            _ => {}
        },
    }
    // Before the start, so that the same job finds its own task again whatever happens.
    if let Some(claimant) = claimant {
        let record = Record {
            claim: taking.run.to_owned(),
            claimant: Some(claimant.clone()),
            attempt: attempt.number,
        };
        let mut runtime = task.runtime.clone();
        record.begin(&mut runtime);
        if let Err(error) = tasks::set_runtime(session, &task.id, &runtime).await {
            undo(session, id, taken_from, worker).await;
            return Err(error.into());
        }
        if asking::was_asked_for(&task, taking) {
            tokio::time::sleep(asking::CLOSE).await;
            let now = fetch(session, id).await?;
            if said(&now.runtime, CLAIM) != Some(taking.run) {
                return Err(asking::runs_still(&now));
            }
        }
    }
    // The one `started` of the run: a later one would wipe out a request to stop, which the server
    // keeps in the status message.
    let message = changed_by(worker);
    let note = StatusNote {
        reason: STARTED,
        message: &message,
    };
    if let Err(error) = tasks::started(session, &task.id, note, true).await {
        undo(session, id, taken_from, worker).await;
        return Err(error.into());
    }
    Ok(Claimed::of(task, &attempt))
}

/// Stops a task that was aborted when no agent was there to see it (see [`is_aborted`]).
pub async fn carry_out_abort(
    session: &Session,
    task: &Task,
    worker: &str,
) -> Result<StatusWrite, Refused> {
    let note = StatusNote {
        reason: "user abort: aborted on the server",
        message: &changed_by(worker),
    };
    Ok(tasks::finish(session, &task.id, FinalStatus::Stopped, note).await?)
}

/// What was done to a task that cannot be started then.
async fn undo(session: &Session, id: &str, taken_from: TakenFrom, worker: &str) {
    match taken_from {
        TakenFrom::Queue(queue) => put_back(session, &queue, id).await,
        TakenFrom::QueueAndSetInProgress => {
            let note = StatusNote {
                reason: "the agent could not start it",
                message: &changed_by(worker),
            };
            if let Err(error) = tasks::finish(session, id, FinalStatus::Stopped, note).await {
                tracing::debug!(%error, "not stopped");
            }
        }
        TakenFrom::Nowhere | TakenFrom::Claimant => {}
    }
}

/// Puts a task that was taken but not started back, as far as the server lets us: queued in no queue
/// it would never run.
async fn put_back(session: &Session, queue: &str, id: &str) {
    let standing = tasks::standing(session, id).await;
    if matches!(standing, Ok(Some(standing)) if standing.status == Status::Queued)
        && let Err(error) = queues::add_task(session, queue, id).await
    {
        tracing::debug!(%error, "not put back");
    }
}

/// The status message that names the worker, as the Python agent words it.
pub fn changed_by(worker: &str) -> String {
    format!("Changed by clearml-agent {worker}")
}

/// The task as the server has it.
pub async fn fetch(session: &Session, id: &str) -> Result<Task, Refused> {
    tasks::get_by_id(session, id)
        .await?
        .ok_or_else(|| Refused::NoSuchTask {
            id: id.to_owned(),
            host: session.host().to_owned(),
        })
}
