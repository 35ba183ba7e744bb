//! What a job used, seen from outside: for machines where it has no control group of its own.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use rustix::param::clock_ticks_per_second;

/// Looks at a job's processes now and then, and keeps the highest figures. What happens between two
/// looks is missed, but for a single process' peak, which the kernel keeps while the process lives.
#[derive(Debug, Default)]
pub struct Sampler {
    peak: Peak,
    seen: BTreeSet<i32>,
    looks: u32,
}

/// Bytes of memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Peak {
    /// The most that one process of the job ever had in memory, up to the last look at it.
    pub process: Option<u64>,
    /// The most that all of them had in memory together at a look. What they share (libraries, the
    /// pages that forked workers have not written to) is counted for each, so this is at or above
    /// the truth at that moment.
    pub together: Option<u64>,
}

impl Sampler {
    /// Looks at `pids`: the job's leader and all that it started.
    pub fn look(&mut self, pids: &[i32]) {
        let statuses = pids.iter().filter_map(|&pid| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            Some((pid, status))
        });
        self.add(statuses);
    }

    fn add(&mut self, statuses: impl Iterator<Item = (i32, String)>) {
        let mut together = None;
        for (pid, status) in statuses {
            self.seen.insert(pid);
            // One that has ended has no memory, and no such lines.
            if let Some(highest) = bytes(&status, "VmHWM:") {
                self.peak.process = self.peak.process.max(Some(highest));
            }
            if let Some(now) = bytes(&status, "VmRSS:") {
                together = Some(together.unwrap_or(0) + now);
            }
        }
        self.peak.together = self.peak.together.max(together);
        self.looks += 1;
    }

    /// How long to wait for the next look: often at first, for short jobs, then every five seconds.
    pub fn pause(&self) -> Duration {
        Duration::from_millis(250 << self.looks.min(5)).min(Duration::from_secs(5))
    }

    pub fn peak(&self) -> Peak {
        self.peak
    }

    /// All processes ever looked at.
    pub fn seen(&self) -> &BTreeSet<i32> {
        &self.seen
    }
}

/// `VmHWM: 1234 kB`, padded.
fn bytes(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let (number, unit) = line.trim().split_once(' ')?;
    (unit == "kB").then_some(())?;
    Some(number.parse::<u64>().ok()? * 1024)
}

/// CPU time, user and system, of the process and of those descendants that were waited for by their
/// parents: all of an ordinary job. Daemons that it left behind are not in it. It can be read of a
/// process that has ended as long as it is not reaped.
pub fn cpu_time(pid: i32) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let ticks = cpu_ticks(&stat)?;
    Some(Duration::from_millis(
        ticks * 1000 / clock_ticks_per_second(),
    ))
}

/// The memory that a job started from here may address (`ulimit -v`), if that is limited.
pub fn address_limit() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::As).current
}

/// Fields 14 to 17: utime, stime, cutime, cstime.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(") ")?;
    let fields = after_name.split(' ').skip(11).take(4);
    let times: Vec<u64> = fields.map_while(|field| field.parse().ok()).collect();
    (times.len() == 4).then(|| times.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_figures_are_kept() {
        let status = |hwm: u64, rss: u64| {
            format!("Name:\tsh\nVmHWM:\t  {hwm} kB\nVmRSS:\t  {rss} kB\nThreads:\t1\n")
        };
        let mut sampler = Sampler::default();
        assert_eq!(sampler.peak(), Peak::default());
        sampler.add([(7, status(100, 90)), (8, status(40, 40))].into_iter());
        sampler.add([(7, status(300, 20)), (9, "Name:\tsh\nState:\tZ\n".into())].into_iter());
        sampler.add(std::iter::empty());
        let expected = Peak {
            process: Some(300 * 1024),
            together: Some(130 * 1024),
        };
        assert_eq!(sampler.peak(), expected);
        assert_eq!(*sampler.seen(), BTreeSet::from([7, 8, 9]));
    }

    #[test]
    fn looks_become_rarer() {
        let mut sampler = Sampler::default();
        let mut pauses = Vec::new();
        for _ in 0..40 {
            pauses.push(sampler.pause().as_millis());
            sampler.look(&[]);
        }
        assert_eq!(pauses[..6], [250, 500, 1000, 2000, 4000, 5000]);
        assert!(pauses[6..].iter().all(|&pause| pause == 5000));
    }

    #[test]
    fn cpu_times_are_summed() {
        for (stat, expected) in [
            (
                "7 (a) b) Z 1 7 7 0 -1 4 0 0 0 0 11 22 300 4000 20 0 1 0 5",
                Some(4333),
            ),
            ("7 (a) Z 1 7 7 0 -1 4 0 0 0 0 11 22", None),
            ("", None),
        ] {
            assert_eq!(cpu_ticks(stat), expected, "{stat}");
        }
    }

    #[test]
    fn this_process_has_figures() {
        let me = rustix::process::getpid().as_raw_nonzero().get();
        let mut sampler = Sampler::default();
        sampler.look(&[me]);
        let peak = sampler.peak();
        assert!(peak.process >= peak.together && peak.together > Some(0));
        assert!(cpu_time(me).is_some());
    }
}
