//! The look at the GPUs before a task is taken (`agent.gpu_health_check`): would a job fail here for
//! the hardware's sake? What is found is judged by a pure function; the driver is asked on a thread
//! of its own and given up when it does not answer.

use std::collections::BTreeMap;
use std::time::Duration;

use nvml_wrapper::Nvml;
use nvml_wrapper::enums::device::SampleValue;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::structs::device::FieldId;
use nvml_wrapper::sys_exports::field_id;
use tokio::sync::oneshot;

use super::{Identity, Source, Visible, amd, driver, nvml, xid};

/// `agent.gpu_health_check`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    Off,
    /// What is found is said, and the task is run.
    Warn,
    /// The task is not taken.
    Refuse,
}

impl Check {
    /// The key's words; `None` for another.
    pub fn from_text(text: &str) -> Option<Self> {
        match text.trim().to_lowercase().as_str() {
            "off" | "false" | "no" | "" => Some(Check::Off),
            "warn" => Some(Check::Warn),
            "refuse" => Some(Check::Refuse),
            _ => None,
        }
    }
}

/// What the run asks of the machine.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The devices were named, by `--gpus` or a variable: they are expected to be there.
    pub named: bool,
    /// The CUDA version that the configuration names, ten times major plus minor.
    pub cuda: Option<u32>,
}

/// How one device is. What it or its driver does not tell is `None`.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// `GPU 3`
    pub name: String,
    /// In words: why it cannot be asked.
    pub lost: Option<String>,
    pub ecc_uncorrected: Option<u64>,
    /// Memory pages are to be taken out of use at the next reset.
    pub retirement_pending: Option<bool>,
    /// The same by rows, on GPUs since Ampere.
    pub remap_pending: Option<bool>,
    /// A row could not be replaced: the memory has no spare left.
    pub remap_failed: Option<bool>,
    /// Processes on it, and bytes that they hold.
    pub held: Vec<(i32, Option<u64>)>,
    pub memory_used: Option<u64>,
    pub memory_total: Option<u64>,
    /// Errors in the kernel's log of the last day.
    pub xids: Vec<u32>,
}

/// How the machine is.
#[derive(Debug, Clone, Default)]
pub struct Machine {
    /// The driver does not work or does not answer, in words.
    pub driver: Option<String>,
    pub driver_version: Option<String>,
    /// The newest CUDA that the driver can run, ten times major plus minor.
    pub cuda: Option<u32>,
    /// Those that the job may see.
    pub devices: Vec<State>,
    /// Entries of the list of devices that name none.
    pub missing: Vec<String>,
}

/// How long the driver may take; an idle one that wakes eight GPUs takes some seconds.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What is wrong, one sentence each. Takes as long as `patience` at most, and can be abandoned.
pub async fn check(source: &Source, asked: &Asked, patience: Duration) -> Vec<String> {
    if source.visible == Visible::None {
        return Vec::new();
    }
    let (tell, told) = oneshot::channel();
    let thread_source = source.clone();
    let look = move || {
        let _ = tell.send(look(&thread_source));
    };
    if let Err(error) = std::thread::Builder::new().name("gpu".into()).spawn(look) {
        return vec![format!("the GPUs could not be looked at: {error}")];
    }
    match tokio::time::timeout(patience, told).await {
        Ok(Ok(machine)) => findings(&machine, asked),
        // The thread panicked.
        Ok(Err(_)) => vec!["the GPUs could not be looked at: a defect of the agent".into()],
        Err(_) => vec![format!(
            "the GPUs' driver has not answered for {} s",
            patience.as_secs()
        )],
    }
}

/// The judgement. Pure.
pub fn findings(machine: &Machine, asked: &Asked) -> Vec<String> {
    let mut found = Vec::new();
    if let Some(words) = &machine.driver {
        found.push(format!("NVIDIA's driver does not work: {words}"));
    }
    if asked.named {
        if machine.devices.is_empty() && machine.driver.is_none() {
            found.push("there is no GPU, and the run asks for some".into());
        }
        for entry in &machine.missing {
            found.push(format!("there is no GPU {entry}, which the run asks for"));
        }
    }
    if let (Some(has), Some(needs)) = (machine.cuda, asked.cuda)
        && has < needs
    {
        let driver = machine.driver_version.as_deref().unwrap_or("?");
        found.push(format!(
            "the driver {driver} runs CUDA {} at most, and the configuration asks for {}",
            version(has),
            version(needs)
        ));
    }
    for device in &machine.devices {
        let name = &device.name;
        if let Some(words) = &device.lost {
            found.push(format!("{name}: {words}"));
        }
        if let Some(count @ 1..) = device.ecc_uncorrected {
            found.push(format!(
                "{name}: {count} memory error(s) that could not be corrected since the driver was loaded"
            ));
        }
        if device.retirement_pending == Some(true) {
            found.push(format!(
                "{name}: memory pages wait to be taken out of use: it must be reset"
            ));
        }
        if device.remap_pending == Some(true) {
            found.push(format!(
                "{name}: memory rows wait to be replaced: it must be reset"
            ));
        }
        if device.remap_failed == Some(true) {
            found.push(format!(
                "{name}: a memory row could not be replaced: the device is to be exchanged"
            ));
        }
        found.extend(held(device));
        for code in &device.xids {
            found.push(format!(
                "{name}: error Xid {code} in the kernel's log{}",
                xid::words(&code.to_string())
            ));
        }
    }
    found
}

/// Memory that somebody else has: a job would get less than the device has, or none.
fn held(device: &State) -> Option<String> {
    /// A display server, a driver's own.
    const LITTLE: u64 = 512 << 20;
    let total = device.memory_total?;
    let by_processes: u64 = device.held.iter().filter_map(|(_, used)| *used).sum();
    let used = device.memory_used.unwrap_or(0).max(by_processes);
    if used <= LITTLE.max(total / 20) {
        return None;
    }
    let pids: Vec<String> = device.held.iter().map(|(pid, _)| pid.to_string()).collect();
    let by = match pids.as_slice() {
        [] => "no process that can be seen from here (one that ended badly keeps it until a reset)"
            .to_owned(),
        pids => format!("process {}", pids.join(", ")),
    };
    Some(format!(
        "{}: {} of its {} MiB are held already, by {by}",
        device.name,
        used >> 20,
        total >> 20
    ))
}

fn version(ten_times: u32) -> String {
    format!("{}.{}", ten_times / 10, ten_times % 10)
}

fn look(source: &Source) -> Machine {
    let mut machine = Machine::default();
    let mut identities = Vec::new();
    match driver::try_open() {
        Ok(nvml) => look_at_nvidia(&nvml, source, &mut machine, &mut identities),
        Err(error) if driver::is_absence(&error) => {}
        Err(error) => machine.driver = Some(driver::words(&error)),
    }
    let cards = match identities.is_empty() {
        true => amd::find(&source.sysfs),
        false => Vec::new(),
    };
    let found: Vec<Identity> = cards.iter().map(|(_, id)| id.clone()).collect();
    for place in source.visible.choose(&found) {
        let (device, identity) = &cards[place];
        machine.devices.push(State {
            name: identity.to_string(),
            ecc_uncorrected: amd::uncorrected(device),
            memory_used: amd::number(device, "mem_info_vram_used"),
            memory_total: amd::number(device, "mem_info_vram_total"),
            ..State::default()
        });
    }
    identities.extend(found);
    if let Visible::Only(entries) = &source.visible
        // In a container the names are the host's (see `Visible::choose`).
        && identities.len() > entries.len()
    {
        let names_none = |entry: &&String| {
            !identities
                .iter()
                .any(|identity| super::visible::names(entry, identity))
        };
        machine.missing = entries.iter().filter(names_none).cloned().collect();
    }
    machine
}

fn look_at_nvidia(
    nvml: &Nvml,
    source: &Source,
    machine: &mut Machine,
    identities: &mut Vec<Identity>,
) {
    machine.driver_version = nvml.sys_driver_version().ok();
    // 12040 is 12.4.
    machine.cuda = nvml.sys_cuda_driver_version().ok().and_then(|version| {
        let version = u32::try_from(version).ok()?;
        Some(version / 1000 * 10 + version % 1000 / 10)
    });
    let xids = xid::in_kernel_log();
    let mut lost: Vec<(u32, NvmlError)> = Vec::new();
    let found = nvml::find(nvml, |_| (), |index, error| lost.push((index, error)));
    let all: Vec<Identity> = found.iter().map(|f| f.identity.clone()).collect();
    for n in source.visible.choose(&all) {
        machine.devices.push(state(&found[n], &xids));
    }
    for (index, error) in lost {
        let identity = Identity {
            index,
            uuid: String::new(),
            name: String::new(),
            mig: None,
        };
        let counts = match &source.visible {
            Visible::Only(entries) => entries
                .iter()
                .any(|entry| super::visible::names(entry, &identity)),
            Visible::All => true,
            Visible::None => false,
        };
        if counts {
            machine.devices.push(State {
                name: identity.to_string(),
                lost: Some(driver::words(&error)),
                ..State::default()
            });
        }
        identities.push(identity);
    }
    identities.extend(all);
}

fn state(found: &nvml::Found<'_>, xids: &BTreeMap<String, Vec<u32>>) -> State {
    let (device, whole) = (&found.device, found.whole());
    let lost = match whole.index() {
        Err(error @ (NvmlError::GpuLost | NvmlError::ResetRequired)) => Some(driver::words(&error)),
        _ => match device.memory_info() {
            Err(error @ (NvmlError::GpuLost | NvmlError::ResetRequired | NvmlError::Unknown)) => {
                Some(driver::words(&error))
            }
            _ => None,
        },
    };
    let field = |id: u32| -> Option<bool> {
        let values = whole.field_values_for(&[FieldId(id)]).ok()?;
        match values.into_iter().next()?.ok()?.value.ok()? {
            SampleValue::U32(value) => Some(value != 0),
            SampleValue::U64(value) => Some(value != 0),
            SampleValue::I64(value) => Some(value != 0),
            SampleValue::F64(_) => None,
        }
    };
    let memory = device.memory_info().ok();
    let address = whole.pci_info().map(|pci| xid::address(&pci.bus_id));
    State {
        name: found.identity.to_string(),
        lost,
        ecc_uncorrected: nvml::uncorrected(whole),
        retirement_pending: whole.are_pages_pending_retired().ok(),
        remap_pending: field(field_id::NVML_FI_DEV_REMAPPED_PENDING),
        remap_failed: field(field_id::NVML_FI_DEV_REMAPPED_FAILURE),
        held: nvml::processes(device)
            .map(|processes| processes.into_iter().collect())
            .unwrap_or_default(),
        memory_used: memory.as_ref().map(|memory| memory.used),
        memory_total: memory.as_ref().map(|memory| memory.total),
        xids: address
            .ok()
            .and_then(|address| xids.get(&address).cloned())
            .unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANY: Asked = Asked {
        named: false,
        cuda: None,
    };

    fn gpu() -> State {
        State {
            name: "GPU 0".into(),
            ecc_uncorrected: Some(0),
            retirement_pending: Some(false),
            remap_pending: Some(false),
            remap_failed: Some(false),
            memory_used: Some(4 << 20),
            memory_total: Some(80 << 30),
            ..State::default()
        }
    }

    fn machine(devices: Vec<State>) -> Machine {
        Machine {
            driver_version: Some("550.54".into()),
            cuda: Some(124),
            devices,
            ..Machine::default()
        }
    }

    #[test]
    fn a_machine_that_is_well_has_no_findings() {
        let asked = Asked {
            named: true,
            cuda: Some(124),
        };
        assert_eq!(
            findings(&machine(vec![gpu()]), &asked),
            Vec::<String>::new()
        );
        assert_eq!(findings(&Machine::default(), &ANY), Vec::<String>::new());
        // What a device does not tell is not held against it.
        let silent = State {
            name: "GPU 0".into(),
            ..State::default()
        };
        assert_eq!(
            findings(&machine(vec![silent]), &asked),
            Vec::<String>::new()
        );
    }

    #[test]
    fn each_fault_is_found() {
        let with = |change: &dyn Fn(&mut State)| {
            let mut state = gpu();
            change(&mut state);
            machine(vec![state])
        };
        for (machine, words) in [
            (
                with(&|s| s.ecc_uncorrected = Some(3)),
                "GPU 0: 3 memory error(s)",
            ),
            (
                with(&|s| s.retirement_pending = Some(true)),
                "GPU 0: memory pages wait",
            ),
            (
                with(&|s| s.remap_pending = Some(true)),
                "GPU 0: memory rows wait",
            ),
            (with(&|s| s.remap_failed = Some(true)), "to be exchanged"),
            (
                with(&|s| s.lost = Some("fallen off the bus".into())),
                "GPU 0: fallen off",
            ),
            (
                with(&|s| s.xids = vec![79]),
                "GPU 0: error Xid 79 in the kernel's log: the device has",
            ),
            (
                with(&|s| s.memory_used = Some(40 << 30)),
                "GPU 0: 40960 of its 81920 MiB are held already, by no process",
            ),
            (
                with(&|s| s.held = vec![(7, Some(5 << 30)), (9, None)]),
                "GPU 0: 5120 of its 81920 MiB are held already, by process 7, 9",
            ),
            (
                Machine {
                    driver: Some("too old".into()),
                    ..Machine::default()
                },
                "NVIDIA's driver does not work: too old",
            ),
        ] {
            let found = findings(&machine, &ANY);
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].contains(words), "{found:?} {words}");
        }
        let little = with(&|s| s.held = vec![(7, Some(400 << 20))]);
        assert_eq!(findings(&little, &ANY), Vec::<String>::new());
    }

    #[test]
    fn what_the_run_asks_for_must_be_there() {
        let named = Asked {
            named: true,
            cuda: None,
        };
        assert!(findings(&Machine::default(), &named)[0].contains("there is no GPU, and"));
        let one_missing = Machine {
            missing: vec!["9".into()],
            ..machine(vec![gpu()])
        };
        assert!(findings(&one_missing, &named)[0].contains("there is no GPU 9"));
        let newer = Asked {
            named: false,
            cuda: Some(128),
        };
        assert_eq!(
            findings(&machine(vec![gpu()]), &newer),
            ["the driver 550.54 runs CUDA 12.4 at most, and the configuration asks for 12.8"]
        );
    }

    #[test]
    fn the_keys_words() {
        for (text, check) in [
            ("off", Some(Check::Off)),
            ("false", Some(Check::Off)),
            ("Warn", Some(Check::Warn)),
            ("refuse", Some(Check::Refuse)),
            ("maybe", None),
        ] {
            assert_eq!(Check::from_text(text), check);
        }
    }
}
