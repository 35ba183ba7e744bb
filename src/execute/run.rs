//! The story of one run, top to bottom: settings, log, login, claim, code and environment, script,
//! status, exit code.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::claim::{self, Claimed, Refused};
use super::job_env::Variables;
use super::outcome::{Outcome, Stage, StopCause, exit, for_signal};
use super::prepare::{self, Prepared};
use super::run_dir::{self, RunDir};
use super::settings::{self, Monitoring, Settings, SettingsError};
use super::stop::Stop;
use super::watch::watch;
use crate::api::tasks::{self, StatusNote, StatusWrite};
use crate::api::{ApiError, Session, workers};
use crate::cli::{ExecuteArgs, GlobalArgs};
use crate::console::Console;
use crate::journal::{self, Journal, JournalError, Upload, sync};
use crate::monitor;
use crate::process::{self, Ended};
use crate::task::Task;

/// How long the script has to end after it was asked to.
const GRACE: Duration = Duration::from_secs(10);

/// A server that takes longer is worth a word.
const SILENCE: Duration = Duration::from_secs(2);

/// Why no script was started and no task was touched (or the claim itself could not be finished).
#[derive(Debug, thiserror::Error)]
enum NotRun {
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Log(#[from] JournalError),
    #[error(transparent)]
    Login(ApiError),
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error("stopped by {} before the task was taken: it is as it was", super::outcome::signal_name(*.0))]
    Interrupted(i32),
    #[error("{0}")]
    Agent(String),
}

impl NotRun {
    fn exit_code(&self) -> u8 {
        match self {
            NotRun::Settings(error) => error.exit_code(),
            NotRun::Log(_) => exit::CANNOT_WRITE,
            NotRun::Login(error) | NotRun::Refused(Refused::Api(error)) => exit::for_api(error),
            NotRun::Refused(Refused::NoSuchTask { .. }) => exit::NOT_FOUND,
            NotRun::Refused(_) => exit::NOT_CLAIMED,
            NotRun::Interrupted(signal) => for_signal(*signal),
            NotRun::Agent(_) => exit::AGENT,
        }
    }
}

/// What every step of a claimed run needs.
pub(super) struct Run {
    pub settings: Settings,
    pub session: Arc<Session>,
    pub task: Task,
    pub console: Console,
    pub stop: Stop,
}

/// `clearml-agent execute`; gives the exit code.
pub async fn execute(args: ExecuteArgs, global: GlobalArgs, env: Variables) -> u8 {
    match attempt(&args, &global, env).await {
        Ok(code) => code,
        Err(not_run) => {
            eprintln!("clearml-agent: {not_run}");
            not_run.exit_code()
        }
    }
}

async fn attempt(args: &ExecuteArgs, global: &GlobalArgs, env: Variables) -> Result<u8, NotRun> {
    let agent = |error: std::io::Error| NotRun::Agent(error.to_string());
    let stop = Stop::on_signals().map_err(agent)?;
    process::prepare_host();
    let settings = settings::resolve(args, global, env)?;
    tracing::debug!("configuration:\n{}", settings.config.printable());

    let journal = Journal::open(journal::Options {
        dir: settings.journal.dir.clone(),
        machine: settings.config.machine().to_owned(),
        limit: settings.journal.limit,
        log_file: settings.log_file.clone(),
        terminal: true,
        suppress_carriage_return: settings.suppress_carriage_return,
        setup_to_server: settings.monitoring == Monitoring::Full,
    })?;
    match take(&settings, &stop, &journal.console()).await {
        Ok((session, claimed)) => Ok(carry_out(claimed, settings, session, journal, stop).await),
        Err(not_run) => {
            // What was said so far is shown; there is no server to have it.
            journal.finish(Duration::from_secs(1)).await;
            Err(not_run)
        }
    }
}

/// Logs in and takes the task.
async fn take(
    settings: &Settings,
    stop: &Stop,
    console: &Console,
) -> Result<(Session, Claimed), NotRun> {
    let asking = async {
        let session = Session::login(&settings.endpoint)
            .await
            .map_err(NotRun::Login)?;
        let task = claim::fetch(&session, &settings.task).await?;
        Ok((session, task))
    };
    let patience = async {
        tokio::time::sleep(SILENCE).await;
        console.say(format!(
            "Waiting for the API server {}",
            settings.endpoint.api_server
        ));
        std::future::pending().await
    };
    let (session, task) = tokio::select! {
        asked = asking => asked,
        never = patience => never,
        cause = stop.requested() => Err(interrupted(&cause)),
    }?;
    let worker = &settings.endpoint.worker;
    let claimed = claim::claim(&session, task, settings.mode, worker, console).await?;
    Ok((session, claimed))
}

fn interrupted(cause: &StopCause) -> NotRun {
    match cause {
        StopCause::Signal(signal) => NotRun::Interrupted(*signal),
        StopCause::Server { what } => NotRun::Agent(what.clone()),
    }
}

/// From the claim to the exit code. Whatever happens in between, a final status is written.
async fn carry_out(
    claimed: Claimed,
    settings: Settings,
    session: Session,
    journal: Journal,
    stop: Stop,
) -> u8 {
    let session = Arc::new(session);
    let worker = settings.endpoint.worker.clone();
    let run = Arc::new(Run {
        task: claimed.task().clone(),
        console: journal.console(),
        session: session.clone(),
        stop: stop.clone(),
        settings,
    });
    let id = run.task.id.clone();
    let monitoring = run.settings.monitoring;
    if monitoring != Monitoring::Off {
        journal.connect(Upload {
            session: session.clone(),
            task: id.clone(),
            worker: worker.clone(),
        });
    }
    let monitor = (monitoring != Monitoring::Off).then(|| {
        monitor::start(monitor::Report {
            session: session.clone(),
            worker: worker.clone(),
            task: id.clone(),
            disk_path: run.settings.disk.clone(),
            timing: monitor::Timing::default(),
        })
    });
    let watching = tokio::spawn(watch(session.clone(), id.clone(), stop.clone()));

    // A task of its own: a defect that panics in there still ends here, with a status.
    let (outcome, run_dir) = tokio::spawn(prepare_and_follow(run.clone(), journal.clone()))
        .await
        .unwrap_or_else(|panic| {
            let outcome = Outcome::Failed {
                stage: Stage::Agent,
                cause: format!("a defect of the agent, please report it: {panic}"),
            };
            (outcome, None)
        });
    watching.abort();
    let clean_up = tokio::task::spawn_blocking(move || drop(run_dir));

    if !matches!(outcome, Outcome::Exited { .. } | Outcome::Signalled { .. }) {
        journal.release_setup();
    }
    let verdict = outcome.verdict();
    run.console.say(&verdict.last_line);
    let receipt = journal.finish(run.settings.journal.drain).await;
    if monitoring != Monitoring::Off {
        eprintln!("clearml-agent: {}", receipt.words());
    }
    let message = claim::changed_by(&worker);
    let note = StatusNote {
        reason: &verdict.reason,
        message: &message,
    };
    match tasks::finish(&session, &id, verdict.status, note).await {
        Ok(StatusWrite::Written) => {}
        Ok(StatusWrite::NotFromHere { message }) => eprintln!(
            "clearml-agent: the task's status was left as the server has it, somebody else set it: {message}"
        ),
        Err(error) => eprintln!(
            "clearml-agent: the task's status could not be written ({}): {error}",
            verdict.reason
        ),
    }
    if let Some(monitor) = monitor {
        monitor.stop().await;
        if let Err(error) = workers::unregister(&session, &worker).await {
            tracing::debug!(%error, "unregister");
        }
    }
    if let Err(error) = clean_up.await {
        tracing::debug!(%error, "clean-up");
    }
    verdict.exit_code
}

/// Code and environment, then the script to its end. The folder is given back to be removed beside
/// the last calls.
async fn prepare_and_follow(run: Arc<Run>, journal: Journal) -> (Outcome, Option<RunDir>) {
    let runs_dir = &run.settings.runs_dir;
    let run_dir = match RunDir::create(runs_dir, &run.task.id) {
        Ok(run_dir) => run_dir,
        Err(error) => {
            let outcome = Outcome::Failed {
                stage: Stage::Agent,
                cause: format!(
                    "cannot make a folder in {} (`agent.venvs_dir`): {error}",
                    runs_dir.display()
                ),
            };
            return (outcome, None);
        }
    };
    let outcome = match prepare::prepare(&run, &run_dir).await {
        Ok(prepared) => follow(&run, &journal, prepared).await,
        Err(outcome) => outcome,
    };
    (outcome, Some(run_dir))
}

/// Starts the script and follows it to its end.
async fn follow(run: &Run, journal: &Journal, prepared: Prepared) -> Outcome {
    let Prepared {
        command,
        handover,
        write_back,
    } = prepared;
    run.console.say(handover);
    journal.job_started();
    if let Some(cause) = run.stop.cause() {
        return Outcome::Stopped(cause);
    }
    let (mut job, output) = match process::spawn(command) {
        Ok(started) => started,
        Err(error) => {
            return Outcome::Failed {
                stage: Stage::Launch,
                cause: error.to_string(),
            };
        }
    };
    let runs_dir = run.settings.runs_dir.clone();
    tokio::task::spawn_blocking(move || run_dir::remove_leftovers(&runs_dir));
    let leftovers = tokio::spawn(send_leftovers(
        run.session.clone(),
        run.settings.leftovers(),
    ));
    // Beside the script: it does not wait for these calls, the status does.
    let written = tokio::spawn(write_back.send(run.session.clone(), run.task.id.clone()));

    let ending = async {
        tokio::select! {
            ended = job.wait() => (ended, None),
            cause = run.stop.requested() => (job.stop(15, GRACE).await, Some(cause)),
        }
    };
    let (read, (ended, stopped)) = tokio::join!(journal.read_from(output), ending);
    if let Err(error) = read {
        run.console.say(format!(
            "Note: the script's output could not be read to its end: {error}"
        ));
    }
    // What is not sent by now, the next run sends.
    leftovers.abort();
    match written.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => run.console.say(format!(
            "Note: packages and commit could not be recorded in the task: {error}"
        )),
        Err(error) => tracing::debug!(%error, "write-back"),
    }
    match (stopped, ended) {
        (Some(cause), _) => Outcome::Stopped(cause),
        (None, Ended::Exited { code }) => Outcome::Exited { code },
        (None, Ended::Signalled { signal }) => Outcome::Signalled { signal },
    }
}

/// Sends what earlier runs on this machine left in the journals' folder.
async fn send_leftovers(session: Arc<Session>, of: Option<(PathBuf, String)>) {
    let Some((dir, machine)) = of else {
        return;
    };
    let whose = sync::Whose::Machine(&machine);
    let told = sync::send_left(&dir, whose, &session, |sent| match sent.what {
        sync::What::Done { task, receipt } => eprintln!(
            "clearml-agent: sent what an earlier run of task {task} had left: {}",
            receipt.words()
        ),
        what => tracing::debug!(path = %sent.path.display(), ?what, "a journal of an earlier run"),
    });
    if let Err(error) = told.await {
        tracing::debug!(%error, "journals of earlier runs");
    }
}
