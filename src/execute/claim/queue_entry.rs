//! The task's entry in a queue, which only one agent can remove.

use std::time::Duration;

use super::Refused;
use crate::api::{ApiError, Session, queues, tasks};
use crate::task::{Status, Task};

/// Removes the task's queue entry, the one call that only one agent can win; gives the queue's id.
///
/// The answer to that call can be lost. Then the entry is gone and nobody can say who has it: the
/// winner shows by changing the status soon; if none does, the entry is put back and raced for again.
/// Giving up puts it back too: a task that is queued in no queue would never run.
pub(super) async fn take_from_queue(session: &Session, task: &Task) -> Result<String, Refused> {
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
