//! Looking at the task on the server while it runs: an abort there becomes the run's stop request; others
//! that ask whether the task runs still are answered, to the very end of the run.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::outcome::StopCause;
use super::runtime::{ASKS, CLAIM, CLAIMANT, FAILED_RANK, ROUND, Record, Runtime, said};
use super::scheduler::Claimant;
use super::stop::Stop;
use crate::api::tasks::{self, Standing};
use crate::api::{ApiError, Session};
use crate::task::Status;

/// An abort is to be seen within 5 s.
const LOOK_EACH: Duration = Duration::from_secs(4);
/// As the Python agent pings; the server gives a silent task up after two hours.
const PING_EACH: Duration = Duration::from_secs(60);
/// The message that the server sets when a running task is to be aborted.
pub(super) const STOPPING: &str = "stopping";
/// A task that is put back on purpose stays so; one look may meet a change in between.
const LOOKS_TILL_TAKEN_AWAY: u32 = 4;

/// What the run is, among others that the task may have.
#[derive(Debug, Clone)]
pub enum OfTheRun {
    /// The one that holds the task.
    Holder {
        record: Record,
        /// Whether the server has that already: a job's, from before the start.
        is_recorded: bool,
        /// The claim by which the task was held before.
        former_claim: Option<String>,
        /// One of several ranks, which tell each other of their failures.
        is_one_of_several: bool,
    },
    /// One of several ranks; the first has the task, and is known by the claimant.
    Rank { claimant: Option<Claimant> },
}

impl OfTheRun {
    fn is_one_of_several(&self) -> bool {
        match self {
            OfTheRun::Holder {
                is_one_of_several, ..
            } => *is_one_of_several,
            OfTheRun::Rank { claimant } => claimant.is_some(),
        }
    }

    fn claimant(&self) -> Option<&Claimant> {
        match self {
            OfTheRun::Holder { record, .. } => record.claimant.as_ref(),
            OfTheRun::Rank { claimant } => claimant.as_ref(),
        }
    }
}

/// Watches until it is dropped. Once a stop was asked for, by anybody, or the script has `ended`, it asks
/// for none any more.
pub async fn watch(
    session: Arc<Session>,
    task: String,
    run: OfTheRun,
    runtime: Arc<Runtime>,
    stop: Stop,
    ended: CancellationToken,
) {
    let mut taken_away = 0;
    // Where it is recorded beside the start, an older one may be found at first.
    let mut had_claim = match &run {
        OfTheRun::Holder { is_recorded, .. } => *is_recorded,
        OfTheRun::Rank { .. } => false,
    };
    let mut pinged = Instant::now();
    let mut is_over = false;
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK_EACH) => {}
            _ = stop.requested(), if !is_over => is_over = true,
            () = ended.cancelled(), if !is_over => is_over = true,
        }
        if is_over && run.claimant().is_none() {
            return;
        }
        match tasks::standing(&session, &task).await {
            Ok(standing) => {
                let hold = hold(standing.as_ref(), &run, &mut had_claim);
                match (hold, &run) {
                    (Hold::Lost, _) if !is_over => {
                        stop.request(StopCause::TakenOver);
                        continue;
                    }
                    (
                        Hold::Asked | Hold::Undone,
                        OfTheRun::Holder {
                            record,
                            former_claim,
                            ..
                        },
                    ) => say_it_again(&runtime, record, former_claim.as_deref()).await,
                    _ => {}
                }
                if is_over {
                    continue;
                }
                let failed = standing.as_ref().and_then(failed_rank);
                if let Some(what) = failed.filter(|_| run.is_one_of_several()) {
                    stop.request(StopCause::Rank { what });
                } else if let Some(what) = reads_as_stop(standing.as_ref(), &mut taken_away) {
                    stop.request(StopCause::Server { what });
                }
            }
            Err(error @ ApiError::Refused { .. }) => tracing::debug!(%error, "standing"),
            // The server is away: the task runs on; what it prints waits in the journal.
            Err(error) => tracing::debug!(%error, "the server does not answer the watch"),
        }
        if !is_over && pinged.elapsed() >= PING_EACH {
            pinged = Instant::now();
            if let Err(error) = tasks::ping(&session, &task).await {
                tracing::debug!(%error, "ping");
            }
        }
    }
}

/// How the task's runtime has the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hold {
    Ours,
    /// Another run asks whether this one lives.
    Asked,
    /// What this run has written there is gone: another's write, made of what stood there before, came later.
    Undone,
    /// Another run has the task.
    Lost,
}

fn hold(standing: Option<&Standing>, run: &OfTheRun, had_claim: &mut bool) -> Hold {
    let Some(standing) = standing else {
        return Hold::Ours;
    };
    let now = standing.said(CLAIM);
    match run {
        OfTheRun::Holder {
            record,
            former_claim,
            ..
        } => {
            if now == Some(&record.claim) {
                *had_claim = true;
                return match standing.said(ASKS) {
                    Some(_) => Hold::Asked,
                    None => Hold::Ours,
                };
            }
            match now {
                _ if !*had_claim => Hold::Ours,
                Some(now) if former_claim.as_deref() != Some(now) => Hold::Lost,
                // A reset empties it, too.
                _ if standing.status == Status::InProgress => Hold::Undone,
                _ => Hold::Ours,
            }
        }
        OfTheRun::Rank {
            claimant: Some(claimant),
        } => {
            let round = standing.said(ROUND).and_then(|round| round.parse().ok());
            let is_later = round.is_some_and(|round: u32| round > claimant.round);
            match standing.said(CLAIMANT) {
                Some(holder) if holder != claimant.id || is_later => Hold::Lost,
                _ => Hold::Ours,
            }
        }
        OfTheRun::Rank { claimant: None } => Hold::Ours,
    }
}

/// Answers those that ask, and puts the record back where it was.
async fn say_it_again(runtime: &Runtime, record: &Record, former_claim: Option<&str>) {
    let said = runtime.change(|all| {
        let now = said(all, CLAIM);
        // Another's by now: then it is not this run's to change.
        let is_ours = now.is_none_or(|now| now == record.claim || Some(now) == former_claim);
        if is_ours {
            record.put(all);
            all.remove(ASKS);
        }
        is_ours
    });
    if let Err(error) = said.await {
        tracing::debug!(%error, "who asks is not answered");
    }
}

/// A rank of several that failed, in words.
pub(super) fn failed_rank(standing: &Standing) -> Option<String> {
    standing.said(FAILED_RANK).map(str::to_owned)
}

/// What in a task's standing means that it is to stop, in words; `taken_away` counts the looks in a
/// row that found it waiting somewhere again. The rules are the Python agent's.
pub(super) fn reads_as_stop(standing: Option<&Standing>, taken_away: &mut u32) -> Option<String> {
    let Some(standing) = standing else {
        return Some("the task was deleted on the server".into());
    };
    let waiting = matches!(standing.status, Status::Queued | Status::Created);
    *taken_away = if waiting { *taken_away + 1 } else { 0 };
    match standing.status {
        Status::InProgress if standing.status_message.as_deref() == Some(STOPPING) => {
            Some(match standing.last_changed_by.as_deref() {
                Some(user) if !user.is_empty() => format!("aborted on the server by user {user}"),
                _ => "aborted on the server".into(),
            })
        }
        Status::Stopped | Status::Failed | Status::Closed | Status::Published => Some(format!(
            "its status was set to {} on the server",
            standing.status
        )),
        Status::Queued | Status::Created if *taken_away >= LOOKS_TILL_TAKEN_AWAY => Some(format!(
            "the task was reset on the server (its status is {})",
            standing.status
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(status: Status, message: Option<&str>) -> Standing {
        Standing {
            status,
            status_message: message.map(str::to_owned),
            last_changed_by: None,
            runtime: serde_json::Map::new(),
            last_worker: None,
        }
    }

    #[test]
    fn whose_the_task_is() {
        let mine = Claimant {
            id: "job 7".into(),
            round: 1,
            step: None,
        };
        let holder = OfTheRun::Holder {
            record: Record {
                claim: "mine".into(),
                claimant: Some(mine.clone()),
                attempt: 2,
            },
            is_recorded: false,
            former_claim: Some("old".into()),
            is_one_of_several: true,
        };
        let rank = OfTheRun::Rank {
            claimant: Some(mine),
        };
        let mut had = false;
        // The claim, the job and its start, who asks.
        for (run, [claim, job, round, asks], expected) in [
            // Not recorded yet.
            (&holder, ["old", "job 7", "0", ""], Hold::Ours),
            (&holder, ["mine", "job 7", "1", ""], Hold::Ours),
            (&holder, ["mine", "job 7", "1", "other"], Hold::Asked),
            (&holder, ["old", "job 7", "0", "other"], Hold::Undone),
            (&holder, ["", "", "", ""], Hold::Undone),
            (&holder, ["other", "job 7", "1", ""], Hold::Lost),
            (&rank, ["other", "job 7", "1", ""], Hold::Ours),
            (&rank, ["other", "job 7", "2", ""], Hold::Lost),
            (&rank, ["other", "job 8", "1", ""], Hold::Lost),
        ] {
            let mut standing = standing(Status::InProgress, None);
            for (key, value) in [
                (CLAIM, claim),
                (CLAIMANT, job),
                (ROUND, round),
                (ASKS, asks),
            ] {
                standing.runtime.insert(key.into(), value.into());
            }
            let found = hold(Some(&standing), run, &mut had);
            assert_eq!(found, expected, "{claim} {job} {round} {asks}");
        }
        // A reset is none of this.
        let reset = standing(Status::Created, None);
        assert_eq!(hold(Some(&reset), &holder, &mut true), Hold::Ours);
    }

    #[test]
    fn an_abort_is_told_from_a_running_task() {
        for (status, message, stops) in [
            (Status::InProgress, None, false),
            (
                Status::InProgress,
                Some("Changed by clearml-agent h:1"),
                false,
            ),
            (Status::InProgress, Some("stopping"), true),
            (Status::Stopped, None, true),
            (Status::Failed, None, true),
            (Status::Published, None, true),
            // The script has said itself that it is done, and may have more to do.
            (Status::Completed, None, false),
            (Status::Created, None, false),
        ] {
            let standing = standing(status, message);
            let said = reads_as_stop(Some(&standing), &mut 0);
            assert_eq!(said.is_some(), stops, "{standing:?}: {said:?}");
        }
        assert!(reads_as_stop(None, &mut 0).is_some());
    }

    #[test]
    fn a_reset_counts_when_it_stays() {
        let reset = standing(Status::Created, None);
        let running = standing(Status::InProgress, None);
        let mut count = 0;
        for standing in [&reset, &reset, &reset, &running, &reset, &reset, &reset] {
            assert_eq!(reads_as_stop(Some(standing), &mut count), None);
        }
        assert!(reads_as_stop(Some(&reset), &mut count).is_some());
    }
}
