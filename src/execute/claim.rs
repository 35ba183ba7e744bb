//! Taking hold of the task. After this the task is ours to end; a refusal leaves it as it was.

use std::time::Duration;

use crate::api::tasks::{self, FinalStatus, StatusNote};
use crate::api::{ApiError, Session, queues};
use crate::console::Console;
use crate::task::{Status, Task};

/// A task that this agent has set in progress. Only [`claim`] makes one, and whoever has one must
/// see to it that a final status is written (unless it is the first rank's to write).
#[derive(Debug)]
pub struct Claimed(Task);

impl Claimed {
    pub fn task(&self) -> &Task {
        &self.0
    }
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
    AfterFirst,
}

/// The reason that a task is set `started` with.
pub const STARTED: &str = "worker started execution";

#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error(
        "the server {host} has no task {id}. Is the id complete, and is this the right server and workspace \
         (`api.api_server`, `api.credentials`)?"
    )]
    NoSuchTask { id: String, host: String },
    #[error(
        "task {id} is not waiting in a queue (its status is {status}), and --require-queue asks for that: \
         enqueue it, or leave --require-queue out"
    )]
    NotQueued { id: String, status: Status },
    #[error(
        "task {id} was taken out of its queue by another agent in the same moment: it runs there"
    )]
    TakenByAnother { id: String },
    #[error("task {id} is {status} and cannot be changed: run a copy of it with --clone")]
    ReadOnly { id: String, status: Status },
    #[error(transparent)]
    Api(#[from] ApiError),
}

/// What was done to the task before it was started.
enum TakenFrom {
    Nowhere,
    /// Its entry was removed; its status is still `queued`.
    Queue(String),
    QueueAndSetInProgress,
}

/// Takes `task`; says what it did on `console`.
///
/// Not to be abandoned: half taken, nobody would run it.
pub async fn claim(
    session: &Session,
    mut task: Task,
    mode: Mode,
    worker: &str,
    console: &Console,
) -> Result<Claimed, Refused> {
    let id = task.id.clone();
    let id = id.as_str();
    let mut taken_from = TakenFrom::Nowhere;
    match mode {
        Mode::AfterFirst => return Ok(Claimed(task)),
        Mode::Clone => {
            let copy = tasks::clone(session, &task).await?;
            console.say(format!("Cloned task {id}: new task id={copy}"));
            task = fetch(session, &copy).await?;
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
    // The one `started` of the run: a later one would wipe out a request to stop, which the server
    // keeps in the status message.
    let message = changed_by(worker);
    let note = StatusNote {
        reason: STARTED,
        message: &message,
    };
    if let Err(error) = tasks::started(session, &task.id, note, true).await {
        match taken_from {
            TakenFrom::Queue(queue) => put_back(session, &queue, id).await,
            TakenFrom::QueueAndSetInProgress => {
                let note = StatusNote {
                    reason: "the agent could not start it",
                    message: &message,
                };
                if let Err(error) = tasks::finish(session, id, FinalStatus::Stopped, note).await {
                    tracing::debug!(%error, "not stopped");
                }
            }
            TakenFrom::Nowhere => {}
        }
        return Err(error.into());
    }
    Ok(Claimed(task))
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

/// Removes the task's queue entry, the one call that only one agent can win; gives the queue's id.
///
/// The answer to that call can be lost. Then the entry is gone and nobody can say who has it: the
/// winner shows by changing the status soon; if none does, the entry is put back and raced for again.
/// Giving up puts it back too: a task that is queued in no queue would never run.
async fn take_from_queue(session: &Session, task: &Task) -> Result<String, Refused> {
    /// Lost answers before giving up.
    const LOSSES: u32 = 3;
    /// Enough for each loss to be followed by putting the entry back and by a move to another queue.
    const ROUNDS: u32 = 3 * LOSSES;
    let id = &task.id;
    let not_queued = |status| Refused::NotQueued {
        id: id.clone(),
        status,
    };
    if task.status != Status::Queued {
        return Err(not_queued(task.status));
    }
    let mut queue = match &task.execution.queue {
        Some(queue) if !queue.is_empty() => queue.clone(),
        _ => queue_holding(session, id)
            .await?
            .ok_or_else(|| not_queued(task.status))?,
    };
    let mut losses = 0;
    let mut maybe_ours = false;
    for _ in 0..ROUNDS {
        match queues::remove_task(session, &queue, id).await {
            Ok(true) => return Ok(queue),
            Ok(false) => {}
            Err(error @ ApiError::Unreachable { .. }) => {
                tracing::debug!(%error, "the answer to the claim was lost");
                losses += 1;
                if losses == LOSSES {
                    if queue_holding(session, id).await?.is_none()
                        && stays_queued(session, id).await?
                    {
                        queues::add_task(session, &queue, id).await?;
                    }
                    return Err(error.into());
                }
                maybe_ours = true;
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
            Err(error) => return Err(error.into()),
        }
        // Not in the queue that the task names: it may have been moved to another one.
        if let Some(other) = queue_holding(session, id).await? {
            queue = other;
        } else if maybe_ours && stays_queued(session, id).await? {
            queues::add_task(session, &queue, id).await?;
            maybe_ours = false;
        } else {
            break;
        }
    }
    Err(Refused::TakenByAnother { id: id.clone() })
}

async fn queue_holding(session: &Session, task: &str) -> Result<Option<String>, ApiError> {
    let queues = queues::get_all(session).await?;
    let holding = queues
        .into_iter()
        .find(|q| q.entries.iter().any(|entry| entry.task == task));
    Ok(holding.map(|queue| queue.id))
}

/// Whether the task is still `queued` after the time in which any winner would have started it.
async fn stays_queued(session: &Session, task: &str) -> Result<bool, ApiError> {
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        match tasks::standing(session, task).await? {
            Some(standing) if standing.status == Status::Queued => {}
            _ => return Ok(false),
        }
    }
    Ok(true)
}
