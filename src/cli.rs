//! The command line: what was typed, as types. What it means together with the configuration is
//! decided in `execute::settings`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::NonEmptyStringValueParser;
use clap::builder::styling::Styles;
use clap::error::ErrorKind;
use clap::{ArgAction, Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::server::ServerArgs;
use crate::server::demo::DemoArgs;

/// Run one ClearML task: check out its code, build its Python environment, run its script, and
/// keep its log, figures and status on the server true.
#[derive(Debug, Parser)]
#[command(name = "clearml-agent", version, propagate_version = true, styles = Styles::plain())]
// As Python's argparse: the last of a repeated option counts, and a name may be cut short where
// it stays clear (`--gpu 0`, which the Python agent's help shows).
#[command(args_override_self = true, infer_long_args = true)]
pub struct Cli {
    #[command(flatten)]
    pub global: GlobalArgs,
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// Reads what was typed, the program's name first.
    pub fn read(words: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(without_module(words.into_iter().collect()))?.check()
    }

    /// Refuses what the definition alone lets through: options that a command has no use for.
    pub fn check(self) -> Result<Cli, clap::Error> {
        let unused = matches!(self.command, Command::Server(_) | Command::Demo(_));
        if unused && self.global.config_file.is_some() {
            return Err(Cli::command().error(
                ErrorKind::ArgumentConflict,
                "--config-file is for `execute`, `sync` and `cache`: this command reads no configuration",
            ));
        }
        Ok(self)
    }
}

/// `python -m clearml_agent execute …` is how ClearML's Kubernetes glue starts the agent: its script takes
/// this program in the place of Python (`LOCAL_PYTHON`).
fn without_module(mut words: Vec<OsString>) -> Vec<OsString> {
    let at = |index: usize| words.get(index).and_then(|word| word.to_str());
    if at(1) == Some("-m") && at(2) == Some("clearml_agent") {
        words.drain(1..3);
    }
    words
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub struct GlobalArgs {
    /// Configuration file to use in place of ~/clearml.conf
    #[arg(long, global = true, value_name = "FILE")]
    pub config_file: Option<PathBuf>,
    /// Tell each step in detail on standard error
    #[arg(short, long, global = true)]
    pub debug: bool,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run one task, given by its id
    Execute(Box<ExecuteArgs>),
    /// Send to the server what earlier runs could not: logs of agents that were killed, or whose
    /// server was away
    Sync(SyncArgs),
    /// Show, check or remove the Python environments and mirrors of repositories that runs have left for
    /// later ones
    Cache(CacheArgs),
    /// Ends what a killed agent left; started by `execute` itself
    #[command(hide = true)]
    Guard {
        /// The run's own value of CLEARML_AGENT_RUN
        #[arg(long)]
        run: String,
    },
    /// Serve a small ClearML-compatible API, for trials, tests and CI
    Server(ServerArgs),
    /// Show the whole way on this machine: a server, a task, and `execute` running it
    ///
    /// Starts a ClearML-compatible server in this process, makes a git repository with a small training
    /// script and an uncommitted change, puts a task for it in a queue, runs `clearml-agent execute
    /// --id … --require-queue` on it with its live output, and shows what the server then holds:
    /// status, log, machine figures, packages and commit.
    ///
    /// It needs Python 3 and a package index, takes some ten seconds, and leaves nothing behind. Your own
    /// ClearML settings and caches are neither read nor changed; proxies and package indexes are used as
    /// configured. The exit code is 0 if the task was completed and its log is whole.
    Demo(DemoArgs),
}

/// `execute`, with the flags of the Python agent's command.
#[derive(Debug, Args)]
pub struct ExecuteArgs {
    /// Id of the task to run; without it, CLEARML_TASK_ID
    #[arg(long, value_name = "TASK_ID", value_parser = task_id, help_heading = "Task")]
    pub id: Option<String>,
    /// File with a task id on each line: line N is for SLURM_ARRAY_TASK_ID=N (of Kubernetes' indexed
    /// jobs, JOB_COMPLETION_INDEX counts from 0), the only one for a job that is no array
    #[arg(
        long,
        value_name = "FILE",
        help_heading = "Task",
        conflicts_with = "id"
    )]
    pub id_file: Option<PathBuf>,
    /// Run a copy of the task ("Clone of NAME") and leave the task itself untouched
    #[arg(long, help_heading = "Task", conflicts_with = "require_queue")]
    pub clone: bool,
    /// Run only if the task waits in a queue: it is taken out of it, and of several agents that
    /// try, exactly one runs it (for Slurm, Kubernetes and other schedulers). The same job, started
    /// again, goes on with its own task
    #[arg(long, help_heading = "Task")]
    pub require_queue: bool,
    /// How long a task that is in no queue yet is waited for (with --require-queue)
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 0,
        help_heading = "Task",
        requires = "require_queue"
    )]
    pub wait: u64,
    /// What a task that has ended already means for the exit code (with --require-queue): 67, or 0
    #[arg(
        long,
        value_name = "HOW",
        default_value = "fail",
        help_heading = "Task",
        requires = "require_queue"
    )]
    pub if_done: IfDone,

    /// Run inside a Docker container: IMAGE and its `docker run` arguments, as one quoted string
    /// or as separate words; alone, the image of the task or of `agent.default_docker`
    #[arg(
        long,
        value_name = "IMAGE ARGS",
        num_args = 0..,
        action = ArgAction::Set,
        help_heading = "Where it runs"
    )]
    pub docker: Option<Vec<String>>,
    /// Run inside an Apptainer (Singularity) container, as the user who runs the agent: IMAGE is a .sif
    /// file, a folder, an address such as docker://…, or a name as for --docker; ARGS are `docker run`
    /// arguments
    #[arg(
        long,
        value_name = "IMAGE ARGS",
        num_args = 0..,
        action = ArgAction::Set,
        help_heading = "Where it runs",
        conflicts_with = "docker"
    )]
    pub apptainer: Option<Vec<String>>,
    /// Use only what is on this machine: no clone, no installation
    #[arg(long, help_heading = "Where it runs")]
    pub standalone_mode: bool,
    /// This is the agent inside a container; DIR is what the agent on the host has left for it
    #[arg(long, value_name = "DIR", hide = true)]
    pub inside: Option<PathBuf>,
    /// GPUs the task may see: 0, or 0,1,2, or all (sets NVIDIA_VISIBLE_DEVICES)
    #[arg(
        long,
        value_name = "GPUS",
        help_heading = "Where it runs",
        conflicts_with = "cpu_only"
    )]
    pub gpus: Option<String>,
    /// Let the task see no GPU
    #[arg(long, help_heading = "Where it runs")]
    pub cpu_only: bool,
    /// Run Python with -O; twice for -OO
    #[arg(short = 'O', action = ArgAction::Count, help_heading = "Where it runs")]
    pub optimize: u8,

    /// Write how the run ended to this file, as one JSON object
    #[arg(long, value_name = "FILE", help_heading = "Log and monitoring")]
    pub result: Option<PathBuf>,
    /// Stop the run if it takes longer than this, set-up included; the task has then failed, and the
    /// exit code is 124
    #[arg(
        long,
        value_name = "SECONDS",
        value_parser = clap::value_parser!(u64).range(1..),
        help_heading = "Stopping"
    )]
    pub timeout: Option<u64>,
    /// How long the script has to end between the stop signal (`agent.stop_signal`, SIGTERM) and
    /// SIGKILL; a second signal to the agent cuts it short [default: what Slurm leaves, or 10]
    #[arg(
        long,
        value_name = "SECONDS",
        env = "CLEARML_AGENT_GRACE",
        hide_env_values = true,
        help_heading = "Stopping"
    )]
    pub grace: Option<u64>,
    /// What becomes of the task when a batch system takes its machine back (SIGTERM): it is stopped,
    /// put back at the end of its queue, or kept for the same job's next start [default: stop, under
    /// Slurm and Kubernetes]
    #[arg(long, value_name = "WHAT", help_heading = "Stopping")]
    pub on_preempt: Option<OnPreempt>,

    /// User name for the task's git repository
    #[arg(long, value_name = "USER", help_heading = "Git")]
    pub git_user: Option<String>,
    /// Password or access token for the task's git repository; other users of this machine can see
    /// it here: CLEARML_AGENT_GIT_PASS keeps it to yourself
    #[arg(long, value_name = "PASSWORD", help_heading = "Git")]
    pub git_pass: Option<String>,

    /// Also write the task's output to this file, which stays
    #[arg(long, value_name = "FILE", help_heading = "Log and monitoring")]
    pub log_file: Option<PathBuf>,
    /// Send no log and no machine figures to the server; the status is still kept
    #[arg(
        long,
        help_heading = "Log and monitoring",
        conflicts_with = "full_monitoring"
    )]
    pub disable_monitoring: bool,
    /// Send the set-up's log to the server too, as a worker whose id says what it has
    /// (host:gpu0,1)
    #[arg(long, help_heading = "Log and monitoring")]
    pub full_monitoring: bool,
    /// How long the end may wait for a server that does not take the rest of the log, or the status;
    /// what is left then is kept for `clearml-agent sync`
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 60,
        help_heading = "Log and monitoring"
    )]
    pub drain_timeout: u64,
    /// Log level of the ClearML SDK in the task, in any case
    #[arg(
        long,
        value_name = "LEVEL",
        ignore_case = true,
        default_value = "INFO",
        help_heading = "Log and monitoring"
    )]
    pub log_level: LogLevel,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum IfDone {
    Ok,
    Fail,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnPreempt {
    Stop,
    Requeue,
    Keep,
}

#[derive(Debug, Args)]
pub struct SyncArgs {
    /// Folder of the journals, in place of `agent.journal.path`
    #[arg(value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Also those of other machines that share the folder: be sure that no agent runs there
    #[arg(long)]
    pub all_machines: bool,
}

#[derive(Debug, Args)]
pub struct CacheArgs {
    #[command(subcommand)]
    pub command: CacheCommand,
}

#[derive(Debug, Subcommand)]
pub enum CacheCommand {
    /// Show the kept environments, the last used first, then those of each image's containers, then the
    /// mirrors of repositories
    List,
    /// Check that every file is as it was kept, and as its package has it, and that mirrors are whole; exit
    /// code 70 if one is not
    Verify {
        /// Remove the damaged ones
        #[arg(long)]
        remove: bool,
    },
    /// Apply the limits of `agent.venvs_cache` and remove what killed runs left, their folders included;
    /// with KEYs, of the environments just these
    Prune {
        /// Remove all of them
        #[arg(long, conflicts_with = "keys")]
        all: bool,
        /// Remove those that no run has used for so long, and such mirrors of repositories
        #[arg(long, value_name = "DAYS", conflicts_with = "keys")]
        unused_days: Option<u64>,
        /// Keys as `list` shows them
        // An empty one, as of a variable that is not set, would be the beginning of each.
        #[arg(value_name = "KEY", value_parser = NonEmptyStringValueParser::new())]
        keys: Vec<String>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "UPPER")]
pub enum LogLevel {
    Debug,
    Info,
    Warn,
    Warning,
    Error,
    Critical,
}

impl LogLevel {
    /// The name that the SDK's logging knows.
    pub fn name(self) -> &'static str {
        match self {
            LogLevel::Debug => "DEBUG",
            LogLevel::Info => "INFO",
            LogLevel::Warn => "WARN",
            LogLevel::Warning => "WARNING",
            LogLevel::Error => "ERROR",
            LogLevel::Critical => "CRITICAL",
        }
    }
}

/// A task id is used in paths and messages, so it is checked to be one: letters and digits.
/// Surrounding blanks, left by copy and paste, are dropped.
pub(crate) fn task_id(text: &str) -> Result<String, String> {
    let id = text.trim();
    if id.is_empty()
        || !id
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
    {
        return Err(
            "a task id is 32 letters and digits (in the web UI: the ID button of the task)".into(),
        );
    }
    Ok(id.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn execute(words: &[&str]) -> Result<ExecuteArgs, clap::Error> {
        let argv = ["clearml-agent", "execute", "--id", "t1"]
            .iter()
            .chain(words);
        match Cli::try_parse_from(argv)?.command {
            Command::Execute(args) => Ok(*args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn docker_takes_nothing_a_string_or_words() {
        assert_eq!(execute(&[]).unwrap().docker, None);
        assert_eq!(execute(&["--docker"]).unwrap().docker, Some(vec![]));
        let quoted = execute(&["--docker", "image --ipc=host"]).unwrap();
        assert_eq!(quoted.docker, Some(vec!["image --ipc=host".to_owned()]));
        let words = execute(&["--docker", "image", "word", "--clone"]).unwrap();
        assert_eq!(
            words.docker,
            Some(vec!["image".to_owned(), "word".to_owned()])
        );
        assert!(words.clone);
    }

    #[test]
    fn log_level_is_taken_in_any_case() {
        assert_eq!(
            execute(&["--log-level", "warning"]).unwrap().log_level,
            LogLevel::Warning
        );
        assert_eq!(execute(&[]).unwrap().log_level, LogLevel::Info);
        assert!(execute(&["--log-level", "loud"]).is_err());
    }

    #[test]
    fn optimisation_counts() {
        assert_eq!(execute(&["-O", "-O"]).unwrap().optimize, 2);
        assert_eq!(execute(&["-OO"]).unwrap().optimize, 2);
    }

    #[test]
    fn a_repeated_option_has_its_last_value() {
        let args = execute(&[
            "--log-level",
            "debug",
            "--gpus=0",
            "--clone",
            "--log-level=error",
            "--gpus",
            "1",
            "--clone",
            "--docker",
            "a",
            "--docker",
            "b --ipc=host",
            "-O",
        ]);
        let args = args.unwrap();
        assert_eq!(args.log_level, LogLevel::Error);
        assert_eq!(args.gpus.as_deref(), Some("1"));
        assert_eq!(args.docker, Some(vec!["b --ipc=host".to_owned()]));
        assert!(args.clone);
        assert_eq!(execute(&["--id", "t2"]).unwrap().id.as_deref(), Some("t2"));
    }

    #[test]
    fn an_option_may_be_cut_short_where_it_stays_clear() {
        let args = execute(&["--gpu", "0,1", "--req", "--full", "--log-l", "warn"]).unwrap();
        assert_eq!(args.gpus.as_deref(), Some("0,1"));
        assert!(args.require_queue && args.full_monitoring);
        assert_eq!(args.log_level, LogLevel::Warn);
        for unclear in ["--git", "--log", "--c"] {
            assert!(execute(&[unclear, "x"]).is_err(), "{unclear}");
        }
    }

    #[test]
    fn a_configuration_file_is_for_those_who_read_one() {
        let check = |words: &[&str]| {
            let cli =
                Cli::try_parse_from(["clearml-agent", "--config-file", "x"].iter().chain(words));
            cli.and_then(Cli::check)
        };
        assert!(check(&["execute", "--id", "t1"]).is_ok());
        assert!(check(&["sync"]).is_ok());
        assert!(check(&["server"]).is_err());
        assert!(check(&["demo"]).is_err());
    }

    #[test]
    fn this_program_stands_in_pythons_place() {
        for (typed, read) in [
            ("agent -m clearml_agent execute -O", "agent execute -O"),
            ("agent execute -O", "agent execute -O"),
            ("agent -m pip", "agent -m pip"),
            ("agent -m", "agent -m"),
        ] {
            let words = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
            assert_eq!(without_module(words(typed)), words(read));
        }
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        assert!(execute(&["--gpus", "0", "--cpu-only"]).is_err());
        assert!(execute(&["--clone", "--require-queue"]).is_err());
        assert!(execute(&["--disable-monitoring", "--full-monitoring"]).is_err());
        assert!(execute(&["--id-file", "tasks"]).is_err());
        assert!(execute(&["--wait", "5"]).is_err());
        assert!(Cli::try_parse_from(["clearml-agent", "execute", "--id", "a/../b"]).is_err());
    }
}
