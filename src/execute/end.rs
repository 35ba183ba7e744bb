//! The end of a run, as far as it waits for a server that may be away: for how long, who cuts it short,
//! and the final status.

use std::time::Duration;

use super::claim;
use super::outcome::Verdict;
use super::run::{Run, SILENCE};
use super::stop::Stop;
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

/// Whether it is told; what cannot be written now, the journal keeps.
pub(super) async fn write_status(
    run: &Run,
    status: FinalStatus,
    verdict: &Verdict,
    end: &End,
    stop: &Stop,
) -> bool {
    let message = claim::changed_by(&run.settings.endpoint.worker);
    let note = StatusNote {
        reason: verdict.reason.as_str(),
        message: &message,
    };
    let told = tokio::select! {
        told = tasks::finish(&run.session, &run.task.id, status, note) => {
            told.map_err(|error| error.to_string())
        }
        () = tokio::time::sleep_until(end.deadline) => Err("no answer in time".into()),
        () = end.hurried(stop) => Err("not waited for".into()),
    };
    match told {
        Ok(StatusWrite::Written) => run.journal.status_is_told(),
        Ok(StatusWrite::NotFromHere { message }) => {
            run.journal.status_is_told();
            eprintln!(
                "clearml-agent: the task's status was left as the server has it, somebody else set it: {message}"
            );
        }
        Err(error) => {
            eprintln!(
                "clearml-agent: the task's status could not be written ({}): {error}\n  \
                 `clearml-agent sync`, or the next run on this machine, writes it",
                verdict.reason
            );
            return false;
        }
    }
    true
}
