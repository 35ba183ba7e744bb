//! The time of output: the wall's, but never backward.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A clock that is set back while the job runs must not turn the log around, nor stop it: from then on
/// time is counted from where it was. One that is set forward is followed.
#[derive(Debug)]
pub(super) struct Clock {
    /// A moment, and the wall's time then (ms since the epoch).
    anchor: (Instant, u64),
}

/// The wall may be this much ahead before it is followed: clocks are slewed all the time.
const AHEAD: u64 = 1_000;

impl Clock {
    pub fn new() -> Self {
        Self {
            anchor: (Instant::now(), wall()),
        }
    }

    /// Milliseconds since the epoch.
    pub fn now(&mut self) -> u64 {
        self.at(Instant::now(), wall())
    }

    fn at(&mut self, moment: Instant, wall: u64) -> u64 {
        let (then, wall_then) = self.anchor;
        let counted = wall_then + millis(moment.saturating_duration_since(then));
        if wall > counted + AHEAD {
            self.anchor = (moment, wall);
            return wall;
        }
        counted
    }
}

/// The wall's time in milliseconds since the epoch.
pub(super) fn wall() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, millis)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_goes_on_whatever_the_wall_clock_does() {
        let start = Instant::now();
        let mut clock = Clock {
            anchor: (start, 1_000_000),
        };
        for (passed, wall, expected) in [
            (0, 1_000_000, 1_000_000),
            (10, 1_000_010, 1_000_010),
            // Slewed a little, either way.
            (20, 1_000_500, 1_000_020),
            // Set back by an hour.
            (30, 30, 1_000_030),
            (40, 40, 1_000_040),
            // Set forward by an hour, and back again.
            (50, 4_600_050, 4_600_050),
            (60, 1_000_060, 4_600_060),
        ] {
            let now = clock.at(start + Duration::from_millis(passed), wall);
            assert_eq!(now, expected, "after {passed} ms");
        }
    }
}
