//! What the configuration and the environment say about containers, but for the choice of image and
//! arguments (`choice`).

use std::path::{Path, PathBuf};

use super::address::Variables;
use super::caches::{Cache, Keyed, OfImage};
use super::choice::{self, ChoiceError};
use super::handover;
use super::ports;
use super::reached::Reached;
use crate::config::{Config, ConfigError, bool_of};

/// Everything about containers that is decided before the first request.
#[derive(Debug)]
pub struct Settings {
    pub runtime: ContainerRuntime,
    /// What was typed after `--docker` or `--apptainer`.
    pub words: Vec<String>,
    /// Which image and which arguments.
    pub choice: choice::Settings,
    /// `CLEARML_DOCKER_SKIP_GPUS_FLAG`.
    pub gpus_by_variable: bool,
    /// `agent.hide_docker_command_env_vars.extra_keys`, `CLEARML_AGENT_DOCKER_ARGS_HIDE_ENV`: variables that
    /// are secret, whatever their name.
    pub hidden_variables: Vec<String>,
    /// `agent.docker_container_name_format`, and the fields of the task that it may name.
    pub name_format: Option<String>,
    pub name_fields: Vec<(String, String)>,
    /// `agent.docker_args_allowed_port_range`: ports of the machine that a container may have.
    pub ports: Option<ports::Range>,
    /// `CLEARML_AGENT_FORCE_HOST_MACHINE_IP`: the address by which others reach this machine.
    pub host_ip: Option<String>,
    /// `api.public_ip_ping`: an address on the way to which the machine's own is found; nothing is sent.
    pub public_ip_ping: String,
    /// `agent.docker_force_pull`.
    pub force_pull: bool,
    /// Scripts of the configuration, one after the other, before the task's own.
    pub scripts: Vec<String>,
    pub ssh: Ssh,
    /// `CLEARML_AGENT_EXTRA_DOCKER_LABELS`: `KEY=VALUE`.
    pub labels: Vec<String>,
    /// `CLEARML_AGENT_EXEC_USER`: who runs inside where the arguments do not say.
    pub user: Option<String>,
    pub caches: Vec<Cache>,
    /// `CLEARML_AGENT_K8S_HOST_MOUNT`: this machine's folder `pod` is `node` for the engine.
    pub host_mount: Option<HostMount>,
    /// Where the run is built (`agent.docker_internal_mounts.venv_build`).
    pub runs: String,
    /// `--standalone-mode`: nothing is pulled, fetched or installed. Where an image has the environment and
    /// the code that were put into it beforehand.
    pub standalone: Option<String>,
    /// Environments are kept in the container's own cache folder.
    pub caches_environments: bool,
    /// Packages of the image are the task's, too.
    pub system_site_packages: bool,
    /// Variables that the inner agent is given besides.
    pub variables: Variables,
    pub reached: Reached,
}

/// What runs the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerRuntime {
    /// An engine, by its API.
    Docker,
    /// A program, as the agent's child.
    Apptainer,
}

impl ContainerRuntime {
    /// The option that asks for it.
    pub fn option(self) -> &'static str {
        match self {
            ContainerRuntime::Docker => "--docker",
            ContainerRuntime::Apptainer => "--apptainer",
        }
    }
}

/// How the inner agent gets at repositories over ssh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ssh {
    /// This machine's key agent. An engine elsewhere cannot mount it: its containers get the keys.
    Agent { socket: PathBuf, folder: String },
    /// A copy of `~/.ssh`, placed in this folder of the container.
    Keys { folder: String },
    /// `agent.disable_ssh_mount`.
    None,
}

impl Ssh {
    /// The key agent's socket, for a container of an engine that is on this machine or is not.
    pub fn socket(&self, engine_is_local: bool) -> Option<&Path> {
        match self {
            Ssh::Agent { socket, .. } if engine_is_local => Some(socket),
            _ => None,
        }
    }

    /// Where such a container has a copy of the keys.
    pub fn keys(&self, engine_is_local: bool) -> Option<&str> {
        match self {
            Ssh::Agent { .. } if engine_is_local => None,
            Ssh::Agent { folder, .. } | Ssh::Keys { folder } => Some(folder),
            Ssh::None => None,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostMount {
    pub node: String,
    pub pod: String,
}

/// What is wrong with them.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Choice(#[from] ChoiceError),
}

/// Variables that the agent inside gets as this one has them: they concern the run, and the Python
/// agent passes them, too.
const PASSED_ON: [&str; 3] = [
    "CLEARML_AUTH_TOKEN",
    "CLEARML_AGENT_SKIP_PIP_VENV_INSTALL",
    "CLEARML_AGENT_ABORT_CALLBACK_CMD",
];

/// A cache of this machine in which containers keep environments, a folder for each image.
#[derive(Debug, Clone)]
pub struct KeptForImages {
    pub host: PathBuf,
    /// The folder of environments lies below the image's, beside that of the runs.
    is_below: bool,
}

impl KeptForImages {
    pub fn environments(&self, image: &OfImage) -> PathBuf {
        match self.is_below {
            true => image.folder.join(below_cache(handover::VENVS_CACHE)),
            false => image.folder.clone(),
        }
    }

    pub fn runs(&self, image: &OfImage) -> Option<PathBuf> {
        self.is_below
            .then(|| image.folder.join(below_cache(handover::RUNS)))
    }
}

/// What is there in the container, as seen from the folder that is mounted as its cache.
fn below_cache(inside: &str) -> &str {
    inside
        .strip_prefix(handover::CACHE)
        .map_or(inside, |below| below.trim_start_matches('/'))
}

/// Where [`Settings::read`] has environments kept.
pub fn kept_for_images(config: &Config) -> Vec<KeptForImages> {
    let kept = [
        ("agent.docker_cache", true),
        ("agent.venvs_cache.path", false),
    ];
    kept.into_iter()
        .filter_map(|(key, is_below)| {
            Some(KeptForImages {
                host: config.path(key)?,
                is_below,
            })
        })
        .collect()
}

/// As with the Python agent.
const PUBLIC_IP_PING: &str = "8.8.8.8";

impl Settings {
    pub fn read(
        runtime: ContainerRuntime,
        words: &[String],
        standalone: bool,
        config: &Config,
        env: &Variables,
    ) -> Result<Self, SettingsError> {
        let set = |name: &str| env.get(name).map(|v| v.trim()).filter(|v| !v.is_empty());
        let flag = |name: &str| set(name).and_then(bool_of);
        let inside = |name: &str, usual: &str| {
            config
                .text(&format!("agent.docker_internal_mounts.{name}"))
                .unwrap_or_else(|| usual.to_owned())
        };
        let mut scripts = Vec::new();
        // The first two are for what is to be installed.
        let keys = [
            "docker_preprocess_bash_script",
            "docker_init_bash_script",
            "extra_docker_shell_script",
        ];
        for key in &keys[if standalone { 2 } else { 0 }..] {
            scripts.extend(config.list(&format!("agent.{key}"))?);
        }
        // As the Python agent's own init script has it.
        for line in &mut scripts {
            *line = line.replace("{python_single_digit}", "python3");
        }
        let no_ssh = flag("CLEARML_AGENT_DISABLE_SSH_MOUNT")
            .or(config.flag("agent.disable_ssh_mount")?)
            .unwrap_or(false);
        let folder = inside("ssh_folder", "~/.ssh");
        let ssh = match set("SSH_AUTH_SOCK").map(PathBuf::from) {
            _ if no_ssh => Ssh::None,
            Some(socket) => Ssh::Agent { socket, folder },
            None => Ssh::Keys { folder },
        };
        let mut caches = Vec::new();
        let mut cache = |key: &str, inside: String, keyed, tells: Option<&'static str>| {
            caches.extend(config.path(key).map(|host| Cache {
                host,
                inside,
                keyed,
                tells,
            }));
        };
        cache(
            "agent.docker_apt_cache",
            inside("apt_cache", "/var/cache/apt/archives"),
            Keyed::OneRun,
            None,
        );
        cache(
            "agent.docker_pip_cache",
            inside("pip_cache", "/root/.cache/pip"),
            Keyed::Image,
            None,
        );
        cache(
            "agent.docker_cache",
            handover::CACHE.to_owned(),
            Keyed::Image,
            None,
        );
        if config.text("agent.package_manager.type").as_deref() == Some("poetry") {
            cache(
                "agent.docker_poetry_cache",
                inside("poetry_cache", "/root/.cache/pypoetry"),
                Keyed::Image,
                None,
            );
        }
        if config.flag("agent.vcs_cache.enabled")?.unwrap_or(true) {
            cache(
                "agent.vcs_cache.path",
                inside("vcs_cache", "/root/.clearml/vcs-cache"),
                Keyed::User,
                Some("agent.vcs_cache.path"),
            );
        }
        // Beside the runs, so that they can have links; where it was put elsewhere, it is mounted there.
        const VENVS: &str = "agent.venvs_cache.path";
        let elsewhere = config.text("agent.docker_internal_mounts.venvs_cache");
        let caches_environments = elsewhere.is_none() && config.path(VENVS).is_some();
        if let Some(inside) = elsewhere {
            cache(VENVS, inside, Keyed::Image, Some(VENVS));
        }
        let sdk = config
            .path("sdk.storage.cache.default_base_dir")
            .or_else(|| config.in_home(".clearml/cache"));
        caches.extend(sdk.map(|host| Cache {
            host,
            inside: inside("sdk_cache", "/clearml_agent_cache"),
            keyed: Keyed::Nothing,
            tells: Some("sdk.storage.cache.default_base_dir"),
        }));
        let host_mount = [
            "CLEARML_AGENT_K8S_HOST_MOUNT",
            "CLEARML_AGENT_DOCKER_HOST_MOUNT",
        ]
        .iter()
        .find_map(|name| set(name)?.split_once(':'))
        .map(|(node, pod)| HostMount {
            node: node.to_owned(),
            pod: pod.to_owned(),
        });
        let variables = PASSED_ON
            .iter()
            .filter_map(|name| Some(((*name).to_owned(), env.get(*name)?.clone())))
            .collect();
        const PORTS: &str = "agent.docker_args_allowed_port_range";
        let ports = match config.value(PORTS) {
            None | Some(serde_json::Value::Null) => None,
            Some(range) => ports::Range::read(range).map_err(|why| ChoiceError::Setting {
                key: PORTS.to_owned(),
                why,
            })?,
        };
        let mut hidden_variables = config.list("agent.hide_docker_command_env_vars.extra_keys")?;
        hidden_variables.extend(
            set("CLEARML_AGENT_DOCKER_ARGS_HIDE_ENV")
                .and_then(shlex::split)
                .unwrap_or_default(),
        );
        let name_fields = config.value("agent.docker_container_name_format_fields");
        let name_fields = name_fields.and_then(|fields| fields.as_object());
        Ok(Settings {
            runtime,
            words: words.to_vec(),
            choice: choice::Settings::of_config(config, env)?,
            gpus_by_variable: flag("CLEARML_DOCKER_SKIP_GPUS_FLAG")
                .or(flag("TRAINS_DOCKER_SKIP_GPUS_FLAG"))
                .unwrap_or(false),
            hidden_variables,
            name_format: config.text("agent.docker_container_name_format"),
            name_fields: name_fields
                .into_iter()
                .flatten()
                .filter_map(|(field, path)| Some((field.clone(), path.as_str()?.to_owned())))
                .collect(),
            ports,
            host_ip: set("CLEARML_AGENT_FORCE_HOST_MACHINE_IP").map(str::to_owned),
            public_ip_ping: config
                .text("api.public_ip_ping")
                .unwrap_or_else(|| PUBLIC_IP_PING.to_owned()),
            force_pull: config.flag("agent.docker_force_pull")?.unwrap_or(false),
            scripts,
            ssh,
            labels: set("CLEARML_AGENT_EXTRA_DOCKER_LABELS")
                .map(|labels| labels.split_whitespace().map(str::to_owned).collect())
                .unwrap_or_default(),
            user: ["CLEARML_AGENT_EXEC_USER", "TRAINS_AGENT_EXEC_USER"]
                .iter()
                .find_map(|name| set(name))
                .map(str::to_owned),
            caches,
            host_mount,
            caches_environments,
            reached: Reached::default(),
            runs: inside("venv_build", handover::RUNS),
            standalone: standalone.then(|| inside("venv_build", "~/.clearml/venvs-builds")),
            system_site_packages: flag("CLEARML_AGENT_FORCE_SYSTEM_SITE_PACKAGES").unwrap_or(true),
            variables,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_has_the_key_agent_or_the_keys() {
        let folder = || "~/.ssh".to_owned();
        let agent = Ssh::Agent {
            socket: "/agent".into(),
            folder: folder(),
        };
        let keys = Ssh::Keys { folder: folder() };
        for (ssh, engine_is_local, socket, copied) in [
            (&agent, true, Some("/agent"), None),
            (&agent, false, None, Some("~/.ssh")),
            (&keys, true, None, Some("~/.ssh")),
            (&keys, false, None, Some("~/.ssh")),
            (&Ssh::None, true, None, None),
            (&Ssh::None, false, None, None),
        ] {
            let found = (ssh.socket(engine_is_local), ssh.keys(engine_is_local));
            assert_eq!(found, (socket.map(Path::new), copied), "{ssh:?}");
        }
    }
}
