//! AMD's GPUs, by the files that the kernel's `amdgpu` driver keeps for each.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Figures, Identity, Memory, Visible};

const VENDOR: &str = "0x1002";

/// The cards that count.
pub struct Reader {
    cards: Vec<Card>,
    /// Where the compute driver keeps what each process holds.
    processes: PathBuf,
}

struct Card {
    place: usize,
    /// `/sys/class/drm/cardN/device`
    device: PathBuf,
    /// The sensors' folder.
    sensors: Option<PathBuf>,
    /// The compute driver's number for it.
    compute_id: Option<u64>,
}

/// All cards below `sysfs` that the driver has figures of, in the order of their numbers.
pub fn find(sysfs: &Path) -> Vec<(PathBuf, Identity)> {
    let Ok(entries) = fs::read_dir(sysfs.join("class/drm")) else {
        return Vec::new();
    };
    let mut cards: Vec<(u32, PathBuf)> = entries
        .flatten()
        // `card0-HDMI-A-1` is a socket of card0.
        .filter_map(|entry| {
            let number = entry.file_name().to_str()?.strip_prefix("card")?.parse();
            Some((number.ok()?, entry.path().join("device")))
        })
        .filter(|(_, device)| {
            text(device, "vendor").is_some_and(|vendor| vendor == VENDOR)
                && device.join("mem_info_vram_total").exists()
        })
        .collect();
    cards.sort();
    let identity = |(index, (_, device)): (usize, (u32, PathBuf))| {
        let identity = Identity {
            index: u32::try_from(index).unwrap_or(u32::MAX),
            // ROCm's name for it.
            uuid: text(&device, "unique_id").map_or(String::new(), |id| format!("GPU-{id}")),
            name: text(&device, "product_name").unwrap_or_else(|| "AMD GPU".into()),
            mig: None,
        };
        (device, identity)
    };
    cards.into_iter().enumerate().map(identity).collect()
}

impl Reader {
    pub fn new(sysfs: &Path, visible: &Visible) -> Self {
        let found = find(sysfs);
        let identities: Vec<Identity> = found.iter().map(|(_, id)| id.clone()).collect();
        let chosen = visible.choose(&identities);
        let card = |(place, (device, _)): (usize, (PathBuf, Identity))| Card {
            place,
            sensors: sensors(&device),
            compute_id: compute_id(sysfs, &device),
            device,
        };
        let cards = found
            .into_iter()
            .enumerate()
            .filter(|(place, _)| chosen.contains(place))
            .map(card)
            .collect();
        Self {
            cards,
            processes: sysfs.join("class/kfd/kfd/proc"),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.cards.is_empty()
    }

    /// `job`: the job's processes.
    pub fn look(&self, job: &[i32]) -> Vec<Figures> {
        // A card that vanished has no files.
        let there = self.cards.iter().filter(|card| card.device.exists());
        let figures = there.map(|card| Figures {
            job_memory: card.held_by(job, &self.processes),
            ..card.look()
        });
        figures.collect()
    }
}

impl Card {
    /// MiB that processes of `job` hold; `None` where the compute driver does not tell.
    fn held_by(&self, job: &[i32], processes: &Path) -> Option<f64> {
        let file = format!("vram_{}", self.compute_id?);
        if job.is_empty() || !processes.is_dir() {
            return None;
        }
        // One that does not compute has no folder.
        let held = job
            .iter()
            .filter_map(|pid| number(&processes.join(pid.to_string()), &file));
        Some((held.sum::<u64>() >> 20) as f64)
    }

    fn look(&self) -> Figures {
        let file = |name: &str| number(&self.device, name);
        let sensor = |name: &str| self.sensors.as_deref().and_then(|s| number(s, name));
        let memory = file("mem_info_vram_used").zip(file("mem_info_vram_total"));
        Figures {
            place: self.place,
            usage: file("gpu_busy_percent").map(|percent| percent as f64),
            memory: memory.map(|(used, total)| Memory::of_bytes(used, total)),
            job_memory: None,
            // Of the edge; in thousandths.
            temperature: sensor("temp1_input").map(|milli| milli as f64 / 1e3),
            // Newer kernels have the first, older the second; in millionths.
            power: sensor("power1_input")
                .or_else(|| sensor("power1_average"))
                .map(|micro| micro as f64 / 1e6),
            clock: sensor("freq1_input").map(|hertz| hertz as f64 / 1e6),
            memory_clock: sensor("freq2_input").map(|hertz| hertz as f64 / 1e6),
            ecc_uncorrected: uncorrected(&self.device).map(|count| count as f64),
        }
    }
}

/// Memory errors that could not be corrected since the driver was loaded.
pub fn uncorrected(device: &Path) -> Option<u64> {
    let counts = text(device, "ras/umc_err_count")?;
    let line = counts.lines().find_map(|line| line.strip_prefix("ue:"))?;
    line.trim().parse().ok()
}

/// The number of `device` in the compute driver's topology, where both have the same render node.
fn compute_id(sysfs: &Path, device: &Path) -> Option<u64> {
    let minor = fs::read_dir(device.join("drm")).ok()?.flatten();
    let minor = minor
        .filter_map(|entry| entry.file_name().into_string().ok())
        .find_map(|name| name.strip_prefix("renderD").map(str::to_owned))?;
    let nodes = fs::read_dir(sysfs.join("class/kfd/kfd/topology/nodes")).ok()?;
    let node = nodes.flatten().map(|entry| entry.path()).find(|node| {
        let properties = text(node, "properties").unwrap_or_default();
        properties
            .lines()
            .any(|line| line.strip_prefix("drm_render_minor ") == Some(&minor))
    })?;
    number(&node, "gpu_id")
}

fn sensors(device: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(device.join("hwmon")).ok()?;
    let mut folders: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
    folders.sort();
    folders.into_iter().next()
}

fn text(folder: &Path, name: &str) -> Option<String> {
    let text = fs::read_to_string(folder.join(name)).ok()?;
    Some(text.trim().to_owned())
}

pub fn number(folder: &Path, name: &str) -> Option<u64> {
    text(folder, name)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(sysfs: &Path, name: &str, files: &[(&str, &str)]) {
        let device = sysfs.join("class/drm").join(name).join("device");
        for (file, text) in files {
            let path = device.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{text}\n")).unwrap();
        }
    }

    fn tree() -> tempfile::TempDir {
        let sysfs = tempfile::tempdir().unwrap();
        let root = sysfs.path();
        card(root, "card0", &[("vendor", "0x1a03")]); // the board's own graphics
        card(
            root,
            "card10",
            &[
                ("vendor", "0x1002"),
                ("mem_info_vram_total", "68702699520"),
                ("mem_info_vram_used", "8388608"),
                ("gpu_busy_percent", "3"),
                ("unique_id", "bb"),
            ],
        );
        card(
            root,
            "card1",
            &[
                ("vendor", "0x1002"),
                ("product_name", "AMD Instinct MI250X"),
                ("unique_id", "a1b2c3d4e5f60718"),
                ("gpu_busy_percent", "97"),
                ("mem_info_vram_total", "68702699520"),
                ("mem_info_vram_used", "34359738368"),
                ("ras/umc_err_count", "ue: 2\nce: 40"),
                ("hwmon/hwmon5/temp1_input", "54000"),
                ("hwmon/hwmon5/power1_average", "287000000"),
                ("hwmon/hwmon5/freq1_input", "1700000000"),
                ("hwmon/hwmon5/freq2_input", "1600000000"),
            ],
        );
        card(root, "card1-DP-1", &[("vendor", "0x1002")]);
        sysfs
    }

    #[test]
    fn figures_are_those_of_the_files() {
        let sysfs = tree();
        let reader = Reader::new(sysfs.path(), &Visible::All);
        let full = Figures {
            place: 0,
            usage: Some(97.0),
            memory: Some(Memory {
                used: 32768.0,
                total: 65520.0,
            }),
            job_memory: None,
            temperature: Some(54.0),
            power: Some(287.0),
            clock: Some(1700.0),
            memory_clock: Some(1600.0),
            ecc_uncorrected: Some(2.0),
        };
        let sparse = Figures {
            place: 1,
            usage: Some(3.0),
            memory: Some(Memory {
                used: 8.0,
                total: 65520.0,
            }),
            ..Figures::default()
        };
        assert_eq!(reader.look(&[]), [full, sparse.clone()]);

        // One that vanishes leaves the other.
        fs::remove_dir_all(sysfs.path().join("class/drm/card1")).unwrap();
        assert_eq!(reader.look(&[]), [sparse]);
    }

    #[test]
    fn the_jobs_share_is_what_its_processes_hold() {
        let sysfs = tree();
        let files = [
            ("drm/card1/device/drm/renderD129/dev", "226:129"),
            (
                "kfd/kfd/topology/nodes/0/properties",
                "cpu_cores_count 64\ndrm_render_minor 0",
            ),
            ("kfd/kfd/topology/nodes/0/gpu_id", "0"),
            (
                "kfd/kfd/topology/nodes/1/properties",
                "simd_count 440\ndrm_render_minor 129",
            ),
            ("kfd/kfd/topology/nodes/1/gpu_id", "51140"),
            ("kfd/kfd/proc/70/vram_51140", "1073741824"),
            ("kfd/kfd/proc/71/vram_51140", "2147483648"),
            ("kfd/kfd/proc/99/vram_51140", "4294967296"),
        ];
        for (file, text) in files {
            let path = sysfs.path().join("class").join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let reader = Reader::new(sysfs.path(), &Visible::All);
        let held = |job: &[i32]| -> Vec<Option<f64>> {
            reader.look(job).iter().map(|f| f.job_memory).collect()
        };
        assert_eq!(held(&[70, 71, 72]), [Some(3072.0), None]);
        assert_eq!(held(&[72]), [Some(0.0), None]);
        assert_eq!(held(&[]), [None, None]);
    }

    #[test]
    fn only_those_that_the_job_may_see() {
        let sysfs = tree();
        for (visible, places) in [
            (Visible::None, &[][..]),
            (Visible::Only(vec!["1".into()]), &[1][..]),
            (Visible::Only(vec!["GPU-a1b2c3d4e5f60718".into()]), &[0]),
            (Visible::All, &[0, 1]),
        ] {
            let reader = Reader::new(sysfs.path(), &visible);
            let found: Vec<usize> = reader.look(&[]).iter().map(|f| f.place).collect();
            assert_eq!(found, places, "{visible:?}");
        }
    }

    #[test]
    fn a_machine_without_cards_has_none() {
        let empty = tempfile::tempdir().unwrap();
        assert!(Reader::new(empty.path(), &Visible::All).is_empty());
        assert_eq!(find(Path::new("/no/such/folder")), []);
    }
}
