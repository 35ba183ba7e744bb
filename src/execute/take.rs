//! Logging in and taking the task, as soon as it can be taken.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::claim::{self, Claimed, Mode, Ready, Refused, Taking};
use super::not_run::NotRun;
use super::outcome::StopCause;
use super::run::SILENCE;
use super::runtime::{CLAIM, said};
use super::settings::Settings;
use super::stop::Stop;
use crate::api::{self, ApiError, Session};
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
        let mut waiting = Waiting::of(settings, taking.mode, console);
        let session = loop {
            match Session::login(&settings.endpoint).await {
                Err(error @ ApiError::Unreachable { .. }) if waiting.bears(&error).await => {}
                session => break session.map_err(NotRun::Login)?,
            }
        };
        let session = Arc::new(session);
        spoken.store(true, std::sync::atomic::Ordering::Relaxed);
        let task = when_ready(&session, settings, &taking, &mut waiting).await?;
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

/// The waiting for a task that cannot be taken yet (`--wait`).
struct Waiting<'a> {
    begin: Instant,
    patience: Duration,
    pause: Duration,
    console: &'a Console,
    is_told: bool,
    is_told_of_outage: bool,
}

impl<'a> Waiting<'a> {
    fn of(settings: &Settings, mode: Mode, console: &'a Console) -> Self {
        let (patience, shortest) = match mode {
            Mode::AfterFirst { .. } => (settings.wait.max(FIRST_RANK_LIMIT), 0.5),
            _ => (settings.wait, 2.0),
        };
        Self {
            begin: Instant::now(),
            patience,
            pause: Duration::from_secs_f64(shortest),
            console,
            is_told: false,
            is_told_of_outage: false,
        }
    }

    /// Waits a while; `false`: there is no time left.
    async fn goes_on(&mut self) -> bool {
        let left = self.patience.saturating_sub(self.begin.elapsed());
        if left.is_zero() {
            return false;
        }
        // Many wait for the same server: they are not to ask in step, and ever more seldom.
        tokio::time::sleep(self.pause.mul_f64(0.5 + api::random()).min(left)).await;
        self.pause = (self.pause * 3 / 2).min(Duration::from_secs(15));
        true
    }

    /// Whether an outage of the server is part of the waiting.
    async fn bears(&mut self, error: &ApiError) -> bool {
        let is_bearable = self.begin.elapsed() < self.patience;
        if is_bearable && !std::mem::replace(&mut self.is_told_of_outage, true) {
            self.console.say(format!(
                "The server is away: {error}. Trying again, for {} s at most",
                self.patience.as_secs()
            ));
        }
        is_bearable && self.goes_on().await
    }

    /// Whether the task can still become one that can be taken.
    async fn waits_for(&mut self, task: &Task) -> bool {
        let is_left = self.begin.elapsed() < self.patience;
        if is_left && !std::mem::replace(&mut self.is_told, true) {
            self.console.say(format!(
                "Waiting for task {} (its status is {}), for {} s at most",
                task.id,
                task.status,
                self.patience.as_secs()
            ));
        }
        is_left && self.goes_on().await
    }
}

/// The task, as soon as it can be taken.
async fn when_ready(
    session: &Arc<Session>,
    settings: &Settings,
    taking: &Taking<'_>,
    waiting: &mut Waiting<'_>,
) -> Result<Task, Refused> {
    let (dir, machine) = (&settings.journal.dir, settings.config.machine());
    let has_died = |claim: &str| journal::has_died(dir, machine, claim);
    let mut is_told = false;
    loop {
        let task = match claim::fetch(session, &settings.task).await {
            // It has answered before: this is a server that starts again, or what stands before it.
            Err(Refused::Api(
                error @ (ApiError::Unreachable { .. } | ApiError::NotAnApiServer { .. }),
            )) if waiting.bears(&error).await => continue,
            fetched => fetched?,
        };
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
                waiting.console.say(format!(
                    "Task {} is this job's already: asking whether it runs still, for {} s at most",
                    task.id,
                    within.as_secs() + 1
                ));
                return claim::asking::ask(session, &task, taking, within).await;
            }
            Ready::Never(why) => return Err(why),
            Ready::Later(why) => why,
        };
        if !waiting.waits_for(&task).await {
            return Err(why);
        }
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
