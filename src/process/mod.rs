//! One running program: its start, its output, its end, and the end of all that it started.
//!
//! A job is the leader of its own session, has both of its output streams in one pipe (so that their
//! order holds) and dies with the agent. It is over when its leader has ended and nothing that the
//! leader started is left: what stays behind gets a moment to end by itself, then SIGKILL. This also
//! closes the output pipe, so a forgotten background process cannot hang a run.
//!
//! The journal reads the output; who stops a job, and why, is decided elsewhere.

mod account;
pub mod cgroup;
pub mod death;
pub mod disks;
pub mod guard;
mod job;
pub mod job_group;
pub mod kernel_log;
pub mod last_words;
mod leftovers;
pub mod memory;
mod output;
pub mod signal;
pub mod usage;

use std::collections::BTreeMap;
use std::path::PathBuf;

pub use account::{Account, Usage};
pub(crate) use job::die_with_the_agent;
pub use job::{Job, spawn, spawn_with};
pub use output::OutputPipe;

/// What to run. The environment is exactly `env`: nothing is inherited.
#[derive(Debug, Clone)]
pub struct Command {
    /// A path, or a bare name looked for on `env`'s `PATH`.
    pub program: PathBuf,
    pub args: Vec<String>,
    pub working_dir: PathBuf,
    pub env: BTreeMap<String, String>,
}

/// How a job's leader ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Exited { code: i32 },
    Signalled { signal: i32 },
}

/// Why a program could not be started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    #[error("cannot run {}: there is no such program{}", .program.display(), place(.program))]
    NotFound { program: PathBuf },

    #[error(
        "cannot run {}: the file is there, but the interpreter that its first line names (or its \
         dynamic loader) is not on this machine",
        .program.display()
    )]
    NoInterpreter { program: PathBuf },

    #[error("cannot run {}: {cause}", .program.display())]
    NotRunnable { program: PathBuf, cause: String },

    #[error("cannot run {} in {}: {cause}", .program.display(), .working_dir.display())]
    WorkingDir {
        program: PathBuf,
        working_dir: PathBuf,
        cause: String,
    },

    /// The machine refused: no process, no descriptor, no memory left.
    #[error("cannot start {}: {cause}", .program.display())]
    Machine { program: PathBuf, cause: String },
}

fn place(program: &std::path::Path) -> &'static str {
    if program.components().count() > 1 {
        ""
    } else {
        " on PATH"
    }
}

/// Keeps secrets out of core dumps, and out of the reach of the user's other processes (their debuggers,
/// `/proc/PID/environ`). Makes this process the one that orphaned descendants come back to, so that a job's daemons are
/// found when the job ends. Once, early; without it only those that stay in the job's process group
/// are found.
pub fn prepare_host() {
    if let Err(error) = rustix::process::set_child_subreaper(Some(rustix::process::getpid())) {
        tracing::debug!(%error, "not a child subreaper: daemons that a job starts will not be found");
    }
    // The agent has secrets in its memory. A job that is started is as it would be by itself.
    let no_dump = rustix::process::DumpableBehavior::NotDumpable;
    if let Err(error) = rustix::process::set_dumpable_behavior(no_dump) {
        tracing::debug!(%error, "a crash would leave a core dump with secrets in it");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_leaves_no_core_with_secrets_in_it() {
        prepare_host();
        let behaviour = rustix::process::dumpable_behavior().unwrap();
        assert_eq!(behaviour, rustix::process::DumpableBehavior::NotDumpable);
    }
}
