//! What ends a run whose agent was killed. The kernel kills the script itself then, but not what the
//! script started, nor a compiler below pip: those are found by a variable that all of a run inherit.
//!
//! The guard is a process of its own, this same program, started when the task is taken. It waits at
//! the end of a pipe whose other end only the agent has. A word through it, and all is well; its end
//! without a word, and the agent is gone. Signals that a scheduler sends to everybody do not end it.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use tokio::signal::unix::{SignalKind, signal};

use super::signal::{HUP, INT, TERM};

/// The variable that all processes of a run have; its value is the run's own.
pub const MARK: &str = "CLEARML_AGENT_RUN";

/// How long killed processes may take to vanish.
const LIMIT: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(10);

/// The agent's end. Dropping it lets the guard go.
#[derive(Debug)]
pub struct Guard(ChildStdin);

impl Guard {
    /// For the processes whose environment has `MARK` with the value `run`. Before anything of the
    /// run is started, so that it is not taken for a part of it.
    pub fn start(run: &str) -> io::Result<Guard> {
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0("clearml-agent")
            .args(["guard", "--run", run])
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // Out of reach of the terminal's signals, and of those to the agent's group.
        let own_session = || {
            rustix::process::setsid()?;
            Ok(())
        };
        // SAFETY: one plain system call between fork and exec.
        #[allow(unsafe_code)]
        unsafe {
            command.pre_exec(own_session);
        }
        let mut child = command.spawn()?;
        let pipe = child.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
        Ok(Guard(pipe))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Err(error) = self.0.write_all(b".") {
            tracing::debug!(%error, "the guard is gone");
        }
    }
}

/// The guard's whole life.
pub fn stand(run: &str) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    // Caught from now on (tokio gives no signal back), and nothing is done about them.
    let _within = runtime.enter();
    for number in [HUP, INT, TERM] {
        drop(signal(SignalKind::from_raw(number))?);
    }
    let mut word = Vec::new();
    io::stdin().read_to_end(&mut word)?;
    if word.is_empty() {
        end(run);
    }
    Ok(())
}

/// Kills again and again: one that is being killed may have started another.
fn end(run: &str) {
    let mark = format!("{MARK}={run}");
    let until = Instant::now() + LIMIT;
    while Instant::now() < until {
        let marked = marked(mark.as_bytes());
        if marked.is_empty() {
            return;
        }
        for pid in marked {
            // Gone meanwhile is as good.
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
        std::thread::sleep(PAUSE);
    }
}

/// Who has `mark` in the environment that it was started with. One that has ended has none.
fn marked(mark: &[u8]) -> Vec<Pid> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let environment = fs::read(entry.path().join("environ")).ok()?;
            let has = environment.split(|&byte| byte == 0).any(|one| one == mark);
            has.then_some(Pid::from_raw(pid)?)
        })
        .collect()
}
