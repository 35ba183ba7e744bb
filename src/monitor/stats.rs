//! From samples to the averages of a period. Pure.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::gpu::Figures;
use super::job::Use;

/// One look at the machine and the job. A figure that is not to be had is `None`.
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
    /// Those that the job may see and that answer.
    pub gpus: Vec<Figures>,
    /// Where the job was looked at this time.
    pub job: Option<Use>,
}

/// Bytes since the machine's start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Transferred {
    /// Read from disk, received from the network.
    pub inward: u64,
    /// Written, sent.
    pub outward: u64,
}

/// The averages of a period.
#[derive(Debug, Default, PartialEq)]
pub struct Averages {
    /// Percent of all cores.
    pub cpu_usage: Option<f64>,
    /// °C.
    pub cpu_temperature: Option<f64>,
    /// MiB.
    pub memory_used: Option<f64>,
    pub memory_free: Option<f64>,
    /// Percent.
    pub disk_free: Option<f64>,
    /// MiB a second.
    pub disk_read: Option<f64>,
    pub disk_write: Option<f64>,
    pub network_rx: Option<f64>,
    pub network_tx: Option<f64>,
    /// In the driver's order.
    pub gpus: Vec<Gpu>,
    pub job: Option<Job>,
}

/// The averages of one GPU; units as in [`Figures`].
#[derive(Debug, Default, PartialEq)]
pub struct Gpu {
    pub place: usize,
    pub usage: Option<f64>,
    pub memory_used: Option<f64>,
    pub memory_free: Option<f64>,
    /// Percent of all of it.
    pub memory_usage: Option<f64>,
    pub job_memory: Option<f64>,
    pub temperature: Option<f64>,
    pub power: Option<f64>,
    pub clock: Option<f64>,
    pub memory_clock: Option<f64>,
    /// The last count, no average.
    pub ecc_uncorrected: Option<f64>,
}

/// The averages of the job.
#[derive(Debug, Default, PartialEq)]
pub struct Job {
    /// Percent of all cores.
    pub cpu_usage: Option<f64>,
    /// MiB.
    pub memory: Option<f64>,
    pub threads: Option<f64>,
    pub processes: Option<f64>,
    /// MiB a second.
    pub disk_read: Option<f64>,
    pub disk_write: Option<f64>,
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
    gpus: BTreeMap<usize, GpuPeriod>,
    job: JobPeriod,
}

#[derive(Debug, Default)]
struct GpuPeriod {
    usage: Mean,
    memory_used: Mean,
    memory_free: Mean,
    memory_usage: Mean,
    job_memory: Mean,
    temperature: Mean,
    power: Mean,
    clock: Mean,
    memory_clock: Mean,
    ecc_uncorrected: Option<f64>,
}

#[derive(Debug, Default)]
struct JobPeriod {
    looks: u32,
    cpu: Rate,
    memory: Mean,
    threads: Mean,
    processes: Mean,
    disk: Rate,
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
        for figures in &sample.gpus {
            self.gpus.entry(figures.place).or_default().add(figures);
        }
        if let Some(used) = &sample.job {
            self.job.add(at, used);
        }
    }

    /// The averages; `None` without a sample.
    pub fn averages(&self) -> Option<Averages> {
        if self.samples == 0 {
            return None;
        }
        let (disk_read, disk_write) = self.disk.mebibytes_a_second().unzip();
        let (network_rx, network_tx) = self.network.mebibytes_a_second().unzip();
        Some(Averages {
            cpu_usage: self.cpu_usage.value(),
            cpu_temperature: self.cpu_temperature.value(),
            memory_used: self.memory_used.value(),
            memory_free: self.memory_free.value(),
            disk_free: self.disk_free.value(),
            disk_read,
            disk_write,
            network_rx,
            network_tx,
            gpus: self
                .gpus
                .iter()
                .map(|(&place, gpu)| gpu.averages(place))
                .collect(),
            job: (self.job.looks > 0).then(|| self.job.averages()),
        })
    }

    /// Begins the next period; counters count on from the last sample.
    pub fn clear(&mut self) {
        *self = Period {
            disk: self.disk.next(),
            network: self.network.next(),
            job: JobPeriod {
                cpu: self.job.cpu.next(),
                disk: self.job.disk.next(),
                ..JobPeriod::default()
            },
            ..Period::default()
        };
    }
}

impl GpuPeriod {
    fn add(&mut self, figures: &Figures) {
        self.usage.add(figures.usage);
        let memory = figures.memory;
        self.memory_used.add(memory.map(|m| m.used));
        self.memory_free.add(memory.map(|m| m.total - m.used));
        let usage = memory.filter(|m| m.total > 0.0);
        self.memory_usage
            .add(usage.map(|m| 100.0 * m.used / m.total));
        self.job_memory.add(figures.job_memory);
        self.temperature.add(figures.temperature);
        self.power.add(figures.power);
        self.clock.add(figures.clock);
        self.memory_clock.add(figures.memory_clock);
        self.ecc_uncorrected = figures.ecc_uncorrected.or(self.ecc_uncorrected);
    }

    fn averages(&self, place: usize) -> Gpu {
        Gpu {
            place,
            usage: self.usage.value(),
            memory_used: self.memory_used.value(),
            memory_free: self.memory_free.value(),
            memory_usage: self.memory_usage.value(),
            job_memory: self.job_memory.value(),
            temperature: self.temperature.value(),
            power: self.power.value(),
            clock: self.clock.value(),
            memory_clock: self.memory_clock.value(),
            ecc_uncorrected: self.ecc_uncorrected,
        }
    }
}

impl JobPeriod {
    fn add(&mut self, at: Instant, used: &Use) {
        self.looks += 1;
        // As a counter of microseconds.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let cpu = (used.cpu * 1e6) as u64;
        let cpu = Transferred {
            inward: cpu,
            outward: 0,
        };
        self.cpu.add(at, Some(cpu));
        self.memory.add(Some(used.memory));
        self.threads.add(Some(used.threads as f64));
        self.processes.add(Some(used.processes as f64));
        self.disk.add(at, used.disk);
    }

    fn averages(&self) -> Job {
        let (disk_read, disk_write) = self.disk.mebibytes_a_second().unzip();
        Job {
            cpu_usage: self.cpu.a_second().map(|(micros, _)| rounded(micros / 1e4)),
            memory: self.memory.value(),
            threads: self.threads.value(),
            processes: self.processes.value(),
            disk_read,
            disk_write,
        }
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
    fn a_second(&self) -> Option<(f64, f64)> {
        let rate = |count: u64| count as f64 / self.during.as_secs_f64();
        (!self.during.is_zero()).then(|| (rate(self.moved.inward), rate(self.moved.outward)))
    }

    fn mebibytes_a_second(&self) -> Option<(f64, f64)> {
        let mebibytes = |bytes: f64| rounded(bytes / f64::from(1 << 20));
        self.a_second().map(|(i, o)| (mebibytes(i), mebibytes(o)))
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
    use super::super::status::{GpuReport, MachineStats};
    use super::*;

    const MIB: u64 = 1 << 20;

    fn moved(inward: u64, outward: u64) -> Option<Transferred> {
        Some(Transferred { inward, outward })
    }

    /// What is reported, and the next period begins.
    fn take(period: &mut Period) -> Option<MachineStats> {
        let averages = period.averages();
        period.clear();
        let report = GpuReport {
            default_usage: Some(100.0),
            fractions: vec![0.5, 0.25],
        };
        averages.map(|averages| MachineStats::of(&averages, &report, true))
    }

    #[test]
    fn no_sample_is_no_figures() {
        assert_eq!(take(&mut Period::default()), None);
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
        let stats = take(&mut period).unwrap();
        assert_eq!(stats.cpu_usage, Some([17.5]));
        assert_eq!(stats.cpu_temperature, Some([50.0]));
        assert_eq!(stats.memory_used, Some(341.333));
        assert_eq!(stats.disk_free_home, None);
        assert_eq!(take(&mut period), None, "the next period begins empty");
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
        let first = take(&mut period).unwrap();
        assert_eq!(first.disk_read, None, "one look gives no rate");

        // The time between the last sample of a period and the first of the next counts too.
        period.add(at(2), &sample(moved(106 * MIB, MIB), None));
        period.add(at(4), &sample(moved(108 * MIB, MIB), moved(2 * MIB, 7)));
        let stats = take(&mut period).unwrap();
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
        assert_eq!(take(&mut period).unwrap().network_rx, Some(0.667));
    }

    fn gpu(place: usize, usage: Option<f64>, used: f64) -> Figures {
        Figures {
            place,
            usage,
            memory: Some(super::super::gpu::Memory {
                used,
                total: 1000.0,
            }),
            temperature: Some(40.0 + place as f64),
            ecc_uncorrected: Some(used),
            ..Figures::default()
        }
    }

    #[test]
    fn each_gpu_is_one_number_in_the_lists() {
        let mut period = Period::default();
        for used in [100.0, 300.0] {
            let sample = Sample {
                // The second is an instance whose driver does not tell its usage.
                gpus: vec![gpu(0, Some(used / 10.0), used), gpu(2, None, 50.0)],
                ..Sample::default()
            };
            period.add(Instant::now(), &sample);
        }
        let averages = period.averages().unwrap();
        assert_eq!(averages.gpus[0].memory_usage, Some(20.0));
        assert_eq!(averages.gpus[0].ecc_uncorrected, Some(300.0), "a count");
        assert_eq!(averages.gpus[1].place, 2);
        let stats = take(&mut period).unwrap();
        assert_eq!(stats.gpu_usage, [20.0, 100.0]);
        assert_eq!(stats.gpu_memory_used, [200.0, 50.0]);
        assert_eq!(stats.gpu_memory_free, [800.0, 950.0]);
        assert_eq!(stats.gpu_temperature, [40.0, 42.0]);
        assert_eq!(stats.gpu_fraction, [0.5, 0.25]);

        // One that vanishes is not in the next report; the other goes on.
        let sample = Sample {
            gpus: vec![gpu(2, None, 60.0)],
            ..Sample::default()
        };
        period.add(Instant::now(), &sample);
        let averages = period.averages().unwrap();
        let without = MachineStats::of(&averages, &GpuReport::default(), false);
        assert!(without.gpu_usage.is_empty(), "no default");
        assert!(without.gpu_fraction.is_empty(), "not wanted");
        assert_eq!(without.gpu_memory_used, [60.0]);
    }

    #[test]
    fn the_job_is_what_its_processes_used() {
        let start = Instant::now();
        let used = |cpu: f64, memory: f64, read: u64| Use {
            cpu,
            memory,
            threads: 4,
            processes: 2,
            disk: moved(read, 0),
        };
        let mut period = Period::default();
        for (second, job) in [
            (0, Some(used(1.0, 100.0, 0))),
            (1, None),
            (2, Some(used(2.0, 300.0, 4 * MIB))),
        ] {
            let sample = Sample {
                job,
                ..Sample::default()
            };
            period.add(start + Duration::from_secs(second), &sample);
        }
        let job = period.averages().unwrap().job.unwrap();
        let expected = Job {
            cpu_usage: Some(50.0),
            memory: Some(200.0),
            threads: Some(4.0),
            processes: Some(2.0),
            disk_read: Some(2.0),
            disk_write: Some(0.0),
        };
        assert_eq!(job, expected);
        period.clear();
        period.add(start + Duration::from_secs(3), &Sample::default());
        assert_eq!(period.averages().unwrap().job, None);
    }
}
