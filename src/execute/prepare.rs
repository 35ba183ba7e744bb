//! From the task to a command that can be started: code and environment, side by side.

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::job_env::{self, Told, Variables};
use super::large_diff;
use super::outcome::{Outcome, Stage, StopCause};
use super::result::Versions;
use super::run::Run;
use super::run_dir::RunDir;
use super::same_commit::{self, Missing};
use super::timeline::Phase;
use crate::api::{ApiError, Session, tasks};
use crate::process;
use crate::python::{self, Environment, PythonError, command, notebook};
use crate::secret::mask_url_password;
use crate::source::{self, Borrowed, SourceError, Sources};
use crate::task::{Requirements, Script, Task};

/// What can be started, and what is then to be recorded.
pub(super) struct Prepared {
    pub command: process::Command,
    /// The lines that end the set-up, as the Python agent words them: other tools look for them.
    pub handover: String,
    pub write_back: WriteBack,
    pub versions: Versions,
    /// To be held until the script has ended.
    pub borrowed: Borrowed,
}

/// What the task did not say itself and the run found out.
#[derive(Debug, Default)]
pub(super) struct WriteBack {
    pub requirements: Option<Requirements>,
    pub commit: Option<String>,
}

impl WriteBack {
    pub async fn send(self, session: Arc<Session>, task: String) -> Result<(), ApiError> {
        if let Some(commit) = &self.commit {
            tasks::set_version_num(&session, &task, commit).await?;
        }
        if let Some(requirements) = &self.requirements {
            tasks::set_requirements(&session, &task, requirements).await?;
        }
        Ok(())
    }
}

/// Gets everything ready; the error is how the run ends.
pub(super) async fn prepare(run: &Run, run_dir: &RunDir) -> Result<Prepared, Outcome> {
    let Some(script) = run.task.script.clone() else {
        return Err(Outcome::Failed {
            stage: Stage::Task,
            cause: "the task has no script section: nothing says what to run. Record it with the \
                    ClearML SDK or clearml-task, or fill in the Execution tab"
                .into(),
        });
    };
    let script = forced(run, script);
    run.console.say(describe(&run.task, &script));
    if let Err(error) = run.settings.config.write_files(&run.console) {
        return Err(Outcome::Failed {
            stage: Stage::Agent,
            cause: error.to_string(),
        });
    }

    // The code and an empty environment do not need each other; a failure of one ends the other.
    let token = run.stop.token().child_token();
    let code = async {
        let sources = fetch(run, &script, run_dir.path(), token.clone()).await;
        match &sources {
            Ok(sources) => {
                run.timeline.mark(Phase::CodeReady);
                same_commit::tell(run, &script, sources.commit.as_deref());
            }
            Err(_) => token.cancel(),
        }
        sources
    };
    let settings = python_settings(run);
    let environment = async {
        let environment = environment(run, &script, &settings, run_dir.path(), &token).await;
        if environment.is_err() {
            token.cancel();
        }
        environment
    };
    let (sources, environment) = tokio::join!(code, environment);
    let (sources, (tools, environment)) = match (sources, environment) {
        (Ok(sources), Ok(environment)) => (sources, environment),
        // The one that was only cancelled has nothing to say.
        (Err(Failure::Cancelled), Err(failure)) | (Err(failure), _) | (_, Err(failure)) => {
            return Err(failure.outcome(run));
        }
    };

    let settings = &*settings;
    let python = |error: PythonError| Failure::from(error).outcome(run);
    let code = python::install::Code {
        repository: (sources.kind == source::Kind::Checkout).then_some(sources.root.as_path()),
        working_dir: &sources.working_dir,
        entry_point: &sources.entry_point,
    };
    let installed = python::install(
        &environment,
        &tools,
        &script,
        &code,
        settings,
        &run.console,
        run.stop.token(),
    )
    .await
    .map_err(python)?;
    run.timeline.mark(Phase::EnvironmentReady);
    let entry_point = notebook::convert(
        &environment,
        &sources.working_dir,
        &sources.entry_point,
        settings,
        &run.console,
        run.stop.token(),
    )
    .await
    .map_err(python)?;

    let job = &run.settings.job;
    let inherited = python::conda::job_variables(
        &environment,
        &tools,
        settings,
        &job.inherited,
        &run.console,
        run.stop.token(),
    )
    .await
    .map_err(python)?;
    let config_file = run_dir
        .private_file("clearml.conf", &job.config)
        .map_err(|error| Outcome::Failed {
            stage: Stage::Agent,
            cause: format!("cannot write the script's clearml.conf: {error}"),
        })?;
    let mut told = Told {
        task_id: &run.task.id,
        config_file: &config_file,
        log_level: job.log_level,
        worker: &run.settings.endpoint.worker,
        gpus: &job.gpus,
        attempt: run.attempt(),
        task_env: &task_env(run),
        python_path: "",
    };
    let start = command::command(&command::Request {
        binary: &script.binary,
        python: environment.python.as_deref(),
        root: Some(&sources.root),
        working_dir: &sources.working_dir,
        entry_point: &entry_point,
        optimize: job.optimize,
        job_env: &job_env::job_environment(&inherited, &told),
        force_git_root_python_path: settings.force_git_root_python_path,
    })
    .map_err(python)?;
    told.python_path = &start.python_path;
    let env = job_env::job_environment(&inherited, &told);

    let handover = handover(&run.task.id, &start.shown, &installed.summary);
    let versions = Versions {
        python: environment.interpreter.as_ref().map(|i| i.full_version()),
        commit: sources.commit.clone(),
        ..Versions::default()
    };
    let commit = sources.commit.filter(|_| script.version_num.is_empty());
    Ok(Prepared {
        command: process::Command {
            program: start.program,
            args: start.args,
            working_dir: sources.working_dir,
            env,
        },
        handover,
        write_back: WriteBack {
            requirements: installed.requirements_to_record,
            commit,
        },
        versions,
        borrowed: sources.borrowed,
    })
}

/// Why a step did not come to its end.
enum Failure {
    /// It was asked to stop, by the run or because another step had failed.
    Cancelled,
    Failed {
        stage: Stage,
        cause: String,
    },
}

impl Failure {
    fn outcome(self, run: &Run) -> Outcome {
        match (run.stop.cause(), self) {
            (Some(cause), _) => Outcome::Stopped(cause),
            (None, Failure::Failed { stage, cause }) => Outcome::Failed { stage, cause },
            (None, Failure::Cancelled) => Outcome::Stopped(StopCause::Server {
                what: "stopped while getting ready".into(),
            }),
        }
    }
}

impl From<PythonError> for Failure {
    fn from(error: PythonError) -> Self {
        match error {
            PythonError::Stopped => Failure::Cancelled,
            error => Failure::Failed {
                stage: Stage::Environment,
                cause: error.to_string(),
            },
        }
    }
}

impl From<SourceError> for Failure {
    fn from(error: SourceError) -> Self {
        let stage = match &error {
            SourceError::Stopped => return Failure::Cancelled,
            SourceError::NothingToRun | SourceError::NoEntryPoint { .. } => Stage::Task,
            SourceError::Unreachable { .. } => Stage::CodeServer,
            _ => Stage::Checkout,
        };
        Failure::Failed {
            stage,
            cause: error.to_string(),
        }
    }
}

impl From<Missing> for Failure {
    fn from(missing: Missing) -> Self {
        match missing {
            Missing::Stopped => Failure::Cancelled,
            Missing::Silent { waited } => Failure::Failed {
                stage: Stage::Checkout,
                cause: format!(
                    "rank 0 has not said within {} s which commit it runs: look at rank 0's output, or name \
                     the commit in the task",
                    waited.as_secs()
                ),
            },
        }
    }
}

/// The script with what `CLEARML_AGENT_FORCE_EXEC_SCRIPT` puts in its place.
fn forced(run: &Run, script: Script) -> Script {
    match run.settings.git.force_script.clone() {
        None => script,
        Some((working_dir, entry_point)) => {
            run.console.say(format!(
                "CLEARML_AGENT_FORCE_EXEC_SCRIPT: {entry_point} in {working_dir} is run in place of the \
                 task's entry point"
            ));
            Script {
                working_dir,
                entry_point,
                ..script
            }
        }
    }
}

/// How long a fetch has to notice the stop: libgit2 asks now and then, but not while a server says
/// nothing.
const FETCH_STOPS_WITHIN: Duration = Duration::from_secs(1);

/// libgit2 blocks, so this is a thread of its own.
async fn fetch(
    run: &Run,
    script: &Script,
    dir: &Path,
    token: CancellationToken,
) -> Result<Sources, Failure> {
    let script = same_commit::agreed(run, script.clone(), &token).await?;
    let script = large_diff::whole(run, &script)
        .await
        .map_err(|cause| Failure::Failed {
            stage: Stage::Checkout,
            cause,
        })?;
    let git = &run.settings.git;
    let request = source::Request {
        script,
        code_dir: git.code_dir.clone(),
        force_task_init: run.settings.python.force_task_init,
        work_dir: dir.to_owned(),
        cache: git.cache.clone(),
        clone_on_pull_fail: git.clone_on_pull_fail,
        shallow: git.shallow,
        servers: git.servers.clone(),
        env: run.settings.job.inherited.clone(),
        staged: run.settings.python.standalone.clone(),
    };
    let console = run.console.clone();
    let stopped = token.clone();
    let fetching = tokio::task::spawn_blocking(move || source::fetch(&request, &console, &token));
    let abandoned = async {
        stopped.cancelled().await;
        tokio::time::sleep(FETCH_STOPS_WITHIN).await;
    };
    tokio::select! {
        fetched = fetching => fetched
            .map_err(|panic| Failure::Failed {
                stage: Stage::Agent,
                cause: format!("a defect of the agent, please report it: {panic}"),
            })?
            .map_err(Failure::from),
        () = abandoned => Err(Failure::Cancelled),
    }
}

/// With the environment of conda that the task names in the place of an image, where the configuration
/// says that it does.
fn python_settings(run: &Run) -> Cow<'_, python::Settings> {
    let settings = &run.settings.python;
    if !settings.conda.as_base_docker || settings.conda.package.is_some() {
        return Cow::Borrowed(settings);
    }
    let old = run.task.execution.docker_cmd.split_whitespace().next();
    let image = run.task.container.image.trim();
    let named = Some(image).filter(|image| !image.is_empty()).or(old);
    let mut settings = settings.clone();
    settings.conda.package = named.map(Into::into);
    Cow::Owned(settings)
}

async fn environment(
    run: &Run,
    script: &Script,
    settings: &python::Settings,
    dir: &Path,
    token: &CancellationToken,
) -> Result<(python::Tools, Environment), Failure> {
    let tools = python::find_tools(script, settings, &run.console, token).await?;
    let folder = dir.join("venv");
    let environment =
        python::create(&tools, script, &folder, settings, &run.console, token).await?;
    Ok((tools, environment))
}

/// The task's `Environment` parameters, where the configuration wants them.
fn task_env(run: &Run) -> Variables {
    let section = run.task.hyperparams.get("Environment");
    let section = section.filter(|_| run.settings.job.task_env);
    let parameters = section.into_iter().flatten();
    parameters
        .map(|(name, parameter)| (name.clone(), parameter.value.clone()))
        .collect()
}

/// What is about to run, one field a line.
fn describe(task: &Task, script: &Script) -> String {
    let repository = mask_url_password(&script.repository);
    let fields = [
        ("repository", repository.as_str()),
        ("branch", &script.branch),
        ("version_num", &script.version_num),
        ("tag", &script.tag),
        ("entry_point", &script.entry_point),
        ("working_dir", &script.working_dir),
        ("binary", &script.binary),
    ];
    let mut text = format!("Executing task id [{}]: {}", task.id, task.name);
    for (name, value) in fields.into_iter().filter(|(_, value)| !value.is_empty()) {
        text.push_str(&format!("\n{name} = {value}"));
    }
    text
}

fn handover(task: &str, command: &str, packages: &[String]) -> String {
    let mut lines = vec![format!("Running task id [{task}]:"), command.to_owned()];
    if !packages.is_empty() {
        lines.push("Summary - installed python packages:".into());
        lines.extend(packages.iter().map(|package| format!("- {package}")));
    }
    lines.push(String::new());
    lines.push("Environment setup completed successfully".into());
    lines.push(String::new());
    lines.push("Starting Task Execution:".into());
    lines.push(String::new());
    lines.join("\n")
}
