//! Logging in and taking the task, as soon as it can be taken.

use std::sync::Arc;
use std::time::Duration;

use super::claim::{self, Claimed, Mode, Ready, Refused, Taking};
use super::not_run::NotRun;
use super::outcome::StopCause;
use super::run::SILENCE;
use super::runtime::{CLAIM, said};
use super::settings::Settings;
use super::stop::Stop;
use crate::api::{self, Session};
use crate::console::Console;
use crate::journal;
use crate::task::{Status, Task};

/// Logs in and takes the task.
pub(super) async fn take(
    settings: &Settings,
    stop: &Stop,
    console: &Console,
) -> Result<(Arc<Session>, Claimed), NotRun> {
    let taking = Taking {
        mode: settings.mode,
        worker: &settings.endpoint.worker,
        run: &settings.run,
        claimant: settings.claimant.as_ref(),
    };
    let spoken = std::sync::atomic::AtomicBool::new(false);
    let asking = async {
        let session = Session::login(&settings.endpoint)
            .await
            .map_err(NotRun::Login)?;
        let session = Arc::new(session);
        spoken.store(true, std::sync::atomic::Ordering::Relaxed);
        let task = when_ready(&session, settings, &taking, console).await?;
        Ok((session, task))
    };
    let patience = async {
        tokio::time::sleep(SILENCE).await;
        if !spoken.load(std::sync::atomic::Ordering::Relaxed) {
            console.say(format!(
                "Waiting for the API server {}",
                settings.endpoint.api_server
            ));
        }
        std::future::pending().await
    };
    let (session, task) = tokio::select! {
        asked = asking => asked,
        never = patience => never,
        cause = stop.requested() => Err(interrupted(&cause)),
    }?;
    match claim::claim(&session, task, &taking, console, stop.token()).await {
        Ok(claimed) => Ok((session, claimed)),
        Err(refused) => Err(match (refused, stop.cause()) {
            (Refused::GivenUp { id, left }, Some(cause)) => NotRun::CutOff {
                cause,
                task: id,
                left,
            },
            (refused, _) => refused.into(),
        }),
    }
}

/// How long the other ranks wait for the first to take the task, at least.
const FIRST_RANK_LIMIT: Duration = Duration::from_secs(300);

/// The task, as soon as it can be taken.
async fn when_ready(
    session: &Arc<Session>,
    settings: &Settings,
    taking: &Taking<'_>,
    console: &Console,
) -> Result<Task, Refused> {
    let (patience, shortest) = match taking.mode {
        Mode::AfterFirst { .. } => (settings.wait.max(FIRST_RANK_LIMIT), 0.5),
        _ => (settings.wait, 2.0),
    };
    let begin = tokio::time::Instant::now();
    // Many wait for the same server: they are not to ask in step, and ever more seldom.
    let mut pause = Duration::from_secs_f64(shortest);
    let mut told = false;
    let (dir, machine) = (&settings.journal.dir, settings.config.machine());
    let has_died = |claim: &str| journal::has_died(dir, machine, claim);
    let mut is_told = false;
    loop {
        let task = claim::fetch(session, &settings.task).await?;
        if taking.mode == Mode::FromQueue
            && task.status == Status::InProgress
            && let Some(claim) = said(&task.runtime, CLAIM)
            && !std::mem::replace(&mut is_told, true)
            && journal::sync::tell_end_of(dir, machine, claim, session).await
        {
            // It was over, only nobody had heard of it.
            continue;
        }
        if claim::is_aborted(&task, taking) {
            claim::carry_out_abort(session, &task, taking.worker).await?;
            continue;
        }
        let why = match claim::ready(&task, taking, has_died) {
            Ready::Now => return Ok(task),
            Ready::Unanswered(within) => {
                console.say(format!(
                    "Task {} is this job's already: asking whether it runs still, for {} s at most",
                    task.id,
                    within.as_secs() + 1
                ));
                return claim::asking::ask(session, &task, taking, within).await;
            }
            Ready::Never(why) => return Err(why),
            Ready::Later(why) => why,
        };
        let left = patience.saturating_sub(begin.elapsed());
        if left.is_zero() {
            return Err(why);
        }
        if !told {
            told = true;
            console.say(format!(
                "Waiting for task {} (its status is {}), for {} s at most",
                task.id,
                task.status,
                patience.as_secs()
            ));
        }
        tokio::time::sleep(pause.mul_f64(0.5 + api::random()).min(left)).await;
        pause = (pause * 3 / 2).min(Duration::from_secs(15));
    }
}

pub(super) fn interrupted(cause: &StopCause) -> NotRun {
    match cause {
        StopCause::Signal(signal) => NotRun::Interrupted(*signal),
        StopCause::Timeout { .. } => NotRun::Timeout(cause.to_string()),
        // These come after the claim.
        StopCause::Server { .. }
        | StopCause::Preempted { .. }
        | StopCause::Rank { .. }
        | StopCause::TakenOver => NotRun::Agent(cause.to_string()),
    }
}
