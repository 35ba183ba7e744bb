//! What the command line, the environment and `clearml.conf` mean together. Below this nobody reads
//! an environment variable or a configuration key of the run.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::abort_callback::Callback;
use super::claim::{First, Mode};
use super::git_settings;
use super::job_env::{self, Gpus, Variables};
use super::monitoring::MonitorSettings;
use super::node;
use super::outcome::{StopCause, exit};
use super::scheduler::{self, Batch, Claimant};
use super::worker_place::{self, Place};
use crate::api::Endpoint;
use crate::cli::{self, ExecuteArgs, GlobalArgs, LogLevel, OnPreempt};
use crate::config::{self, Config, ConfigError, Lookup};
use crate::container::settings::{self as container, ContainerRuntime};
use crate::mask::Mask;
use crate::process::{guard, signal};
use crate::python;
use crate::source;

/// Everything that is decided before the first request.
#[derive(Debug)]
pub struct Settings {
    pub task: String,
    /// Who claims it, where that is a job that may be started again.
    pub claimant: Option<Claimant>,
    /// How long to wait for a task that can be taken later.
    pub wait: Duration,
    /// The id of this run of it: its claim, and the mark of its processes.
    pub run: String,
    pub mode: Mode,
    pub endpoint: Endpoint,
    pub monitoring: Monitoring,
    pub monitor: MonitorSettings,
    /// Of several nodes that run the task, which this is.
    pub rank: u32,
    /// The worker's id is this run's alone (`--full-monitoring`).
    pub place: Option<Place>,
    pub log_file: Option<PathBuf>,
    pub job: JobSettings,
    pub git: GitSettings,
    pub python: python::Settings,
    /// `--docker`, `--apptainer`: the run goes into a container.
    pub container: Option<container::Settings>,
    /// Where the runs' private folders are made (`agent.venvs_dir`).
    pub runs_dir: PathBuf,
    pub journal: JournalSettings,
    pub stop: StopSettings,
    /// `CLEARML_AGENT_PROPAGATE_EXITCODE`.
    pub propagate_exit_code: bool,
    /// `agent.suppress_carriage_return`.
    pub suppress_carriage_return: bool,
    pub config: Config,
    /// What is hidden wherever something leaves the agent.
    pub mask: Mask,
}

impl Settings {
    /// The folder and the machine whose journals of earlier runs are sent beside this one; not where
    /// no log is to be sent.
    pub fn leftovers(&self) -> Option<(PathBuf, String)> {
        let machine = self.config.machine().to_owned();
        (self.monitoring != Monitoring::Off).then(|| (self.journal.dir.clone(), machine))
    }
}

/// What the script is given.
#[derive(Debug)]
pub struct JobSettings {
    pub inherited: Variables,
    pub gpus: Gpus,
    pub log_level: LogLevel,
    /// How many `-O`.
    pub optimize: u8,
    /// The text of the SDK's configuration file.
    pub config: String,
    /// `agent.enable_task_env`: the task's `Environment` parameters become variables.
    pub task_env: bool,
}

/// How long a script has to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grace<'a> {
    Of(Duration),
    /// As long as Slurm leaves it, which has told the job that it ends.
    LeftBySlurm {
        job: &'a str,
    },
    /// As long as Slurm leaves a script in any case.
    AsSlurmsKillWait,
}

impl StopSettings {
    /// After a stop for `cause`; before one, what it is at least.
    pub fn grace(&self, cause: Option<&StopCause>) -> Grace<'_> {
        match (self.given_grace, &self.batch, cause) {
            (Some(grace), ..) => Grace::Of(grace),
            // Whoever else wants an end may not wait for the job's own.
            (None, Some(Batch::Slurm { job }), Some(StopCause::Signal(signal::TERM))) => {
                Grace::LeftBySlurm { job }
            }
            (None, Some(Batch::Slurm { .. }), _) => Grace::AsSlurmsKillWait,
            (None, ..) => Grace::Of(GRACE),
        }
    }
}

/// `--grace` where nobody says otherwise.
pub const GRACE: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub struct StopSettings {
    /// What the script is sent first (`agent.stop_signal`).
    pub signal: i32,
    /// How long it has then, where `--grace` says so.
    given_grace: Option<Duration>,
    /// What becomes of the task when a machine is wanted back; `None`: SIGTERM is a signal like others.
    pub on_preempt: Option<OnPreempt>,
    /// The batch system.
    pub batch: Option<Batch>,
    /// How long the whole run may take (`--timeout`).
    pub timeout: Option<Duration>,
    /// `CLEARML_AGENT_ABORT_CALLBACK_CMD`.
    pub callback: Option<Callback>,
    /// `agent.abort_callback_max_timeout`.
    pub callback_limit: Duration,
}

#[derive(Debug)]
pub struct JournalSettings {
    /// Where output waits that the server has not taken yet (`agent.journal.path`).
    pub dir: PathBuf,
    /// How much may wait, in bytes (`agent.journal.max_size_mb`).
    pub limit: u64,
    /// How long the end may wait for the server (`--drain-timeout`).
    pub drain: Duration,
}

#[derive(Debug)]
pub struct GitSettings {
    /// `CLEARML_AGENT_FORCE_CODE_DIR`.
    pub code_dir: Option<PathBuf>,
    /// `CLEARML_AGENT_FORCE_EXEC_SCRIPT`: working directory and entry point, in place of the task's.
    pub force_script: Option<(String, String)>,
    pub servers: source::Servers,
    /// The folder of mirrors, where `agent.vcs_cache` is on.
    pub cache: Option<PathBuf>,
    /// `agent.vcs_cache.clone_on_pull_fail`.
    pub clone_on_pull_fail: bool,
    /// `agent.vcs_cache.shallow`.
    pub shallow: bool,
}

/// What the server is sent besides the task's status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Monitoring {
    /// `--disable-monitoring`: nothing.
    Off,
    /// The script's output, the machine's figures.
    Job,
    /// `--full-monitoring`: the set-up's output too.
    Full,
}

#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The command line is wrong, in a way that clap cannot see.
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Value(String),
    #[error(transparent)]
    Config(#[from] ConfigError),
}

impl SettingsError {
    pub fn exit_code(&self) -> u8 {
        match self {
            SettingsError::Usage(_) => exit::USAGE,
            SettingsError::Value(_) | SettingsError::Config(_) => exit::CONFIG,
        }
    }
}

/// Reads the configuration and lays the command line over it; what is secret in it is added to `mask`.
pub fn resolve(
    args: &ExecuteArgs,
    global: &GlobalArgs,
    env: Variables,
    mask: &Mask,
) -> Result<Settings, SettingsError> {
    let task = task(args, &env)?;
    if args.on_preempt == Some(OnPreempt::Keep) && scheduler::claimant(&env).is_none() {
        return Err(SettingsError::Usage(
            "--on-preempt keep: nothing says which job this is, so none could come back for the task. Set \
             CLEARML_AGENT_CLAIM_ID to a name that the next start has, too"
                .into(),
        ));
    }
    let home = env.get("HOME").filter(|h| !h.is_empty()).map(PathBuf::from);
    let config = config::load(&Lookup {
        config_file: global.config_file.as_deref(),
        env: &env,
        home: home.as_deref(),
    })?;
    let mut secrets = Ok(());
    mask.extend(|known| {
        secrets = config.secrets_into(known);
        if let Some(password) = &args.git_pass {
            known.add("--git-pass", password);
        }
    });
    secrets?;
    // What the script inherits, and with it every tool that is run for it.
    let mut inherited = env;
    inherited.extend(config.job_variables().clone());
    let container = match (&args.docker, &args.apptainer) {
        (Some(words), _) => Some((ContainerRuntime::Docker, words)),
        (None, Some(words)) => Some((ContainerRuntime::Apptainer, words)),
        (None, None) => None,
    };
    let container = match container {
        Some((runtime, words)) => {
            let read = container::Settings::read(
                runtime,
                words,
                args.standalone_mode,
                &config,
                &inherited,
            );
            Some(read.map_err(|error| SettingsError::Value(error.to_string()))?)
        }
        None => None,
    };
    let run = uuid::Uuid::new_v4().simple().to_string();
    inherited.insert(guard::MARK.into(), run.clone());
    let stop = stop_settings(args, &config, &mut inherited)?;
    let gpus = Gpus::from_flags(args.gpus.as_deref(), args.cpu_only).map_err(|entry| {
        SettingsError::Usage(format!(
            "--gpus: {entry:?} names no GPU. Give numbers (0 or 0,1), a MIG instance (0:1), UUIDs (GPU-…, \
             MIG-…), all, or none"
        ))
    })?;
    let rank = node::rank(&inherited);
    let place = (monitoring(args) == Monitoring::Full).then(|| {
        let id = config.text("agent.worker_id");
        let name = config.text("agent.worker_name");
        let name = name.as_deref().unwrap_or(config.machine());
        let env = job_env::with_gpus(&inherited, &gpus);
        worker_place::take(id.as_deref(), name, &env)
    });
    let worker = match &place {
        Some(place) => place.id.clone(),
        None => config.worker_id(),
    };
    let endpoint = config.endpoint(&worker)?;
    let servers = git_settings::servers(args, &config, &endpoint.trust)?;
    let vcs_cache = config.flag("agent.vcs_cache.enabled")?.unwrap_or(true);
    let folder = |key: &'static str| {
        config
            .path(key)
            .map(|path| absolute(&path))
            .ok_or_else(|| no_folder(key))
    };
    Ok(Settings {
        task,
        claimant: scheduler::claimant(&inherited),
        wait: Duration::from_secs(args.wait),
        run,
        mode: mode(args, rank)?,
        monitoring: monitoring(args),
        monitor: MonitorSettings::read(&config, &inherited, &gpus, home)?,
        rank,
        place,
        log_file: args.log_file.as_deref().map(absolute),
        git: GitSettings {
            code_dir: git_settings::code_dir(&inherited),
            force_script: git_settings::force_script(&inherited),
            servers: servers.clone(),
            cache: if vcs_cache {
                Some(folder("agent.vcs_cache.path")?)
            } else {
                None
            },
            clone_on_pull_fail: config
                .flag("agent.vcs_cache.clone_on_pull_fail")?
                .unwrap_or(false),
            shallow: config.flag("agent.vcs_cache.shallow")?.unwrap_or(true),
        },
        python: python_settings(
            args,
            &config,
            &inherited,
            servers,
            folder("agent.venvs_dir")?,
        )?,
        container,
        runs_dir: folder("agent.venvs_dir")?,
        journal: JournalSettings {
            dir: folder("agent.journal.path")?,
            limit: journal_limit(&config)?,
            drain: Duration::from_secs(args.drain_timeout),
        },
        suppress_carriage_return: config
            .flag("agent.suppress_carriage_return")?
            .unwrap_or(true),
        stop,
        propagate_exit_code: inherited
            .get("CLEARML_AGENT_PROPAGATE_EXITCODE")
            .and_then(|value| config::bool_of(value))
            .unwrap_or(true),
        job: JobSettings {
            gpus,
            log_level: args.log_level,
            optimize: args.optimize,
            config: config.for_job(),
            task_env: config.flag("agent.enable_task_env")?.unwrap_or(false),
            inherited,
        },
        endpoint,
        config,
        mask: mask.clone(),
    })
}

const CALLBACK: &str = "CLEARML_AGENT_ABORT_CALLBACK_CMD";
const CALLBACK_TIMEOUT: &str = "CLEARML_AGENT_ABORT_CALLBACK_TIMEOUT";

/// The callback's variable is taken out of `inherited`, and left there under the name by which the
/// Python agent says that it is registered: an agent in the script is not to run it, too.
fn stop_settings(
    args: &ExecuteArgs,
    config: &Config,
    inherited: &mut Variables,
) -> Result<StopSettings, SettingsError> {
    const SIGNAL: &str = "agent.stop_signal";
    const LIMIT: &str = "agent.abort_callback_max_timeout";
    let signal = config.text(SIGNAL).unwrap_or_else(|| "TERM".into());
    let signal = signal::number(&signal).ok_or_else(|| {
        SettingsError::Value(format!(
            "{SIGNAL} is {signal:?}, which is no signal: TERM, INT, USR1 or another name or number"
        ))
    })?;
    let callback = inherited.remove(CALLBACK).filter(|c| !c.trim().is_empty());
    let callback = match callback {
        None => None,
        Some(command) => {
            let words = shlex::split(&command).ok_or_else(|| {
                SettingsError::Value(format!(
                    "{CALLBACK} cannot be split into words, a quote is not closed: {command}"
                ))
            })?;
            inherited.insert(format!("{CALLBACK}_REGISTERED"), command);
            let timeout = inherited.get(CALLBACK_TIMEOUT);
            let timeout = timeout.and_then(|t| t.trim().parse().ok()).unwrap_or(180);
            Some(Callback {
                words,
                timeout: Duration::from_secs(timeout),
            })
        }
    };
    let limit = config.number(LIMIT)?.unwrap_or(1800.0);
    let batch = scheduler::batch(inherited);
    Ok(StopSettings {
        signal,
        given_grace: args.grace.map(Duration::from_secs),
        on_preempt: args
            .on_preempt
            .or(batch.is_some().then_some(OnPreempt::Stop)),
        batch,
        timeout: args.timeout.map(Duration::from_secs),
        callback,
        callback_limit: Duration::try_from_secs_f64(limit)
            .map_err(|error| SettingsError::Value(format!("{LIMIT} is {limit}: {error}")))?,
    })
}

fn journal_limit(config: &Config) -> Result<u64, SettingsError> {
    const KEY: &str = "agent.journal.max_size_mb";
    match config.number(KEY)? {
        None => Ok(u64::MAX),
        // Saturates, which is what is meant.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        Some(size) if size >= 1.0 => Ok((size * 1024.0 * 1024.0) as u64),
        Some(size) => Err(SettingsError::Value(format!(
            "{KEY} is {size}: output needs some space on its way to the server, 1 at least"
        ))),
    }
}

fn python_settings(
    args: &ExecuteArgs,
    config: &Config,
    inherited: &Variables,
    servers: source::Servers,
    venvs_dir: PathBuf,
) -> Result<python::Settings, SettingsError> {
    let mut settings = python::Settings::from_lookup(&|key| config.value(key).cloned(), inherited)
        .map_err(SettingsError::Value)?;
    if args.cpu_only {
        settings.cuda = python::cuda::Wanted::None;
    }
    if args.inside.is_some() {
        settings.place = python::failure::Place::Container;
    }
    settings.git = servers;
    settings.standalone = args.standalone_mode.then_some(venvs_dir);
    Ok(settings)
}

/// `--id`, the line of `--id-file` that is this job's, or `CLEARML_TASK_ID`.
fn task(args: &ExecuteArgs, env: &Variables) -> Result<String, SettingsError> {
    if let Some(id) = &args.id {
        return Ok(id.clone());
    }
    let Some(file) = &args.id_file else {
        let id = env
            .get("CLEARML_TASK_ID")
            .filter(|id| !id.trim().is_empty());
        let id = id.ok_or_else(|| {
            SettingsError::Usage(
                "which task? Give --id TASK_ID, --id-file FILE, or CLEARML_TASK_ID".into(),
            )
        })?;
        return cli::task_id(id)
            .map_err(|why| SettingsError::Usage(format!("CLEARML_TASK_ID is {id:?}: {why}")));
    };
    let path = file.display();
    let text = std::fs::read_to_string(file).map_err(|error| {
        SettingsError::Usage(format!("cannot read {path} (--id-file): {error}"))
    })?;
    let lines: Vec<&str> = text.lines().collect();
    let filled = lines.iter().filter(|line| !line.trim().is_empty()).count();
    let number = match scheduler::line(env) {
        Some(number) => number.map_err(SettingsError::Usage)?,
        None if filled == 1 => 1 + lines.iter().position(|l| !l.trim().is_empty()).unwrap_or(0),
        None => {
            return Err(SettingsError::Usage(format!(
                "{path} (--id-file) has {filled} task ids, and neither SLURM_ARRAY_TASK_ID nor \
                 JOB_COMPLETION_INDEX says which is this job's"
            )));
        }
    };
    if number > lines.len() {
        return Err(SettingsError::Usage(format!(
            "{path} (--id-file) has {} lines, and this job's is line {number}",
            lines.len()
        )));
    }
    let line = lines
        .get(number - 1)
        .map(|line| line.trim())
        .unwrap_or_default();
    cli::task_id(line).map_err(|why| {
        SettingsError::Usage(format!(
            "line {number} of {path} (--id-file) is {line:?}: {why}"
        ))
    })
}

fn mode(args: &ExecuteArgs, rank: u32) -> Result<Mode, SettingsError> {
    if rank > 0 && args.clone {
        return Err(SettingsError::Value(format!(
            "this is rank {rank} of several (RANK, SLURM_PROCID), and --clone would make a copy for each: \
             copy the task first and give all of them its id"
        )));
    }
    Ok(match (args.require_queue, args.clone) {
        (from_queue, _) if rank > 0 => Mode::AfterFirst {
            first: if from_queue {
                First::FromQueue
            } else {
                First::Any
            },
        },
        (true, _) => Mode::FromQueue,
        (false, true) => Mode::Clone,
        (false, false) => Mode::Any,
    })
}

fn monitoring(args: &ExecuteArgs) -> Monitoring {
    match (args.disable_monitoring, args.full_monitoring) {
        (true, _) => Monitoring::Off,
        (false, true) => Monitoring::Full,
        (false, false) => Monitoring::Job,
    }
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

fn no_folder(key: &str) -> SettingsError {
    SettingsError::Value(format!(
        "there is no folder for `{key}`: HOME is not set, and neither is the key in clearml.conf"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_slurms_own_signal_leaves_the_time_to_the_jobs_end() {
        let slurm = || Batch::Slurm { job: "7".into() };
        let pod = || Batch::Kubernetes { pod: "p".into() };
        let given = Duration::from_secs(3);
        let of_slurm = Grace::LeftBySlurm { job: "7" };
        let term = StopCause::Signal(signal::TERM);
        let abort = StopCause::Server { what: "x".into() };
        let rank = StopCause::Rank { what: "x".into() };
        for (batch, given_grace, cause, expected) in [
            (Some(slurm()), None, Some(term.clone()), of_slurm),
            (
                Some(slurm()),
                None,
                Some(StopCause::Signal(signal::INT)),
                Grace::AsSlurmsKillWait,
            ),
            (Some(slurm()), None, Some(abort), Grace::AsSlurmsKillWait),
            (Some(slurm()), None, Some(rank), Grace::AsSlurmsKillWait),
            (
                Some(slurm()),
                None,
                Some(StopCause::Timeout { after: 1 }),
                Grace::AsSlurmsKillWait,
            ),
            (
                Some(slurm()),
                None,
                Some(StopCause::TakenOver),
                Grace::AsSlurmsKillWait,
            ),
            (Some(slurm()), None, None, Grace::AsSlurmsKillWait),
            (
                Some(slurm()),
                Some(given),
                Some(term.clone()),
                Grace::Of(given),
            ),
            (Some(pod()), None, Some(term.clone()), Grace::Of(GRACE)),
            (None, None, Some(term), Grace::Of(GRACE)),
        ] {
            let settings = StopSettings {
                signal: signal::TERM,
                given_grace,
                on_preempt: None,
                batch,
                timeout: None,
                callback: None,
                callback_limit: Duration::ZERO,
            };
            let found = settings.grace(cause.as_ref());
            assert_eq!(found, expected, "{settings:?} {cause:?}");
        }
    }
}
