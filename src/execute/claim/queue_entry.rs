//! The task's entry in a queue, which only one agent can remove.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{Left, Refused, Taking, asking};
use crate::api::{ApiError, Session, queues, tasks};
use crate::task::{Status, Task};

/// What became of the task's queue entry.
pub(super) enum Entry {
    /// Removed by this agent, from this queue.
    Taken(String),
    /// It is in no queue, where it was in this one, and nobody has started it.
    Nobodys(String),
}

/// Removes the task's queue entry, the one call that only one agent can win.
///
/// The answer to that call can be lost. Then the entry is gone and nobody can say who has it: the
/// winner shows by changing the status soon; if none does, it is nobody's. The same holds for an agent
/// that was killed between its removal and the start, which is what a task that stays queued in no queue
/// comes from. Giving up puts the entry back: it would never run.
///
/// `stop` ends the waiting for another agent, at which nothing is at stake.
pub(super) async fn take_from_queue(
    session: &Session,
    task: &Task,
    stop: &CancellationToken,
) -> Result<Entry, Refused> {
    /// Lost answers before giving up.
    const LOSSES: u32 = 3;
    /// Enough for each loss to be followed by a move to another queue.
    const ROUNDS: u32 = 2 * LOSSES;
    /// Looks, a second each, by which who has removed the entry has started the task: this agent, perhaps,
    /// or another one, of which nothing is known.
    const IF_OURS: u32 = 10;
    const IF_ANOTHERS: u32 = 20;
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
    for _ in 0..ROUNDS {
        match queues::remove_task(session, &queue, id).await {
            Ok(true) => return Ok(Entry::Taken(queue)),
            Ok(false) => {}
            Err(error @ ApiError::Unreachable { .. }) => {
                tracing::debug!(%error, "the answer to the claim was lost");
                losses += 1;
                if losses == LOSSES {
                    if queue_holding(session, id).await?.is_none()
                        && stays_queued(session, id, IF_OURS).await?
                    {
                        queues::add_task(session, &queue, id).await?;
                    }
                    return Err(error.into());
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
            Err(error) => return Err(error.into()),
        }
        let maybe_ours = losses > 0;
        let looking = async {
            // Not in the queue that the task names: it may have been moved to another one.
            if let Some(other) = queue_holding(session, id).await? {
                return Ok(Found::In(other));
            }
            let looks = if maybe_ours { IF_OURS } else { IF_ANOTHERS };
            if !stays_queued(session, id, looks).await? {
                return Ok(Found::Started);
            }
            Ok::<_, ApiError>(match queue_holding(session, id).await? {
                // Somebody has put it there in the meantime.
                Some(other) => Found::In(other),
                None => Found::Nowhere,
            })
        };
        let found = tokio::select! {
            found = looking => found?,
            () = stop.cancelled(), if !maybe_ours => {
                let (id, left) = (id.clone(), Left::AsItWas);
                return Err(Refused::GivenUp { id, left });
            }
        };
        match found {
            Found::In(other) => queue = other,
            Found::Started => break,
            Found::Nowhere => return Ok(Entry::Nobodys(queue)),
        }
    }
    Err(Refused::TakenByAnother { id: id.clone() })
}

/// Takes what is nobody's: of all who find that, the last to say so, and only if nobody else takes the entry
/// that is put back for it. Gives the task as it is then.
pub(super) async fn take_nobodys(
    session: &Session,
    task: &Task,
    taking: &Taking<'_>,
    queue: &str,
) -> Result<Task, Refused> {
    let id = &task.id;
    let taken_by_another = || Refused::TakenByAnother { id: id.clone() };
    let now = match asking::ask(session, task, taking, asking::OTHERS_WITHIN).await {
        Err(Refused::RunsStill { .. }) => return Err(taken_by_another()),
        asked => asked?,
    };
    if now.status != Status::Queued {
        return Err(taken_by_another());
    }
    queues::add_task(session, queue, id).await?;
    match queues::remove_task(session, queue, id).await? {
        true => Ok(now),
        false => Err(taken_by_another()),
    }
}

/// Where an entry is that is not where it was expected.
enum Found {
    In(String),
    /// Nowhere, and nobody has started the task.
    Nowhere,
    Started,
}

async fn queue_holding(session: &Session, task: &str) -> Result<Option<String>, ApiError> {
    let queues = queues::get_all(session).await?;
    let holding = queues
        .into_iter()
        .find(|q| q.entries.iter().any(|entry| entry.task == task));
    Ok(holding.map(|queue| queue.id))
}

/// Whether the task is still `queued` after so many looks.
async fn stays_queued(session: &Session, task: &str, looks: u32) -> Result<bool, ApiError> {
    for look in 0..looks {
        if look > 0 {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        match tasks::standing(session, task).await? {
            Some(standing) if standing.status == Status::Queued => {}
            _ => return Ok(false),
        }
    }
    Ok(true)
}
