//! The agent inside a container. The one on the host has taken the task, keeps its log and its status,
//! and gives the orders to stop; this one runs the set-up scripts and then the task, as it would be run
//! on the host, and writes down how that ended.

use std::future::ready;
use std::io::{self, BufRead as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::carry_out::{self, Ending, Ran};
use super::claim;
use super::job_env::Variables;
use super::not_run::NotRun;
use super::outcome::{Outcome, Stage, StopCause};
use super::run::Run;
use super::runtime::Runtime;
use super::settings::{self, Grace, Settings};
use super::stop::Stop;
use super::take;
use super::timeline::Timeline;
use crate::api::Session;
use crate::cli::{ExecuteArgs, GlobalArgs};
use crate::container::apptainer::limits;
use crate::container::handover::{self, Handover};
use crate::journal::{self, Journal};
use crate::mask::Mask;
use crate::monitor;
use crate::process::{self, Ended, guard, signal};

/// Where the set-up scripts leave the variables that they set.
const ENVIRONMENT: &str = "private/environment";
const SCRIPT: &str = "private/setup.sh";

/// The inner agent's arguments. Everybody can see them.
pub(super) fn words(run: &Run, grace: Duration) -> Vec<String> {
    let settings = &run.settings;
    let mut words: Vec<String> = [
        "--config-file",
        handover::CONFIG,
        "execute",
        "--id",
        &run.task.id,
        "--disable-monitoring",
        "--inside",
        handover::FOLDER,
        "--result",
        handover::RESULT,
        "--log-level",
        settings.job.log_level.name(),
        "--grace",
        &grace.as_secs().to_string(),
    ]
    .map(str::to_owned)
    .into();
    words.extend((0..settings.job.optimize).map(|_| "-O".to_owned()));
    words
}

/// The whole run of the inner agent.
pub(super) async fn attempt(
    args: &ExecuteArgs,
    global: &GlobalArgs,
    mut env: Variables,
    mask: &Mask,
    timeline: Arc<Timeline>,
    folder: &Path,
) -> Result<Ending, NotRun> {
    let agent = |error: io::Error| NotRun::Agent(error.to_string());
    process::prepare_host();
    let letter = Handover::take(folder).map_err(|error| {
        NotRun::Agent(format!(
            "nothing was handed over in {}: {error}. --inside is for the agent that runs in a container",
            folder.display()
        ))
    })?;
    let stop = match letter.orders_alone {
        true => Stop::without_signals(),
        false => Stop::on_signals(),
    };
    let stop = stop.map_err(agent)?;
    limits::apply(&letter.limits).map_err(NotRun::Agent)?;
    listen(&stop).map_err(agent)?;
    env.retain(|name, _| !letter.unset.contains(name));
    env.extend(letter.variables.clone());
    let mut settings = settings_of(args, global, &env, mask)?;
    let journal = Journal::open(journal::Options {
        dir: settings.journal.dir.clone(),
        machine: settings.config.machine().to_owned(),
        limit: settings.journal.limit,
        log_file: None,
        terminal: true,
        suppress_carriage_return: settings.suppress_carriage_return,
        setup_to_server: false,
        mask: mask.clone(),
    })?;
    let set_up = set_up(
        &letter.setup_script,
        &env,
        folder,
        &journal,
        &stop,
        &settings,
    )
    .await;
    let ended = match set_up {
        Ok(changed) => {
            if let Some(changed) = changed {
                settings = settings_of(args, global, &changed, mask)?;
            }
            settings.rank = letter.rank;
            settings.python.standalone = letter.standalone.clone();
            run_task(settings, &letter, &journal, stop, timeline).await
        }
        Err(outcome) => {
            let (id, worker) = (settings.task, settings.endpoint.worker);
            Ok((id, worker, Ran::from(outcome)))
        }
    };
    let receipt = async |journal: Journal| {
        const PATIENCE: Duration = Duration::from_secs(60);
        let receipt = journal.clone().finish(PATIENCE).await;
        journal.shown(PATIENCE).await;
        receipt
    };
    let (task, worker, ran) = match ended {
        Ok(ended) => ended,
        Err(not_run) => {
            receipt(journal).await;
            return Err(not_run);
        }
    };
    let Ran {
        outcome,
        run_dir,
        usage,
        versions,
    } = ran;
    let verdict = outcome.verdict(mask);
    // Of a stop the one on the host speaks.
    if let Some(line) = &verdict.last_line
        && !matches!(outcome, Outcome::Stopped(_))
    {
        journal.console().say(line.as_str());
    }
    let receipt = receipt(journal).await;
    // The container goes with all that is in it; a mounted folder stays.
    let _ = tokio::task::spawn_blocking(move || drop(run_dir)).await;
    Ok(Ending {
        status: Some(verdict.status),
        attempt: letter.attempt,
        task,
        worker,
        outcome,
        verdict,
        receipt,
        usage,
        versions,
    })
}

/// The mark of the run outside stays, where it has one: by it whoever outlives a killed agent is found.
fn settings_of(
    args: &ExecuteArgs,
    global: &GlobalArgs,
    env: &Variables,
    mask: &Mask,
) -> Result<Settings, NotRun> {
    let mut settings = settings::resolve(args, global, env.clone(), mask)?;
    if let Some(mark) = env.get(guard::MARK) {
        settings
            .job
            .inherited
            .insert(guard::MARK.into(), mark.clone());
    }
    Ok(settings)
}

/// What the agent outside says, a line each.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Order {
    Stop {
        cause: StopCause,
        /// How long the script has to end: only outside there is a batch system that can be asked.
        grace: Duration,
    },
    /// A signal for the script.
    Notice { notice: i32 },
}

/// Takes orders from standard input. Its end means that the agent on the host is gone: nobody is left
/// to watch over the task, so it stops.
fn listen(stop: &Stop) -> io::Result<()> {
    let stop = stop.clone();
    let listen = move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            match serde_json::from_str(&line) {
                Ok(Order::Stop { cause, grace }) => stop.ask_within(cause, grace),
                Ok(Order::Notice { notice }) => stop.notify(notice),
                Err(error) => tracing::debug!(%error, "an order that is not understood"),
            }
        }
        stop.ask(StopCause::Signal(signal::HUP));
    };
    std::thread::Builder::new()
        .name("orders".into())
        .spawn(listen)
        .map(drop)
}

async fn run_task(
    settings: Settings,
    letter: &Handover,
    journal: &Journal,
    stop: Stop,
    timeline: Arc<Timeline>,
) -> Result<(String, String, Ran), NotRun> {
    let asking = async {
        let session = Session::login(&settings.endpoint)
            .await
            .map_err(NotRun::Login)?;
        let task = claim::fetch(&session, &settings.task).await?;
        Ok((session, task))
    };
    let (session, task) = tokio::select! {
        asked = asking => asked,
        cause = stop.requested() => Err(take::interrupted(&cause)),
    }?;
    settings.mask.extend(|secrets| {
        carry_out::secrets_of(&task, settings.job.task_env, secrets);
    });
    let (id, worker) = (task.id.clone(), settings.endpoint.worker.clone());
    let session = Arc::new(session);
    let run = Arc::new(Run {
        console: journal.console(),
        journal: journal.clone(),
        runtime: Runtime::of(session.clone(), &task.id),
        several: letter.several.clone(),
        session,
        settings,
        task,
        stop,
        timeline,
        script: monitor::Script::default(),
        attempt: letter.attempt,
        former_end: letter.former_end.clone(),
    });
    let ran = tokio::spawn(carry_out::prepare_and_follow(run))
        .await
        .unwrap_or_else(carry_out::defect);
    Ok((id, worker, ran))
}

/// Runs the set-up scripts in the image's shell; what they export is the task's environment from then on.
/// As with the Python agent, a line that fails does not keep the next ones from running; a script that
/// ends the shell ends the run.
async fn set_up(
    script: &str,
    env: &Variables,
    folder: &Path,
    journal: &Journal,
    stop: &Stop,
    settings: &Settings,
) -> Result<Option<Variables>, Outcome> {
    if script.trim().is_empty() {
        return Ok(None);
    }
    let failed = |cause: String| Outcome::Failed {
        stage: Stage::Environment,
        cause,
    };
    let (file, left) = (folder.join(SCRIPT), folder.join(ENVIRONMENT));
    let text = format!(
        "{script}\ncat /proc/self/environ >'{}'\n",
        left.to_string_lossy()
    );
    std::fs::write(&file, text)
        .map_err(|error| failed(format!("cannot write {}: {error}", file.display())))?;
    let shell = ["/bin/bash", "/usr/bin/bash"]
        .into_iter()
        .find(|shell| Path::new(shell).exists())
        .unwrap_or("/bin/sh");
    journal
        .console()
        .say("Running the container's set-up script");
    let command = process::Command {
        program: shell.into(),
        args: vec![file.to_string_lossy().into_owned()],
        working_dir: std::env::current_dir().unwrap_or_else(|_| "/".into()),
        env: env.clone(),
    };
    let (mut job, output) = process::spawn(command).map_err(|error| failed(error.to_string()))?;
    let ending = async {
        tokio::select! {
            ended = job.wait() => Ok(ended),
            cause = stop.requested() => {
                let grace = match settings.stop.grace(Some(&cause)) {
                    Grace::Of(grace) => grace,
                    Grace::LeftBySlurm { .. } | Grace::AsSlurmsKillWait => settings::GRACE,
                };
                let grace = ready(stop.grace().unwrap_or(grace));
                tokio::select! {
                    _ = job.stop(settings.stop.signal, grace) => {}
                    () = stop.hurried() => {}
                }
                job.stop(signal::KILL, ready(Duration::ZERO)).await;
                Err(Outcome::Stopped(cause))
            }
        }
    };
    let (read, ended) = tokio::join!(journal.read_from(output), ending);
    if let Err(error) = read {
        tracing::debug!(%error, "the set-up script's output");
    }
    let ended = ended?;
    match std::fs::read(&left) {
        Ok(environment) => Ok(Some(variables(&environment))),
        Err(_) => Err(failed(format!(
            "the container's set-up script (`container.setup_shell_script` of the task, \
             `agent.extra_docker_shell_script`) ended {} before its last line",
            match ended {
                Ended::Exited { code } => format!("with exit code {code}"),
                Ended::Signalled { signal } => format!("by {}", signal::name(signal)),
            }
        ))),
    }
}

/// `/proc/PID/environ`. What is not text is left out, as for the agent itself.
fn variables(environment: &[u8]) -> Variables {
    environment
        .split(|byte| *byte == 0)
        .filter_map(|entry| std::str::from_utf8(entry).ok()?.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_read_as_the_kernel_gives_them() {
        let read = variables(b"A=1\0B=two\nlines=x\0\xff=bad\0nonsense\0C=\0");
        let expected = [("A", "1"), ("B", "two\nlines=x"), ("C", "")];
        let expected = expected.map(|(n, v)| (n.to_owned(), v.to_owned()));
        assert_eq!(read, Variables::from(expected));
    }
}
