//! Which failed calls are tried again, when, and for how long. Pure, but for the jitter.

use std::time::Duration;

/// How long a call may take in all, retries included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// One try: for a call whose effect must be looked up, not repeated, when its answer is lost.
    Once,
    /// For a call that makes something new: tried again only where it cannot have been carried out.
    Unsent,
    /// Before anything is at stake: a server that is not there is told within 30 s.
    Start,
    /// Reports that the next one replaces: a missed one is no loss.
    Passing,
    /// Writes that must arrive: what is lost here leaves the task in a wrong state.
    Persistent,
}

impl Patience {
    /// How long after the first try another may begin.
    pub fn limit(self) -> Duration {
        match self {
            Patience::Once => Duration::ZERO,
            Patience::Start | Patience::Unsent => Duration::from_secs(25),
            Patience::Passing => Duration::from_secs(15),
            Patience::Persistent => Duration::from_secs(180),
        }
    }
}

/// Whether a call that was answered with this HTTP status may have been carried out all the same. 429 is said
/// before it is; the rest may come from a proxy that has lost the answer.
pub fn may_be_done(status: u16) -> bool {
    status != 429
}

/// Whether an answer with this HTTP status is worth another try. 4xx say that the request itself is
/// at fault, but for the three that speak of time.
pub fn is_retryable(status: u16) -> bool {
    matches!(status, 408 | 425 | 429) || (500..=599).contains(&status) && status != 501
}

/// The pause before try number `next_try` (the first retry is 1): doubling from 0.2 s to 10 s, each
/// drawn from the upper half so that many agents do not come back together. `retry_after` is what
/// the server asked for, and wins.
pub fn pause(next_try: u32, retry_after: Option<Duration>, random: f64) -> Duration {
    if let Some(asked) = retry_after {
        return asked;
    }
    let ceiling = Duration::from_millis(200)
        .saturating_mul(1 << next_try.saturating_sub(1).min(6))
        .min(Duration::from_secs(10));
    ceiling.mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0)
}

/// `Retry-After` in its seconds form; servers of this API do not use the date form.
pub fn retry_after(header: Option<&str>) -> Option<Duration> {
    header?.trim().parse().ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_time_can_mend_is_retried() {
        for status in [408, 425, 429, 500, 502, 503, 504] {
            assert!(is_retryable(status), "{status}");
        }
        for status in [200, 400, 401, 403, 404, 409, 410, 415, 501] {
            assert!(!is_retryable(status), "{status}");
        }
    }

    #[test]
    fn pauses_grow_jittered_to_ten_seconds() {
        assert_eq!(pause(1, None, 1.0), Duration::from_millis(200));
        assert_eq!(pause(1, None, 0.0), Duration::from_millis(100));
        assert_eq!(pause(3, None, 1.0), Duration::from_millis(800));
        assert_eq!(pause(40, None, 1.0), Duration::from_secs(10));
    }

    #[test]
    fn the_servers_own_pause_wins() {
        assert_eq!(
            pause(1, retry_after(Some(" 7 ")), 0.3),
            Duration::from_secs(7)
        );
        assert_eq!(retry_after(Some("Wed, 21 Oct 2026 07:28:00 GMT")), None);
        assert_eq!(retry_after(None), None);
    }
}
