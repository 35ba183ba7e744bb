//! An engine on a machine that ssh leads to: as docker's client does it, each connection is an
//! `ssh HOST docker system dial-stdio`, whose pipes lead to the engine's socket there. Hosts, users, keys and
//! known hosts are OpenSSH's business.

use std::io;
use std::pin::Pin;
use std::process::Stdio;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::address::{SshHost, Variables};
use crate::process::die_with_the_agent;
use crate::process::job_group::Entrance;

/// How long the last words of a program that has closed its output are waited for.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// So much of what the program says is kept for the error.
const KEPT: u64 = 8000;

/// Why a machine that ssh is to lead to has no engine for this run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{said}")]
pub struct SshError {
    pub why: Why,
    /// What the program said.
    pub said: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// No ssh here.
    NoProgram,
    /// The machine refuses this user.
    NotLetIn,
    /// The machine's key is not the known one, or there is none.
    UnknownHost,
    /// No docker there.
    NoDocker,
    /// The user there may not use the engine.
    MayNotUseEngine,
    Other,
}

/// What to run.
fn words(to: &SshHost) -> Vec<String> {
    // No question could be answered, and a dead connection is to be noticed.
    let mut words: Vec<String> = [
        "-T",
        "-oBatchMode=yes",
        "-oConnectTimeout=15",
        "-oServerAliveInterval=15",
        "-oServerAliveCountMax=4",
    ]
    .map(str::to_owned)
    .into();
    if let Some(user) = &to.user {
        words.extend(["-l".to_owned(), user.clone()]);
    }
    if let Some(port) = to.port {
        words.extend(["-p".to_owned(), port.to_string()]);
    }
    words.extend(["--".to_owned(), to.host.clone(), "docker".to_owned()]);
    if let Some(socket) = &to.socket {
        // The words after the host are put together for a shell there.
        let place = format!("unix://{socket}");
        let place = shlex::try_quote(&place).map_or_else(|_| place.clone(), Into::into);
        words.extend(["--host".to_owned(), place]);
    }
    words.extend(["system", "dial-stdio"].map(str::to_owned));
    words
}

/// What the program's end means.
fn why(said: &str) -> Why {
    let lower = said.to_lowercase();
    let has = |part: &str| lower.contains(part);
    match () {
        () if has("host key verification failed") => Why::UnknownHost,
        () if has("permission denied") && (has("docker daemon socket") || has("dial unix")) => {
            Why::MayNotUseEngine
        }
        () if has("permission denied (") || has("too many authentication failures") => {
            Why::NotLetIn
        }
        () if has("docker: command not found")
            || has("docker: not found")
            || has("unknown command: docker")
            || has("dial-stdio") && has("not a docker command") =>
        {
            Why::NoDocker
        }
        () => Why::Other,
    }
}

/// Starts one connection. That it leads nowhere is known when it is used.
pub(super) fn open(to: &SshHost, env: &Arc<Variables>) -> io::Result<Stream> {
    let mut command = Command::new("ssh");
    command
        .args(words(to))
        .env_clear()
        .envs(env.iter())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    // Of its own session: Ctrl-C is for the agent, which still needs it to end the container.
    die_with_the_agent(command.as_std_mut(), Entrance::default());
    let mut child = command.spawn().map_err(|error| {
        io::Error::other(SshError {
            why: match error.kind() {
                io::ErrorKind::NotFound => Why::NoProgram,
                _ => Why::Other,
            },
            said: format!("ssh cannot be started: {error}"),
        })
    })?;
    let (Some(input), Some(output), Some(errors)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err(io::Error::other("ssh was started without its pipes"));
    };
    Ok(Stream {
        input: Some(input),
        output,
        heard: false,
        life: Life::Runs {
            child,
            said: tokio::spawn(async move {
                let mut said = Vec::new();
                let mut errors = errors;
                let _ = (&mut errors).take(KEPT).read_to_end(&mut said).await;
                // A full pipe would stop it.
                let rest = tokio::spawn(async move {
                    tokio::io::copy(&mut errors, &mut tokio::io::sink()).await
                });
                drop(rest);
                String::from_utf8_lossy(&said).into_owned()
            }),
        },
    })
}

/// A running ssh; it ends with this value.
pub(super) struct Stream {
    /// Until it is told that nothing more comes.
    input: Option<ChildStdin>,
    output: ChildStdout,
    /// Something came from the engine.
    heard: bool,
    life: Life,
}

enum Life {
    Runs {
        child: Child,
        said: tokio::task::JoinHandle<String>,
    },
    /// It has closed its side before anything came: what it says is the error.
    Ending(Pin<Box<dyn Future<Output = SshError> + Send>>),
    Ended(SshError),
}

/// What it said at its end.
async fn last_words(mut child: Child, said: tokio::task::JoinHandle<String>) -> SshError {
    // A shared connection that it left behind may hold the pipe open.
    let said = tokio::time::timeout(LAST_WORDS, said).await;
    let ended = tokio::time::timeout(LAST_WORDS, child.wait()).await;
    let text = said.ok().and_then(Result::ok).unwrap_or_default();
    let lines = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with("Warning: Permanently added"));
    let mut lines: Vec<&str> = lines.collect();
    lines.drain(..lines.len().saturating_sub(4));
    let said = match (lines.is_empty(), ended) {
        (false, _) => lines.join("; "),
        (true, Ok(Ok(status))) => format!("ssh ended without a word ({status})"),
        (true, _) => "ssh has closed the connection without a word".to_owned(),
    };
    SshError {
        why: why(&text),
        said,
    }
}

impl Stream {
    /// Why there is nothing to be had from it.
    fn poll_error(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        loop {
            let error = match &mut self.life {
                Life::Ended(error) => return Poll::Ready(io::Error::other(error.clone())),
                Life::Ending(ending) => ready!(ending.as_mut().poll(context)),
                Life::Runs { .. } => {
                    let placeholder = SshError {
                        why: Why::Other,
                        said: String::new(),
                    };
                    let life = std::mem::replace(&mut self.life, Life::Ended(placeholder));
                    if let Life::Runs { child, said } = life {
                        self.life = Life::Ending(Box::pin(last_words(child, said)));
                    }
                    continue;
                }
            };
            self.life = Life::Ended(error);
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if matches!(self.life, Life::Runs { .. }) {
            let before = buffer.filled().len();
            let read = ready!(Pin::new(&mut self.output).poll_read(context, buffer));
            self.heard |= buffer.filled().len() > before;
            if self.heard || (read.is_ok() && buffer.remaining() == 0) {
                return Poll::Ready(read);
            }
        }
        self.poll_error(context).map(Err)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if matches!(self.life, Life::Runs { .. }) {
            let Some(input) = &mut self.input else {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            };
            match ready!(Pin::new(input).poll_write(context, bytes)) {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe && !self.heard => {}
                written => return Poll::Ready(written),
            }
        }
        self.poll_error(context).map(Err)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.input {
            Some(input) => Pin::new(input).poll_flush(context),
            None => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Only its end closes a pipe.
        self.input = None;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ssh_is_called_as_docker_calls_it() {
        let host = SshHost {
            user: None,
            host: "engine".into(),
            port: None,
            socket: None,
        };
        let options = "-T -oBatchMode=yes -oConnectTimeout=15 -oServerAliveInterval=15 \
                       -oServerAliveCountMax=4";
        for (to, expected) in [
            (host.clone(), "-- engine docker system dial-stdio"),
            (
                SshHost {
                    user: Some("me".into()),
                    port: Some(2222),
                    socket: Some("/run/a b.sock".into()),
                    ..host
                },
                "-l me -p 2222 -- engine docker --host 'unix:///run/a b.sock' system dial-stdio",
            ),
        ] {
            assert_eq!(words(&to).join(" "), format!("{options} {expected}"));
        }
    }

    #[test]
    fn what_ssh_says_is_understood() {
        for (said, expected) in [
            ("me@h: Permission denied (publickey).", Why::NotLetIn),
            ("Host key verification failed.", Why::UnknownHost),
            ("bash: line 1: docker: command not found", Why::NoDocker),
            ("sh: 1: docker: not found", Why::NoDocker),
            (
                "permission denied while trying to connect to the Docker daemon socket at \
                 unix:///var/run/docker.sock: Get \"http://…\": dial unix: connect: permission denied",
                Why::MayNotUseEngine,
            ),
            (
                "failed to open the raw stream connection: dial unix /var/run/docker.sock: connect: permission denied",
                Why::MayNotUseEngine,
            ),
            (
                "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?",
                Why::Other,
            ),
            (
                "ssh: connect to host h port 22: Connection refused",
                Why::Other,
            ),
        ] {
            assert_eq!(why(said), expected, "{said}");
        }
    }
}
