//! One look at the host, as cheap as can be: a handful of small files.
//!
//! CPU, memory and temperature come by `sysinfo`. Its disks would ask every mounted file system,
//! of which a dead network share never answers, and its networks open a dozen files for each
//! interface; for both the kernel has one file with the totals.

use std::path::{Path, PathBuf};

use sysinfo::{Components, System};

use super::stats::{Sample, Transferred, mebibytes};

pub struct Host {
    system: System,
    components: Components,
    /// Which of the components tell the CPU's temperature.
    cpu_sensors: Vec<usize>,
    disk_path: PathBuf,
}

impl Host {
    /// Looks at the machine for the first time; the CPU's usage counts from here.
    pub fn new(disk_path: PathBuf) -> Result<Self, sysinfo::Error> {
        let mut system = System::new()?;
        system.refresh_cpu_usage();
        let components = Components::new_with_refreshed_list()?;
        let labels: Vec<&str> = components.iter().map(|c| c.label()).collect();
        let cpu_sensors = cpu_sensors(&labels);
        Ok(Self {
            system,
            components,
            cpu_sensors,
            disk_path,
        })
    }

    pub fn sample(&mut self) -> Sample {
        self.system.refresh_cpu_usage();
        self.system.refresh_memory();
        Sample {
            cpu_usage: Some(f64::from(self.system.global_cpu_usage())),
            cpu_temperature: self.cpu_temperature(),
            memory_used: Some(mebibytes(self.system.used_memory())),
            memory_free: Some(mebibytes(self.system.available_memory())),
            disk_free: percent_free(&self.disk_path),
            disk: read("/proc/diskstats").map(|text| disk_transfers(&text, is_whole_device)),
            network: read("/proc/net/dev").map(|text| network_transfers(&text)),
            ..Sample::default()
        }
    }

    fn cpu_temperature(&mut self) -> Option<f64> {
        let mut hottest = None;
        for &index in &self.cpu_sensors {
            let component = self.components.get_mut(index)?;
            component.refresh();
            let read = component.temperature().filter(|t| t.is_finite());
            hottest = read.into_iter().chain(hottest).reduce(f32::max);
        }
        hottest.map(f64::from)
    }
}

fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

/// Of what an ordinary user could fill, the part that is free.
fn percent_free(path: &Path) -> Option<f64> {
    let stat = rustix::fs::statvfs(path).ok()?;
    let used = stat.f_blocks.saturating_sub(stat.f_bfree);
    let whole = used.saturating_add(stat.f_bavail);
    (whole > 0).then(|| stat.f_bavail as f64 / whole as f64 * 100.0)
}

/// The sensors that tell the CPU's temperature. Reading one core's wakes that core, so where the
/// whole package has one it is enough: it shows the hottest core.
fn cpu_sensors(labels: &[&str]) -> Vec<usize> {
    const CPU: [&str; 6] = [
        "coretemp",
        "k10temp",
        "zenpower",
        "cpu_thermal",
        "cpu-thermal",
        "x86_pkg_temp",
    ];
    let which = |wanted: &dyn Fn(&str) -> bool| -> Vec<usize> {
        let matching = labels.iter().enumerate().filter(|(_, label)| wanted(label));
        matching.map(|(index, _)| index).collect()
    };
    let of_cpu = |label: &str| CPU.iter().any(|name| label.starts_with(name));
    let packages = which(&|label| of_cpu(label) && label.contains("Package id"));
    if packages.is_empty() {
        which(&of_cpu)
    } else {
        packages
    }
}

/// A disk as such. Partitions, device-mapper and RAID volumes would count the same bytes again.
fn is_whole_device(name: &str) -> bool {
    // `!` stands for the `/` of names like `cciss/c0d0`.
    let name = name.replace('/', "!");
    Path::new("/sys/block").join(name).join("device").exists()
}

/// Sums `/proc/diskstats` over the devices that `counts` names.
fn disk_transfers(diskstats: &str, counts: impl Fn(&str) -> bool) -> Transferred {
    /// In this file, whatever the device's own.
    const SECTOR: u64 = 512;
    let mut sum = Transferred::default();
    for line in diskstats.lines() {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let [_, _, name, _, _, read, _, _, _, written, ..] = fields[..] else {
            continue;
        };
        if let (Ok(read), Ok(written)) = (read.parse::<u64>(), written.parse::<u64>())
            && (read > 0 || written > 0)
            && counts(name)
        {
            sum.inward += read.saturating_mul(SECTOR);
            sum.outward += written.saturating_mul(SECTOR);
        }
    }
    sum
}

/// Sums `/proc/net/dev` over all interfaces, the loopback too, as the Python agent does.
fn network_transfers(net_dev: &str) -> Transferred {
    let mut sum = Transferred::default();
    for line in net_dev.lines() {
        let Some((_, figures)) = line.rsplit_once(':') else {
            continue;
        };
        let figures: Vec<&str> = figures.split_ascii_whitespace().collect();
        let [received, _, _, _, _, _, _, _, sent, ..] = figures[..] else {
            continue;
        };
        sum.inward += received.parse().unwrap_or(0);
        sum.outward += sent.parse().unwrap_or(0);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_sensors_are_found_among_all_components() {
        for (labels, found) in [
            (&["acpitz temp1", "nvme Composite disk"][..], &[][..]),
            (
                &[
                    "coretemp Package id 0",
                    "coretemp Core 0",
                    "coretemp Package id 1",
                    "iwlwifi_1 temp1",
                ],
                &[0, 2],
            ),
            (
                &["nvme Composite", "coretemp Core 0", "coretemp Core 1"],
                &[1, 2],
            ),
            (&["k10temp Tctl", "k10temp Tccd1", "amdgpu edge"], &[0, 1]),
            (&["gpu_thermal temp1", "cpu_thermal temp1"], &[1]),
            (&["x86_pkg_temp"], &[0]),
        ] {
            assert_eq!(cpu_sensors(labels), found, "{labels:?}");
        }
    }

    #[test]
    fn bytes_of_whole_disks_are_summed() {
        let diskstats = "\
 259       0 nvme0n1 100 0 2000 5 200 0 4000 9 0 7 14 0 0 0 0 3 1
 259       1 nvme0n1p1 90 0 1900 5 150 0 3900 9 0 7 14
 253       0 dm-0 90 0 1900 5 150 0 3900 9 0 7 14
   7       0 loop0 0 0 0 0 0 0 0 0 0 0 0
   8       0 sda 1 0 8 0 1 0 16 0 0 0 0
broken line
";
        let sum = disk_transfers(diskstats, |name| ["nvme0n1", "sda"].contains(&name));
        assert_eq!((sum.inward, sum.outward), (2008 * 512, 4016 * 512));
    }

    #[test]
    fn bytes_of_all_interfaces_are_summed() {
        let net_dev = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo: 1000      10    0    0    0     0          0         0     1000      10    0    0    0     0       0          0
  eth0:500 5 0 0 0 0 0 0 70 1 0 0 0 0 0 0
eth0:1: 3 1 0 0 0 0 0 0 4 1 0 0 0 0 0 0
";
        let sum = network_transfers(net_dev);
        assert_eq!((sum.inward, sum.outward), (1503, 1074));
    }

    #[test]
    fn the_free_part_of_a_disk_is_a_percentage() {
        let percent = percent_free(Path::new("/")).unwrap();
        assert!((0.0..=100.0).contains(&percent), "{percent}");
        assert_eq!(percent_free(Path::new("/no/such/path")), None);
    }
}
