//! The end of a run, as far as it waits for a server that may be away: for how long, who cuts it short,
//! and the final status.

use std::time::Duration;

use super::claim;
use super::outcome::Verdict;
use super::run::{Run, SILENCE};
use super::runtime::CLAIM;
use super::stop::Stop;
use crate::api::ApiError;
use crate::api::tasks::{self, FinalStatus, StatusNote, StatusWrite};
use crate::outlet;
use crate::task::Status;

/// What the final status may take at least, however short `--drain-timeout` is and whoever is in a hurry.
const STATUS_LIMIT: Duration = Duration::from_secs(5);

/// The end, as far as it waits for a server that may be away.
pub(super) struct End {
    deadline: tokio::time::Instant,
    drain: Duration,
    /// What had been asked for before: then it takes another signal to cut this short.
    was_stopped: bool,
    was_hurried: bool,
}

impl End {
    pub fn of(run: &Run) -> Self {
        let drain = run.settings.journal.drain;
        Self {
            deadline: tokio::time::Instant::now() + drain.max(STATUS_LIMIT),
            drain,
            was_stopped: run.stop.cause().is_some(),
            was_hurried: run.stop.is_hurried(),
        }
    }

    /// Until when the final status is tried: the log may have had all the time there was.
    fn for_status(&self, now: tokio::time::Instant) -> tokio::time::Instant {
        self.deadline.max(now + STATUS_LIMIT)
    }

    /// Resolves when somebody does not want to wait.
    pub async fn hurried(&self, stop: &Stop) {
        match (self.was_stopped, self.was_hurried) {
            // Three signals are no more than two.
            (_, true) => std::future::pending().await,
            (true, false) => stop.hurried().await,
            (false, false) => drop(stop.requested().await),
        }
    }

    /// Says what is waited for, once that is worth a word.
    pub async fn tell(&self) -> std::convert::Infallible {
        if self.drain > SILENCE {
            tokio::time::sleep(SILENCE).await;
            outlet::complain(format_args!(
                "waiting for the server, {} s at most (a signal keeps the rest for `clearml-agent sync`)",
                self.drain.as_secs()
            ));
        }
        std::future::pending().await
    }
}

/// What became of the final status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    Written,
    /// Somebody else has set it: to this, as far as it is known.
    LeftAsItIs(FinalStatus),
    /// Another run has the task by now: it is that one's to write.
    TakenOver,
    /// It could not be written now; the journal keeps it.
    Unheard,
}

/// `is_recorded`: the server has this run's claim, so that another's means that it is over.
pub(super) async fn write_status(
    run: &Run,
    status: FinalStatus,
    verdict: &Verdict,
    end: &End,
    stop: &Stop,
    is_recorded: bool,
) -> Told {
    let message = claim::changed_by(&run.settings.endpoint.worker);
    let note = StatusNote {
        reason: verdict.reason.as_str(),
        message: &message,
    };
    // The server compares no more than the status, and that is the same for every attempt.
    let writing = async {
        if is_recorded
            && let Some(standing) =
                until_heard(async || tasks::standing(&run.session, &run.task.id).await).await?
        {
            let claim = standing.said(CLAIM);
            if claim.is_some_and(|claim| claim != run.settings.run) {
                return Ok(Told::TakenOver);
            }
            if let Some(said) = said_already(standing.status, status) {
                return Ok(Told::LeftAsItIs(said));
            }
        }
        let finish = async || tasks::finish(&run.session, &run.task.id, status, note).await;
        Ok(match until_heard(finish).await? {
            StatusWrite::Written => Told::Written,
            StatusWrite::NotFromHere { message } => {
                tracing::debug!(message, "the final status");
                Told::LeftAsItIs(status)
            }
        })
    };
    let deadline = end.for_status(tokio::time::Instant::now());
    let hurried = async {
        end.hurried(stop).await;
        tokio::time::sleep(STATUS_LIMIT).await;
    };
    let told = tokio::select! {
        told = writing => told.map_err(|error: ApiError| error.to_string()),
        () = tokio::time::sleep_until(deadline) => Err("no answer in time".into()),
        // The rest of the log is what is not waited for; one call must do.
        () = hurried => Err("not waited for".into()),
    };
    if told.is_ok() {
        run.journal.status_is_told();
    }
    match told {
        Ok(Told::LeftAsItIs(said)) => {
            outlet::complain(format_args!(
                "the task's status was left as the server has it, somebody else set it"
            ));
            Told::LeftAsItIs(said)
        }
        Ok(Told::TakenOver) => {
            outlet::complain(format_args!(
                "another agent has taken the task over: its status was left to that one ({})",
                verdict.reason
            ));
            Told::TakenOver
        }
        Ok(told) => told,
        Err(error) => {
            outlet::complain(format_args!(
                "the task's status could not be written ({}): {error}\n  \
                 `clearml-agent sync`, or the next run on this machine, writes it",
                verdict.reason
            ));
            Told::Unheard
        }
    }
}

/// What somebody has said of the run while it went on, the script itself (the SDK's `mark_failed`) or a
/// user: it stands with their reason, as with the Python agent.
fn said_already(now: Status, ours: FinalStatus) -> Option<FinalStatus> {
    match (now, ours) {
        (Status::Failed, _) => Some(FinalStatus::Failed),
        (Status::Stopped, FinalStatus::Stopped) => Some(FinalStatus::Stopped),
        _ => None,
    }
}

/// Calls again as long as there is no answer: how long that may go on is the caller's to say, not the
/// call's own patience.
async fn until_heard<T>(call: impl AsyncFn() -> Result<T, ApiError>) -> Result<T, ApiError> {
    /// After all the pauses of the call itself.
    const PAUSE: Duration = Duration::from_millis(200);
    loop {
        match call().await {
            Err(error @ ApiError::Unreachable { .. }) => {
                tracing::debug!(%error, "the final status");
                tokio::time::sleep(PAUSE).await;
            }
            answer => return answer,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test]
    async fn only_silence_is_tried_again() {
        let silence = || ApiError::Unreachable {
            host: "h".into(),
            cause: "HTTP 503".into(),
            tries: 9,
            waited: Duration::from_secs(15),
        };
        let calls = Cell::new(0);
        let heard = until_heard(async || {
            calls.set(calls.get() + 1);
            match calls.get() {
                1 | 2 => Err(silence()),
                _ => Ok(calls.get()),
            }
        });
        assert_eq!(heard.await.unwrap(), 3);
        let refused = until_heard(async || {
            calls.set(calls.get() + 1);
            Err::<(), _>(ApiError::Refused {
                endpoint: "tasks.completed",
                code: 400,
                subcode: 1,
                message: String::new(),
            })
        });
        assert!(refused.await.is_err());
        assert_eq!(calls.get(), 4);
    }

    #[test]
    fn what_somebody_said_of_the_run_stands() {
        use FinalStatus::{Completed, Failed, Stopped};
        for (now, ours, said) in [
            (Status::InProgress, Failed, None),
            (Status::Failed, Failed, Some(Failed)),
            (Status::Failed, Stopped, Some(Failed)),
            (Status::Failed, Completed, Some(Failed)),
            (Status::Stopped, Stopped, Some(Stopped)),
            // How it ended is more than that it was to end.
            (Status::Stopped, Failed, None),
            (Status::Stopped, Completed, None),
            (Status::Completed, Failed, None),
        ] {
            assert_eq!(said_already(now, ours), said, "{now} {ours}");
        }
    }

    #[test]
    fn the_status_has_its_time_after_a_log_that_took_all() {
        let begin = tokio::time::Instant::now();
        let end = End {
            deadline: begin + Duration::from_secs(60),
            drain: Duration::from_secs(60),
            was_stopped: false,
            was_hurried: false,
        };
        for (after, expected) in [(1, 60), (58, 63), (60, 65)] {
            let deadline = end.for_status(begin + Duration::from_secs(after));
            assert_eq!(deadline, begin + Duration::from_secs(expected));
        }
    }
}
