//! NVIDIA's GPUs, by NVML.
//!
//! MIG instances stand in the place of the GPU that is divided, as in the Python agent: they have
//! memory of their own, and the temperature of the whole GPU. What an old driver does
//! not know is a figure that is not there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enum_wrappers::device::{Clock, EccCounter, MemoryError, TemperatureSensor};
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, EventSet, Nvml};

use super::driver::words;
use super::{Figures, Identity, Memory, Mig, Visible};
use crate::console::Console;

/// What changes slowly or costs the driver much is asked in each so many looks.
const SLOW: u32 = 20;

pub struct Reader<'nvml> {
    nvml: &'nvml Nvml,
    devices: Vec<Watched<'nvml>>,
    /// Whether the driver has devices, counting or not.
    found_any: bool,
    /// Tells of errors that the kernel's driver reports (Xid).
    events: Option<EventSet<'nvml>>,
    /// What has been said, by device.
    told: BTreeSet<String>,
    looks: u32,
    /// The job's processes at the last slow look.
    job: Vec<i32>,
}

struct Watched<'nvml> {
    found: Found<'nvml>,
    /// The last answers to what is asked rarely.
    slow: Slow,
}

#[derive(Default)]
struct Slow {
    clock: Option<f64>,
    memory_clock: Option<f64>,
    ecc_uncorrected: Option<f64>,
    job_memory: Option<f64>,
}

/// A device as it was found.
pub struct Found<'nvml> {
    pub device: Device<'nvml>,
    /// The whole GPU of a MIG instance.
    pub parent: Option<Device<'nvml>>,
    pub identity: Identity,
    /// In the driver's list, in which instances stand for their GPU.
    pub place: usize,
}

impl<'nvml> Found<'nvml> {
    /// Temperature, clocks and health are those of the whole GPU.
    pub fn whole(&self) -> &Device<'nvml> {
        self.parent.as_ref().unwrap_or(&self.device)
    }
}

/// All devices that the driver has, in its order; those that cannot be opened go to `failed`, and
/// keep their place.
pub fn find<'nvml>(
    nvml: &'nvml Nvml,
    asking: impl Fn(&str),
    mut failed: impl FnMut(u32, NvmlError),
) -> Vec<Found<'nvml>> {
    let mut found = Vec::new();
    let mut place = 0;
    for index in 0..nvml.device_count().unwrap_or(0) {
        asking(&format!("GPU {index}"));
        let opened = nvml.device_by_index(index).and_then(|device| {
            let identity = Identity {
                index,
                uuid: device.uuid()?,
                name: device.name().unwrap_or_default(),
                mig: None,
            };
            Ok((device, identity))
        });
        let (device, identity) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                place += 1;
                failed(index, error);
                continue;
            }
        };
        let mut instances = instances(&device, &identity);
        if instances.is_empty() {
            instances.push((device, identity));
        }
        for (device, identity) in instances {
            let parent = identity.mig.as_ref();
            let parent = parent.and_then(|_| nvml.device_by_index(index).ok());
            found.push(Found {
                device,
                parent,
                identity,
                place,
            });
            place += 1;
        }
    }
    found
}

fn instances<'nvml>(device: &Device<'nvml>, whole: &Identity) -> Vec<(Device<'nvml>, Identity)> {
    const ENABLED: u32 = 1;
    if !device.mig_mode().is_ok_and(|mode| mode.current == ENABLED) {
        return Vec::new();
    }
    let most = device.mig_device_count().unwrap_or(0);
    let instances = (0..most).filter_map(|index| {
        let instance = device.mig_device_by_index(index).ok()?;
        let uuid = instance.uuid().ok()?;
        let identity = Identity {
            mig: Some(Mig { index, uuid }),
            ..whole.clone()
        };
        Some((instance, identity))
    });
    instances.collect()
}

impl<'nvml> Reader<'nvml> {
    pub fn new(
        nvml: &'nvml Nvml,
        visible: &Visible,
        console: &Console,
        asking: &impl Fn(&str),
    ) -> Self {
        let mut told = BTreeSet::new();
        let found = find(nvml, asking, |index, error| {
            let name = format!("GPU {index}");
            say_once(&mut told, console, &name, &error);
        });
        let found_any = !found.is_empty();
        let identities: Vec<Identity> = found.iter().map(|f| f.identity.clone()).collect();
        let chosen = visible.choose(&identities);
        let devices: Vec<Watched<'nvml>> = found
            .into_iter()
            .enumerate()
            .filter(|(n, _)| chosen.contains(n))
            .map(|(_, found)| Watched {
                found,
                slow: Slow::default(),
            })
            .collect();
        let events = listen(nvml, &devices);
        Self {
            nvml,
            devices,
            found_any,
            events,
            told,
            looks: 0,
            job: Vec::new(),
        }
    }

    pub fn found_any(&self) -> bool {
        self.found_any
    }

    pub fn is_empty(&self) -> bool {
        self.devices.is_empty()
    }

    /// `job`: the job's processes.
    pub fn look(&mut self, job: &[i32], console: &Console, asking: &impl Fn(&str)) -> Vec<Figures> {
        let slow_too = self.looks.is_multiple_of(SLOW) || job != self.job;
        self.job = job.to_vec();
        self.looks = self.looks.wrapping_add(1);
        let mut all = Vec::with_capacity(self.devices.len());
        for watched in &mut self.devices {
            let name = watched.found.identity.to_string();
            asking(&name);
            if slow_too {
                watched.slow = watched.ask_rarely(job);
            }
            match watched.look(self.nvml) {
                Ok(figures) => all.push(figures),
                Err(error) => say_once(&mut self.told, console, &name, &error),
            }
        }
        asking("the GPUs' events");
        self.take_events(console);
        all
    }

    /// An Xid is the driver's report of an error, of the device or of a program on it.
    fn take_events(&mut self, console: &Console) {
        let Some(events) = &self.events else { return };
        // More in one look than this is a device that does nothing but fail.
        for _ in 0..16 {
            match events.wait(0) {
                Ok(event) => {
                    // A lost device does not even know its index.
                    let index = self
                        .devices
                        .iter()
                        .find(|watched| same(watched.found.whole(), &event.device))
                        .map(|watched| watched.found.identity.index);
                    let code = match event.event_data {
                        Some(XidError::Value(code)) => code.to_string(),
                        _ => "unknown".into(),
                    };
                    let name = index.map_or("a GPU".into(), |index| format!("GPU {index}"));
                    if self.told.insert(format!("{name} Xid {code}")) {
                        console.say(format!(
                            "Note: {name}: the driver reports error Xid {code}{}",
                            super::xid::words(&code)
                        ));
                    }
                }
                Err(NvmlError::Timeout) => return,
                Err(error) => {
                    tracing::debug!(%error, "no more events of the GPUs");
                    self.events = None;
                    return;
                }
            }
        }
    }
}

fn listen<'nvml>(nvml: &'nvml Nvml, devices: &[Watched<'nvml>]) -> Option<EventSet<'nvml>> {
    let xid = EventTypes::CRITICAL_XID_ERROR;
    // MIG instances are not listened to, their GPU is.
    let mut by_index: BTreeMap<u32, &Device<'nvml>> = BTreeMap::new();
    for watched in devices {
        let found = &watched.found;
        by_index
            .entry(found.identity.index)
            .or_insert(found.whole());
    }
    by_index.retain(|_, d| d.supported_event_types().is_ok_and(|t| t.contains(xid)));
    // A refusal takes the whole set away, so the device is left out and the set is made anew.
    while !by_index.is_empty() {
        let mut set = nvml.create_event_set().ok()?;
        let mut refused = None;
        for (&index, device) in &by_index {
            match device.register_events(xid, set) {
                Ok(with) => set = with,
                Err(error) => {
                    tracing::debug!(%error, index, "no events");
                    refused = Some(index);
                    break;
                }
            }
            if by_index.last_key_value().map(|(last, _)| *last) == Some(index) {
                return Some(set);
            }
        }
        by_index.remove(&refused?);
    }
    None
}

/// Whether both are handles of one device.
fn same(a: &Device<'_>, b: &Device<'_>) -> bool {
    // SAFETY: the handles are compared as addresses and go nowhere.
    #[allow(unsafe_code)]
    let (a, b) = unsafe { (a.handle(), b.handle()) };
    a == b
}

fn say_once(told: &mut BTreeSet<String>, console: &Console, name: &str, error: &NvmlError) {
    if told.insert(name.to_owned()) {
        console.say(format!("Note: {name} gives no figures: {}", words(error)));
    }
}

impl Watched<'_> {
    /// An error only where the device gives nothing at all.
    fn look(&self, nvml: &Nvml) -> Result<Figures, NvmlError> {
        let whole = self.found.whole();
        let memory = memory(nvml, &self.found.device);
        let usage = self
            .found
            .device
            .utilization_rates()
            .map(|u| f64::from(u.gpu));
        let temperature = whole.temperature(TemperatureSensor::Gpu).map(f64::from);
        let (memory, usage, temperature) = match (memory, usage, temperature) {
            (Err(error), Err(_), Err(_)) => return Err(error),
            (memory, usage, temperature) => (memory.ok(), usage.ok(), temperature.ok()),
        };
        Ok(Figures {
            place: self.found.place,
            usage,
            memory,
            temperature,
            power: self
                .found
                .device
                .power_usage()
                .ok()
                .map(|mw| f64::from(mw) / 1000.0),
            job_memory: self.slow.job_memory,
            clock: self.slow.clock,
            memory_clock: self.slow.memory_clock,
            ecc_uncorrected: self.slow.ecc_uncorrected,
        })
    }

    fn ask_rarely(&self, job: &[i32]) -> Slow {
        let whole = self.found.whole();
        let clock = |which| whole.clock_info(which).ok().map(f64::from);
        Slow {
            clock: clock(Clock::SM),
            memory_clock: clock(Clock::Memory),
            ecc_uncorrected: uncorrected(whole).map(|count| count as f64),
            job_memory: job_memory(&self.found.device, job),
        }
    }
}

/// Memory errors that could not be corrected, since the driver was loaded.
pub fn uncorrected(device: &Device<'_>) -> Option<u64> {
    device
        .total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile)
        .ok()
}

/// What is not free counts as used, the driver's own part too: `nvidia-smi` and the Python agent
/// have it so.
fn memory(nvml: &Nvml, device: &Device<'_>) -> Result<Memory, NvmlError> {
    match device.memory_info() {
        Ok(info) => {
            let used = info.total.saturating_sub(info.free);
            Ok(Memory::of_bytes(used, info.total))
        }
        // Drivers before 510 have the older call alone.
        Err(NvmlError::FailedToLoadSymbol(_)) => memory_of_old_driver(nvml, device),
        Err(error) => Err(error),
    }
}

fn memory_of_old_driver(nvml: &Nvml, device: &Device<'_>) -> Result<Memory, NvmlError> {
    let call = nvml.lib().nvmlDeviceGetMemoryInfo.as_ref();
    let call = call.map_err(|error| NvmlError::FailedToLoadSymbol(error.to_string()))?;
    /// `nvmlMemory_t` of nvml.h.
    #[repr(C)]
    #[derive(Default)]
    struct OldMemory {
        total: u64,
        free: u64,
        used: u64,
    }
    let mut info = OldMemory::default();
    // SAFETY: the handle is a live device of this library (`nvml` and `device` are borrowed), and the
    // struct has the layout that the function fills in, three unsigned 64-bit numbers.
    #[allow(unsafe_code)]
    let code = unsafe { call(device.handle(), (&raw mut info).cast()) };
    nvml_wrapper::error::nvml_try(code)?;
    Ok(Memory::of_bytes(info.used, info.total))
}

/// Every process that has memory on the device, and how much (bytes) where the driver says it.
pub fn processes(device: &Device<'_>) -> Result<BTreeMap<i32, Option<u64>>, NvmlError> {
    let either = [
        device.running_compute_processes(),
        device.running_graphics_processes(),
    ];
    let mut processes: BTreeMap<i32, Option<u64>> = BTreeMap::new();
    let mut error = None;
    let mut answered = false;
    for list in either {
        match list {
            Ok(list) => {
                answered = true;
                for process in list {
                    let used = match process.used_gpu_memory {
                        UsedGpuMemory::Used(bytes) => Some(bytes),
                        UsedGpuMemory::Unavailable => None,
                    };
                    // One that computes and draws is in both lists with the same figure.
                    let pid = process.pid.cast_signed();
                    let known = processes.entry(pid).or_default();
                    *known = (*known).max(used);
                }
            }
            Err(e) => error = error.or(Some(e)),
        }
    }
    match error {
        Some(error) if !answered => Err(error),
        _ => Ok(processes),
    }
}

/// MiB that processes of `job` hold; `None` where that cannot be known: no process of the job is
/// known yet, the driver does not tell, or (in a container) it tells other process ids than ours.
fn job_memory(device: &Device<'_>, job: &[i32]) -> Option<f64> {
    if job.is_empty() {
        return None;
    }
    let mut sum = 0;
    for (pid, used) in processes(device).ok()? {
        if job.contains(&pid) {
            sum += used?;
        } else if !Path::new(&format!("/proc/{pid}")).exists() {
            return None;
        }
    }
    Some((sum >> 20) as f64)
}
