//! The story of one run, top to bottom: settings, log, the task taken and carried out, exit code.

use std::sync::Arc;
use std::time::Duration;

use super::carry_out::{Ending, carry_out};
use super::claim::Refused;
use super::container_plan;
use super::health;
use super::inside;
use super::job_env::{Attempt, Variables};
use super::not_run::NotRun;
use super::outcome::StopCause;
use super::result::{Log, Reason, ResultFile, RunResult, Script, Versions};
use super::runtime::{Record, Runtime};
use super::scheduler::Claimant;
use super::settings::{self, Monitoring, Settings};
use super::stop::Stop;
use super::take::{interrupted, take};
use super::timeline::{Phase, Timeline};
use crate::api::Session;
use crate::cli::{ExecuteArgs, GlobalArgs, IfDone};
use crate::console::Console;
use crate::journal::{self, Journal};
use crate::mask::Mask;
use crate::monitor;
use crate::outlet;
use crate::process;
use crate::task::Task;

/// A server that takes longer is worth a word.
pub(super) const SILENCE: Duration = Duration::from_secs(2);

/// A terminal that takes nothing for so long is not waited for.
const STUCK_AFTER: Duration = Duration::from_secs(3);

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
    pub runtime: Arc<Runtime>,
    /// One of several ranks, which know each other by the claimant.
    pub several: Option<Claimant>,
}

impl Run {
    /// What stands in the task's runtime of this run, where it holds the task.
    pub fn record(&self) -> Record {
        Record {
            claim: self.settings.run.clone(),
            claimant: self.settings.claimant.clone(),
            attempt: self.attempt,
        }
    }

    /// What the script is told of earlier attempts.
    pub fn attempt(&self) -> Attempt<'_> {
        Attempt {
            number: self.attempt,
            former_end: self.former_end.as_deref(),
            last_iteration: self.task.last_iteration,
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
            outlet::complain(format_args!("{not_run}"));
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
            outlet::complain(format_args!(
                "task {id} has ended already (its status is {status}): nothing to do"
            ));
            0
        }
        Err(not_run) => {
            outlet::complain(format_args!("{}", mask.mask(&not_run.to_string())));
            not_run.exit_code()
        }
    };
    if let Some(file) = result_file
        && let Err(error) = file.write(&result(&args, &ended, exit_code, &timeline, mask))
    {
        let path = file.path().display();
        outlet::complain(format_args!(
            "the result file {path} is not written: {error}"
        ));
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
            let ended = carry_out(
                claimed,
                settings,
                session,
                journal.clone(),
                stop.clone(),
                timeline,
            );
            let ending = ended.await;
            // All is told by now; this is for whoever looks on.
            tokio::select! {
                () = journal.shown(STUCK_AFTER) => {}
                () = stop.hurried() => {}
            }
            Ok(ending)
        }
        Err(not_run) => {
            // What was said so far is shown; there is no server to have it.
            journal.clone().finish(Duration::from_secs(1)).await;
            journal.shown(STUCK_AFTER).await;
            Err(not_run)
        }
    }
}
