//! What Slurm says when it is asked.

use std::process::Stdio;
use std::time::Duration;

/// A controller that does not answer by then is not waited for.
const LIMIT: Duration = Duration::from_secs(1);

/// How long Slurm leaves a job between SIGTERM and SIGKILL (`KillWait`).
pub async fn kill_wait() -> Option<Duration> {
    let mut ask = tokio::process::Command::new("scontrol");
    ask.args(["show", "config"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let answer = tokio::time::timeout(LIMIT, ask.output()).await.ok()?.ok()?;
    read_kill_wait(&String::from_utf8_lossy(&answer.stdout))
}

/// Whether `job`, which was started again `round` times before, is being ended for good: cancelled, or
/// its time is over. A job that is put back counts one start more already.
pub async fn is_over(job: &str, round: u32) -> bool {
    let mut ask = tokio::process::Command::new("scontrol");
    ask.args(["-o", "show", "job", job])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    match tokio::time::timeout(LIMIT, ask.output()).await {
        Ok(Ok(answer)) => ends_for_good(&String::from_utf8_lossy(&answer.stdout), round),
        _ => false,
    }
}

/// `JobId=7 JobName=x … JobState=COMPLETING Reason=None … Restarts=0 …`
fn ends_for_good(job: &str, round: u32) -> bool {
    let field = |name: &str| {
        job.split_whitespace()
            .find_map(|field| field.strip_prefix(name))
    };
    let ends = ["COMPLETING", "CANCELLED", "TIMEOUT", "DEADLINE"];
    let restarts = field("Restarts=").and_then(|count| count.parse().ok());
    field("JobState=").is_some_and(|state| ends.contains(&state))
        && restarts.is_some_and(|restarts: u32| restarts <= round)
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
pub fn grace(kill_wait: Duration) -> Duration {
    let rest = (kill_wait / 5).max(Duration::from_secs(2));
    kill_wait.saturating_sub(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_jobs_do_not_come_back() {
        for (state, restarts, round, expected) in [
            // scancel, and the end of its time.
            ("COMPLETING", 0, 0, true),
            ("CANCELLED", 0, 0, true),
            ("COMPLETING", 2, 2, true),
            // Put back.
            ("COMPLETING", 1, 0, false),
            // Not Slurm's doing, or some time is left.
            ("RUNNING", 0, 0, false),
        ] {
            let shown =
                format!("JobId=7 JobState={state} Reason=None Requeue=1 Restarts={restarts} x=y");
            assert_eq!(ends_for_good(&shown, round), expected, "{shown} {round}");
        }
        assert!(!ends_for_good("", 0));
    }

    #[test]
    fn the_time_between_the_signals() {
        let config = "KeepAliveTime           = SYSTEM_DEFAULT\nKillOnBadExit           = 0\nKillWait                = 30 sec\n";
        assert_eq!(read_kill_wait(config), Some(Duration::from_secs(30)));
        assert_eq!(read_kill_wait("KillOnBadExit = 0\n"), None);
        for (wait, expected) in [(30, 24), (5, 3), (1, 0)] {
            let wait = Duration::from_secs(wait);
            assert_eq!(grace(wait), Duration::from_secs(expected));
        }
    }
}
