//! Runs uv, pip and their like: own process group, one pipe for both streams, each line masked
//! and said at once, the last ones kept for the error. They die with the agent, as a job does.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::LazyLock;
use std::time::Duration;

use regex::Regex;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio_util::sync::CancellationToken;

use super::{PythonError, Variables};
use crate::config::is_for_the_job;
use crate::console::Console;
use crate::process::die_with_the_agent;
use crate::process::job_group::Entrance;
use crate::secret::mask_url_password;

/// How many lines are kept for the error.
const KEPT_LINES: usize = 25;
/// A longer line is cut: a tool gone wild must not fill the memory.
const LONGEST_LINE: u64 = 4000;
/// From the polite signal to the other one.
const GRACE: Duration = Duration::from_secs(3);

/// A program to run, with its whole environment (which may hold secrets: no `Debug`).
pub struct Call {
    pub program: PathBuf,
    pub args: Vec<String>,
    pub env: Variables,
    pub dir: PathBuf,
}

#[derive(Debug)]
pub struct Finished {
    /// `None`: killed by a signal.
    pub code: Option<i32>,
    pub last_lines: Vec<String>,
}

impl Finished {
    pub fn succeeded(&self) -> bool {
        self.code == Some(0)
    }
}

/// Runs it to its end. When `stop` comes, the program and all that it started are killed.
pub async fn run(
    call: &Call,
    console: &Console,
    stop: &CancellationToken,
) -> Result<Finished, PythonError> {
    let failed = |cause: std::io::Error| PythonError::Io {
        what: format!("{} can't be run", call.program.display()),
        cause: cause.to_string(),
    };
    let (reader, writer) = std::io::pipe().map_err(failed)?;
    let mut command = tokio::process::Command::new(&call.program);
    command
        .args(&call.args)
        .env_clear()
        .envs(&call.env)
        .current_dir(&call.dir)
        .stdin(Stdio::null())
        .stdout(writer.try_clone().map_err(failed)?)
        .stderr(writer)
        .kill_on_drop(true);
    // This thread is one of the runtime's, which last as long as the agent.
    die_with_the_agent(command.as_std_mut(), Entrance::default());
    let mut child = command.spawn().map_err(failed)?;
    // It holds the writing end, and the end of the output would never be seen.
    drop(command);
    let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));

    let reader = tokio::net::unix::pipe::Receiver::from_owned_fd(reader.into()).map_err(failed)?;
    let mut lines = BufReader::new(reader);
    let mut last_lines = VecDeque::new();
    let mut read = Box::pin(async {
        while let Some(line) = next_line(&mut lines).await {
            let line = mask(line.trim_end());
            if line.is_empty() {
                continue;
            }
            console.say(&line);
            if last_lines.len() == KEPT_LINES {
                last_lines.pop_front();
            }
            last_lines.push_back(line);
        }
    });
    let to_the_end = async {
        tokio::select! {
            () = &mut read => child.wait().await,
            status = child.wait() => {
                // What it wrote last is still in the pipe; but something that it left behind may
                // hold the pipe open for ever.
                let _ = tokio::time::timeout(GRACE, &mut read).await;
                status
            }
        }
    };
    let status = tokio::select! {
        status = to_the_end => Some(status),
        () = stop.cancelled() => None,
    };
    drop(read);
    let Some(status) = status else {
        if let Some(group) = group {
            let _ = kill_process_group(group, Signal::TERM);
            let _ = tokio::time::timeout(GRACE, child.wait()).await;
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = child.wait().await;
        return Err(PythonError::Stopped);
    };
    Ok(Finished {
        code: status.map_err(failed)?.code(),
        last_lines: last_lines.into(),
    })
}

/// The next line, at most [`LONGEST_LINE`] bytes of it; a carriage return ends one too.
async fn next_line(from: &mut (impl AsyncBufReadExt + Unpin)) -> Option<String> {
    let mut line = Vec::new();
    let read = (&mut *from)
        .take(LONGEST_LINE)
        .read_until(b'\n', &mut line)
        .await;
    match read {
        Ok(count) if count > 0 => {
            let text = String::from_utf8_lossy(&line).into_owned();
            // Of a progress line only the last frame.
            let text = text.trim_end();
            Some(text.rsplit('\r').next().unwrap_or(text).to_owned())
        }
        _ => None,
    }
}

/// `text` with the passwords of all addresses in it masked.
pub fn mask(text: &str) -> String {
    static ADDRESS: LazyLock<Regex> = LazyLock::new(|| {
        #[expect(clippy::unwrap_used, reason = "a constant pattern, used by a test")]
        Regex::new(r#"[A-Za-z][A-Za-z0-9+.-]*://[^\s'"<>`]+"#).unwrap()
    });
    // conda has a channel's token in the path.
    static TOKEN: LazyLock<Regex> = LazyLock::new(|| {
        #[expect(clippy::unwrap_used, reason = "a constant pattern, used by a test")]
        Regex::new("/t/[A-Za-z0-9_-]{8,}/").unwrap()
    });
    ADDRESS
        .replace_all(text, |found: &regex::Captures<'_>| {
            // `git+https://TOKEN@host`: the rules for a token are those of the plain address.
            let shown = match found[0].split_once('+') {
                Some((kind, url)) if url.starts_with("http") => {
                    format!("{kind}+{}", mask_url_password(url))
                }
                _ => mask_url_password(&found[0]),
            };
            TOKEN.replace(&shown, "/t/****/").into_owned()
        })
        .into_owned()
}

/// The environment for a tool: the agent's own without what would bend the tool and without its logins,
/// which what is built would inherit; with `more`.
pub fn environment(inherited: &Variables, more: Variables) -> Variables {
    const BENDING: [&str; 5] = [
        "PYTHONPATH",
        "PYTHONHOME",
        "VIRTUAL_ENV",
        "CONDA_PREFIX",
        "__PYVENV_LAUNCHER__",
    ];
    let mut env = inherited.clone();
    env.retain(|name, _| !BENDING.contains(&name.as_str()) && is_for_the_job(name));
    env.extend(more);
    env
}

/// The first file of this name in the folders that may be executed.
pub fn find_program(name: &str, folders: &[PathBuf]) -> Option<PathBuf> {
    folders
        .iter()
        .map(|folder| folder.join(name))
        .find(|path| is_program(path))
}

/// Whether this is a file that may be executed.
pub fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    fn sh(script: &str) -> Call {
        Call {
            program: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
            env: Variables::new(),
            dir: "/".into(),
        }
    }

    #[tokio::test]
    async fn both_streams_are_said_in_order_and_masked() {
        let said = Arc::new(Mutex::new(Vec::new()));
        let console = Console::new({
            let said = said.clone();
            move |line| said.lock().unwrap().push(line.to_owned())
        });
        let call =
            sh("echo one; echo 'at https://u:pw@h/simple/x' >&2; printf '1%%\\r2%%\\n'; exit 3");
        let finished = run(&call, &console, &CancellationToken::new())
            .await
            .unwrap();
        assert_eq!(finished.code, Some(3));
        let expected = ["one", "at https://u:****@h/simple/x", "2%"];
        assert_eq!(finished.last_lines, expected);
        assert_eq!(*said.lock().unwrap(), expected);
    }

    #[tokio::test]
    async fn a_stop_ends_the_whole_group() {
        let stop = CancellationToken::new();
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("held");
        let made = std::process::Command::new("mkfifo").arg(&fifo).status();
        assert!(made.unwrap().success());
        let script = format!("exec 3>'{}'; sleep 600 & echo on >&3; wait", fifo.display());
        let running = tokio::spawn({
            let (stop, console) = (stop.clone(), Console::new(|_| ()));
            async move { run(&sh(&script), &console, &stop).await }
        });
        // It ends when the last process that has it open for writing has ended.
        let held = tokio::task::spawn_blocking({
            let stop = stop.clone();
            move || {
                let mut held = std::fs::File::open(fifo).unwrap();
                let mut said = [0; 3];
                std::io::Read::read_exact(&mut held, &mut said).unwrap();
                stop.cancel();
                std::io::Read::read_to_end(&mut held, &mut Vec::new()).unwrap()
            }
        });
        assert_eq!(running.await.unwrap().unwrap_err(), PythonError::Stopped);
        assert_eq!(held.await.unwrap(), 0);
    }

    #[test]
    fn addresses_are_masked_in_running_text() {
        for (text, shown) in [
            ("no address", "no address"),
            (
                "fetch git+https://tok@h/r@main now",
                "fetch git+https://****@h/r@main now",
            ),
            ("git+ssh://git@h/r", "git+ssh://git@h/r"),
            (
                "'https://u:p@h/s' (ftp://a:b@c)",
                "'https://u:****@h/s' (ftp://a:****@c)",
            ),
            (
                "https://h/t/tk-1234-abcd/ours/linux-64",
                "https://h/t/****/ours/linux-64",
            ),
        ] {
            assert_eq!(mask(text), shown);
        }
    }
}
