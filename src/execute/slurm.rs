//! What Slurm says when it is asked.

use std::io;
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::settings::GRACE;

/// A controller that does not answer by then is not waited for: the script's time runs.
pub const LIMIT: Duration = Duration::from_secs(1);
/// Whether a job comes back is worth more: a part of what is left for the log and the status.
pub const PATIENCE: Duration = Duration::from_secs(3);
/// Between two questions.
const PAUSE: Duration = Duration::from_millis(300);
/// A job that ends within this was told of that (`--signal=B:TERM@300`, a partition's `GraceTime`); else
/// SIGTERM came from somebody who says nothing of a time.
const NEAR: Duration = Duration::from_secs(3600);

/// A job, as far as its end goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    state: String,
    reason: String,
    /// A job that is put back counts one start more already.
    restarts: Option<u32>,
    /// Since the epoch.
    end: Option<Duration>,
}

/// What the controller says of `job`, where there is one that answers within `patience`.
pub async fn job(job: &str, patience: Duration) -> Option<Job> {
    let asking = async {
        loop {
            match show(job).await {
                Ok(Some(job)) => return Some(job),
                // There is none to be asked.
                Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
                _ => tokio::time::sleep(PAUSE).await,
            }
        }
    };
    within(patience, asking).await
}

async fn show(job: &str) -> io::Result<Option<Job>> {
    let shown = scontrol(&["-o", "show", "job", job]).await?;
    Ok(Job::read(&shown))
}

async fn within<T>(limit: Duration, answer: impl Future<Output = Option<T>>) -> Option<T> {
    tokio::time::timeout(limit, answer).await.ok().flatten()
}

/// How long Slurm leaves a job between SIGTERM and SIGKILL (`KillWait`).
async fn kill_wait() -> Option<Duration> {
    let ask = async { read_kill_wait(&scontrol(&["show", "config"]).await.ok()?) };
    within(LIMIT, ask).await
}

async fn scontrol(words: &[&str]) -> io::Result<String> {
    let mut ask = tokio::process::Command::new("scontrol");
    ask.args(words)
        .env("SLURM_TIME_FORMAT", "%s")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let answer = ask.output().await?;
    Ok(String::from_utf8_lossy(&answer.stdout).into_owned())
}

impl Job {
    /// `JobId=7 JobName=x … JobState=COMPLETING Reason=None … Restarts=0 … EndTime=1795472758 …`
    pub(super) fn read(shown: &str) -> Option<Job> {
        let field = |name: &str| {
            let mut fields = shown.split_whitespace();
            fields.find_map(|field| field.strip_prefix(name))
        };
        let end = field("EndTime=").and_then(|at| at.parse().ok());
        Some(Job {
            state: field("JobState=")?.to_owned(),
            reason: field("Reason=").unwrap_or_default().to_owned(),
            restarts: field("Restarts=").and_then(|count| count.parse().ok()),
            end: end.map(Duration::from_secs),
        })
    }

    /// Whether the job, which was started again `round` times before, is put back to be started once more.
    /// One that runs on is not: it ends with its script.
    pub fn comes_back(&self, round: u32) -> bool {
        self.restarts.is_none_or(|restarts| restarts > round)
    }

    pub fn is_out_of_time(&self) -> bool {
        self.reason == "TimeLimit" || ["TIMEOUT", "DEADLINE"].contains(&self.state.as_str())
    }

    /// How long a job that runs on may run, where that is not long.
    fn left(&self, now: Duration) -> Option<Duration> {
        let end = self.end.filter(|_| self.state == "RUNNING")?;
        let left = end.saturating_sub(now);
        (left <= NEAR).then_some(left)
    }
}

/// How long a script of `job_id` may take to end, now that the job was sent SIGTERM.
pub async fn grace(job_id: &str) -> Duration {
    let begin = Instant::now();
    let job = async { show(job_id).await.ok().flatten() };
    let (wait, job) = tokio::join!(kill_wait(), within(LIMIT, job));
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let grace = grace_of(wait, job.as_ref(), now.unwrap_or_default());
    // Slurm's clock ran while it was asked.
    grace.saturating_sub(begin.elapsed())
}

/// How long it may take in any case.
pub async fn least_grace() -> Duration {
    grace_of(kill_wait().await, None, Duration::ZERO)
}

/// What KillWait leaves, and more where the job is not ended yet, only told of its end.
fn grace_of(kill_wait: Option<Duration>, job: Option<&Job>, now: Duration) -> Duration {
    let after_the_end = kill_wait.map_or(GRACE, part_of);
    let left = job.and_then(|job| job.left(now));
    after_the_end.max(left.map_or(Duration::ZERO, part_of))
}

/// `KillWait                = 30 sec`
fn read_kill_wait(config: &str) -> Option<Duration> {
    let line = config
        .lines()
        .find_map(|line| line.strip_prefix("KillWait"))?;
    let seconds = line
        .trim_start()
        .strip_prefix('=')?
        .split_whitespace()
        .next()?;
    seconds.parse().ok().map(Duration::from_secs)
}

/// What of that the script may have: the log and the status need a part.
fn part_of(time: Duration) -> Duration {
    let rest = (time / 5).clamp(Duration::from_secs(2), Duration::from_secs(30));
    time.saturating_sub(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(state: &str, reason: &str, restarts: u32, end: &str) -> Option<Job> {
        Job::read(&format!(
            "JobId=7 JobState={state} Reason={reason} Requeue=1 Restarts={restarts} EndTime={end} x=y"
        ))
    }

    #[test]
    fn which_jobs_come_back() {
        for (state, reason, restarts, round, back, out_of_time) in [
            // Put back.
            ("COMPLETING", "None", 1, 0, true, false),
            ("PENDING", "BeginTime", 3, 2, true, false),
            // Cancelled, or its time is over.
            ("COMPLETING", "None", 0, 0, false, false),
            ("CANCELLED", "None", 0, 0, false, false),
            ("COMPLETING", "TimeLimit", 2, 2, false, true),
            ("TIMEOUT", "TimeLimit", 0, 0, false, true),
            // Not Slurm's doing, or some time is left.
            ("RUNNING", "None", 0, 0, false, false),
        ] {
            let job = shown(state, reason, restarts, "Unknown").unwrap();
            assert_eq!(job.comes_back(round), back, "{job:?} {round}");
            assert_eq!(job.is_out_of_time(), out_of_time, "{job:?}");
        }
        assert_eq!(Job::read(""), None);
    }

    #[test]
    fn the_time_between_the_signals() {
        let config = "KeepAliveTime           = SYSTEM_DEFAULT\nKillOnBadExit           = 0\nKillWait                = 30 sec\n";
        assert_eq!(read_kill_wait(config), Some(Duration::from_secs(30)));
        assert_eq!(read_kill_wait("KillOnBadExit = 0\n"), None);
        let now = Duration::from_secs(1_795_472_000);
        for (wait, state, end, expected) in [
            (Some(30), "COMPLETING", "1795472000", 24),
            (Some(5), "COMPLETING", "1795472000", 3),
            (Some(1), "COMPLETING", "1795472000", 0),
            (None, "COMPLETING", "1795472000", GRACE.as_secs()),
            // Told of its end before that comes.
            (Some(30), "RUNNING", "1795472300", 270),
            (Some(30), "RUNNING", "1795472060", 48),
            (Some(30), "RUNNING", "1795472010", 24),
            // It could run for days.
            (Some(30), "RUNNING", "1795672000", 24),
            (Some(30), "RUNNING", "Unknown", 24),
        ] {
            let job = shown(state, "None", 0, end);
            let grace = grace_of(wait.map(Duration::from_secs), job.as_ref(), now);
            assert_eq!(
                grace,
                Duration::from_secs(expected),
                "{wait:?} {state} {end}"
            );
        }
    }
}
