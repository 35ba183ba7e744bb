//! The one stop request of a run: whoever asks first gives the reason, everyone sees the same token.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;

use super::outcome::StopCause;
use crate::process::signal::{HUP, INT, TERM, USR1, USR2};

/// A cheap handle on the run's stop request.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    token: CancellationToken,
    cause: Arc<OnceLock<StopCause>>,
    /// Asked a second time.
    hurry: CancellationToken,
    notices: Arc<Notices>,
    /// What the agent outside a container gives the script to end.
    grace: Arc<OnceLock<Duration>>,
}

/// Signals that are for the script: notices that a scheduler gives some time before it stops a job.
#[derive(Debug)]
struct Notices {
    tell: mpsc::UnboundedSender<i32>,
    arrived: Mutex<mpsc::UnboundedReceiver<i32>>,
}

impl Default for Notices {
    fn default() -> Self {
        let (tell, arrived) = mpsc::unbounded_channel();
        Self {
            tell,
            arrived: Mutex::new(arrived),
        }
    }
}

/// Signals this close together are one request: schedulers and terminals send one to the agent and to
/// its group, or two kinds of them.
const ECHO: Duration = Duration::from_millis(200);

impl Stop {
    /// Turns SIGINT, SIGTERM and SIGHUP into a stop request from now on. One that the agent was
    /// started with as ignored (`nohup`, a shell's background job) stays ignored.
    pub fn on_signals() -> std::io::Result<Stop> {
        let stop = Stop::default();
        let ignored = ignored_signals();
        let (tell, mut arrived) = mpsc::unbounded_channel();
        for number in [HUP, INT, TERM] {
            if ignored & (1 << (number - 1)) != 0 {
                continue;
            }
            let mut arrivals = signal(SignalKind::from_raw(number))?;
            let tell = tell.clone();
            tokio::spawn(async move {
                while arrivals.recv().await.is_some() && tell.send(number).is_ok() {}
            });
        }
        for number in [USR1, USR2] {
            let mut arrivals = signal(SignalKind::from_raw(number))?;
            let notices = stop.notices.clone();
            tokio::spawn(async move {
                while arrivals.recv().await.is_some() && notices.tell.send(number).is_ok() {}
            });
        }
        let asked = stop.clone();
        tokio::spawn(async move {
            while let Some(number) = arrived.recv().await {
                asked.signalled(number);
                tokio::time::sleep(ECHO).await;
                while arrived.try_recv().is_ok() {}
            }
        });
        Ok(stop)
    }

    /// For an agent that gets its orders another way: signals that reach it besides mean nothing.
    pub fn without_signals() -> std::io::Result<Stop> {
        // Caught, since what is ignored would be so for the script, too. Tokio gives no signal back.
        for number in [HUP, INT, TERM, USR1, USR2] {
            drop(signal(SignalKind::from_raw(number))?);
        }
        Ok(Stop::default())
    }

    /// A notice for the script.
    pub fn notify(&self, number: i32) {
        // The receiver lives as long as this.
        let _ = self.notices.tell.send(number);
    }

    fn signalled(&self, number: i32) {
        self.ask(StopCause::Signal(number));
    }

    pub fn is_hurried(&self) -> bool {
        self.hurry.is_cancelled()
    }

    /// Asks for the stop; asked again, there is to be no waiting.
    pub fn ask(&self, cause: StopCause) {
        if self.cause.get().is_some() {
            self.hurry.cancel();
        }
        self.request(cause);
    }

    /// As [`Stop::ask`], with the time that the script has.
    pub fn ask_within(&self, cause: StopCause, grace: Duration) {
        let _ = self.grace.set(grace);
        self.ask(cause);
    }

    /// How long the script has, where that came with the request.
    pub fn grace(&self) -> Option<Duration> {
        self.grace.get().copied()
    }

    /// The next signal that is to be passed on as it is (SIGUSR1, SIGUSR2): `#SBATCH --signal=USR1@300`.
    pub async fn notice(&self) -> i32 {
        match self.notices.arrived.lock().await.recv().await {
            Some(number) => number,
            // Both ends live as long as this.
            None => std::future::pending().await,
        }
    }

    /// Resolves when somebody does not want to wait: a signal after the stop was asked for.
    pub async fn hurried(&self) {
        self.hurry.cancelled().await;
    }

    /// Asks for the stop; only the first cause counts.
    pub fn request(&self, cause: StopCause) {
        let _ = self.cause.set(cause);
        self.token.cancel();
    }

    /// Resolves when the stop is asked for.
    pub async fn requested(&self) -> StopCause {
        self.token.cancelled().await;
        // The cause is always set before the token is cancelled.
        self.cause.get().cloned().unwrap_or(StopCause::Signal(TERM))
    }

    /// The cause, where the stop has been asked for.
    pub fn cause(&self) -> Option<StopCause> {
        self.cause.get().cloned()
    }

    /// What steps of the run look at.
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }
}

/// The mask of signals that are ignored in this process (Linux, bit n-1 for signal n); none where
/// that cannot be told.
fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_cause_counts() {
        let stop = Stop::default();
        assert_eq!(stop.cause(), None);
        stop.request(StopCause::Signal(2));
        stop.request(StopCause::Signal(15));
        assert_eq!(stop.requested().await, StopCause::Signal(2));
        assert!(stop.token().is_cancelled());
    }

    #[tokio::test]
    async fn a_signal_after_the_request_is_a_hurry() {
        let stop = Stop::default();
        stop.signalled(15);
        assert!(!stop.hurry.is_cancelled());
        stop.signalled(2);
        stop.hurried().await;
        assert_eq!(stop.cause(), Some(StopCause::Signal(15)));
    }
}
