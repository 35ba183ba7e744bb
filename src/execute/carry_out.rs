//! A run of a task that is taken, to its very end.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::batch;
use super::claim::Claimed;
use super::end::{End, Told, write_status};
use super::follow::follow;
use super::in_apptainer;
use super::in_container;
use super::node;
use super::outcome::{Outcome, Stage, StopCause, Verdict};
use super::prepare;
use super::result::Versions;
use super::run::Run;
use super::run_dir::RunDir;
use super::runtime::{CLAIM, Runtime, said};
use super::scheduler;
use super::settings::{Monitoring, Settings};
use super::stop::Stop;
use super::timeline::{Phase, Timeline};
use super::watch::{OfTheRun, watch};
use crate::api::tasks::FinalStatus;
use crate::api::{ApiError, Session, workers};
use crate::container::settings::ContainerRuntime;
use crate::journal::{self, Journal, Receipt, Upload};
use crate::mask::Secrets;
use crate::monitor;
use crate::outlet;
use crate::process::Usage;
use crate::process::guard::Guard;
use crate::task::Task;

/// What the worker's leaving may take.
const LEAVING: Duration = Duration::from_secs(5);

/// How long a status that is in a hurry waits for the task's last figures.
const FIGURES: Duration = Duration::from_millis(500);

/// Between two rounds of tries to record the claim.
const AGAIN: Duration = Duration::from_secs(2);

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

/// From the claim to the exit code. Whatever happens in between, a final status is written.
pub(super) async fn carry_out(
    claimed: Claimed,
    settings: Settings,
    session: Arc<Session>,
    journal: Journal,
    stop: Stop,
    timeline: Arc<Timeline>,
) -> Ending {
    timeline.mark(Phase::Claimed);
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
        runtime: Runtime::of(session.clone(), &claimed.task().id),
        several: batch::one_of_several(&settings),
        settings,
    });
    let id = run.task.id.clone();
    let monitoring = run.settings.monitoring;
    // An engine's container ends by itself when nobody watches over it.
    let container = run.settings.container.as_ref();
    let guard = match container.map(|container| container.runtime) {
        Some(ContainerRuntime::Docker) => None,
        None | Some(ContainerRuntime::Apptainer) => Guard::start(&run.settings.run)
            .inspect_err(|error| tracing::debug!(%error, "no guard"))
            .ok(),
    };
    let rank = run.settings.rank;
    let mut claiming = if rank == 0 {
        journal.answer_for(&journal::Held {
            server: session.host(),
            task: &id,
            worker: &worker,
            claim: &run.settings.run,
            comes_back: run.settings.claimant.is_some(),
            former_worker: run.task.last_worker.as_deref(),
        });
        // Beside all else: until the server has it, a killed agent's task has to wait for its user.
        Some(tokio::spawn(record_claim(
            run.clone(),
            claimed.former_claim.clone(),
        )))
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
    let of_the_run = match rank {
        0 => OfTheRun::Holder {
            record: run.record(),
            is_recorded: run.settings.claimant.is_some(),
            former_claim: claimed.former_claim.clone(),
            is_one_of_several: run.several.is_some(),
        },
        _ => OfTheRun::Rank {
            claimant: run.several.clone(),
        },
    };
    let script_ended = CancellationToken::new();
    let watching = tokio::spawn(watch(
        session.clone(),
        id.clone(),
        of_the_run,
        run.runtime.clone(),
        stop.clone(),
        script_ended.clone(),
    ));

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
    script_ended.cancel();
    // Nothing of the run is left.
    drop(guard);
    let clean_up = tokio::task::spawn_blocking(move || drop(run_dir));
    // As early as it is known: a batch system may not leave much time.
    let told = outcome.verdict(&run.settings.mask);
    if rank == 0 && !batch::may_be_kept(&run, &outcome) {
        journal.will_end(&told.ending());
    }
    let outcome = batch::of_the_job(&run, outcome).await;
    let is_recorded = run.settings.claimant.is_some()
        || match &mut claiming {
            Some(claiming) if claiming.is_finished() => claiming.await.unwrap_or(false),
            _ => false,
        };

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
    let log = async {
        let receipt = tokio::select! {
            biased;
            receipt = journal.clone().finish_unless(run.settings.journal.drain, end.hurried(&stop)) => receipt,
            never = end.tell() => match never {},
        };
        run.timeline.mark(Phase::LogSent);
        if monitoring != Monitoring::Off {
            outlet::complain(receipt.words());
        }
        receipt
    };
    let telling = async {
        let told = match status {
            Some(status) => write_status(&run, status, &verdict, &end, &stop, is_recorded).await,
            None => Told::Written,
        };
        match told {
            Told::Written => batch::hand_on(&run, &outcome, &verdict, true).await,
            Told::LeftAsItIs(_) => batch::hand_on(&run, &outcome, &verdict, false).await,
            Told::TakenOver | Told::Unheard => {}
        }
        told
    };
    let figures = async {
        if let Some(monitor) = &monitor {
            monitor.told().await;
        }
    };
    let (receipt, told) = match stop.cause() {
        // Whoever sends a signal may send SIGKILL next: the log has its journal, the status has not.
        Some(StopCause::Signal(_)) => tokio::join!(log, async {
            let _ = tokio::time::timeout(FIGURES, figures).await;
            telling.await
        }),
        _ => {
            let (receipt, ()) = tokio::join!(log, figures);
            (receipt, telling.await)
        }
    };
    let is_told = told != Told::Unheard;
    let outcome = match told {
        Told::TakenOver => {
            let outcome = Outcome::Stopped(StopCause::TakenOver);
            verdict = outcome.verdict(&run.settings.mask);
            outcome
        }
        Told::Written | Told::LeftAsItIs(_) | Told::Unheard => outcome,
    };
    watching.abort();
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
        status: match told {
            Told::Written => status,
            Told::LeftAsItIs(said) => Some(said),
            Told::TakenOver | Told::Unheard => None,
        },
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

/// Says in the task's runtime by which claim it runs, in which pod, and, where the run is supervised, on
/// which machine, as the Python agent does then; as soon as the server takes it. Gives whether the server has it.
async fn record_claim(run: Arc<Run>, former_claim: Option<String>) -> bool {
    let mut more = scheduler::pod_fields(&run.settings.job.inherited);
    if run.settings.monitoring == Monitoring::Full {
        let machine = run.settings.config.machine().to_owned();
        more.push(("_exec_agent_hostname", machine));
    }
    let is_recorded = run.settings.claimant.is_some();
    loop {
        let written = run.runtime.change(|all| {
            let now = said(all, CLAIM).filter(|now| *now != run.settings.run);
            if now.is_some() && now != former_claim.as_deref() {
                // Another's by now, if this comes late.
                return false;
            }
            if !is_recorded {
                run.record().begin(all);
            }
            for (key, value) in &more {
                all.insert((*key).to_owned(), value.as_str().into());
            }
            !is_recorded || !more.is_empty()
        });
        match written.await {
            Ok(written) => return written,
            Err(error) => {
                tracing::debug!(%error, "the claim is not recorded");
                if !matches!(error, ApiError::Unreachable { .. }) {
                    return false;
                }
            }
        }
        tokio::time::sleep(AGAIN).await;
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
        return match settings.runtime {
            ContainerRuntime::Docker => in_container::run(&run, settings).await.into(),
            ContainerRuntime::Apptainer => in_apptainer::run(&run, settings).await,
        };
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
