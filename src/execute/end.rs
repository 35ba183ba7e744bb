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

/// What the final status may take at least, however short `--drain-timeout` is.
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
            eprintln!(
                "clearml-agent: waiting for the server, {} s at most (a signal keeps the rest for `clearml-agent sync`)",
                self.drain.as_secs()
            );
        }
        std::future::pending().await
    }
}

/// What became of the final status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    Written,
    /// Somebody else has set it.
    LeftAsItIs,
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
            && let Some(standing) = tasks::standing(&run.session, &run.task.id).await?
            && standing
                .said(CLAIM)
                .is_some_and(|claim| claim != run.settings.run)
        {
            return Ok(None);
        }
        tasks::finish(&run.session, &run.task.id, status, note)
            .await
            .map(Some)
    };
    let told = tokio::select! {
        told = writing => told.map_err(|error: ApiError| error.to_string()),
        () = tokio::time::sleep_until(end.deadline) => Err("no answer in time".into()),
        () = end.hurried(stop) => Err("not waited for".into()),
    };
    match told {
        Ok(Some(StatusWrite::Written)) => {
            run.journal.status_is_told();
            Told::Written
        }
        Ok(Some(StatusWrite::NotFromHere { message })) => {
            run.journal.status_is_told();
            eprintln!(
                "clearml-agent: the task's status was left as the server has it, somebody else set it: {message}"
            );
            Told::LeftAsItIs
        }
        Ok(None) => {
            run.journal.status_is_told();
            eprintln!(
                "clearml-agent: another agent has taken the task over: its status was left to that one ({})",
                verdict.reason
            );
            Told::TakenOver
        }
        Err(error) => {
            eprintln!(
                "clearml-agent: the task's status could not be written ({}): {error}\n  \
                 `clearml-agent sync`, or the next run on this machine, writes it",
                verdict.reason
            );
            Told::Unheard
        }
    }
}
