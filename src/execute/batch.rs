//! The end of a run that is one job of a batch system, or one rank of several.

use serde_json::{Map, Value};

use super::outcome::{Outcome, StopCause, Verdict};
use super::run::Run;
use super::runtime::{CLAIM, CLAIMANT, FAILED_RANK, PREEMPTED, ROUND, STEP, said};
use super::scheduler::{Batch, Claimant};
use super::settings::Settings;
use super::slurm;
use super::watch::{failed_rank, reads_as_stop};
use crate::api::tasks::{self, FinalStatus};
use crate::api::{ApiError, queues};
use crate::cli::OnPreempt;
use crate::outlet;
use crate::process::signal::TERM;

/// What a stop by SIGTERM means there: another rank failed and the rest were ended, the task was aborted in
/// the same moment, or the machine is wanted back.
pub(super) async fn of_the_job(run: &Run, outcome: Outcome) -> Outcome {
    let Outcome::Stopped(StopCause::Signal(TERM)) = outcome else {
        return outcome;
    };
    if run.several.is_some() || run.settings.stop.on_preempt.is_some() {
        let asking = tasks::standing(&run.session, &run.task.id);
        let standing = tokio::time::timeout(slurm::PATIENCE, asking).await;
        if let Ok(Ok(standing)) = standing {
            let failed = standing.as_ref().and_then(failed_rank);
            if let Some(what) = failed.filter(|_| run.several.is_some()) {
                return Outcome::Stopped(StopCause::Rank { what });
            }
            // Who aborts it wants it neither put back nor kept.
            if let Some(what) = reads_as_stop(standing.as_ref(), &mut 0) {
                return Outcome::Stopped(StopCause::Server { what });
            }
        }
    }
    let stop = &run.settings.stop;
    match stop.on_preempt {
        Some(then) => {
            let patience = match then {
                OnPreempt::Keep => slurm::PATIENCE,
                // For the words alone.
                OnPreempt::Stop | OnPreempt::Requeue => slurm::LIMIT,
            };
            let job = match &stop.batch {
                Some(Batch::Slurm { job }) => slurm::job(job, patience).await,
                _ => None,
            };
            let round = run.settings.claimant.as_ref().map_or(0, |c| c.round);
            let then = what_then(then, stop.batch.as_ref(), job.as_ref(), round);
            let by = stop.batch.as_ref().map(ToString::to_string);
            Outcome::Stopped(StopCause::Preempted {
                by: by.unwrap_or_else(|| "the agent".into()),
                then,
                out_of_time: job.is_some_and(|job| job.is_out_of_time()),
            })
        }
        None => outcome,
    }
}

/// What was asked for, unless nothing starts a job of Slurm's again: it was cancelled, had its time, or ends
/// now by itself. Nor where Slurm does not say: if such a job comes back, it goes on with a task that was
/// stopped, and nobody else would end one that was kept.
fn what_then(
    asked: OnPreempt,
    batch: Option<&Batch>,
    job: Option<&slurm::Job>,
    round: u32,
) -> OnPreempt {
    let of_slurm = matches!(batch, Some(Batch::Slurm { .. }));
    let comes_back = job.is_some_and(|job| job.comes_back(round));
    match asked {
        OnPreempt::Keep if of_slurm && !comes_back => OnPreempt::Stop,
        asked => asked,
    }
}

/// The claimant by which the ranks know each other, where there is more than one, as Slurm and PyTorch tell.
pub(super) fn one_of_several(settings: &Settings) -> Option<Claimant> {
    let env = &settings.job.inherited;
    let several = ["SLURM_NTASKS", "WORLD_SIZE"].iter().any(|name| {
        let count = env.get(*name).and_then(|count| count.trim().parse().ok());
        count.is_some_and(|count: u32| count > 1)
    });
    settings.claimant.clone().filter(|_| several)
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

/// Whether the task may be left for the job's next start: then that is what becomes of it, too, where this
/// agent does not come to the end.
pub(super) fn may_be_kept(run: &Run, outcome: &Outcome) -> bool {
    run.settings.stop.on_preempt == Some(OnPreempt::Keep)
        && matches!(outcome, Outcome::Stopped(StopCause::Signal(TERM)))
}

/// After the status: what the next attempt, or the other ranks, are to know. `is_ours`: the status is this
/// run's, not one that somebody else has set in the meantime.
pub(super) async fn hand_on(run: &Run, outcome: &Outcome, verdict: &Verdict, is_ours: bool) {
    let told = if run.settings.rank > 0 {
        tell_of_failure(run, outcome, verdict).await
    } else {
        match then(outcome).filter(|_| is_ours) {
            Some(OnPreempt::Requeue) => requeue(run, verdict).await,
            Some(OnPreempt::Keep) => tell_of_preemption(run, verdict).await.map(drop),
            // Somebody may start the job again all the same (`scontrol requeue`).
            Some(OnPreempt::Stop) if run.settings.stop.on_preempt == Some(OnPreempt::Keep) => {
                tell_of_preemption(run, verdict).await.map(drop)
            }
            Some(OnPreempt::Stop) | None => Ok(()),
        }
    };
    if let Err(error) = told {
        outlet::complain(format_args!(
            "what comes next could not be told to the server: {error}"
        ));
    }
}

/// Unless another run has the task by now.
async fn tell_of_preemption(run: &Run, verdict: &Verdict) -> Result<bool, ApiError> {
    let tell = |all: &mut Map<String, Value>| {
        let is_ours = said(all, CLAIM).is_none_or(|claim| claim == run.settings.run);
        if is_ours {
            all.insert(PREEMPTED.into(), verdict.reason.as_str().into());
        }
        is_ours
    };
    run.runtime.change(tell).await
}

async fn requeue(run: &Run, verdict: &Verdict) -> Result<(), ApiError> {
    let Some(queue) = queue_of(run).await? else {
        outlet::complain(format_args!(
            "the task was in no queue, so it cannot be put back: it is stopped"
        ));
        return Ok(());
    };
    if tell_of_preemption(run, verdict).await? {
        tasks::enqueue(&run.session, &run.task.id, &queue).await?;
    }
    Ok(())
}

/// The queue that the task came from. ClearML's Kubernetes glue keeps what it has taken in one of its own,
/// which nobody looks at, and a property of the task says where it was.
async fn queue_of(run: &Run) -> Result<Option<String>, ApiError> {
    let of_glue = match &run.settings.stop.batch {
        Some(Batch::Kubernetes { .. }) => run.task.property("k8s-queue"),
        _ => None,
    };
    if let Some(name) = of_glue {
        let queues = queues::get_all(&run.session).await?;
        if let Some(queue) = queues.into_iter().find(|queue| queue.name == name) {
            return Ok(Some(queue.id));
        }
    }
    let queue = run.task.execution.queue.clone();
    Ok(queue.filter(|queue| !queue.is_empty()))
}

/// A rank that failed by itself takes the others with it. The first to fail is told of, and only to the
/// ranks of the same start.
async fn tell_of_failure(run: &Run, outcome: &Outcome, verdict: &Verdict) -> Result<(), ApiError> {
    let failed = match outcome {
        Outcome::Exited { code } => *code != 0,
        Outcome::Died { .. } | Outcome::Failed { .. } => true,
        Outcome::Inside(report) => report.status() == FinalStatus::Failed,
        Outcome::Stopped(_) => false,
    };
    let Some(claimant) = run.settings.claimant.as_ref().filter(|_| failed) else {
        return Ok(());
    };
    let what = format!("rank {} failed: {}", run.settings.rank, verdict.reason);
    let tell = |all: &mut Map<String, Value>| {
        let is_ours = is_of_this_start(all, claimant) && said(all, FAILED_RANK).is_none();
        if is_ours {
            all.insert(FAILED_RANK.into(), what.into());
        }
        is_ours
    };
    run.runtime.change(tell).await.map(drop)
}

/// Whether the task is held by the first of the ranks that were started together with this one.
pub(super) fn is_of_this_start(runtime: &Map<String, Value>, claimant: &Claimant) -> bool {
    said(runtime, CLAIMANT) == Some(&claimant.id)
        && said(runtime, ROUND).and_then(|round| round.parse().ok()) == Some(claimant.round)
        && said(runtime, STEP) == claimant.step.as_deref()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_kept_for_a_job_that_is_known_to_come_back() {
        use OnPreempt::{Keep, Requeue, Stop};
        let job = |restarts: u32| {
            slurm::Job::read(&format!("JobState=COMPLETING Restarts={restarts}")).unwrap()
        };
        let (back, gone) = (job(2), job(1));
        let slurm = Batch::Slurm { job: "7".into() };
        let pod = Batch::Kubernetes { pod: "p".into() };
        for (asked, batch, job, expected) in [
            (Keep, Some(&slurm), Some(&back), Keep),
            (Keep, Some(&slurm), Some(&gone), Stop),
            (Keep, Some(&slurm), None, Stop),
            (Keep, Some(&pod), None, Keep),
            (Keep, None, None, Keep),
            (Requeue, Some(&slurm), None, Requeue),
            (Stop, Some(&slurm), Some(&back), Stop),
        ] {
            let found = what_then(asked, batch, job, 1);
            assert_eq!(found, expected, "{asked:?} {batch:?} {job:?}");
        }
    }

    #[test]
    fn a_rank_tells_the_ranks_of_its_own_start() {
        let mine = Claimant {
            id: "job 7".into(),
            round: 1,
            step: Some("3".into()),
        };
        for (holder, round, step, expected) in [
            ("job 7", "1", "3", true),
            ("job 7", "2", "3", false),
            ("job 7", "1", "4", false),
            ("job 7", "1", "", false),
            ("job 8", "1", "3", false),
            ("", "", "", false),
        ] {
            let runtime = [(CLAIMANT, holder), (ROUND, round), (STEP, step)];
            let runtime = runtime.map(|(key, value)| (key.to_owned(), value.into()));
            let runtime = Map::from_iter(runtime);
            assert_eq!(is_of_this_start(&runtime, &mine), expected, "{runtime:?}");
        }
    }
}
