//! The script from its start to its end: what it prints goes to the journal, a stop request goes to it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::abort_callback;
use super::outcome::{Outcome, Stage, StopCause};
use super::prepare::{Prepared, WriteBack};
use super::run::Run;
use super::run_dir;
use super::scheduler::Batch;
use super::settings::Grace;
use super::slurm;
use super::timeline::Phase;
use crate::api::Session;
use crate::journal::sync;
use crate::outlet;
use crate::process::{self, Account, Ended, Job, Usage, signal};
use crate::sync::status_words;

/// Starts the script and follows it to its end; what it used, where it was started.
pub(super) async fn follow(run: &Run, prepared: Prepared) -> (Outcome, Option<Usage>) {
    let Prepared {
        command,
        handover,
        write_back,
        versions: _,
        borrowed: _borrowed,
    } = prepared;
    run.console.say(handover);
    run.journal.job_started();
    if let Some(cause) = run.stop.cause() {
        return (Outcome::Stopped(cause), None);
    }
    let callback = abort_callback::Place {
        env: command.env.clone(),
        working_dir: command.working_dir.clone(),
    };
    let (mut job, output) = match process::spawn(command) {
        Ok(started) => started,
        Err(error) => {
            let outcome = Outcome::Failed {
                stage: Stage::Launch,
                cause: error.to_string(),
            };
            return (outcome, None);
        }
    };
    run.timeline.mark(Phase::ScriptStarted);
    run.script.started(job.pid());
    let runs_dir = run.settings.runs_dir.clone();
    tokio::task::spawn_blocking(move || run_dir::remove_leftovers(&runs_dir));
    let leftovers = tokio::spawn(send_leftovers(
        run.session.clone(),
        run.settings.leftovers(),
    ));
    // Beside the script: it does not wait for these calls, the status does.
    let written = match run.settings.rank {
        0 => write_back,
        // The first rank's to write, as the registration below.
        _ => WriteBack::default(),
    };
    let written = tokio::spawn(written.send(run.session.clone(), run.task.id.clone()));
    let registered = async {
        if run.settings.rank == 0 {
            abort_callback::register(run).await;
        }
    };

    let ending = async {
        let ended = loop {
            tokio::select! {
                ended = job.wait() => break (ended, signalled_beside(run, ended).await),
                cause = run.stop.requested() => {
                    break (stop(run, &mut job, &cause, &callback).await, Some(cause));
                }
                notice = run.stop.notice() => {
                    job.signal(notice);
                    run.console.say(format!("Passed {} on to the script", signal::name(notice)));
                }
            }
        };
        run.timeline.mark(Phase::ScriptEnded);
        run.script.ended();
        ended
    };
    let (read, (ended, stopped), ()) =
        tokio::join!(run.journal.read_from(output), ending, registered);
    if let Err(error) = read {
        run.console.say(format!(
            "Note: the script's output could not be read to its end: {error}"
        ));
    }
    // What is not sent by now, the next run sends.
    leftovers.abort();
    // Whoever wants the machine back does not wait for a server that is away.
    let patience = match stopped {
        Some(_) => Duration::from_secs(2),
        None => Duration::from_secs(3600),
    };
    match tokio::time::timeout(patience, written).await {
        Err(_) => tracing::debug!("write-back: no answer in time"),
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(error))) => run.console.say(format!(
            "Note: packages and commit could not be recorded in the task: {error}"
        )),
        Ok(Err(error)) => tracing::debug!(%error, "write-back"),
    }
    let last_lines = run.journal.last_lines();
    let last_lines: Vec<&str> = last_lines.iter().map(String::as_str).collect();
    let Account { usage, death } = job.account(ended, &last_lines).await;
    let outcome = match stopped {
        Some(cause) => Outcome::Stopped(cause),
        None => Outcome::of_script(ended, death),
    };
    (outcome, Some(usage))
}

/// The signal that ended the script, where that went to the whole of a Slurm job: the script may be gone
/// before this agent has noticed its own.
async fn signalled_beside(run: &Run, ended: Ended) -> Option<StopCause> {
    /// Between two processes of one job.
    const ECHO: Duration = Duration::from_millis(250);
    /// From the kernel to this: a signal that was there before the script's end is seen by then. One that
    /// the script has answered with a checkpoint and exit code 0 came long before its end; one that comes
    /// after that is nothing to a script that is done.
    const ARRIVED: Duration = Duration::from_millis(20);
    if !matches!(run.settings.stop.batch, Some(Batch::Slurm { .. })) {
        return None;
    }
    let within = match ended {
        Ended::Exited { code: 0 } => ARRIVED,
        _ => ECHO,
    };
    let cause = tokio::time::timeout(within, run.stop.requested())
        .await
        .ok();
    cause.filter(|cause| matches!(cause, StopCause::Signal(_)))
}

/// Ends the job: the abort callback where the stop is the server's, the signal, the grace, SIGKILL. A
/// second request for a stop leaves the waiting out.
async fn stop(
    run: &Run,
    job: &mut Job,
    cause: &StopCause,
    callback: &abort_callback::Place,
) -> Ended {
    let settings = &run.settings.stop;
    if let StopCause::Server { .. } = cause {
        tokio::select! {
            () = abort_callback::run(run, callback) => {}
            // It may end by itself when its callback is done.
            ended = job.wait() => return ended,
            () = run.stop.hurried() => {}
        }
    }
    let then = match allowed(run, Some(cause)) {
        Grace::Of(grace) => format!("if it still runs after {} s", grace.as_secs()),
        Grace::LeftBySlurm { .. } => "before Slurm sends it (KillWait, or the job's end)".into(),
        Grace::AsSlurmsKillWait => "if it still runs after most of Slurm's KillWait".into(),
    };
    run.console.say(format!(
        "Stopping the script ({cause}): {}, and SIGKILL {then}",
        signal::name(settings.signal),
    ));
    let ended = tokio::select! {
        ended = job.stop(settings.signal, grace(run)) => Some(ended),
        () = run.stop.hurried() => None,
    };
    match ended {
        Some(ended) => ended,
        None => {
            run.console
                .say("Asked to stop a second time: SIGKILL at once");
            job.stop(signal::KILL, std::future::ready(Duration::ZERO))
                .await
        }
    }
}

/// In a container, what the agent outside gives.
fn allowed<'a>(run: &'a Run, cause: Option<&StopCause>) -> Grace<'a> {
    match run.stop.grace() {
        Some(grace) => Grace::Of(grace),
        None => run.settings.stop.grace(cause),
    }
}

/// How long the script has to end.
pub(super) async fn grace(run: &Run) -> Duration {
    match allowed(run, run.stop.cause().as_ref()) {
        Grace::Of(grace) => grace,
        Grace::LeftBySlurm { job } => slurm::grace(job).await,
        Grace::AsSlurmsKillWait => slurm::least_grace().await,
    }
}

/// Sends what earlier runs on this machine left in the journals' folder.
pub(super) async fn send_leftovers(session: Arc<Session>, of: Option<(PathBuf, String)>) {
    let Some((dir, machine)) = of else {
        return;
    };
    let whose = sync::Whose::Neighbours(&machine);
    let told = sync::send_left(&dir, whose, &session, |sent| match sent.what {
        sync::What::Done {
            task,
            receipt,
            status,
        } => outlet::complain(format_args!(
            "sent what an earlier run of task {task} had left: {}{}",
            receipt.words(),
            status_words(status)
        )),
        what => tracing::debug!(path = %sent.path.display(), ?what, "a journal of an earlier run"),
    });
    if let Err(error) = told.await {
        tracing::debug!(%error, "journals of earlier runs");
    }
}
