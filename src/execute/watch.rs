//! Looking at the task on the server while it runs: an abort there becomes the run's stop request.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::claim::FAILED_RANK;
use super::outcome::StopCause;
use super::stop::Stop;
use crate::api::tasks::{self, Standing};
use crate::api::{ApiError, Session};
use crate::task::Status;

/// An abort is to be seen within 5 s.
const LOOK_EACH: Duration = Duration::from_secs(4);
/// As the Python agent pings; the server gives a silent task up after two hours.
const PING_EACH: Duration = Duration::from_secs(60);
/// The message that the server sets when a running task is to be aborted.
const STOPPING: &str = "stopping";
/// A task that is put back on purpose stays so; one look may meet a change in between.
const LOOKS_TILL_TAKEN_AWAY: u32 = 4;

/// What the run is, among others that the task may have.
#[derive(Debug, Clone, Default)]
pub struct OfTheRun {
    /// Its claim; none where another rank has that.
    pub claim: Option<String>,
    /// Whether the server has it already: a job's, from before the start.
    pub is_recorded: bool,
    /// One of several ranks, which tell each other of their failures.
    pub is_one_of_several: bool,
}

/// Watches until a stop is asked for, by anybody. Dropping the future ends the watch.
pub async fn watch(session: Arc<Session>, task: String, run: OfTheRun, stop: Stop) {
    let mut taken_away = 0;
    // Where it is recorded beside the start, an older one may be found at first.
    let mut had_claim = run.is_recorded;
    let mut pinged = Instant::now();
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK_EACH) => {}
            _ = stop.requested() => return,
        }
        match tasks::standing(&session, &task).await {
            Ok(standing) => {
                if is_taken_over(standing.as_ref(), run.claim.as_deref(), &mut had_claim) {
                    stop.request(StopCause::TakenOver);
                    return;
                }
                let failed = standing.as_ref().and_then(failed_rank);
                if let Some(what) = failed.filter(|_| run.is_one_of_several) {
                    stop.request(StopCause::Rank { what });
                    return;
                }
                if let Some(what) = reads_as_stop(standing.as_ref(), &mut taken_away) {
                    stop.request(StopCause::Server { what });
                    return;
                }
            }
            Err(error @ ApiError::Refused { .. }) => tracing::debug!(%error, "standing"),
            // The server is away: the task runs on; what it prints waits in the journal.
            Err(error) => tracing::debug!(%error, "the server does not answer the watch"),
        }
        if pinged.elapsed() >= PING_EACH {
            pinged = Instant::now();
            if let Err(error) = tasks::ping(&session, &task).await {
                tracing::debug!(%error, "ping");
            }
        }
    }
}

/// Whether another claim stands where this run's stood.
fn is_taken_over(standing: Option<&Standing>, claim: Option<&str>, had_claim: &mut bool) -> bool {
    let Some((standing, claim)) = standing.zip(claim) else {
        return false;
    };
    let now = standing.runtime.get(tasks::CLAIM).and_then(|c| c.as_str());
    *had_claim |= now == Some(claim);
    *had_claim && now.is_some_and(|now| !now.is_empty() && now != claim)
}

/// A rank of several that failed, in words.
pub(super) fn failed_rank(standing: &Standing) -> Option<String> {
    let failed = standing.runtime.get(FAILED_RANK)?.as_str()?;
    (!failed.is_empty()).then(|| failed.to_owned())
}

/// What in a task's standing means that it is to stop, in words; `taken_away` counts the looks in a
/// row that found it waiting somewhere again. The rules are the Python agent's.
fn reads_as_stop(standing: Option<&Standing>, taken_away: &mut u32) -> Option<String> {
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
    fn a_claim_that_was_there_and_is_anothers_now() {
        let with = |claim: &str| {
            let mut standing = standing(Status::InProgress, None);
            standing.runtime.insert(tasks::CLAIM.into(), claim.into());
            standing
        };
        let mut had = false;
        for (now, expected) in [
            ("old", false),
            ("mine", false),
            ("", false),
            ("other", true),
        ] {
            let found = is_taken_over(Some(&with(now)), Some("mine"), &mut had);
            assert_eq!(found, expected, "{now}");
        }
        assert!(!is_taken_over(Some(&with("other")), None, &mut true));
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
