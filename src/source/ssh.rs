//! Repositories over ssh by the machine's own ssh program, as git does it: `~/.ssh/config`, keys,
//! agents, certificates, jump hosts and known hosts mean what they mean at a shell. libgit2's own ssh
//! (which knows none of these but keys and known hosts) is for machines without that program.

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use git2::transport::{self, Service, SmartSubtransport, SmartSubtransportStream, Transport};
use percent_encoding::percent_decode_str;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio_util::sync::CancellationToken;

use super::url::Address;
use crate::config::Variables;
use crate::process::die_with_the_agent;
use crate::process::job_group::Entrance;

/// libgit2 is given addresses of this scheme where the ssh program is to be used.
const SCHEME: &str = "openssh";
/// How often a connection looks whether the run is to stop.
const STOP_POLL: Duration = Duration::from_millis(50);
/// How long the last words of a program that has closed its output are waited for.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// So much of what the program says is kept for the error.
const KEPT: usize = 4000;

/// The ssh program that git would use here.
#[derive(Debug, Clone)]
pub(super) struct SshProgram {
    program: Program,
    env: Variables,
}

#[derive(Debug, Clone, PartialEq)]
enum Program {
    /// OpenSSH, found on `PATH`.
    Found(PathBuf),
    /// `GIT_SSH`.
    Named(PathBuf),
    /// `GIT_SSH_COMMAND` or `core.sshCommand`: a line for a shell.
    Line(String),
}

impl SshProgram {
    /// In git's order: `GIT_SSH_COMMAND`, `core.sshCommand`, `GIT_SSH`, `ssh` on `PATH`.
    pub(super) fn find(env: &Variables, configured: Option<String>) -> Option<Self> {
        let set = |name: &str| env.get(name).filter(|value| !value.trim().is_empty());
        let line = set("GIT_SSH_COMMAND").cloned();
        let program = match line.or_else(|| configured.filter(|line| !line.trim().is_empty())) {
            Some(line) => Program::Line(line),
            None => match set("GIT_SSH") {
                Some(path) => Program::Named(path.into()),
                None => Program::Found(on_path(env, "ssh")?),
            },
        };
        Some(Self {
            program,
            env: env.clone(),
        })
    }

    /// Whether the user has named it, or said how it is called.
    pub(super) fn is_the_users(&self) -> bool {
        !matches!(self.program, Program::Found(_))
    }

    /// Whether it has something to identify itself with to this host: an agent, or a key file that is
    /// there. What somebody else's command line does is not known, and taken for yes.
    pub(super) fn has_identity(&self, address: &Address) -> bool {
        let Program::Found(program) = &self.program else {
            return true;
        };
        let is_there = |path: &str| {
            let home = self.env.get("HOME").map(String::as_str);
            let path = match (path.strip_prefix("~/"), home) {
                (Some(rest), Some(home)) => Path::new(home).join(rest),
                _ => PathBuf::from(path),
            };
            path.exists()
        };
        if self.env.get("SSH_AUTH_SOCK").is_some_and(|s| is_there(s)) {
            return true;
        }
        let Ok(host) = destination(address) else {
            return false;
        };
        let settings = Command::new(program)
            .args(["-G", "--", &host])
            .env_clear()
            .envs(&self.env)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output();
        let text = settings.map_or_else(|_| Vec::new(), |output| output.stdout);
        String::from_utf8_lossy(&text)
            .lines()
            .filter_map(|line| line.split_once(' '))
            .any(|(name, value)| match name {
                "identityfile" | "identityagent" => is_there(value),
                "pkcs11provider" => value != "none",
                _ => false,
            })
    }

    fn command(&self, address: &Address) -> io::Result<Command> {
        let host = destination(address)?;
        let is_plink = |name: &str| name.to_lowercase().contains("plink");
        let (mut command, name) = match &self.program {
            Program::Found(path) => {
                let mut command = Command::new(path);
                // No question could be answered. A dead connection is noticed.
                command.args(["-oBatchMode=yes", "-oConnectTimeout=15"]);
                command.args(["-oServerAliveInterval=15", "-oServerAliveCountMax=4"]);
                (command, "ssh".to_owned())
            }
            Program::Named(path) => (Command::new(path), path.display().to_string()),
            Program::Line(line) => {
                let mut command = Command::new("/bin/sh");
                command.args(["-c", &format!("{line} \"$@\""), line]);
                let first = line.split_whitespace().next().unwrap_or_default();
                (command, first.to_owned())
            }
        };
        if let Some(port) = address.port {
            let option = if is_plink(&name) { "-P" } else { "-p" };
            command.args([option, &port.to_string()]);
        }
        command.arg(host);
        command.arg(format!("git-upload-pack {}", quoted(&remote_path(address))));
        command.env_clear().envs(&self.env);
        Ok(command)
    }
}

/// The first executable file of this name on `PATH`.
pub(super) fn on_path(env: &Variables, name: &str) -> Option<PathBuf> {
    let is_program = |path: &PathBuf| {
        let meta = std::fs::metadata(path);
        meta.is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    std::env::split_paths(env.get("PATH")?)
        .map(|folder| folder.join(name))
        .find(is_program)
}

/// `[user@]host`, which must not be taken for an option.
fn destination(address: &Address) -> io::Result<String> {
    let host = address.host_as_given().unwrap_or_default();
    let host = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(inner) => inner,
        None => host,
    };
    let text = match &address.user {
        Some(user) => format!("{user}@{host}"),
        None => host.to_owned(),
    };
    if host.is_empty() || host.starts_with('-') || text.starts_with('-') {
        let problem = format!("{text:?} is not the name of a host");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
    }
    Ok(text)
}

/// The path as the other side's shell is to see it: of a URL without its percent signs, and
/// `/~user/x` from that user's home.
fn remote_path(address: &Address) -> String {
    if !address.text().contains("://") {
        return address.path().to_owned();
    }
    let path = percent_decode_str(address.path()).decode_utf8_lossy();
    match path.starts_with("/~") {
        true => path[1..].to_owned(),
        false => path.into_owned(),
    }
}

/// One word for a shell, as git quotes it.
fn quoted(word: &str) -> String {
    let mut quoted = String::from("'");
    for c in word.chars() {
        match c {
            '\'' | '!' => quoted.extend(["'\\", &c.to_string(), "'"]),
            _ => quoted.push(c),
        }
    }
    quoted + "'"
}

/// One use of the program: what libgit2's transport needs to start it, and what it said.
#[derive(Clone)]
pub(super) struct Call {
    program: SshProgram,
    address: Address,
    stop: CancellationToken,
    said: Arc<Mutex<Vec<u8>>>,
}

thread_local! {
    /// The call that a connection opened on this thread is for: libgit2 passes nothing but an address.
    static CURRENT: RefCell<Option<Call>> = const { RefCell::new(None) };
}

impl Call {
    pub(super) fn new(program: &SshProgram, address: &Address, stop: &CancellationToken) -> Self {
        Self {
            program: program.clone(),
            address: address.clone(),
            stop: stop.clone(),
            said: Arc::default(),
        }
    }

    /// The address that leads libgit2 here. Host and path are told again by the call itself.
    pub(super) fn address() -> String {
        format!("{SCHEME}://ssh/")
    }

    /// Runs `fetch`, in which [`Self::address`] means this call.
    pub(super) fn during<T>(&self, fetch: impl FnOnce() -> T) -> T {
        struct Restore(Option<Call>);
        impl Drop for Restore {
            fn drop(&mut self) {
                CURRENT.set(self.0.take());
            }
        }
        let _restore = Restore(CURRENT.replace(Some(self.clone())));
        fetch()
    }

    /// What the program said when it failed, without its mere remarks.
    pub(super) fn complaint(&self) -> Option<String> {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(&said);
        let lines = text.lines().map(str::trim);
        let lines = lines.filter(|line| {
            !line.is_empty()
                && !line.starts_with("Warning: Permanently added")
                && !line.starts_with("Please make sure you have the correct access rights")
                && !line.starts_with("and the repository exists")
                && line.chars().any(char::is_alphanumeric)
        });
        let mut lines: Vec<&str> = lines.collect();
        let first = lines.len().saturating_sub(4);
        lines.drain(..first);
        (!lines.is_empty()).then(|| lines.join("; "))
    }

    fn start(&self) -> io::Result<Stream> {
        let mut command = self.program.command(&self.address)?;
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        // A run's fetches are one thread's, which outlives them.
        die_with_the_agent(&mut command, Entrance::default());
        let mut child = command.spawn()?;
        let (Some(input), Some(output), Some(mut errors)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(io::Error::other("ssh was started without its pipes"));
        };
        let said = Arc::clone(&self.said);
        let (all_heard, heard) = mpsc::channel::<()>();
        std::thread::spawn(move || {
            let _all_heard = all_heard;
            let mut buffer = [0; 1024];
            while let Ok(length @ 1..) = errors.read(&mut buffer) {
                let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
                said.extend_from_slice(&buffer[..length]);
                let surplus = said.len().saturating_sub(KEPT);
                said.drain(..surplus);
            }
        });
        let group = Pid::from_raw(child.id().cast_signed());
        let (over, is_over) = mpsc::channel::<()>();
        let stop = self.stop.clone();
        let watcher = std::thread::spawn(move || {
            while is_over.recv_timeout(STOP_POLL) == Err(RecvTimeoutError::Timeout) {
                if stop.is_cancelled() {
                    kill(group);
                    break;
                }
            }
        });
        Ok(Stream {
            child,
            group,
            input: Some(input),
            output,
            ended: false,
            heard,
            over: Some(over),
            watcher: Some(watcher),
        })
    }
}

fn kill(group: Option<Pid>) {
    if let Some(group) = group {
        // It may be gone already.
        let _ = kill_process_group(group, Signal::KILL);
    }
}

/// Makes libgit2 know the scheme. To be called once, before any fetch, by one thread.
#[allow(unsafe_code)]
pub(super) fn register() -> Result<(), git2::Error> {
    // SAFETY: the list of transports is written here alone, behind the lock of `prepare_libgit2`,
    // through which every user of libgit2's network comes first.
    unsafe {
        transport::register(SCHEME, |remote| {
            let call = CURRENT.with_borrow(Clone::clone);
            let call = call.ok_or_else(|| git2::Error::from_str("no ssh connection is wanted"))?;
            Transport::smart(remote, false, Subtransport { call })
        })
    }
}

struct Subtransport {
    call: Call,
}

impl SmartSubtransport for Subtransport {
    fn action(
        &self,
        _url: &str,
        service: Service,
    ) -> Result<Box<dyn SmartSubtransportStream>, git2::Error> {
        if !matches!(service, Service::UploadPackLs | Service::UploadPack) {
            return Err(git2::Error::from_str("nothing is ever pushed"));
        }
        let stream = self.call.start().map_err(|error| {
            let mut said = self
                .call
                .said
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            said.extend_from_slice(format!("ssh cannot be started: {error}").as_bytes());
            git2::Error::from_str(&error.to_string())
        })?;
        Ok(Box::new(stream))
    }

    fn close(&self) -> Result<(), git2::Error> {
        Ok(())
    }
}

/// A running ssh; it ends with this value.
struct Stream {
    child: Child,
    group: Option<Pid>,
    input: Option<ChildStdin>,
    output: ChildStdout,
    /// It has closed its side.
    ended: bool,
    /// Disconnected when all that it said has been heard.
    heard: mpsc::Receiver<()>,
    over: Option<mpsc::Sender<()>>,
    watcher: Option<JoinHandle<()>>,
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.output.read(buffer)?;
        self.ended |= length == 0 && !buffer.is_empty();
        Ok(length)
    }
}

impl Write for Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match &mut self.input {
            Some(input) => input.write(buffer),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.input.as_mut().map_or(Ok(()), Write::flush)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        drop(self.input.take());
        if self.ended {
            // Its last words say why. A shared connection that it left behind holds the pipe open.
            let _ = self.heard.recv_timeout(LAST_WORDS);
        }
        kill(self.group);
        let _ = self.child.wait();
        drop(self.over.take());
        if let Some(watcher) = self.watcher.take() {
            let _ = watcher.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(env: &[(&str, &str)], address: &str) -> Vec<String> {
        let env = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        let program = SshProgram::find(&env.collect(), None).unwrap();
        let command = program.command(&Address::parse(address)).unwrap();
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        words.map(|w| w.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn the_program_is_called_as_git_calls_it() {
        for (env, address, expected) in [
            (
                ("GIT_SSH", "/x/ssh"),
                "git@h:a/b c.git",
                &["/x/ssh", "git@h", "git-upload-pack 'a/b c.git'"][..],
            ),
            (
                ("GIT_SSH", "/x/ssh"),
                "ssh://Alias:2222/a%20b",
                &["/x/ssh", "-p", "2222", "Alias", "git-upload-pack '/a b'"],
            ),
            (
                ("GIT_SSH", "/x/plink"),
                "ssh://u@[::1]:22/~bob/it's",
                &[
                    "/x/plink",
                    "-P",
                    "22",
                    "u@::1",
                    "git-upload-pack '~bob/it'\\''s'",
                ],
            ),
            (
                ("GIT_SSH_COMMAND", "ssh -F 'my config'"),
                "h:a",
                &[
                    "/bin/sh",
                    "-c",
                    "ssh -F 'my config' \"$@\"",
                    "ssh -F 'my config'",
                    "h",
                    "git-upload-pack 'a'",
                ],
            ),
        ] {
            assert_eq!(words(&[env], address), expected, "{address}");
        }
    }

    #[test]
    fn no_host_is_an_option() {
        let env: Variables = [("GIT_SSH".to_owned(), "ssh".to_owned())].into();
        let program = SshProgram::find(&env, None).unwrap();
        for address in ["ssh://-oProxyCommand=x/a", "-oProxyCommand=x:a", "ssh:///a"] {
            assert!(
                program.command(&Address::parse(address)).is_err(),
                "{address}"
            );
        }
    }
}
