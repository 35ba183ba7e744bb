//! Which of a machine's GPUs the job may see, from the variables that container runtimes, CUDA and
//! the agent's own options set. Pure but for the listing of a folder, which is the caller's.

use super::Identity;

/// What the variables allow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Visible {
    /// Whatever the driver shows.
    All,
    None,
    /// Indices, UUIDs, MIG ids, as they stand in the variable.
    Only(Vec<String>),
}

/// `nvidia` and `cuda` are `NVIDIA_VISIBLE_DEVICES` and `CUDA_VISIBLE_DEVICES` as the job gets them;
/// `folder` lists a folder, `None` where there is none of that name.
///
/// As in the Python agent the first of the two that says something decides. It says nothing where it
/// is unset, empty or `void` (the device plugin of Kubernetes: "the devices come another way"). CUDA
/// itself takes an empty list for no device, and a list as ended at the first negative index.
pub fn visible(
    nvidia: Option<&str>,
    cuda: Option<&str>,
    folder: impl Fn(&str) -> Option<Vec<String>>,
) -> Visible {
    let nvidia = nvidia.map(str::trim).filter(|v| !v.is_empty());
    match nvidia {
        Some(value) if !value.eq_ignore_ascii_case("void") => listed(value, folder),
        _ => match cuda.map(str::trim) {
            None => Visible::All,
            Some("") => Visible::None,
            Some(value) => listed(value, folder),
        },
    }
}

fn listed(value: &str, folder: impl Fn(&str) -> Option<Vec<String>>) -> Visible {
    const NONE: [&str; 2] = ["none", "nodevfiles"];
    if value.eq_ignore_ascii_case("all") {
        return Visible::All;
    }
    if NONE.iter().any(|none| value.eq_ignore_ascii_case(none)) {
        return Visible::None;
    }
    // A volume whose files are named for the devices: /var/run/nvidia-container-devices.
    if value.starts_with('/') {
        return match folder(value) {
            Some(names) if !names.is_empty() => Visible::Only(names),
            _ => Visible::All,
        };
    }
    let entries: Vec<String> = value
        .split(',')
        .map(str::trim)
        .filter(|entry| !entry.is_empty())
        .take_while(|entry| !entry.starts_with('-'))
        // A name of the container device interface: `nvidia.com/gpu=0`.
        .map(|entry| entry.rsplit_once('=').map_or(entry, |(_, name)| name))
        .map(str::to_owned)
        .collect();
    if entries.iter().any(|entry| entry == "all") {
        Visible::All
    } else if entries.is_empty() {
        Visible::None
    } else {
        Visible::Only(entries)
    }
}

impl Visible {
    /// The positions in `devices`, the driver's list, of those that are meant.
    ///
    /// In a container the driver shows only the devices that the container has and numbers them
    /// anew, while the variable has the host's numbers: a list that names none of the devices, or of
    /// which some name none where there are no more devices than names, means all that are shown.
    pub fn choose(&self, devices: &[Identity]) -> Vec<usize> {
        let all = || (0..devices.len()).collect();
        match self {
            Visible::All => all(),
            Visible::None => Vec::new(),
            Visible::Only(entries) => {
                let chosen: Vec<usize> = (0..devices.len())
                    .filter(|&n| entries.iter().any(|entry| names(entry, &devices[n])))
                    .collect();
                let unknown = entries
                    .iter()
                    .any(|entry| !devices.iter().any(|device| names(entry, device)));
                if chosen.is_empty() || (unknown && devices.len() <= entries.len()) {
                    all()
                } else {
                    chosen
                }
            }
        }
    }
}

/// Whether `entry` means `device`: by index, `GPU:MIG` (or `GPU.MIG`) indices, UUID or the beginning
/// of one. An entry for a whole GPU means all of its MIG instances.
pub fn names(entry: &str, device: &Identity) -> bool {
    let entry = entry.trim();
    let number = |text: &str| text.parse::<u32>().ok();
    if let Some(index) = number(entry) {
        return index == device.index;
    }
    if let Some((gpu, mig)) = entry.split_once([':', '.'])
        && let (Some(gpu), Some(mig)) = (number(gpu), number(mig))
    {
        return gpu == device.index && device.mig.as_ref().is_some_and(|m| m.index == mig);
    }
    let begins = |uuid: &str| {
        // CUDA takes any beginning that is clear.
        entry.len() > 4
            && uuid
                .get(..entry.len())
                .is_some_and(|start| start.eq_ignore_ascii_case(entry))
    };
    begins(&device.uuid) || device.mig.as_ref().is_some_and(|mig| begins(&mig.uuid))
}

#[cfg(test)]
mod tests {
    use super::super::Mig;
    use super::*;

    fn only(entries: &[&str]) -> Visible {
        Visible::Only(entries.iter().map(|&e| e.to_owned()).collect())
    }

    #[test]
    fn what_the_variables_allow() {
        let folder = |path: &str| match path {
            "/var/run/nvidia-container-devices" => Some(vec!["GPU-aa".to_owned()]),
            "/empty" => Some(vec![]),
            _ => None,
        };
        for (nvidia, cuda, expected) in [
            (None, None, Visible::All),
            (Some(""), None, Visible::All),
            (Some("all"), Some("0"), Visible::All),
            (Some("ALL"), None, Visible::All),
            (Some("none"), Some("0"), Visible::None),
            (Some("void"), None, Visible::All),
            (Some("void"), Some("1"), only(&["1"])),
            (Some("0,1"), None, only(&["0", "1"])),
            (Some(" 0 , 2,"), Some("1"), only(&["0", "2"])),
            (Some("GPU-aa,MIG-bb"), None, only(&["GPU-aa", "MIG-bb"])),
            (Some("0:1,2"), None, only(&["0:1", "2"])),
            (Some("nvidia.com/gpu=1"), None, only(&["1"])),
            (Some("nvidia.com/gpu=all"), None, Visible::All),
            (
                Some("/var/run/nvidia-container-devices"),
                None,
                only(&["GPU-aa"]),
            ),
            (Some("/empty"), None, Visible::All),
            (Some("/nowhere"), None, Visible::All),
            (None, Some("3"), only(&["3"])),
            (None, Some("none"), Visible::None),
            (None, Some(""), Visible::None),
            (None, Some("-1"), Visible::None),
            (None, Some("NoDevFiles"), Visible::None),
            (None, Some("2,-1,3"), only(&["2"])),
        ] {
            assert_eq!(
                visible(nvidia, cuda, folder),
                expected,
                "{nvidia:?} {cuda:?}"
            );
        }
    }

    fn gpus(count: u32) -> Vec<Identity> {
        (0..count)
            .map(|index| Identity {
                index,
                uuid: format!("GPU-{index}{index}{index}{index}-aaaa"),
                name: "NVIDIA Test".into(),
                mig: None,
            })
            .collect()
    }

    fn instance(index: u32, mig: u32) -> Identity {
        Identity {
            mig: Some(Mig {
                index: mig,
                uuid: format!("MIG-{index}{mig}00-bbbb"),
            }),
            ..gpus(index + 1).remove(index as usize)
        }
    }

    #[test]
    fn devices_are_chosen_as_they_are_named() {
        let mut with_mig = vec![instance(0, 0), instance(0, 1)];
        with_mig.extend(gpus(2).split_off(1));
        for (entries, devices, chosen) in [
            (&["0"][..], gpus(8), &[0][..]),
            (&["5", "1"], gpus(8), &[1, 5]),
            (&["GPU-2222-aaaa"], gpus(4), &[2]),
            (&["gpu-2222"], gpus(4), &[2]),
            (&["1", "GPU-3333-aaaa"], gpus(4), &[1, 3]),
            // One name of several is wrong on a machine that has more.
            (&["0", "9"], gpus(8), &[0]),
            // Renumbered in a container.
            (&["3"], gpus(1), &[0]),
            (&["1", "2"], gpus(2), &[0, 1]),
            (&["6", "7"], gpus(8), &[6, 7]),
            (&["GPU-ffff"], gpus(2), &[0, 1]),
            // MIG
            (&["0"], with_mig.clone(), &[0, 1]),
            (&["0:1"], with_mig.clone(), &[1]),
            (&["0.0", "1"], with_mig.clone(), &[0, 2]),
            (&["MIG-0100-bbbb"], with_mig.clone(), &[1]),
            (&["GPU-0000-aaaa"], with_mig, &[0, 1]),
        ] {
            assert_eq!(only(entries).choose(&devices), chosen, "{entries:?}");
        }
        assert!(Visible::None.choose(&gpus(2)).is_empty());
        assert_eq!(Visible::All.choose(&gpus(2)), [0, 1]);
    }
}
