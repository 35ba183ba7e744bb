//! Taking hold of the task. After this the task is ours to end; a refusal leaves it as it was.

use std::time::Duration;

use super::outcome::exit;
use super::scheduler::Claimant;
use crate::api::tasks::{self, FinalStatus, StatusNote};
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
}

impl Claimed {
    pub fn task(&self) -> &Task {
        &self.task
    }

    fn of(task: Task, attempt: &Attempt) -> Self {
        Claimed {
            task,
            attempt: attempt.number,
            former_end: attempt.former_end.clone(),
        }
    }
}

/// Keys of the task's runtime: who has it, in which start of the job, for the how many-eth time; and
/// why the last attempt was broken off.
pub const CLAIMANT: &str = "clearml_agent_claimant";
pub const ROUND: &str = "clearml_agent_round";
pub const ATTEMPT: &str = "clearml_agent_attempt";
pub const PREEMPTED: &str = "clearml_agent_preempted";
/// The rank of several that failed first, and how.
pub const FAILED_RANK: &str = "clearml_agent_failed_rank";

/// Who takes the task, and how.
#[derive(Debug, Clone, Copy)]
pub struct Taking<'a> {
    pub mode: Mode,
    pub worker: &'a str,
    /// The run's own id.
    pub run: &'a str,
    pub claimant: Option<&'a Claimant>,
}

/// Which attempt this is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Attempt {
    number: u32,
    former_end: Option<String>,
}

impl Attempt {
    /// One that was preempted is gone on with by whoever takes it; one that broke off in silence by
    /// its own claimant.
    fn of(task: &Task, claimant: Option<&Claimant>) -> Attempt {
        let text = |key: &str| task.runtime.get(key).and_then(|value| value.as_str());
        let preempted = text(PREEMPTED).filter(|why| !why.is_empty());
        let broken_off = || {
            (task.status == Status::InProgress && is_held_by(task, claimant))
                .then_some("the agent was killed")
        };
        let former_end = preempted.or_else(broken_off).map(str::to_owned);
        let number = text(ATTEMPT).and_then(|number| number.parse().ok());
        match former_end {
            Some(_) => Attempt {
                number: number.unwrap_or(1) + 1,
                former_end,
            },
            None => Attempt {
                number: 1,
                former_end: None,
            },
        }
    }
}

/// Who has the task, as far as it says.
fn holder(task: &Task, claimant: Option<&Claimant>) -> String {
    let text = |key: &str| {
        let value = task.runtime.get(key).and_then(|value| value.as_str());
        value.filter(|value| !value.is_empty())
    };
    if is_held_by(task, claimant) {
        return "an earlier agent of this job still runs it".into();
    }
    let worker = task
        .last_worker
        .as_deref()
        .unwrap_or("one that has not reported");
    match (text(CLAIMANT), text(PREEMPTED)) {
        (Some(job), Some(why)) => format!("it is kept for {job} ({why})"),
        (Some(job), None) => format!("{job} has it, worker {worker}"),
        (None, _) => format!("worker {worker} has it"),
    }
}

fn is_held_by(task: &Task, claimant: Option<&Claimant>) -> bool {
    let holder = task.runtime.get(CLAIMANT).and_then(|value| value.as_str());
    claimant.is_some_and(|claimant| holder == Some(&claimant.id))
}

/// Whether the task can be taken now.
#[derive(Debug)]
pub enum Ready {
    Now,
    /// Not yet: it may be queued, or taken by the first rank, in a while.
    Later(Refused),
    Never(Refused),
}

/// `runs_here` says whether an agent on this machine still runs by a claim.
pub fn ready(task: &Task, taking: &Taking<'_>, runs_here: impl Fn(&str) -> bool) -> Ready {
    let id = task.id.clone();
    let claim = || {
        let claim = task.runtime.get(tasks::CLAIM);
        claim.and_then(|claim| claim.as_str()).unwrap_or_default()
    };
    match (taking.mode, task.status) {
        (Mode::Any | Mode::Clone, _) | (Mode::FromQueue, Status::Queued) => Ready::Now,
        (Mode::FromQueue, Status::InProgress) => {
            if is_held_by(task, taking.claimant) && !runs_here(claim()) {
                Ready::Now
            } else {
                Ready::Never(Refused::Held {
                    id,
                    by: holder(task, taking.claimant),
                })
            }
        }
        (Mode::FromQueue, Status::Created | Status::Unknown) => Ready::Later(Refused::NotQueued {
            id,
            status: task.status,
        }),
        (Mode::FromQueue, status) => Ready::Never(Refused::Ended { id, status }),
        (Mode::AfterFirst, status) => {
            let Some(claimant) = taking.claimant else {
                return Ready::Now;
            };
            let round = task.runtime.get(ROUND).and_then(|value| value.as_str());
            let of_this_start = round == Some(claimant.round.to_string().as_str());
            let held = is_held_by(task, Some(claimant)) && of_this_start;
            match status {
                Status::InProgress if held => Ready::Now,
                _ => Ready::Later(Refused::FirstRankSilent { id, status }),
            }
        }
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
         enqueue it, give it time with --wait, or leave --require-queue out"
    )]
    NotQueued { id: String, status: Status },
    #[error(
        "task {id} is in_progress, and it is not this job that has it: {by}. To have it run elsewhere, stop it \
         in the web UI, reset and enqueue it"
    )]
    Held { id: String, by: String },
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
            Refused::NotQueued { .. } | Refused::FirstRankSilent { .. } => exit::NOT_QUEUED,
            Refused::TakenByAnother { .. } | Refused::Held { .. } => exit::HELD_BY_ANOTHER,
            Refused::Ended { .. } | Refused::ReadOnly { .. } => exit::ENDED,
        }
    }
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
        Mode::AfterFirst => {
            // What the first rank has counted already.
            let number = task.runtime.get(ATTEMPT).and_then(|n| n.as_str());
            let attempt = Attempt {
                number: number.and_then(|n| n.parse().ok()).unwrap_or(1),
                former_end: None,
            };
            return Ok(Claimed::of(task, &attempt));
        }
        Mode::Clone => {
            let copy = tasks::clone(session, &task).await?;
            console.say(format!("Cloned task {id}: new task id={copy}"));
            task = fetch(session, &copy).await?;
        }
        Mode::FromQueue if task.status == Status::InProgress => {
            taken_from = TakenFrom::QueueAndSetInProgress;
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
    if let Some(claimant) = claimant
        && let Err(error) = record_claimant(session, &task, taking, claimant, &attempt).await
    {
        undo(session, id, taken_from, worker).await;
        return Err(error.into());
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

async fn record_claimant(
    session: &Session,
    task: &Task,
    taking: &Taking<'_>,
    claimant: &Claimant,
    attempt: &Attempt,
) -> Result<(), ApiError> {
    let mut runtime = task.runtime.clone();
    for old in [PREEMPTED, FAILED_RANK] {
        runtime.remove(old);
    }
    for (key, value) in [
        (tasks::CLAIM, taking.run.to_owned()),
        (CLAIMANT, claimant.id.clone()),
        (ROUND, claimant.round.to_string()),
        (ATTEMPT, attempt.number.to_string()),
    ] {
        runtime.insert(key.to_owned(), value.into());
    }
    tasks::set_runtime(session, &task.id, &runtime).await
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
        TakenFrom::Nowhere => {}
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn task(status: &str, runtime: serde_json::Value) -> Task {
        serde_json::from_value(json!({"id": "t1", "status": status, "runtime": runtime})).unwrap()
    }

    #[test]
    fn who_may_take_what() {
        let mine = Claimant {
            id: "slurm:c:7".into(),
            round: 2,
        };
        let held = |claimant: &str, round: &str| json!({"clearml_agent_claimant": claimant, "clearml_agent_round": round, "clearml_agent_claim": "run1"});
        let nobody = json!({});
        for (mode, status, runtime, claimant, runs_here, expected) in [
            (Mode::FromQueue, "queued", &nobody, None, false, "now"),
            (Mode::FromQueue, "created", &nobody, None, false, "later 75"),
            (
                Mode::FromQueue,
                "in_progress",
                &nobody,
                None,
                false,
                "never 76",
            ),
            (
                Mode::FromQueue,
                "in_progress",
                &held("slurm:c:7", "1"),
                None,
                false,
                "never 76",
            ),
            (
                Mode::FromQueue,
                "in_progress",
                &held("slurm:c:8", "1"),
                Some(&mine),
                false,
                "never 76",
            ),
            (
                Mode::FromQueue,
                "in_progress",
                &held("slurm:c:7", "1"),
                Some(&mine),
                false,
                "now",
            ),
            (
                Mode::FromQueue,
                "in_progress",
                &held("slurm:c:7", "1"),
                Some(&mine),
                true,
                "never 76",
            ),
            (
                Mode::FromQueue,
                "completed",
                &held("slurm:c:7", "1"),
                Some(&mine),
                false,
                "never 67",
            ),
            (Mode::FromQueue, "stopped", &nobody, None, false, "never 67"),
            (
                Mode::FromQueue,
                "published",
                &nobody,
                None,
                false,
                "never 67",
            ),
            (Mode::Any, "completed", &nobody, None, false, "now"),
            (
                Mode::Clone,
                "in_progress",
                &nobody,
                Some(&mine),
                false,
                "now",
            ),
            (Mode::AfterFirst, "queued", &nobody, None, false, "now"),
            (
                Mode::AfterFirst,
                "queued",
                &nobody,
                Some(&mine),
                false,
                "later 75",
            ),
            // Of an earlier start of the same job.
            (
                Mode::AfterFirst,
                "in_progress",
                &held("slurm:c:7", "1"),
                Some(&mine),
                false,
                "later 75",
            ),
            (
                Mode::AfterFirst,
                "in_progress",
                &held("slurm:c:7", "2"),
                Some(&mine),
                false,
                "now",
            ),
        ] {
            let taking = Taking {
                mode,
                worker: "w:0",
                run: "run2",
                claimant,
            };
            let task = task(status, runtime.clone());
            let found = match ready(&task, &taking, |claim| runs_here && claim == "run1") {
                Ready::Now => "now".to_owned(),
                Ready::Later(why) => format!("later {}", why.exit_code()),
                Ready::Never(why) => format!("never {}", why.exit_code()),
            };
            assert_eq!(found, expected, "{mode:?} {status} {runtime} {claimant:?}");
        }
    }

    #[test]
    fn attempts_are_counted_where_one_goes_on_with_another() {
        let mine = Claimant {
            id: "a".into(),
            round: 0,
        };
        for (status, runtime, number, goes_on) in [
            ("queued", json!({}), 1, false),
            ("queued", json!({"clearml_agent_attempt": "4"}), 1, false),
            (
                "queued",
                json!({"clearml_agent_attempt": "4", "clearml_agent_preempted": "SIGTERM"}),
                5,
                true,
            ),
            (
                "in_progress",
                json!({"clearml_agent_attempt": "1", "clearml_agent_claimant": "a"}),
                2,
                true,
            ),
            (
                "in_progress",
                json!({"clearml_agent_attempt": "1", "clearml_agent_claimant": "b"}),
                1,
                false,
            ),
        ] {
            let attempt = Attempt::of(&task(status, runtime.clone()), Some(&mine));
            assert_eq!(attempt.number, number, "{runtime}");
            assert_eq!(attempt.former_end.is_some(), goes_on, "{runtime}");
        }
    }
}
