//! From samples to the averages of a period. Pure.

use std::time::{Duration, Instant};

use serde::Serialize;

/// One look at the host. A figure that the machine does not give is `None`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sample {
    /// Percent of all cores since the sample before.
    pub cpu_usage: Option<f64>,
    /// °C.
    pub cpu_temperature: Option<f64>,
    /// MiB.
    pub memory_used: Option<f64>,
    /// MiB that a program could still get.
    pub memory_free: Option<f64>,
    /// Percent.
    pub disk_free: Option<f64>,
    pub disk: Option<Transferred>,
    pub network: Option<Transferred>,
}

/// Bytes since the machine's start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Transferred {
    /// Read from disk, received from the network.
    pub inward: u64,
    /// Written, sent.
    pub outward: u64,
}

/// `machine_stats` of `workers.status_report`: one number for each device where it is a list.
#[derive(Debug, Default, PartialEq, Serialize)]
pub struct MachineStats {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_usage: Option<[f64; 1]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_temperature: Option<[f64; 1]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_used: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_free: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_free_home: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_read: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_write: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_rx: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_tx: Option<f64>,
}

/// The samples since the last report, summed up.
#[derive(Debug, Default)]
pub struct Period {
    samples: u32,
    cpu_usage: Mean,
    cpu_temperature: Mean,
    memory_used: Mean,
    memory_free: Mean,
    disk_free: Mean,
    disk: Rate,
    network: Rate,
}

impl Period {
    pub fn add(&mut self, at: Instant, sample: &Sample) {
        self.samples += 1;
        self.cpu_usage.add(sample.cpu_usage);
        self.cpu_temperature.add(sample.cpu_temperature);
        self.memory_used.add(sample.memory_used);
        self.memory_free.add(sample.memory_free);
        self.disk_free.add(sample.disk_free);
        self.disk.add(at, sample.disk);
        self.network.add(at, sample.network);
    }

    /// The averages, after which the next period begins; `None` without a sample.
    pub fn take(&mut self) -> Option<MachineStats> {
        let next = Period {
            disk: self.disk.next(),
            network: self.network.next(),
            ..Period::default()
        };
        let done = std::mem::replace(self, next);
        if done.samples == 0 {
            return None;
        }
        let (disk_read, disk_write) = done.disk.mebibytes_a_second().unzip();
        let (network_rx, network_tx) = done.network.mebibytes_a_second().unzip();
        Some(MachineStats {
            cpu_usage: done.cpu_usage.value().map(|value| [value]),
            cpu_temperature: done.cpu_temperature.value().map(|value| [value]),
            memory_used: done.memory_used.value(),
            memory_free: done.memory_free.value(),
            disk_free_home: done.disk_free.value(),
            disk_read,
            disk_write,
            network_rx,
            network_tx,
        })
    }
}

#[derive(Debug, Default)]
struct Mean {
    sum: f64,
    count: u32,
}

impl Mean {
    fn add(&mut self, value: Option<f64>) {
        if let Some(value) = value {
            self.sum += value;
            self.count += 1;
        }
    }

    fn value(&self) -> Option<f64> {
        (self.count > 0).then(|| rounded(self.sum / f64::from(self.count)))
    }
}

/// Bytes a second from counters.
#[derive(Debug, Default)]
struct Rate {
    last: Option<(Instant, Transferred)>,
    moved: Transferred,
    during: Duration,
}

impl Rate {
    fn add(&mut self, at: Instant, now: Option<Transferred>) {
        let Some(now) = now else { return };
        if let Some((before, then)) = self.last {
            // A counter falls when a device goes away: that tells nothing about traffic.
            self.moved.inward += now.inward.saturating_sub(then.inward);
            self.moved.outward += now.outward.saturating_sub(then.outward);
            self.during += at.saturating_duration_since(before);
        }
        self.last = Some((at, now));
    }

    /// An empty one that counts on from the last sample.
    fn next(&self) -> Self {
        Self {
            last: self.last,
            ..Self::default()
        }
    }

    /// (inward, outward)
    fn mebibytes_a_second(&self) -> Option<(f64, f64)> {
        let rate = |bytes: u64| rounded(mebibytes(bytes) / self.during.as_secs_f64());
        (!self.during.is_zero()).then(|| (rate(self.moved.inward), rate(self.moved.outward)))
    }
}

pub fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Three places after the point, as the server's graphs show them.
fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn moved(inward: u64, outward: u64) -> Option<Transferred> {
        Some(Transferred { inward, outward })
    }

    #[test]
    fn no_sample_is_no_figures() {
        assert_eq!(Period::default().take(), None);
    }

    #[test]
    fn figures_are_averaged_over_the_samples_that_have_them() {
        let mut period = Period::default();
        for (usage, temperature) in [(Some(10.0), Some(50.0)), (Some(25.0), None), (None, None)] {
            let sample = Sample {
                cpu_usage: usage,
                cpu_temperature: temperature,
                memory_used: Some(1024.0 / 3.0),
                ..Sample::default()
            };
            period.add(Instant::now(), &sample);
        }
        let stats = period.take().unwrap();
        assert_eq!(stats.cpu_usage, Some([17.5]));
        assert_eq!(stats.cpu_temperature, Some([50.0]));
        assert_eq!(stats.memory_used, Some(341.333));
        assert_eq!(stats.disk_free_home, None);
        assert_eq!(period.take(), None, "the next period begins empty");
    }

    #[test]
    fn traffic_is_what_moved_divided_by_the_time_it_took() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let sample = |disk, network| Sample {
            disk,
            network,
            ..Sample::default()
        };
        let mut period = Period::default();
        period.add(at(0), &sample(moved(100 * MIB, 0), moved(0, 7)));
        let first = period.take().unwrap();
        assert_eq!(first.disk_read, None, "one look gives no rate");

        // The time between the last sample of a period and the first of the next counts too.
        period.add(at(2), &sample(moved(106 * MIB, MIB), None));
        period.add(at(4), &sample(moved(108 * MIB, MIB), moved(2 * MIB, 7)));
        let stats = period.take().unwrap();
        assert_eq!((stats.disk_read, stats.disk_write), (Some(2.0), Some(0.25)));
        assert_eq!((stats.network_rx, stats.network_tx), (Some(0.5), Some(0.0)));
    }

    #[test]
    fn a_device_that_goes_away_is_no_traffic() {
        let start = Instant::now();
        let mut period = Period::default();
        for (second, bytes) in [(0, 50), (1, 50 + MIB), (2, MIB / 2), (3, MIB * 3 / 2)] {
            let sample = Sample {
                network: moved(bytes, 0),
                ..Sample::default()
            };
            period.add(start + Duration::from_secs(second), &sample);
        }
        assert_eq!(period.take().unwrap().network_rx, Some(0.667));
    }

    #[test]
    fn the_server_gets_only_what_there_is() {
        let stats = MachineStats {
            cpu_usage: Some([1.5]),
            memory_used: Some(3.0),
            ..MachineStats::default()
        };
        let json = serde_json::to_value(stats).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"cpu_usage": [1.5], "memory_used": 3.0})
        );
    }
}
