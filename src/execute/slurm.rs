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

/// Whether `job` will not be started again, as far as can be told: cancelled, or its time is over.
pub async fn is_over(job: &str) -> bool {
    let mut ask = tokio::process::Command::new("scontrol");
    ask.args(["-o", "show", "job", job])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    match tokio::time::timeout(LIMIT, ask.output()).await {
        Ok(Ok(answer)) => state_is_final(&String::from_utf8_lossy(&answer.stdout)),
        _ => false,
    }
}

/// `JobId=7 JobName=x … JobState=CANCELLED Reason=None …`
fn state_is_final(job: &str) -> bool {
    let state = job
        .split_whitespace()
        .find_map(|field| field.strip_prefix("JobState="));
    state.is_some_and(|state| ["CANCELLED", "TIMEOUT", "DEADLINE"].contains(&state))
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
        for (state, expected) in [
            ("CANCELLED", true),
            ("TIMEOUT", true),
            ("COMPLETING", false),
            ("PENDING", false),
            ("PREEMPTED", false),
        ] {
            let shown = format!("JobId=7 JobName=x JobState={state} Reason=None");
            assert_eq!(state_is_final(&shown), expected, "{state}");
        }
        assert!(!state_is_final(""));
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
