//! The environment of the task's script: what the agent inherited, and what the ClearML SDK and
//! CUDA are told. Pure; names and rules are the Python agent's.

use std::collections::BTreeMap;
use std::path::Path;

use crate::cli::LogLevel;
use crate::config::is_for_the_job;

pub type Variables = BTreeMap<String, String>;

/// Which GPUs the task may see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Gpus {
    /// Whatever the agent itself may see.
    Inherited,
    None,
    All,
    /// Indices, UUIDs or MIG ids as given, comma-separated.
    Only(String),
}

impl Gpus {
    /// From `--gpus` and `--cpu-only`, which exclude each other.
    /// The error is what of `gpus` names no GPU.
    pub fn from_flags(gpus: Option<&str>, cpu_only: bool) -> Result<Self, String> {
        Ok(match gpus.map(str::trim) {
            _ if cpu_only => Gpus::None,
            None | Some("") => Gpus::Inherited,
            Some("all") => Gpus::All,
            Some("none" | "void") => Gpus::None,
            Some(list) => {
                let entries: Vec<&str> = list.split(',').map(str::trim).collect();
                match entries.iter().find(|entry| !names_gpu(entry)) {
                    Some(entry) => return Err((*entry).to_owned()),
                    None => Gpus::Only(entries.join(",")),
                }
            }
        })
    }
}

/// An index, `GPU:MIG` (or `GPU.MIG`), the UUID of a GPU or MIG instance or its beginning, or a name of the
/// container device interface (`nvidia.com/gpu=0`).
fn names_gpu(entry: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let is_uuid = |rest: &str| {
        !rest.is_empty()
            && rest
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-/".contains(&b))
    };
    let of_kind = |kind: &str| {
        let begins = entry
            .get(..kind.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(kind));
        begins && entry.get(kind.len()..).is_some_and(is_uuid)
    };
    match entry.split_once([':', '.']) {
        Some((gpu, mig)) if is_number(gpu) => is_number(mig),
        _ => {
            is_number(entry)
                || of_kind("GPU-")
                || of_kind("MIG-")
                || entry
                    .split_once('=')
                    .is_some_and(|(kind, name)| kind.contains('/') && !name.is_empty())
        }
    }
}

/// What a run that goes on with a broken-off one is told of it.
#[derive(Debug, Clone, Copy)]
pub struct Attempt<'a> {
    /// Counted from 1.
    pub number: u32,
    pub former_end: Option<&'a str>,
    /// The last that was reported of the task; none of a new one.
    pub last_iteration: Option<i64>,
}

/// What the task's script is told.
#[derive(Debug)]
pub struct Told<'a> {
    pub task_id: &'a str,
    /// The configuration file that the SDK is to read.
    pub config_file: &'a Path,
    pub log_level: LogLevel,
    pub worker: &'a str,
    pub gpus: &'a Gpus,
    pub attempt: Attempt<'a>,
    /// The task's `Environment` parameters, where `agent.enable_task_env` is on.
    pub task_env: &'a Variables,
    /// Folders to append to an inherited `PYTHONPATH`, joined by `:`.
    pub python_path: &'a str,
}

/// Meant for the agent alone; a script has no business with them. So are those of the configuration
/// ([`is_for_the_job`]): credentials would be readable by everything that the script starts.
const NOT_PASSED_ON: [&str; 6] = [
    "CLEARML_APT_INSTALL",
    "TRAINS_APT_INSTALL",
    // The agent's own pip flags; an index in them may have a login.
    "CLEARML_EXTRA_PIP_INSTALL_FLAGS",
    "UV_CACHE_DIR",
    "UV_PYTHON_CACHE_DIR",
    "UV_PYTHON_INSTALL_DIR",
];

/// The complete environment of the script.
pub fn job_environment(inherited: &Variables, told: &Told<'_>) -> Variables {
    let mut env = inherited.clone();
    env.retain(|name, _| !NOT_PASSED_ON.contains(&name.as_str()) && is_for_the_job(name));
    let config_file = told.config_file.to_string_lossy().into_owned();
    for (name, value) in [
        ("TASK_ID", told.task_id),
        ("CONFIG_FILE", &config_file),
        ("LOG_LEVEL", told.log_level.name()),
        // The SDK leaves the console to the agent.
        ("LOG_TASK_TO_BACKEND", "0"),
    ] {
        env.insert(format!("CLEARML_{name}"), value.to_owned());
        env.insert(format!("TRAINS_{name}"), value.to_owned());
    }
    env.insert("CLEARML_WORKER_ID".into(), told.worker.to_owned());
    let Attempt {
        number,
        former_end,
        last_iteration,
    } = told.attempt;
    env.insert("CLEARML_AGENT_ATTEMPT".into(), number.to_string());
    if let Some(end) = former_end {
        env.insert("CLEARML_AGENT_FORMER_END".into(), end.to_owned());
        if let Some(iteration) = last_iteration {
            env.insert("CLEARML_AGENT_LAST_ITERATION".into(), iteration.to_string());
        }
    }
    set_gpus(&mut env, told.gpus);
    env.extend(
        told.task_env
            .iter()
            .map(|(name, value)| (name.clone(), value.clone())),
    );
    if !told.python_path.is_empty() {
        let inherited = env
            .get("PYTHONPATH")
            .map(String::as_str)
            .unwrap_or_default();
        let joined = [inherited, told.python_path]
            .into_iter()
            .filter(|p| !p.is_empty());
        let joined = joined.collect::<Vec<_>>().join(":");
        env.insert("PYTHONPATH".into(), joined);
    }
    if has_ascii_locale(&env) {
        env.entry("PYTHONIOENCODING".into())
            .or_insert_with(|| "utf-8".into());
    }
    env
}

/// `inherited` with the variables that say which GPUs there are.
pub fn with_gpus(inherited: &Variables, gpus: &Gpus) -> Variables {
    let mut env = inherited.clone();
    set_gpus(&mut env, gpus);
    env
}

fn set_gpus(env: &mut Variables, gpus: &Gpus) {
    const NVIDIA: &str = "NVIDIA_VISIBLE_DEVICES";
    const CUDA: &str = "CUDA_VISIBLE_DEVICES";
    env.insert("CUDA_DEVICE_ORDER".into(), "PCI_BUS_ID".into());
    // In a pod the device plugin has decided already.
    let in_kubernetes = ["KUBERNETES_SERVICE_HOST", "KUBERNETES_PORT"]
        .iter()
        .any(|name| env.get(*name).is_some_and(|value| !value.is_empty()));
    match gpus {
        Gpus::None => {
            env.insert(NVIDIA.into(), "none".into());
            env.insert(CUDA.into(), "none".into());
        }
        Gpus::All if !in_kubernetes => {
            env.insert(NVIDIA.into(), "all".into());
            // CUDA knows no `all`.
            env.remove(CUDA);
        }
        Gpus::Only(list) if !in_kubernetes => {
            let list = list.replace('.', ":");
            env.insert(NVIDIA.into(), list.clone());
            env.insert(CUDA.into(), list);
        }
        // Never the other way: setting CUDA's variable where it was unset breaks the detection of
        // the GPUs in TensorFlow and PyTorch.
        _ => {
            if let Some(cuda) = env.get(CUDA).cloned() {
                env.entry(NVIDIA.into()).or_insert(cuda);
            }
        }
    }
}

fn has_ascii_locale(env: &Variables) -> bool {
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
        .iter()
        .find_map(|name| env.get(*name).filter(|value| !value.is_empty()));
    locale.is_none_or(|locale| matches!(locale.as_str(), "C" | "POSIX"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vars(pairs: &[(&str, &str)]) -> Variables {
        pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    fn with(inherited: &[(&str, &str)], gpus: &Gpus) -> Variables {
        let told = Told {
            task_id: "t1",
            config_file: Path::new("/run/clearml.conf"),
            log_level: LogLevel::Info,
            worker: "host:7",
            gpus,
            attempt: Attempt {
                number: 2,
                former_end: Some("SIGTERM"),
                last_iteration: Some(70),
            },
            task_env: &vars(&[("A", "1")]),
            python_path: "/code:/code/sub",
        };
        job_environment(&vars(inherited), &told)
    }

    #[test]
    fn a_later_attempt_knows_what_it_goes_on_with() {
        let env = with(&[], &Gpus::Inherited);
        assert_eq!(env["CLEARML_AGENT_ATTEMPT"], "2");
        assert_eq!(env["CLEARML_AGENT_FORMER_END"], "SIGTERM");
        assert_eq!(env["CLEARML_AGENT_LAST_ITERATION"], "70");
    }

    #[test]
    fn the_sdk_is_told_under_both_names() {
        let env = with(
            &[("HOME", "/h"), ("CLEARML_CONFIG_FILE", "/old")],
            &Gpus::Inherited,
        );
        for (name, value) in [
            ("CLEARML_TASK_ID", "t1"),
            ("TRAINS_TASK_ID", "t1"),
            ("CLEARML_CONFIG_FILE", "/run/clearml.conf"),
            ("TRAINS_CONFIG_FILE", "/run/clearml.conf"),
            ("CLEARML_LOG_LEVEL", "INFO"),
            ("TRAINS_LOG_LEVEL", "INFO"),
            ("CLEARML_LOG_TASK_TO_BACKEND", "0"),
            ("CLEARML_WORKER_ID", "host:7"),
            ("CUDA_DEVICE_ORDER", "PCI_BUS_ID"),
            ("HOME", "/h"),
            ("A", "1"),
            ("PYTHONPATH", "/code:/code/sub"),
        ] {
            assert_eq!(env.get(name).map(String::as_str), Some(value), "{name}");
        }
    }

    #[test]
    fn what_is_for_the_agent_stays_with_it() {
        for (name, passed) in [
            ("CLEARML_AGENT_GIT_USER", false),
            ("CLEARML_AGENT_GIT_PASS", false),
            ("TRAINS_AGENT_GIT_USER", false),
            ("TRAINS_AGENT_GIT_PASS", false),
            ("CLEARML_AGENT_GIT_HOST", true),
            ("CLEARML_AGENT__AGENT__GIT_PASS", false),
            ("CLEARML__AGENT__GIT_PASS", false),
            ("CLEARML_AGENT__AGENT__GIT__EXTRA_CREDENTIALS", false),
            ("CLEARML__AGENT__GIT", false),
            ("CLEARML_AGENT__AGENT", false),
            ("CLEARML_AGENT__AGENT__GIT_HOST", true),
            (
                "CLEARML_AGENT__AGENT__PACKAGE_MANAGER__EXTRA_INDEX_URL",
                false,
            ),
            ("CLEARML__SDK__DEVELOPMENT__DEFAULT_OUTPUT_URI", true),
            ("CLEARML_EXTRA_PIP_INSTALL_FLAGS", false),
            ("PIP_EXTRA_INDEX_URL", true),
            ("UV_INDEX_URL", true),
            ("UV_CACHE_DIR", false),
            ("CLEARML_APT_INSTALL", false),
        ] {
            let env = with(&[(name, "x")], &Gpus::Inherited);
            assert_eq!(env.contains_key(name), passed, "{name}");
        }
    }

    #[test]
    fn an_inherited_python_path_comes_first() {
        assert_eq!(
            with(&[("PYTHONPATH", "/mine")], &Gpus::Inherited)["PYTHONPATH"],
            "/mine:/code:/code/sub"
        );
    }

    #[test]
    fn gpu_variables_follow_the_flags() {
        type Case = (
            &'static [(&'static str, &'static str)],
            Gpus,
            Option<&'static str>,
            Option<&'static str>,
        );
        let cases: [Case; 8] = [
            (&[], Gpus::Inherited, None, None),
            (
                &[("CUDA_VISIBLE_DEVICES", "1")],
                Gpus::Inherited,
                Some("1"),
                Some("1"),
            ),
            (
                &[("NVIDIA_VISIBLE_DEVICES", "1")],
                Gpus::Inherited,
                Some("1"),
                None,
            ),
            (
                &[("CUDA_VISIBLE_DEVICES", "1")],
                Gpus::All,
                Some("all"),
                None,
            ),
            (
                &[],
                Gpus::Only("0,1.2".into()),
                Some("0,1:2"),
                Some("0,1:2"),
            ),
            (
                &[("CUDA_VISIBLE_DEVICES", "1")],
                Gpus::None,
                Some("none"),
                Some("none"),
            ),
            (
                &[("KUBERNETES_PORT", "x")],
                Gpus::Only("0".into()),
                None,
                None,
            ),
            (
                &[("KUBERNETES_PORT", "x")],
                Gpus::None,
                Some("none"),
                Some("none"),
            ),
        ];
        for (inherited, gpus, nvidia, cuda) in cases {
            let env = with(inherited, &gpus);
            let shown = |name: &str| env.get(name).map(String::as_str);
            assert_eq!(
                shown("NVIDIA_VISIBLE_DEVICES"),
                nvidia,
                "{inherited:?} {gpus:?}"
            );
            assert_eq!(
                shown("CUDA_VISIBLE_DEVICES"),
                cuda,
                "{inherited:?} {gpus:?}"
            );
        }
    }

    #[test]
    fn python_prints_utf8_in_an_ascii_locale() {
        let encoding = |inherited: &[(&str, &str)]| {
            with(inherited, &Gpus::Inherited)
                .get("PYTHONIOENCODING")
                .cloned()
        };
        assert_eq!(encoding(&[]).as_deref(), Some("utf-8"));
        assert_eq!(encoding(&[("LANG", "C")]).as_deref(), Some("utf-8"));
        assert_eq!(encoding(&[("LANG", "C"), ("LC_ALL", "en_US.UTF-8")]), None);
        assert_eq!(
            encoding(&[("LANG", "C"), ("PYTHONIOENCODING", "latin-1")]).as_deref(),
            Some("latin-1")
        );
    }

    #[test]
    fn gpu_flags_are_read() {
        assert_eq!(Gpus::from_flags(None, false), Ok(Gpus::Inherited));
        assert_eq!(Gpus::from_flags(Some("0"), true), Ok(Gpus::None));
        assert_eq!(Gpus::from_flags(Some("all"), false), Ok(Gpus::All));
        assert_eq!(Gpus::from_flags(Some("none"), false), Ok(Gpus::None));
        for list in [
            "0",
            "0,1",
            "0:1,1.0",
            "GPU-8932f937",
            "mig-1-2",
            "MIG-GPU-ab/1/0",
            "nvidia.com/gpu=0",
        ] {
            let only = Ok(Gpus::Only(list.into()));
            assert_eq!(Gpus::from_flags(Some(list), false), only);
        }
        let only = Ok(Gpus::Only("0,1".into()));
        assert_eq!(Gpus::from_flags(Some(" 0, 1 "), false), only);
        for (list, wrong) in [
            ("abc", "abc"),
            ("0,x", "x"),
            ("-1", "-1"),
            ("0,,1", ""),
            ("0:", "0:"),
            ("0-3", "0-3"),
            ("GPU-", "GPU-"),
            ("a=b", "a=b"),
        ] {
            assert_eq!(Gpus::from_flags(Some(list), false), Err(wrong.into()));
        }
    }
}
