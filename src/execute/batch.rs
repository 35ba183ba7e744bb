//! The end of a run that is one job of a batch system, or one rank of several.

use super::claim::{FAILED_RANK, PREEMPTED};
use super::outcome::{Outcome, StopCause, Verdict};
use super::run::Run;
use super::scheduler::Batch;
use super::slurm;
use super::watch::failed_rank;
use crate::api::ApiError;
use crate::api::tasks::{self, FinalStatus};
use crate::cli::OnPreempt;
use crate::process::signal::TERM;

/// What a stop by SIGTERM means there: another rank failed and the rest were ended, or the machine is
/// wanted back.
pub(super) async fn of_the_job(run: &Run, outcome: Outcome) -> Outcome {
    let Outcome::Stopped(StopCause::Signal(TERM)) = outcome else {
        return outcome;
    };
    if is_one_of_several(run)
        && let Ok(Some(standing)) = tasks::standing(&run.session, &run.task.id).await
        && let Some(what) = failed_rank(&standing)
    {
        return Outcome::Stopped(StopCause::Rank { what });
    }
    let stop = &run.settings.stop;
    match stop.on_preempt {
        Some(then) => {
            // What was cancelled, or had its time, is not started again.
            let round = run.settings.claimant.as_ref().map_or(0, |c| c.round);
            let then = match (then, &stop.batch) {
                (OnPreempt::Keep, Some(Batch::Slurm { job }))
                    if slurm::is_over(job, round).await =>
                {
                    OnPreempt::Stop
                }
                (then, _) => then,
            };
            let by = stop.batch.as_ref().map(ToString::to_string);
            let by = by.unwrap_or_else(|| "the agent".into());
            Outcome::Stopped(StopCause::Preempted { by, then })
        }
        None => outcome,
    }
}

/// More than one rank, as Slurm and PyTorch tell, and known by one claimant.
pub(super) fn is_one_of_several(run: &Run) -> bool {
    if run.settings.claimant.is_none() {
        return false;
    }
    let env = &run.settings.job.inherited;
    ["SLURM_NTASKS", "WORLD_SIZE"].iter().any(|name| {
        let count = env.get(*name).and_then(|count| count.trim().parse().ok());
        count.is_some_and(|count: u32| count > 1)
    })
}

/// Whether the status is not this run's to write: the task stays `in_progress` for the job's next start,
/// or is another agent's by now.
pub(super) fn is_kept(outcome: &Outcome) -> bool {
    then(outcome) == Some(OnPreempt::Keep)
        || matches!(outcome, Outcome::Stopped(StopCause::TakenOver))
}

fn then(outcome: &Outcome) -> Option<OnPreempt> {
    match outcome {
        Outcome::Stopped(StopCause::Preempted { then, .. }) => Some(*then),
        _ => None,
    }
}

/// After the status: what the next attempt, or the other ranks, are to know.
pub(super) async fn hand_on(run: &Run, outcome: &Outcome, verdict: &Verdict) {
    let told = if run.settings.rank > 0 {
        tell_of_failure(run, outcome, verdict).await
    } else {
        match then(outcome) {
            Some(OnPreempt::Requeue) => requeue(run, verdict).await,
            Some(OnPreempt::Keep) => {
                let why = [(PREEMPTED, verdict.reason.as_str())];
                tasks::add_to_runtime(&run.session, &run.task.id, &why).await
            }
            Some(OnPreempt::Stop) | None => Ok(()),
        }
    };
    if let Err(error) = told {
        eprintln!("clearml-agent: what comes next could not be told to the server: {error}");
    }
}

async fn requeue(run: &Run, verdict: &Verdict) -> Result<(), ApiError> {
    let Some(queue) = run
        .task
        .execution
        .queue
        .as_deref()
        .filter(|q| !q.is_empty())
    else {
        eprintln!(
            "clearml-agent: the task was in no queue, so it cannot be put back: it is stopped"
        );
        return Ok(());
    };
    let why = [(PREEMPTED, verdict.reason.as_str())];
    tasks::add_to_runtime(&run.session, &run.task.id, &why).await?;
    tasks::enqueue(&run.session, &run.task.id, queue).await
}

/// A rank that failed by itself takes the others with it. The first to fail is told of.
async fn tell_of_failure(run: &Run, outcome: &Outcome, verdict: &Verdict) -> Result<(), ApiError> {
    let failed = match outcome {
        Outcome::Exited { code } => *code != 0,
        Outcome::Died { .. } | Outcome::Failed { .. } => true,
        Outcome::Inside(report) => report.status() == FinalStatus::Failed,
        Outcome::Stopped(_) => false,
    };
    if !failed || run.settings.claimant.is_none() {
        return Ok(());
    }
    let (session, id) = (&run.session, run.task.id.as_str());
    let known = tasks::standing(session, id).await?;
    if known.as_ref().and_then(failed_rank).is_some() {
        return Ok(());
    }
    let what = format!("rank {} failed: {}", run.settings.rank, verdict.reason);
    tasks::add_to_runtime(session, id, &[(FAILED_RANK, &what)]).await
}
