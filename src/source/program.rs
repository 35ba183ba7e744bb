//! Runs git's own programs for what libgit2 has no answer to: credential helpers, Git LFS. They die
//! with the agent, and at once when the run is to stop.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio_util::sync::CancellationToken;

use crate::process::die_with_the_agent;
use crate::process::job_group::Entrance;

/// How often it is looked whether the run is to stop.
const STOP_POLL: Duration = Duration::from_millis(50);

/// How a program ended.
pub(super) struct Finished {
    pub(super) success: bool,
    pub(super) output: Vec<u8>,
    /// What it said on stderr; secrets may be in it.
    pub(super) errors: Vec<String>,
}

/// Runs `command` with `input` to its end. `heard` gets each line of stderr as it comes.
pub(super) fn run(
    mut command: Command,
    input: &[u8],
    stop: &CancellationToken,
    heard: &(dyn Fn(&str) + Sync),
) -> io::Result<Finished> {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    die_with_the_agent(&mut command, Entrance::default());
    let mut child = command.spawn()?;
    let group = Pid::from_raw(child.id().cast_signed());
    let kill = || {
        if let Some(group) = group {
            // It may be gone already.
            let _ = kill_process_group(group, Signal::KILL);
        }
    };
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (over, is_over) = mpsc::channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            while is_over.recv_timeout(STOP_POLL) == Err(RecvTimeoutError::Timeout) {
                if stop.is_cancelled() {
                    kill();
                    break;
                }
            }
        });
        scope.spawn(move || {
            // One that does not read to the end says itself what is wrong.
            let _ = stdin.map(|mut stdin| stdin.write_all(input));
        });
        let listener = scope.spawn(move || {
            let lines = stderr
                .into_iter()
                .flat_map(|e| BufReader::new(e).split(b'\n'));
            let mut errors = Vec::new();
            for line in lines.map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                heard(&line);
                errors.push(line);
            }
            errors
        });
        let mut output = Vec::new();
        let read = stdout.map_or(Ok(0), |mut stdout| stdout.read_to_end(&mut output));
        let status = child.wait();
        // What it has left behind may hold the pipes.
        kill();
        drop(over);
        let errors = listener.join().unwrap_or_default();
        read?;
        Ok(Finished {
            success: status?.success(),
            output,
            errors,
        })
    })
}
