//! Taking hold of the task. After this the task is ours to end; a refusal leaves it as it was.

pub mod asking;
mod queue_entry;
mod ready;
mod refused;

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use self::queue_entry::{Entry, take_from_queue, take_nobodys};
use self::ready::Attempt;
pub use self::ready::{Ready, is_aborted, ready};
pub use self::refused::Refused;
use super::runtime::{ASKS, CLAIM, Record, said};
use super::scheduler::Claimant;
use crate::api::tasks::{self, FinalStatus, StatusNote, StatusWrite};
use crate::api::{ApiError, Session, queues};
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

/// What becomes of a task that was not started, because a stop was asked for while it was being taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    AsItWas,
    Stopped,
    /// The server does not say.
    Unknown,
}

impl std::fmt::Display for Left {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Left::AsItWas => "it is as it was",
            Left::Stopped => "it is stopped",
            Left::Unknown => {
                "what became of it is not known; if it is `queued` in no queue, the next agent with \
                 --require-queue takes it all the same"
            }
        })
    }
}

/// How long a claim that is under way may take after a stop was asked for: with a server that answers it is
/// through, and ends as any run that is stopped.
const AFTER_STOP: Duration = Duration::from_secs(3);
/// What giving back may take then.
const GIVING_BACK: Duration = Duration::from_secs(5);

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
/// Not to be abandoned: half taken, nobody would run it. `stop` ends it when the server does not answer.
pub async fn claim(
    session: &Session,
    mut task: Task,
    taking: &Taking<'_>,
    console: &Console,
    stop: &CancellationToken,
) -> Result<Claimed, Refused> {
    let attempt = Attempt::of(&task, taking.claimant);
    let id = task.id.clone();
    let id = id.as_str();
    let mut taken_from = TakenFrom::Nowhere;
    match taking.mode {
        Mode::AfterFirst { .. } => {
            // What the first rank has counted already.
            let attempt = Attempt {
                number: Attempt::recorded(&task),
                former_end: None,
            };
            return Ok(Claimed::of(task, &attempt));
        }
        Mode::Clone => {
            let copy = match tasks::clone(session, &task).await {
                Err(cause @ ApiError::AnswerLost { .. }) => {
                    let (id, name) = (id.to_owned(), task.name);
                    return Err(Refused::CopyUnknown { id, name, cause });
                }
                copy => copy?,
            };
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
            let queue = match take_from_queue(session, &task, stop).await? {
                Entry::Taken(queue) => queue,
                Entry::Nobodys(queue) => {
                    console.say(format!(
                        "Task {id} is queued and in no queue, and nobody starts it: taking it if nobody \
                         else does"
                    ));
                    task = tokio::select! {
                        now = take_nobodys(session, &task, taking, &queue) => now?,
                        () = stop.cancelled() => {
                            let left = Left::Unknown;
                            return Err(Refused::GivenUp { id: task.id, left });
                        }
                    };
                    queue
                }
            };
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
    let stopped = async {
        stop.cancelled().await;
        tokio::time::sleep(AFTER_STOP).await;
    };
    let starting = async {
        match taken_from {
            TakenFrom::Queue(_) => start_in_time(session, &task, taking, attempt.number).await,
            _ => start(session, &task, taking, attempt.number).await,
        }
    };
    let refused = tokio::select! {
        started = starting => match started {
            Ok(()) => return Ok(Claimed::of(task, &attempt)),
            Err(refused) => Some(refused),
        },
        () = stopped => None,
    };
    if let Some(refused @ Refused::TakenByAnother { .. }) = refused {
        return Err(refused);
    }
    let giving_back = undo(session, &task, taken_from, taking.worker);
    match refused {
        Some(refused) => {
            giving_back.await;
            Err(refused)
        }
        None => {
            let left = tokio::time::timeout(GIVING_BACK, giving_back).await;
            Err(Refused::GivenUp {
                id: task.id.clone(),
                left: left.unwrap_or(Left::Unknown),
            })
        }
    }
}

/// Starts what was taken out of its queue. Who finds it in no queue for long takes it, so after an outage
/// it is looked at again: another agent may have it by then, or be at it.
async fn start_in_time(
    session: &Session,
    task: &Task,
    taking: &Taking<'_>,
    attempt: u32,
) -> Result<(), Refused> {
    /// Less than others look on for (`take_from_queue`).
    const UNSEEN: Duration = Duration::from_secs(12);
    /// Less than it takes them to ask around.
    const AT_ONCE: Duration = Duration::from_secs(3);
    const LONGEST: Duration = Duration::from_secs(180);
    const PAUSE: Duration = Duration::from_secs(1);
    let begin = tokio::time::Instant::now();
    let mut limit = UNSEEN;
    for tries in 1.. {
        match tokio::time::timeout(limit, start(session, task, taking, attempt)).await {
            Ok(Err(Refused::Api(ApiError::Unreachable { .. }))) | Err(_) => {}
            Ok(done) => return done,
        }
        limit = AT_ONCE;
        let now = loop {
            match tasks::standing(session, &task.id).await {
                Err(ApiError::Unreachable { .. }) if begin.elapsed() < LONGEST => {
                    tokio::time::sleep(PAUSE).await;
                }
                now => break now?,
            }
        };
        match may_start(now.as_ref(), task, taking) {
            May::IsStarted => return Ok(()),
            May::No => break,
            May::Start if begin.elapsed() < LONGEST => {}
            May::Start => {
                let no_answer = ApiError::Unreachable {
                    host: session.host().to_owned(),
                    cause: "no answer to the start in time".into(),
                    tries,
                    waited: begin.elapsed(),
                };
                return Err(no_answer.into());
            }
        }
    }
    Err(Refused::TakenByAnother {
        id: task.id.clone(),
    })
}

/// What a start may do whose answer was lost.
#[derive(Debug, PartialEq, Eq)]
enum May {
    Start,
    IsStarted,
    No,
}

fn may_start(now: Option<&tasks::Standing>, before: &Task, taking: &Taking<'_>) -> May {
    let Some(now) = now else { return May::No };
    if is_started(now, taking.worker) {
        return May::IsStarted;
    }
    let claim = now.said(CLAIM);
    let is_untouched = claim == said(&before.runtime, CLAIM) || claim == Some(taking.run);
    match now.status == Status::Queued && is_untouched && now.said(ASKS).is_none() {
        true => May::Start,
        false => May::No,
    }
}

/// Whether a start came through of which only the answer was lost.
fn is_started(now: &tasks::Standing, worker: &str) -> bool {
    now.status == Status::InProgress
        && now.status_message.as_deref() == Some(changed_by(worker).as_str())
}

/// Says whose it is, and sets it in progress.
async fn start(
    session: &Session,
    task: &Task,
    taking: &Taking<'_>,
    attempt: u32,
) -> Result<(), Refused> {
    // Before the start, so that the same job finds its own task again whatever happens.
    if let Some(claimant) = taking.claimant {
        let record = Record {
            claim: taking.run.to_owned(),
            claimant: Some(claimant.clone()),
            attempt,
        };
        let mut runtime = task.runtime.clone();
        record.begin(&mut runtime);
        tasks::set_runtime(session, &task.id, &runtime).await?;
        if asking::was_asked_for(task, taking) {
            tokio::time::sleep(asking::CLOSE).await;
            let now = fetch(session, &task.id).await?;
            if said(&now.runtime, CLAIM) != Some(taking.run) {
                return Err(asking::runs_still(&now));
            }
        }
    }
    // The one `started` of the run: a later one would wipe out a request to stop, which the server
    // keeps in the status message.
    let message = changed_by(taking.worker);
    let note = StatusNote {
        reason: STARTED,
        message: &message,
    };
    Ok(tasks::started(session, &task.id, note, true).await?)
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

/// Undoes what was done to a task that cannot be started then, as far as the server lets us: queued in no
/// queue it would wait for somebody who looks for it.
async fn undo(session: &Session, task: &Task, taken_from: TakenFrom, worker: &str) -> Left {
    let undoing = async {
        let message = changed_by(worker);
        let note = StatusNote {
            reason: "the agent could not start it",
            message: &message,
        };
        let id = task.id.as_str();
        let Some(now) = tasks::standing(session, id).await? else {
            return Ok(Left::AsItWas);
        };
        match taken_from {
            TakenFrom::Queue(queue) if now.status == Status::Queued => {
                queues::add_task(session, &queue, id).await?;
                Ok(Left::AsItWas)
            }
            TakenFrom::Queue(queue) if is_started(&now, worker) => {
                tasks::finish(session, id, FinalStatus::Stopped, note).await?;
                tasks::enqueue(session, id, &queue).await?;
                Ok(Left::AsItWas)
            }
            TakenFrom::QueueAndSetInProgress => {
                tasks::finish(session, id, FinalStatus::Stopped, note).await?;
                Ok(Left::Stopped)
            }
            TakenFrom::Nowhere if is_started(&now, worker) && task.status != Status::InProgress => {
                tasks::finish(session, id, FinalStatus::Stopped, note).await?;
                Ok(Left::Stopped)
            }
            TakenFrom::Queue(_) | TakenFrom::Nowhere | TakenFrom::Claimant => Ok(Left::AsItWas),
        }
    };
    undoing.await.unwrap_or_else(|error: ApiError| {
        tracing::debug!(%error, "not given back");
        Left::Unknown
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_whose_answer_was_lost_is_made_again_only_where_nobody_else_is_at_it() {
        let before: Task = serde_json::from_value(serde_json::json!({
            "id": "t", "status": "queued", "runtime": {CLAIM: "old"},
        }))
        .unwrap();
        let taking = Taking {
            mode: Mode::FromQueue,
            worker: "node:1",
            run: "mine",
            claimant: None,
        };
        let ours = changed_by("node:1");
        for (status, message, claim, asks, may) in [
            ("queued", "", "old", "", May::Start),
            ("queued", "", "mine", "", May::Start),
            ("queued", "", "other", "", May::No),
            ("queued", "", "old", "other", May::No),
            ("in_progress", ours.as_str(), "mine", "", May::IsStarted),
            ("in_progress", "Changed by other", "old", "", May::No),
            ("created", "", "old", "", May::No),
        ] {
            let mut runtime = serde_json::json!({CLAIM: claim});
            if !asks.is_empty() {
                runtime[ASKS] = asks.into();
            }
            let now: tasks::Standing = serde_json::from_value(serde_json::json!({
                "status": status, "status_message": message, "runtime": runtime,
            }))
            .unwrap();
            let found = may_start(Some(&now), &before, &taking);
            assert_eq!(found, may, "{status} {message} {claim} {asks}");
        }
        assert_eq!(may_start(None, &before, &taking), May::No);
    }
}
