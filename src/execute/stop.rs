//! The one stop request of a run: whoever asks first gives the reason, everyone sees the same token.

use std::sync::{Arc, OnceLock};

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::outcome::StopCause;

/// A cheap handle on the run's stop request.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    token: CancellationToken,
    cause: Arc<OnceLock<StopCause>>,
}

const SIGHUP: i32 = 1;
const SIGINT: i32 = 2;
const SIGTERM: i32 = 15;

impl Stop {
    /// Turns SIGINT, SIGTERM and SIGHUP into a stop request from now on. One that the agent was
    /// started with as ignored (`nohup`, a shell's background job) stays ignored.
    pub fn on_signals() -> std::io::Result<Stop> {
        let stop = Stop::default();
        let ignored = ignored_signals();
        for number in [SIGHUP, SIGINT, SIGTERM] {
            if ignored & (1 << (number - 1)) != 0 {
                continue;
            }
            let mut arrivals = signal(SignalKind::from_raw(number))?;
            let stop = stop.clone();
            tokio::spawn(async move {
                while arrivals.recv().await.is_some() {
                    stop.request(StopCause::Signal(number));
                }
            });
        }
        Ok(stop)
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
        self.cause
            .get()
            .cloned()
            .unwrap_or(StopCause::Signal(SIGTERM))
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
}
