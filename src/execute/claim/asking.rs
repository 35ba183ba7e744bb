//! Whether somebody runs a task still that is this job's by its name: whoever does is asked, over the
//! server.
//!
//! What a batch system or a CI calls a job may be the name of two that run at once (the legs of a matrix,
//! a pod that is being replaced). So the one that would go on with the task writes its own run into the
//! task's runtime; an agent that runs the task looks there every few seconds and takes it away. Of
//! several that ask, the last one's name stands there, and the others give way.
//!
//! The server knows no "change this if it is as I read it". What closes the gap: a write that came
//! later than [`CLOSE`] after its read is made again, and the winner looks at its claim once more after
//! that time, when no write that had not seen it can come any more.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{Refused, Taking, fetch};
use crate::api::{self, Session, tasks};
use crate::execute::runtime::{ASKS, CLAIM, CLAIMANT, said};
use crate::task::{Status, Task};

/// Three looks of an agent at its task.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(15);
/// Where the last one is known to have ended, there are only others that ask. More than [`CLOSE`]: who
/// had read before this one wrote has written by then.
pub(super) const OTHERS_WITHIN: Duration = Duration::from_secs(4);
/// A write follows its read within this. A server far away, or a busy one, takes a second for each.
pub(super) const CLOSE: Duration = Duration::from_secs(3);

const LOOK_EACH: Duration = Duration::from_millis(500);

/// Whether the task is one that [`ask`] has given.
pub(super) fn was_asked_for(task: &Task, taking: &Taking<'_>) -> bool {
    said(&task.runtime, ASKS) == Some(taking.run)
}

/// The task, if nobody answers within `patience`.
pub async fn ask(
    session: &Session,
    task: &Task,
    taking: &Taking<'_>,
    mut patience: Duration,
) -> Result<Task, Refused> {
    /// A server that is too slow for that is no ground to go on.
    const TRIES: u32 = 5;
    /// Each late write may undo what another has written, who needs a moment to say it again.
    const PAUSE: Duration = Duration::from_secs(4);
    let refused = || runs_still(task);
    let is_same = |status: Status, claim: Option<&str>| {
        status == task.status && claim == said(&task.runtime, CLAIM)
    };
    let mut tries = 0;
    loop {
        let begin = Instant::now();
        let standing = tasks::standing(session, &task.id).await?;
        let Some(mut standing) = standing.filter(|s| is_same(s.status, s.said(CLAIM))) else {
            return Err(refused());
        };
        standing.runtime.insert(ASKS.into(), taking.run.into());
        tasks::set_runtime(session, &task.id, &standing.runtime).await?;
        if begin.elapsed() < CLOSE {
            break;
        }
        tries += 1;
        if tries == TRIES {
            return Err(Refused::TooSlow {
                id: task.id.clone(),
                host: session.host().to_owned(),
                limit: CLOSE,
            });
        }
        sleep(PAUSE.mul_f64(0.5 + api::random())).await;
        // It may have undone what a winner has written, who says it again when it sees that.
        patience = ANSWER_WITHIN;
    }
    let begin = Instant::now();
    loop {
        sleep(LOOK_EACH).await;
        let waited = begin.elapsed();
        let now = fetch(session, &task.id).await?;
        if !is_same(now.status, said(&now.runtime, CLAIM)) || !was_asked_for(&now, taking) {
            return Err(refused());
        }
        if waited >= patience {
            return Ok(now);
        }
    }
}

/// What an answer means.
pub(super) fn runs_still(task: &Task) -> Refused {
    Refused::RunsStill {
        id: task.id.clone(),
        job: said(&task.runtime, CLAIMANT).unwrap_or_default().to_owned(),
    }
}
