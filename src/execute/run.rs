//! The story of one run, top to bottom: settings, log, login, claim, code and environment, script,
//! status, exit code.

use std::sync::Arc;
use std::time::Duration;

use super::batch;
use super::claim::{self, Claimed, Mode, Ready, Refused, Taking};
use super::container_plan;
use super::end::{End, write_status};
use super::follow::follow;
use super::health;
use super::job_env::{Attempt, Variables};
use super::node;
use super::not_run::NotRun;
use super::outcome::{Outcome, Stage, StopCause, Verdict};
use super::prepare;
use super::result::{Log, Reason, ResultFile, RunResult, Script, Versions};
use super::run_dir::RunDir;
use super::settings::{self, Monitoring, Settings};
use super::stop::Stop;
use super::timeline::{Phase, Timeline};
use super::watch::{OfTheRun, watch};
use super::{in_container, inside};
use crate::api::tasks::{self, FinalStatus};
use crate::api::{self, Session, workers};
use crate::cli::{ExecuteArgs, GlobalArgs, IfDone};
use crate::console::Console;
use crate::journal::{self, Journal, Receipt, Upload};
use crate::mask::{Mask, Secrets};
use crate::monitor;
use crate::process::guard::Guard;
use crate::process::{self, Usage};
use crate::task::Task;

/// A server that takes longer is worth a word.
pub(super) const SILENCE: Duration = Duration::from_secs(2);

/// What the worker's leaving may take.
const LEAVING: Duration = Duration::from_secs(5);

/// What every step of a claimed run needs.
pub(super) struct Run {
    pub settings: Settings,
    pub session: Arc<Session>,
    pub task: Task,
    pub console: Console,
    pub journal: Journal,
    pub stop: Stop,
    pub timeline: Arc<Timeline>,
    /// The job, for the monitor.
    pub script: monitor::Script,
    /// Counted from 1.
    pub attempt: u32,
    /// How the attempt before ended.
    pub former_end: Option<String>,
}

impl Run {
    /// What the script is told of earlier attempts.
    pub fn attempt(&self) -> Attempt<'_> {
        Attempt {
            number: self.attempt,
            former_end: self.former_end.as_deref(),
            last_iteration: self.task.last_iteration,
        }
    }
}

/// How a claimed run ended, and what was told of it.
pub(super) struct Ending {
    pub task: String,
    pub attempt: u32,
    pub worker: String,
    pub outcome: Outcome,
    pub verdict: Verdict,
    /// `None` where the status is another rank's to write.
    pub status: Option<FinalStatus>,
    pub receipt: Receipt,
    pub usage: Option<Usage>,
    pub versions: Versions,
}

/// What a run came to, before it is told.
pub(super) struct Ran {
    pub outcome: Outcome,
    /// To be removed.
    pub run_dir: Option<RunDir>,
    pub usage: Option<Usage>,
    pub versions: Versions,
}

impl From<Outcome> for Ran {
    /// With what the agent in the container says of it; else nothing ran.
    fn from(outcome: Outcome) -> Self {
        let mut versions = Versions::default();
        let mut usage = None;
        if let Outcome::Inside(report) = &outcome {
            usage = report.usage;
            versions.python = report.versions.python.clone();
            versions.commit = report.versions.commit.clone();
        }
        Self {
            outcome,
            run_dir: None,
            usage,
            versions,
        }
    }
}

/// `clearml-agent execute`; gives the exit code.
pub async fn execute(args: ExecuteArgs, global: GlobalArgs, env: Variables, mask: &Mask) -> u8 {
    let timeline = Arc::new(Timeline::started());
    let result_file = match args.result.as_deref().map(ResultFile::at).transpose() {
        Ok(file) => file,
        Err(cause) => {
            let path = args.result.unwrap_or_default().display().to_string();
            let not_run = NotRun::ResultFile { path, cause };
            eprintln!("clearml-agent: {not_run}");
            return not_run.exit_code();
        }
    };
    let ended = match &args.inside {
        None => attempt(&args, &global, env, mask, timeline.clone()).await,
        Some(folder) => inside::attempt(&args, &global, env, mask, timeline.clone(), folder).await,
    };
    timeline.mark(Phase::Finished);
    let exit_code = match &ended {
        Ok(ending) => ending.verdict.exit_code,
        Err(NotRun::Refused(Refused::Ended { id, status })) if args.if_done == IfDone::Ok => {
            eprintln!(
                "clearml-agent: task {id} has ended already (its status is {status}): nothing to do"
            );
            0
        }
        Err(not_run) => {
            eprintln!("clearml-agent: {}", mask.mask(&not_run.to_string()));
            not_run.exit_code()
        }
    };
    if let Some(file) = result_file
        && let Err(error) = file.write(&result(&args, &ended, exit_code, &timeline, mask))
    {
        let path = file.path().display();
        eprintln!("clearml-agent: the result file {path} is not written: {error}");
    }
    exit_code
}

fn result<'a>(
    args: &ExecuteArgs,
    ended: &Result<Ending, NotRun>,
    exit_code: u8,
    times: &'a Timeline,
    mask: &Mask,
) -> RunResult<'a> {
    let (task, worker, status, reason, message, script, log, usage, versions) = match ended {
        Ok(ending) => (
            ending.task.clone(),
            Some(ending.worker.clone()),
            ending.status,
            Reason::from(&ending.outcome),
            ending.verdict.reason.clone(),
            Script::from(&ending.outcome),
            Some(Log::from(&ending.receipt)),
            ending.usage,
            ending.versions.clone(),
        ),
        Err(not_run) => (
            args.id.clone().unwrap_or_default(),
            None,
            None,
            not_run.reason(),
            mask.mask(&not_run.to_string()),
            Script::default(),
            None,
            None,
            Versions::default(),
        ),
    };
    RunResult {
        task,
        attempt: ended.as_ref().ok().map(|ending| ending.attempt),
        worker,
        status,
        reason,
        message,
        exit_code,
        script,
        times,
        usage,
        log,
        versions,
    }
}

async fn attempt(
    args: &ExecuteArgs,
    global: &GlobalArgs,
    env: Variables,
    mask: &Mask,
    timeline: Arc<Timeline>,
) -> Result<Ending, NotRun> {
    let agent = |error: std::io::Error| NotRun::Agent(error.to_string());
    let stop = Stop::on_signals().map_err(agent)?;
    process::prepare_host();
    let settings = settings::resolve(args, global, env, mask)?;
    if let Some(after) = settings.stop.timeout {
        let stop = stop.clone();
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            stop.request(StopCause::Timeout {
                after: after.as_secs(),
            });
        });
    }
    tracing::debug!("configuration:\n{}", settings.config.printable());

    let journal = Journal::open(journal::Options {
        dir: settings.journal.dir.clone(),
        machine: settings.config.machine().to_owned(),
        limit: settings.journal.limit,
        log_file: settings.log_file.clone(),
        terminal: true,
        suppress_carriage_return: settings.suppress_carriage_return,
        setup_to_server: settings.monitoring == Monitoring::Full,
        mask: mask.clone(),
    })?;
    let console = journal.console();
    let too_short = mask.too_short();
    if !too_short.is_empty() {
        console.say(format!(
            "Note: too short or too common to be hidden in the log: {}",
            too_short.join(", ")
        ));
    }
    let fit = health::check(&settings.monitor, &stop, &console).await;
    let fit = match (fit, &settings.container) {
        (Ok(()), Some(container)) => tokio::select! {
            checked = container_plan::check(container, &settings.job.inherited) => checked,
            cause = stop.requested() => Err(interrupted(&cause)),
        },
        (fit, _) => fit,
    };
    let taken = match fit {
        Ok(()) => take(&settings, &stop, &console).await,
        Err(unfit) => Err(unfit),
    };
    match taken {
        Ok((session, claimed)) => {
            Ok(carry_out(claimed, settings, session, journal, stop, timeline).await)
        }
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
    let claimed = claim::claim(&session, task, &taking, console).await?;
    Ok((session, claimed))
}

/// How long the other ranks wait for the first to take the task, at least.
const FIRST_RANK_LIMIT: Duration = Duration::from_secs(300);

/// The task, as soon as it can be taken.
async fn when_ready(
    session: &Session,
    settings: &Settings,
    taking: &Taking<'_>,
    console: &Console,
) -> Result<Task, Refused> {
    let (patience, shortest) = match taking.mode {
        Mode::AfterFirst => (settings.wait.max(FIRST_RANK_LIMIT), 0.5),
        _ => (settings.wait, 2.0),
    };
    let begin = tokio::time::Instant::now();
    // Many wait for the same server: they are not to ask in step, and ever more seldom.
    let mut pause = Duration::from_secs_f64(shortest);
    let mut told = false;
    let runs_here =
        |claim: &str| journal::runs(&settings.journal.dir, settings.config.machine(), claim);
    loop {
        let task = claim::fetch(session, &settings.task).await?;
        let why = match claim::ready(&task, taking, runs_here) {
            Ready::Now => return Ok(task),
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

/// From the claim to the exit code. Whatever happens in between, a final status is written.
async fn carry_out(
    claimed: Claimed,
    settings: Settings,
    session: Session,
    journal: Journal,
    stop: Stop,
    timeline: Arc<Timeline>,
) -> Ending {
    timeline.mark(Phase::Claimed);
    let session = Arc::new(session);
    settings.mask.extend(|secrets| {
        secrets_of(claimed.task(), settings.job.task_env, secrets);
    });
    let worker = settings.endpoint.worker.clone();
    let run = Arc::new(Run {
        task: claimed.task().clone(),
        console: journal.console(),
        journal: journal.clone(),
        session: session.clone(),
        stop: stop.clone(),
        timeline,
        script: monitor::Script::default(),
        attempt: claimed.attempt,
        former_end: claimed.former_end.clone(),
        settings,
    });
    let id = run.task.id.clone();
    let monitoring = run.settings.monitoring;
    // A container ends by itself when nobody watches over it.
    let guard = match run.settings.container {
        Some(_) => None,
        None => Guard::start(&run.settings.run)
            .inspect_err(|error| tracing::debug!(%error, "no guard"))
            .ok(),
    };
    let rank = run.settings.rank;
    let claiming = if rank == 0 {
        journal.answer_for(&journal::Held {
            server: session.host(),
            task: &id,
            worker: &worker,
            claim: &run.settings.run,
            comes_back: run.settings.claimant.is_some(),
            former_worker: run.task.last_worker.as_deref(),
        });
        // Beside all else: until the server has it, a killed agent's task has to wait for its user.
        Some(tokio::spawn(record_claim(run.clone())))
    } else {
        run.console.say(format!(
            "Rank {rank} of several (RANK, SLURM_PROCID): the task's status and packages are rank 0's to write"
        ));
        None
    };
    if monitoring != Monitoring::Off {
        journal.connect(Upload {
            session: session.clone(),
            task: id.clone(),
            worker: worker.clone(),
            mark: node::log_mark(&run.settings.job.inherited, rank),
        });
    }
    let monitor = (monitoring != Monitoring::Off).then(|| monitor::start(run.report()));
    let of_the_run = OfTheRun {
        claim: (rank == 0).then(|| run.settings.run.clone()),
        is_recorded: run.settings.claimant.is_some(),
        is_one_of_several: batch::is_one_of_several(&run),
    };
    let watching = tokio::spawn(watch(session.clone(), id.clone(), of_the_run, stop.clone()));

    // A task of its own: a defect that panics in there still ends here, with a status.
    let ran = tokio::spawn(prepare_and_follow(run.clone()))
        .await
        .unwrap_or_else(defect);
    let Ran {
        outcome,
        run_dir,
        usage,
        versions,
    } = ran;
    watching.abort();
    // Nothing of the run is left.
    drop(guard);
    let clean_up = tokio::task::spawn_blocking(move || drop(run_dir));
    // As early as it is known: a batch system may not leave much time.
    let told = outcome.verdict(&run.settings.mask);
    if rank == 0 {
        journal.will_end(&told.ending());
    }
    let outcome = batch::of_the_job(&run, outcome).await;

    if !outcome.is_of_script() {
        journal.release_setup();
    }
    let mut verdict = outcome.verdict(&run.settings.mask);
    if hides_exit_code(&run.settings, &outcome) {
        verdict.exit_code = 0;
    }
    run.script.ended();
    if let Some(last_line) = &verdict.last_line {
        run.console
            .say(format!("{}{}", last_line.as_str(), node::suffix(rank)));
    }
    let kept = batch::is_kept(&outcome);
    let status = (rank == 0 && !kept).then_some(verdict.status);
    if kept {
        journal.status_is_told();
    }
    if status.is_some() {
        journal.will_end(&verdict.ending());
    }
    let end = End::of(&run);
    let receipt = tokio::select! {
        biased;
        receipt = journal.clone().finish_unless(run.settings.journal.drain, end.hurried(&stop)) => receipt,
        never = end.tell() => match never {},
    };
    run.timeline.mark(Phase::LogSent);
    if monitoring != Monitoring::Off {
        eprintln!("clearml-agent: {}", receipt.words());
    }
    let mut is_told = true;
    if let Some(status) = status {
        is_told = write_status(&run, status, &verdict, &end, &stop).await;
    }
    if is_told {
        batch::hand_on(&run, &outcome, &verdict).await;
    }
    if let Some(claiming) = claiming {
        claiming.abort();
    }
    if let Some(monitor) = monitor {
        let leaving = async {
            monitor.stop().await;
            if let Err(error) = workers::unregister(&session, &worker).await {
                tracing::debug!(%error, "unregister");
            }
        };
        // The server forgets a silent worker by itself.
        let patience = if is_told { LEAVING } else { Duration::ZERO };
        if tokio::time::timeout(patience, leaving).await.is_err() {
            tracing::debug!("the worker is not unregistered");
        }
    }
    if let Err(error) = clean_up.await {
        tracing::debug!(%error, "clean-up");
    }
    Ending {
        task: id,
        attempt: run.attempt,
        worker,
        outcome,
        verdict,
        status: status.filter(|_| is_told),
        receipt,
        usage,
        versions,
    }
}

pub(super) fn defect(panic: tokio::task::JoinError) -> Ran {
    Ran::from(Outcome::Failed {
        stage: Stage::Agent,
        cause: format!("a defect of the agent, please report it: {panic}"),
    })
}

/// Says in the task's runtime by which claim it runs, and, where the run is supervised, on which
/// machine, as the Python agent does then.
async fn record_claim(run: Arc<Run>) {
    let attempt = run.attempt.to_string();
    let mut more = Vec::new();
    if run.settings.claimant.is_none() {
        more.push((tasks::CLAIM, run.settings.run.as_str()));
        more.push((claim::ATTEMPT, &attempt));
        more.extend(
            run.task
                .runtime
                .contains_key(claim::FAILED_RANK)
                .then_some((claim::FAILED_RANK, "")),
        );
        more.extend(run.former_end.is_some().then_some((claim::PREEMPTED, "")));
    }
    if run.settings.monitoring == Monitoring::Full {
        more.push(("_exec_agent_hostname", run.settings.config.machine()));
    }
    if let Err(error) = tasks::add_to_runtime(&run.session, &run.task.id, &more).await {
        tracing::debug!(%error, "the claim is not recorded");
    }
}

/// What the task itself holds of secrets: passwords in its addresses, and variables that it sets.
pub(super) fn secrets_of(task: &Task, task_env: bool, secrets: &mut Secrets) {
    if let Some(script) = &task.script {
        secrets.add_urls("the task's repository", &script.repository);
        for kind in ["pip", "org_pip", "conda"] {
            if let Some(list) = script.requirements.text(kind) {
                secrets.add_urls("the task's packages", &list);
            }
        }
    }
    if let Some(section) = task.hyperparams.get("Environment").filter(|_| task_env) {
        let variables = section.iter().map(|(name, p)| (name, &p.value));
        secrets.add_environment(variables, &[], &|path| std::path::Path::new(path).exists());
    }
}

/// `CLEARML_AGENT_PROPAGATE_EXITCODE=0`: with full monitoring, the Python agent's exit code says that it
/// has done its work, not how the script ended.
fn hides_exit_code(settings: &Settings, outcome: &Outcome) -> bool {
    !settings.propagate_exit_code
        && (settings.monitoring == Monitoring::Full || settings.container.is_some())
        && outcome.is_of_script()
}

/// Code and environment, then the script to its end. The folder is given back to be removed beside
/// the last calls.
pub(super) async fn prepare_and_follow(run: Arc<Run>) -> Ran {
    if let Some(settings) = &run.settings.container {
        return in_container::run(&run, settings).await.into();
    }
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
            return outcome.into();
        }
    };
    let ran = match prepare::prepare(&run, &run_dir).await {
        Ok(prepared) => {
            let versions = prepared.versions.clone();
            let (outcome, usage) = follow(&run, prepared).await;
            Ran {
                usage,
                versions,
                ..Ran::from(outcome)
            }
        }
        Err(outcome) => outcome.into(),
    };
    Ran {
        run_dir: Some(run_dir),
        ..ran
    }
}
