//! The output of a run, from the job's pipe to everybody who wants it.
//!
//! All that the job prints and all that the agent says goes, in one order, to a spool file; from
//! there the terminal, the log file and the server each read at their own pace. So the job never
//! waits for the server and memory stays bounded whatever is printed.
//!
//! The server gets the job's part of the output, and the set-up part before it where that is asked
//! for or the set-up failed. It gets it as log events of many lines: cleaned and with progress bars
//! folded (`frames`), packed and stamped (`batch`), sent again until they are taken (`uploader`).
//! Terminal and log file get the bytes as they came. How far the server is stands in the spool file,
//! too: what a crash or an outage left is sent by `sync`.

mod batch;
mod clock;
mod frames;
mod position;
mod readers;
mod receipt;
mod shared;
mod spool;
pub mod sync;
mod tail;
mod uploader;

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;

pub use receipt::{Amount, Receipt};
pub use uploader::Upload;

#[cfg(fuzzing)]
pub use frames::fuzzing::lines as fuzz_lines;

use crate::console::Console;
use crate::mask::Mask;
use shared::Shared;
pub use spool::Ending;
use spool::Reader;

/// A prompt is shown when nothing has followed it for so long.
const PAUSE: Duration = Duration::from_millis(100);
/// What the terminal and the log file have at the end before the run goes on: nothing that matters more
/// waits for somebody who does not look.
const SOON: Duration = Duration::from_secs(1);
/// What a busy job prints is taken in such intervals.
const GATHER: Duration = Duration::from_millis(5);

#[derive(Debug, Clone)]
pub struct Options {
    /// Where the spool is made, beside those of other runs.
    pub dir: PathBuf,
    /// The name of this machine.
    pub machine: String,
    /// `agent.journal.max_size_mb`: how much output may wait on disk (bytes).
    pub limit: u64,
    /// `--log-file`: emptied at the start, kept at the end.
    pub log_file: Option<PathBuf>,
    /// Whether the output is shown on standard output.
    pub terminal: bool,
    /// `agent.suppress_carriage_return`: of a line that is drawn over and over, the server gets the
    /// last state of an interval only.
    pub suppress_carriage_return: bool,
    /// Whether the server gets the set-up part in any case.
    pub setup_to_server: bool,
    /// What is hidden before anything is kept.
    pub mask: Mask,
}

/// The task that a run holds, and by what.
#[derive(Debug, Clone, Copy)]
pub struct Held<'a> {
    /// The API server's address.
    pub server: &'a str,
    pub task: &'a str,
    pub worker: &'a str,
    pub claim: &'a str,
    /// Whether the claimant is a job that may be started again.
    pub comes_back: bool,
    /// The worker that had reported on the task before.
    pub former_worker: Option<&'a str>,
}

#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error(
        "cannot keep the run's output in {}: {cause}. The folder must be writable and have space",
        .dir.display()
    )]
    Spool { dir: PathBuf, cause: io::Error },

    #[error("cannot write the log file {}: {cause} (given by --log-file)", .path.display())]
    LogFile { path: PathBuf, cause: io::Error },
}

/// A cheap handle; clones are the same journal.
#[derive(Debug, Clone)]
pub struct Journal {
    shared: Arc<Shared>,
    machine: String,
    suppress_carriage_return: bool,
    followers: Arc<Mutex<Followers>>,
}

#[derive(Debug, Default)]
struct Followers {
    local: Vec<oneshot::Receiver<()>>,
    uploader: Option<JoinHandle<()>>,
}

impl Journal {
    pub fn open(options: Options) -> Result<Journal, JournalError> {
        let Options {
            dir,
            machine,
            limit,
            log_file,
            terminal,
            suppress_carriage_return,
            setup_to_server,
            mask,
        } = options;
        let spool_error = |cause: io::Error| JournalError::Spool {
            dir: dir.clone(),
            cause,
        };
        let log_file = match log_file {
            Some(path) => match File::create(&path) {
                Ok(file) => Some((path, file)),
                Err(cause) => return Err(JournalError::LogFile { path, cause }),
            },
            None => None,
        };
        let terminal = if terminal {
            // Not `io::stdout()` itself: it would hold back what has no newline yet.
            let stdout = io::stdout().as_fd().try_clone_to_owned();
            Some(File::from(stdout.map_err(spool_error)?))
        } else {
            None
        };

        std::fs::create_dir_all(&dir).map_err(spool_error)?;
        let (spool, path) = spool::create(&dir, &machine).map_err(spool_error)?;
        let shared = Arc::new(Shared::new(
            spool,
            path,
            terminal.is_some(),
            setup_to_server,
            limit,
            &mask,
        ));
        let mut followers = Followers::default();
        if let Some(stdout) = terminal {
            let reader = Reader::open(shared.path()).map_err(spool_error)?;
            let done = readers::terminal(shared.clone(), reader, stdout).map_err(spool_error)?;
            followers.local.push(done);
        }
        if let Some((path, file)) = log_file {
            let reader = Reader::open(shared.path()).map_err(spool_error)?;
            let done =
                readers::log_file(shared.clone(), reader, path, file).map_err(spool_error)?;
            followers.local.push(done);
        }
        Ok(Journal {
            shared,
            machine,
            suppress_carriage_return,
            followers: Arc::new(Mutex::new(followers)),
        })
    }

    /// The agent's own words. They go to the spool line by line, each on a line of its own.
    pub fn console(&self) -> Console {
        let shared = self.shared.clone();
        Console::new(move |line| shared.say(line))
    }

    /// Begins to send to the server. Must be called within a tokio runtime; a second call changes
    /// nothing.
    pub fn connect(&self, upload: Upload) {
        let mut followers = self.followers();
        if followers.uploader.is_none() {
            self.shared.describe(|about| {
                about.server = upload.session.host().to_owned();
                about.task = upload.task.clone();
                about.worker = upload.worker.clone();
                about.machine = self.machine.clone();
                about.fold = self.suppress_carriage_return;
                about.log = true;
                about.mark = upload.mark.clone();
            });
            self.shared.want_upload();
            followers.uploader = Some(tokio::spawn(uploader::run(
                self.shared.clone(),
                upload,
                self.suppress_carriage_return,
            )));
        }
    }

    /// From now on the journal answers for the task: whoever finds it after a crash sets the task's
    /// status, if the claim is still the one by which the task is held.
    pub fn answer_for(&self, held: &Held<'_>) {
        self.shared.describe(|about| {
            about.server = held.server.to_owned();
            about.task = held.task.to_owned();
            about.worker = held.worker.to_owned();
            about.machine = self.machine.clone();
            about.claim = Some(held.claim.to_owned());
            about.comes_back = held.comes_back;
            about.former_worker = held.former_worker.map(str::to_owned);
        });
        self.shared.keep_for_status(true);
    }

    /// The status that is about to be written: if that fails, `sync` writes it.
    pub fn will_end(&self, ending: &Ending) {
        let ending = ending.shortened();
        self.shared.describe(|about| about.ending = Some(ending));
    }

    /// The task's status is told: after [`Journal::finish`] the journal goes, unless the server still
    /// misses a part of the output.
    pub fn status_is_told(&self) {
        self.shared.describe(|about| about.claim = None);
        self.shared.keep_for_status(false);
        end_of(&self.shared);
    }

    /// What follows goes to the server always.
    pub fn job_started(&self) {
        self.shared.job_started();
    }

    /// The last hundred lines or so that were printed (not those of the agent), secrets masked.
    pub fn last_lines(&self) -> Vec<String> {
        self.shared.last_lines()
    }

    /// The set-up part goes to the server, too. Without effect once the job has started.
    pub fn release_setup(&self) {
        self.shared.release_setup();
    }

    /// Takes all that comes out of `pipe`, until its end. The spool takes it at the pace of the disk.
    pub async fn read_from(&self, mut pipe: impl AsyncRead + Unpin) -> io::Result<()> {
        let mut buffer = vec![0; spool::MOST_IN_A_RECORD];
        let mut last = Instant::now();
        // Whether all that came, and is no beginning of a secret, is kept.
        let mut settled = true;
        loop {
            let reading = pipe.read(&mut buffer);
            let read = if settled {
                reading.await?
            } else if let Ok(read) = tokio::time::timeout(PAUSE, reading).await {
                read?
            } else {
                self.shared.pause();
                settled = true;
                continue;
            };
            if read == 0 {
                self.shared.settle();
                return Ok(());
            }
            self.shared.append(&buffer[..read]);
            settled = false;
            // A job that prints line after line would have the agent woken for each: let some come
            // together in the pipe. A line after a pause goes on at once.
            let now = Instant::now();
            if read < buffer.len() && now - last < GATHER {
                tokio::time::sleep(GATHER).await;
            }
            last = Instant::now();
        }
    }

    /// Waits until the server has everything, at most for `limit`, and terminal and log file, where they take
    /// it soon (see [`Journal::shown`]). The spool is removed unless the server still misses a part of it,
    /// or the task's status is still to be told. What is said on the console afterwards goes to the
    /// terminal alone.
    pub async fn finish(self, limit: Duration) -> Receipt {
        self.finish_unless(limit, std::future::pending()).await
    }

    /// As [`Journal::finish`], but the server is not waited for any more when `hurried` resolves.
    pub async fn finish_unless(
        self,
        limit: Duration,
        hurried: impl Future<Output = ()>,
    ) -> Receipt {
        let deadline = Instant::now() + limit;
        self.shared.close();
        let Followers { local, uploader } = std::mem::take(&mut *self.followers());
        if let Some(mut uploader) = uploader {
            let is_done = tokio::select! {
                _ = &mut uploader => true,
                () = tokio::time::sleep_until(deadline) => false,
                () = hurried => false,
            };
            if !is_done {
                uploader.abort();
                // The spool is let go of.
                let _ = uploader.await;
            }
        }
        let soon = deadline.min(Instant::now() + SOON);
        let mut late = Vec::new();
        for mut done in local {
            if tokio::time::timeout_at(soon, &mut done).await.is_err() {
                late.push(done);
            }
        }
        self.followers().local = late;
        end_of(&self.shared)
    }

    /// After [`Journal::finish`]: waits for a terminal or a log file that was not through, unless nothing is
    /// taken for `stuck_after`.
    pub async fn shown(&self, stuck_after: Duration) {
        let mut taken = self.shared.read_by_all();
        let local = std::mem::take(&mut self.followers().local);
        for mut done in local {
            while tokio::time::timeout(stuck_after, &mut done).await.is_err() {
                let before = std::mem::replace(&mut taken, self.shared.read_by_all());
                if taken == before {
                    return;
                }
            }
        }
    }

    fn followers(&self) -> std::sync::MutexGuard<'_, Followers> {
        self.followers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the run of this machine with this `claim` is over, as the journal that it has left in `dir` says.
pub fn has_died(dir: &std::path::Path, machine: &str, claim: &str) -> bool {
    spool::left_by(dir, machine, claim).is_some()
}

/// What became of a journal that is closed; removes it unless something of it is still to be sent.
fn end_of(shared: &Shared) -> Receipt {
    let receipt = shared.receipt();
    if receipt.spool.is_none() && !shared.is_kept_for_status() {
        let path = shared.path();
        if let Err(error) = std::fs::remove_file(path) {
            tracing::debug!(path = %path.display(), %error, "spool not removed");
        }
    }
    receipt
}
