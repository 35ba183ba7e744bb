//! Which GPUs an Apptainer container gets, as its flag and the variables by which CUDA and ROCm choose:
//! what the agent was told to use, and never more. Pure.

use bollard::models::DeviceRequest;

use crate::container::gpus::Asked;

/// What the machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Machine {
    Nvidia,
    Amd,
    None,
}

#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    pub asked: Asked<'a>,
    /// `--gpus` or `--cpu-only` said so, and not a variable of the agent's.
    pub is_explicit: bool,
    /// The agent's own `CUDA_VISIBLE_DEVICES`.
    pub cuda: Option<&'a str>,
    /// Those of the arguments.
    pub arguments: &'a [DeviceRequest],
    pub machine: Machine,
}

/// What the container is given.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Granted {
    pub flags: Vec<&'static str>,
    pub variables: Vec<(&'static str, String)>,
    /// Variables that the image may have, and that must not count.
    pub unset: Vec<&'static str>,
    /// A `--gpus` of the arguments was left out.
    pub overrules: bool,
    /// The container is to have none, whatever Apptainer's own settings say.
    pub none: bool,
}

const NVIDIA: &str = "NVIDIA_VISIBLE_DEVICES";
const CUDA: &str = "CUDA_VISIBLE_DEVICES";
const ROCM: &str = "ROCR_VISIBLE_DEVICES";

/// Which devices.
enum Devices {
    None,
    All,
    List(String),
    /// Nobody said anything, and there are none.
    Unsaid,
}

/// The error is why they cannot be had.
pub fn grant(request: &Request<'_>) -> Result<Granted, String> {
    let Request {
        asked,
        arguments,
        machine,
        ..
    } = *request;
    let told = asked.devices.map(|told| told.trim().replace('.', ":"));
    let (devices, is_explicit, overrules) = match told.as_deref() {
        Some(word) => match word.to_lowercase().as_str() {
            "none" | "void" | "" | "-1" | "nodevfiles" => (Devices::None, true, true),
            // The arguments may say less.
            "all" => match of_arguments(arguments)? {
                Some(devices) => (devices, true, false),
                None => (Devices::All, request.is_explicit, false),
            },
            _ => (Devices::List(word.to_owned()), request.is_explicit, true),
        },
        None => match of_arguments(arguments)? {
            Some(devices) => (devices, true, false),
            None if asked.variable_only => (Devices::All, false, false),
            None if machine == Machine::Nvidia => (Devices::All, false, false),
            None => (Devices::Unsaid, false, false),
        },
    };
    let overrules = overrules && !arguments.is_empty();
    if let (Devices::All | Devices::List(_), Machine::None, true, false) =
        (&devices, machine, is_explicit, asked.variable_only)
    {
        return Err(
            "this machine has neither NVIDIA's driver (/proc/driver/nvidia) nor AMD's (/dev/kfd)"
                .into(),
        );
    }
    let flags = match (&devices, machine) {
        (Devices::None, _) => vec!["--no-nv", "--no-rocm"],
        (Devices::Unsaid, _) | (_, Machine::None) => vec![],
        _ if asked.variable_only => vec![],
        (_, Machine::Nvidia) => vec!["--nv"],
        (_, Machine::Amd) => vec!["--rocm"],
    };
    let (variables, unset) = match &devices {
        Devices::None => (vec![(NVIDIA, "none".into()), (CUDA, "none".into())], vec![]),
        Devices::Unsaid => (vec![], vec![]),
        Devices::All => match (request.cuda, request.is_explicit) {
            // A batch system's word on which of all they are.
            (Some(cuda), false) => (
                vec![(NVIDIA, "all".into()), (CUDA, cuda.to_owned())],
                vec![],
            ),
            // CUDA knows no `all`.
            _ => (vec![(NVIDIA, "all".into())], vec![CUDA]),
        },
        Devices::List(list) => {
            check(list)?;
            let cuda = request
                .cuda
                .filter(|_| !request.is_explicit && told.is_some());
            let cuda = cuda.unwrap_or(list).to_owned();
            match machine {
                Machine::Amd => (
                    vec![(NVIDIA, list.clone()), (CUDA, cuda), (ROCM, list.clone())],
                    vec![],
                ),
                _ => (vec![(NVIDIA, list.clone()), (CUDA, cuda)], vec![]),
            }
        }
    };
    Ok(Granted {
        none: matches!(devices, Devices::None),
        flags,
        variables,
        unset,
        overrules,
    })
}

/// All devices are in the container, and CUDA chooses among them by names that it knows.
fn check(list: &str) -> Result<(), String> {
    let unknown = list
        .split(',')
        .map(str::trim)
        .find(|entry| entry.contains(['=', ':']) && !entry.contains('-'));
    match unknown {
        Some(entry) => Err(format!(
            "{entry:?}: in an Apptainer container a GPU is named by its number or UUID, a MIG instance by its UUID \
             (`nvidia-smi -L` shows them)"
        )),
        None => Ok(()),
    }
}

/// What `--gpus` of the arguments asks for; the last one counts most, as docker has it.
fn of_arguments(requests: &[DeviceRequest]) -> Result<Option<Devices>, String> {
    let Some(request) = requests.last() else {
        return Ok(None);
    };
    if request
        .options
        .as_ref()
        .is_some_and(|options| !options.is_empty())
    {
        return Err("--gpus …,options=: Apptainer has none".into());
    }
    Ok(Some(match (&request.device_ids, request.count) {
        (Some(ids), _) if !ids.is_empty() => Devices::List(ids.join(",")),
        (_, Some(0)) => Devices::None,
        (_, Some(count)) if count > 0 => {
            let numbers: Vec<String> = (0..count).map(|number| number.to_string()).collect();
            Devices::List(numbers.join(","))
        }
        _ => Devices::All,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(count: Option<i64>, ids: &[&str]) -> DeviceRequest {
        DeviceRequest {
            count,
            device_ids: (!ids.is_empty()).then(|| ids.iter().map(|id| (*id).to_owned()).collect()),
            ..DeviceRequest::default()
        }
    }

    #[test]
    fn a_container_never_sees_more_than_was_asked_for() {
        use Machine::{Amd, Nvidia};
        let all = [request(Some(-1), &[])];
        let two = [request(Some(2), &[])];
        let named = [request(None, &["GPU-ab", "3"])];
        let nothing: &[DeviceRequest] = &[];
        // Told, by an option, CUDA's variable, arguments, machine; the flags, NVIDIA's and CUDA's variable.
        for (told, is_explicit, cuda, arguments, machine, flags, nvidia_is, cuda_is) in [
            (
                None,
                false,
                None,
                nothing,
                Machine::None,
                &[][..],
                None,
                None,
            ),
            (None, false, None, nothing, Amd, &[], None, None),
            (
                None,
                false,
                None,
                nothing,
                Nvidia,
                &["--nv"],
                Some("all"),
                None,
            ),
            (None, false, None, &all, Amd, &["--rocm"], Some("all"), None),
            (
                None,
                false,
                None,
                &two,
                Nvidia,
                &["--nv"],
                Some("0,1"),
                Some("0,1"),
            ),
            (
                None,
                false,
                None,
                &named,
                Nvidia,
                &["--nv"],
                Some("GPU-ab,3"),
                Some("GPU-ab,3"),
            ),
            (
                Some("all"),
                true,
                Some("2"),
                nothing,
                Nvidia,
                &["--nv"],
                Some("all"),
                None,
            ),
            (
                Some("1"),
                true,
                Some("0,1"),
                &all,
                Nvidia,
                &["--nv"],
                Some("1"),
                Some("1"),
            ),
            (
                Some("0,2"),
                true,
                None,
                nothing,
                Amd,
                &["--rocm"],
                Some("0,2"),
                Some("0,2"),
            ),
            // A batch system's variables: as they are.
            (
                Some("2,3"),
                false,
                Some("2,3"),
                &all,
                Nvidia,
                &["--nv"],
                Some("2,3"),
                Some("2,3"),
            ),
            (
                Some("all"),
                false,
                Some("1"),
                nothing,
                Nvidia,
                &["--nv"],
                Some("all"),
                Some("1"),
            ),
            (
                Some("0"),
                false,
                Some("0"),
                nothing,
                Machine::None,
                &[],
                Some("0"),
                Some("0"),
            ),
            (
                Some("none"),
                true,
                Some("0"),
                &all,
                Nvidia,
                &["--no-nv", "--no-rocm"],
                Some("none"),
                Some("none"),
            ),
            (
                Some("-1"),
                false,
                Some("-1"),
                &all,
                Nvidia,
                &["--no-nv", "--no-rocm"],
                Some("none"),
                Some("none"),
            ),
        ] {
            let asked = Asked {
                devices: told,
                variable_only: false,
                driver: machine == Nvidia,
            };
            let granted = grant(&Request {
                asked,
                is_explicit,
                cuda,
                arguments,
                machine,
            })
            .unwrap();
            let value = |name| {
                granted
                    .variables
                    .iter()
                    .find(|(n, _)| *n == name)
                    .map(|(_, v)| v.as_str())
            };
            assert_eq!(granted.flags, flags, "{told:?} {machine:?}");
            assert_eq!(
                (value(NVIDIA), value(CUDA)),
                (nvidia_is, cuda_is),
                "{told:?} {arguments:?}"
            );
        }
    }

    #[test]
    fn what_cannot_be_had_is_said() {
        for (told, machine, why) in [
            (Some("all"), Machine::None, "neither NVIDIA's driver"),
            (Some("0:1"), Machine::Nvidia, "a MIG instance by its UUID"),
            (
                Some("nvidia.com/gpu=0"),
                Machine::Nvidia,
                "by its number or UUID",
            ),
        ] {
            let asked = Asked {
                devices: told,
                variable_only: false,
                driver: true,
            };
            let error = grant(&Request {
                asked,
                is_explicit: true,
                cuda: None,
                arguments: &[],
                machine,
            })
            .unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
