//! Start, wait for and stop a job.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitOptions};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::account::{Account, Watch};
use super::job_group::{Entrance, JobGroup};
use super::leftovers::{self, Agent, Process};
use super::{Command, Ended, OutputPipe, SpawnError};

/// How long what the leader leaves behind may take to end by itself.
const LINGER: Duration = Duration::from_secs(2);
/// How long killed processes may take to vanish; one that waits for a dead disk never does.
const KILLED_LIMIT: Duration = Duration::from_secs(3);
/// How often ended orphans of a running job are reaped.
const REAP_INTERVAL: Duration = Duration::from_secs(30);

/// Leaders of the jobs that run now.
static LEADERS: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// A running program. Dropping it kills its process group.
#[derive(Debug)]
pub struct Job {
    leader: Pid,
    ended: watch::Receiver<Option<Ended>>,
    /// Dropped, it lets the leader's thread reap the leader. Until then the leader's id, and with it
    /// the group's, cannot come to mean another process.
    reap: Option<mpsc::Sender<()>>,
    /// Tells the output pipe that nobody is left to write.
    over: CancellationToken,
    /// Children that the agent had before this job.
    before: BTreeSet<i32>,
    /// None once it is handed over.
    watch: Option<Watch>,
    last_reaped: Instant,
}

/// Starts `command`. Must be called within a tokio runtime.
pub fn spawn(command: Command) -> Result<(Job, OutputPipe), SpawnError> {
    spawn_with(command, Stdio::null())
}

/// The same with standard input.
pub fn spawn_with(command: Command, input: Stdio) -> Result<(Job, OutputPipe), SpawnError> {
    let machine = |error: io::Error| SpawnError::Machine {
        program: command.program.clone(),
        cause: error.to_string(),
    };
    let (reader, writer) = io::pipe().map_err(machine)?;
    let mut child = std::process::Command::new(&command.program);
    child
        .args(&command.args)
        .current_dir(&command.working_dir)
        .env_clear()
        .envs(&command.env)
        .stdin(input)
        .stdout(writer.try_clone().map_err(machine)?)
        .stderr(writer);
    let mut watch = Watch::begin(command.working_dir.clone(), command.env.clone());
    die_with_the_agent(&mut child, watch.entrance());
    let over = CancellationToken::new();
    let output = OutputPipe::new(reader, over.clone()).map_err(machine)?;

    let before = leftovers::children(&leftovers::process_table(), agent_pid());

    // The parent-death signal comes when the *thread* that started the child ends. So the child gets
    // a thread that lives until the child is reaped.
    let (tell_started, started) = mpsc::sync_channel(1);
    let (tell_ended, ended) = watch::channel(None);
    let (reap, may_reap) = mpsc::channel();
    std::thread::Builder::new()
        .name("job".into())
        .spawn(move || lead(child, &tell_started, &tell_ended, &may_reap))
        .map_err(machine)?;
    let leader = started
        .recv()
        .unwrap_or_else(|_| Err(io::Error::other("the job's thread died")))
        .map_err(|error| explain(&command, &error))?;
    watch.entered(ended.borrow().is_some());
    let job = Job {
        leader,
        ended,
        reap: Some(reap),
        over,
        before,
        watch: Some(watch),
        last_reaped: Instant::now(),
    };
    Ok((job, output))
}

/// The child's own session (a new process group, and no terminal whose signals could reach or stop
/// it), and SIGKILL when the agent dies in whatever way: exactly, when the thread that starts the
/// child ends. It enters its control groups, where it is given some.
pub(crate) fn die_with_the_agent(child: &mut std::process::Command, groups: Entrance) {
    let agent = rustix::process::getpid();
    let prepare = move || {
        groups.enter();
        rustix::process::setsid()?;
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        // The agent may have died before the line above.
        if rustix::process::getppid() != Some(agent) {
            return Err(io::ErrorKind::NotConnected.into());
        }
        Ok(())
    };
    // SAFETY: between fork and exec only async-signal-safe calls are allowed. The closure makes plain
    // system calls (one write for each group) and builds errors that need no memory from the heap.
    #[allow(unsafe_code)]
    unsafe {
        child.pre_exec(prepare);
    }
}

/// The life of a job's thread.
fn lead(
    mut command: std::process::Command,
    started: &mpsc::SyncSender<io::Result<Pid>>,
    ended: &watch::Sender<Option<Ended>>,
    may_reap: &mpsc::Receiver<()>,
) {
    let leader = {
        // Locked, so that another job's search for orphans cannot take this child for one.
        let mut leaders = leaders();
        match command.spawn() {
            Ok(child) => {
                let leader = Pid::from_child(&child);
                leaders.insert(leader.as_raw_nonzero().get());
                leader
            }
            Err(error) => {
                let _ = started.send(Err(error));
                return;
            }
        }
    };
    // The command holds the writing end of the pipe, which must be the child's alone.
    drop(command);
    let _ = started.send(Ok(leader));

    let how = wait_without_reaping(leader);
    ended.send_replace(Some(how));
    // Nothing is ever sent: the other end is dropped.
    let _ = may_reap.recv();
    let _ = rustix::process::waitpid(Some(leader), WaitOptions::empty());
    leaders().remove(&leader.as_raw_nonzero().get());
}

fn wait_without_reaping(leader: Pid) -> Ended {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    loop {
        match rustix::process::waitid(WaitId::Pid(leader), options) {
            Ok(Some(status)) => {
                return match status.exit_status() {
                    Some(code) => Ended::Exited { code },
                    None => Ended::Signalled {
                        signal: status.terminating_signal().unwrap_or(9),
                    },
                };
            }
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                // Only if somebody else reaped our child, which nobody here does.
                tracing::error!(%error, "the job's exit status is lost");
                return Ended::Exited { code: 255 };
            }
        }
    }
}

fn agent_pid() -> i32 {
    rustix::process::getpid().as_raw_nonzero().get()
}

fn leaders() -> std::sync::MutexGuard<'static, BTreeSet<i32>> {
    LEADERS.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Job {
    /// The process id of the leader, which is also the id of its group and session.
    pub fn pid(&self) -> u32 {
        self.leader.as_raw_nonzero().get().unsigned_abs()
    }

    /// Waits until the job is over: its leader has ended, and what it left behind is gone, by itself
    /// or by SIGKILL after two seconds. Can be abandoned and called again.
    pub async fn wait(&mut self) -> Ended {
        let how = self.leader_end().await;
        let deadline = Instant::now() + LINGER;
        self.end_leftovers(None, std::future::ready(deadline)).await;
        self.close();
        how
    }

    /// Sends a signal to the job's process group; nothing more comes of it here.
    pub fn signal(&self, signal: i32) {
        if let Some(signal) = Signal::from_named_raw(signal).filter(|_| self.reap.is_some()) {
            self.signal_group(signal);
        }
    }

    /// Sends `signal` to the job's process group, waits up to `grace` (which may take a moment to be
    /// known) for everything to end, then sends SIGKILL to all of the job, wherever it went.
    pub async fn stop(&mut self, signal: i32, grace: impl Future<Output = Duration>) -> Ended {
        let signal = Signal::from_named_raw(signal).unwrap_or(Signal::TERM);
        self.sent(signal);
        let asked = Instant::now();
        if self.reap.is_some() {
            self.signal_group(signal);
            // A job that is held by SIGSTOP gets its signal only when it goes on.
            self.signal_group(Signal::CONT);
        }
        let mut grace = std::pin::pin!(grace);
        let mut known = None;
        let patience = async {
            let deadline = asked + (&mut grace).await;
            known = Some(deadline);
            tokio::time::sleep_until(deadline).await;
        };
        let in_time = tokio::select! {
            biased;
            _ = self.leader_end() => true,
            () = patience => false,
        };
        if !in_time {
            self.sent(Signal::KILL);
            self.signal_group(Signal::KILL);
        }
        let how = self.leader_end().await;
        // The others have as long as a leader that ends before anybody has looked how long that is.
        let deadline = async {
            match known {
                Some(deadline) => deadline,
                None => asked + grace.await,
            }
        };
        // Those that had left the group have not been asked yet.
        self.end_leftovers(Some(signal), deadline).await;
        self.close();
        how
    }

    async fn leader_end(&mut self) -> Ended {
        loop {
            if let Some(how) = *self.ended.borrow_and_update() {
                return how;
            }
            let pause = self.watch.as_ref().map_or(REAP_INTERVAL, Watch::pause);
            // The job's thread sends before it ends, so a closed channel has a value in it.
            if tokio::time::timeout(pause, self.ended.changed())
                .await
                .is_err()
            {
                self.look();
            }
        }
    }

    /// What the job uses is looked at; ended orphans are reaped now and then.
    fn look(&mut self) {
        let leader = self.leader.as_raw_nonzero().get();
        let in_group = self.group().map(JobGroup::processes);
        let due = self.last_reaped.elapsed() >= REAP_INTERVAL;
        let mut pids = match in_group {
            Some(pids) if !due => pids,
            _ => {
                self.last_reaped = Instant::now();
                self.living_leftovers().iter().map(|p| p.pid).collect()
            }
        };
        if !pids.contains(&leader) {
            pids.push(leader);
        }
        if let Some(watch) = &mut self.watch {
            watch.look(&pids);
        }
    }

    /// What the job used and why it failed, when it is over: after [`Job::wait`] or [`Job::stop`].
    /// `last_lines` are the last hundred or so that it printed, secrets masked.
    pub async fn account(mut self, ended: Ended, last_lines: &[&str]) -> Account {
        let leader = self.leader.as_raw_nonzero().get();
        match self.watch.take() {
            Some(watch) => watch.end(ended, leader, last_lines).await,
            None => Account::default(),
        }
    }

    fn group(&self) -> Option<&JobGroup> {
        self.watch.as_ref().and_then(Watch::group)
    }

    fn sent(&mut self, signal: Signal) {
        if let Some(watch) = &mut self.watch {
            watch.sent = Some(signal.as_raw());
        }
    }

    /// Waits until `deadline` for what the leader left behind, then kills it. `signal` is sent to
    /// those outside the job's group first.
    async fn end_leftovers(
        &mut self,
        signal: Option<Signal>,
        deadline: impl Future<Output = Instant>,
    ) {
        if self.reap.is_none() {
            return;
        }
        let mut left = self.living_leftovers();
        if let Some(signal) = signal {
            let group = self.leader.as_raw_nonzero().get();
            let outside: Vec<Process> = left.iter().filter(|p| p.group != group).copied().collect();
            leftovers::send(&outside, signal);
        }
        let mut pause = Duration::from_millis(5);
        let deadline = match left.is_empty() {
            true => Instant::now(),
            false => deadline.await,
        };
        while !left.is_empty() && Instant::now() < deadline {
            tokio::time::sleep(pause.min(deadline - Instant::now())).await;
            pause = (pause * 2).min(Duration::from_millis(100));
            left = self.living_leftovers();
        }
        if !left.is_empty() {
            let pids: Vec<i32> = left.iter().map(|p| p.pid).collect();
            tracing::debug!(?pids, "the job left processes behind: killed");
        }
        let give_up = Instant::now() + KILLED_LIMIT;
        // Again and again: one that is being killed may have started another.
        while !left.is_empty() && Instant::now() < give_up {
            self.signal_group(Signal::KILL);
            leftovers::send(&left, Signal::KILL);
            if let Some(group) = self.group() {
                group.kill();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
            left = self.living_leftovers();
        }
        // Where there is no /proc to look into, the group is what can be reached.
        self.signal_group(Signal::KILL);
    }

    /// The job's processes, but for the leader, that have not ended; those that have are reaped.
    fn living_leftovers(&self) -> Vec<Process> {
        let leader = self.leader.as_raw_nonzero().get();
        // In this order: every job's leader that is in the table is among the leaders, too.
        let table = leftovers::process_table();
        let mut others = leaders().clone();
        others.extend(&self.before);
        others.remove(&leader);
        let agent = Agent {
            pid: agent_pid(),
            // 0, which is no id, where the group's leader is outside this process namespace.
            group: table
                .iter()
                .find(|process| process.pid == agent_pid())
                .map_or(0, |process| process.group),
            others,
        };
        let mut of_the_job = leftovers::leftovers(&table, leader, &agent);
        // Those that neither family nor process group shows, since another subreaper has them.
        if let Some(group) = self.group() {
            let inside = group.processes();
            let missed = |p: &&Process| p.pid != leader && inside.contains(&p.pid);
            let missed: Vec<Process> = table.iter().filter(missed).copied().collect();
            of_the_job.extend(missed);
            of_the_job.sort_unstable_by_key(|p| p.pid);
            of_the_job.dedup_by_key(|p| p.pid);
        }
        leftovers::reap(of_the_job, agent.pid)
    }

    fn signal_group(&self, signal: Signal) {
        // An empty group is what is wanted.
        let _ = rustix::process::kill_process_group(self.leader, signal);
    }

    fn close(&mut self) {
        if self.reap.is_some()
            && let Some(watch) = &mut self.watch
        {
            watch.leader_goes(self.leader.as_raw_nonzero().get());
        }
        self.reap = None;
        self.over.cancel();
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if self.reap.is_some() {
            self.signal_group(Signal::KILL);
            self.close();
        }
        // Emptying its control group may have to wait for the kernel.
        if let Some(watch) = self.watch.take() {
            std::thread::spawn(move || drop(watch));
        }
    }
}

/// What `error`, the system's word on a failed start, means for `command`.
fn explain(command: &Command, error: &io::Error) -> SpawnError {
    let program = command.program.clone();
    let working_dir = command.working_dir.clone();
    // The system reports a failed change of folder with the same codes as a failed exec.
    match std::fs::metadata(&working_dir) {
        Err(error) => {
            return SpawnError::WorkingDir {
                program,
                working_dir,
                cause: format!("that folder cannot be used: {error}"),
            };
        }
        Ok(found) if !found.is_dir() => {
            return SpawnError::WorkingDir {
                program,
                working_dir,
                cause: "that is not a folder".into(),
            };
        }
        Ok(_) => {}
    }
    if rustix::fs::access(&working_dir, rustix::fs::Access::EXEC_OK).is_err() {
        return SpawnError::WorkingDir {
            program,
            working_dir,
            cause: "this user may not enter that folder".into(),
        };
    }
    match error.kind() {
        io::ErrorKind::NotFound if has_folder(&program) && program.is_file() => {
            SpawnError::NoInterpreter { program }
        }
        io::ErrorKind::NotFound => SpawnError::NotFound { program },
        io::ErrorKind::PermissionDenied => SpawnError::NotRunnable {
            program,
            cause: "the file is not executable for this user".into(),
        },
        _ => SpawnError::Machine {
            program,
            cause: error.to_string(),
        },
    }
}

fn has_folder(program: &Path) -> bool {
    program.components().count() > 1
}
