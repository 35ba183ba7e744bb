//! What the configuration says about Python and packages: the one reader of
//! `agent.package_manager.*`, `agent.python_binary` and their like.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::Variables;
use super::cache::settings::{CacheSettings, LinkMode};
use super::conda::CondaSettings;
use super::cuda;
use super::failure::Place;
use super::index::{Indexes, pip_files};
use super::project::{PoetrySettings, UvSettings};
use super::torch::{NIGHTLY_TEMPLATE, TEMPLATE, TorchSettings};
use crate::secret::Secret;
use crate::source::Servers;

mod reader;

use reader::{Reader, flag_of, parse_flag, text_of};

/// Looks up a dotted configuration key.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<Value>;

/// What the packages are installed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Installer {
    /// uv, with flags that give pip's answers. pip where uv can't be had.
    #[default]
    Uv,
    /// pip itself: `agent.package_manager.type: pip` with `uv_replace_pip: false`.
    Pip,
}

/// `agent.package_manager.type`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Manager {
    #[default]
    Pip,
    Uv,
    Poetry,
    Conda,
}

impl Manager {
    pub fn name(self) -> &'static str {
        match self {
            Manager::Pip => "pip",
            Manager::Uv => "uv",
            Manager::Poetry => "poetry",
            Manager::Conda => "conda",
        }
    }
}

/// `CLEARML_AGENT_SKIP_PIP_VENV_INSTALL`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum SkipVenv {
    #[default]
    No,
    /// Packages go into the interpreter that is found.
    Yes,
    /// Packages go into this interpreter.
    Into(String),
}

#[derive(Clone)]
pub struct Settings {
    pub ignore_requested_version: bool,
    pub python_binary: Option<String>,
    pub default_python: Option<String>,
    pub installer: Installer,
    /// Whose projects in the repository are what the user means.
    pub manager: Manager,
    pub uv: UvSettings,
    pub poetry: PoetrySettings,
    pub conda: CondaSettings,
    pub system_site_packages: bool,
    pub use_activated_venv: bool,
    pub indexes: Indexes,
    /// The best version of all indexes (pip's way) and not the first index that has the name.
    pub best_of_all_indexes: bool,
    pub extra_flags: Vec<String>,
    pub force_upgrade: bool,
    /// What pip itself is upgraded to where pip installs the packages; empty: left as it is.
    pub pip_version: Vec<String>,
    /// pip versions that get `--use-deprecated=legacy-resolver`.
    pub pip_legacy_resolver: Vec<String>,
    /// Installed after everything else, one by one; their failure is said and tolerated.
    pub optional_packages: Vec<String>,
    pub force_repo_requirements_txt: bool,
    pub force_original_requirements: bool,
    pub force_task_init: bool,
    pub force_git_root_python_path: bool,
    pub skip_venv: SkipVenv,
    pub skip_python_env: bool,
    /// `--standalone-mode`: nothing is installed; the folder (`agent.venvs_dir`) may have an
    /// environment that was built beforehand.
    pub standalone: Option<PathBuf>,
    /// `CLEARML_BOOTSTRAP_UV_EXEC`.
    pub uv_program: Option<PathBuf>,
    /// `~/.clearml`: uv itself and its cache are kept below it.
    pub cache: PathBuf,
    pub home: Option<PathBuf>,
    /// Where finished environments are kept; `None`: they are not.
    pub venvs_cache: Option<CacheSettings>,
    pub cuda: cuda::Wanted,
    pub torch: TorchSettings,
    /// Where this agent runs, for advice.
    pub place: Place,
    /// For requirements that are private repositories.
    pub git: Servers,
    /// Said once at the start: settings whose effect the user would miss.
    pub notes: Vec<String>,
    /// The agent's environment: what programs that are run here inherit.
    pub environment: Variables,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            ignore_requested_version: false,
            python_binary: None,
            default_python: None,
            installer: Installer::Uv,
            manager: Manager::Pip,
            uv: UvSettings {
                sync_args: Vec::new(),
                locked: true,
                of_working_dir: false,
            },
            poetry: PoetrySettings::default(),
            conda: CondaSettings::default(),
            system_site_packages: false,
            use_activated_venv: true,
            indexes: Indexes::default(),
            best_of_all_indexes: true,
            extra_flags: Vec::new(),
            force_upgrade: false,
            pip_version: Vec::new(),
            pip_legacy_resolver: vec![">=20.3,<24.3".into()],
            optional_packages: OPTIONAL.map(str::to_owned).to_vec(),
            force_repo_requirements_txt: false,
            force_original_requirements: false,
            force_task_init: false,
            force_git_root_python_path: false,
            skip_venv: SkipVenv::No,
            skip_python_env: false,
            standalone: None,
            uv_program: None,
            cache: std::env::temp_dir().join("clearml"),
            home: None,
            venvs_cache: None,
            cuda: cuda::Wanted::OfTheDriver,
            torch: TorchSettings::default(),
            place: Place::Host,
            git: Servers::default(),
            notes: Vec::new(),
            environment: Variables::new(),
        }
    }
}

impl std::fmt::Debug for Settings {
    /// Without the environment, whose variables may hold secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings")
            .field("python_binary", &self.python_binary)
            .field("default_python", &self.default_python)
            .field("installer", &self.installer)
            .field("indexes", &self.indexes)
            .field("skip_venv", &self.skip_venv)
            .field("skip_python_env", &self.skip_python_env)
            .finish_non_exhaustive()
    }
}

/// Packages whose failure the Python agent tolerates when nothing is configured.
const OPTIONAL: [&str; 2] = ["horovod", "pygobject"];

impl Settings {
    /// From the configuration and the agent's environment variables. Reads pip's own
    /// configuration files too: what pip would install from, uv must install from.
    pub fn from_lookup(config: Lookup<'_>, env: &Variables) -> Result<Settings, String> {
        let home = text_of(env, "HOME").map(PathBuf::from);
        let manager = Reader {
            config,
            prefix: "agent.package_manager.",
        };
        let agent = Reader {
            config,
            prefix: "agent.",
        };
        let mut notes = Vec::new();

        let kind = manager
            .text("type")?
            .unwrap_or_else(|| "pip".into())
            .to_lowercase();
        let kind = match () {
            () if flag_of(env, "CLEARML_AGENT_FORCE_UV")? == Some(true) => "uv".to_owned(),
            () if flag_of(env, "CLEARML_AGENT_FORCE_POETRY")? == Some(true) => "poetry".to_owned(),
            () => kind,
        };
        let installer = match (kind.as_str(), manager.flag("uv_replace_pip")?) {
            ("pip", Some(false)) => Installer::Pip,
            _ => Installer::Uv,
        };

        let mut indexes = Indexes::of_pip(env, home.as_deref());
        for url in manager.list("extra_index_url")? {
            indexes.extra_urls.push(Secret::new(url));
        }

        let extra_flags = match text_of(env, "CLEARML_EXTRA_PIP_INSTALL_FLAGS") {
            Some(words) => shlex::split(words).ok_or_else(|| {
                "CLEARML_EXTRA_PIP_INSTALL_FLAGS: unbalanced quotes; write the flags as in a shell"
                    .to_owned()
            })?,
            None => manager.list("extra_pip_install_flags")?,
        };

        // An argument is seen by every user of the machine, and addresses may hold passwords.
        let extra_flags = indexes.take_from_flags(extra_flags)?;

        let mut optional_packages = Vec::new();
        for (key, built_in) in [
            ("post_packages", Some("horovod")),
            ("post_optional_packages", None),
            ("priority_optional_packages", Some("pygobject")),
        ] {
            match manager.value(key) {
                Some(_) => optional_packages.extend(manager.list(key)?),
                None => optional_packages.extend(built_in.map(str::to_owned)),
            }
        }

        unsupported(&manager, &kind, &mut notes);

        let skip_venv = match text_of(env, "CLEARML_AGENT_SKIP_PIP_VENV_INSTALL") {
            None => SkipVenv::No,
            Some(text) => match parse_flag(text) {
                Some(true) => SkipVenv::Yes,
                Some(false) => SkipVenv::No,
                None => SkipVenv::Into(text.to_owned()),
            },
        };

        Ok(Settings {
            ignore_requested_version: agent.is_on("ignore_requested_python_version")?,
            python_binary: agent.text("python_binary")?,
            default_python: agent.text("default_python")?,
            installer,
            manager: match kind.as_str() {
                "uv" => Manager::Uv,
                "poetry" => Manager::Poetry,
                "conda" => Manager::Conda,
                _ => Manager::Pip,
            },
            uv: UvSettings {
                sync_args: manager.list("uv_sync_extra_args")?,
                locked: manager.flag("uv_sync_locked_if_lock_file")?.unwrap_or(true),
                of_working_dir: manager.is_on("uv_files_from_repo_working_dir")?,
            },
            poetry: PoetrySettings {
                version: manager
                    .value("poetry_version")
                    .map(|_| {
                        manager
                            .text("poetry_version")
                            .map(Option::unwrap_or_default)
                    })
                    .transpose()?,
                install_args: manager.list("poetry_install_extra_args")?,
                of_working_dir: manager.is_on("poetry_files_from_repo_working_dir")?,
            },
            conda: conda(&manager, env)?,
            system_site_packages: manager.is_on("system_site_packages")?,
            use_activated_venv: agent.flag("docker_use_activated_venv")?.unwrap_or(true),
            indexes,
            best_of_all_indexes: manager.flag("uv_unsafe_best_match")?.unwrap_or(true),
            extra_flags,
            force_upgrade: manager.is_on("force_upgrade")?,
            pip_version: manager.list("pip_version")?,
            pip_legacy_resolver: match manager.value("pip_legacy_resolver") {
                Some(_) => manager.list("pip_legacy_resolver")?,
                None => Settings::default().pip_legacy_resolver,
            },
            optional_packages,
            force_repo_requirements_txt: manager.is_on("force_repo_requirements_txt")?,
            force_original_requirements: manager.is_on("force_original_requirements")?,
            force_task_init: flag_of(env, "CLEARML_AGENT_FORCE_TASK_INIT")?.unwrap_or(false),
            force_git_root_python_path: agent.is_on("force_git_root_python_path")?,
            skip_venv,
            skip_python_env: flag_of(env, "CLEARML_AGENT_SKIP_PYTHON_ENV_INSTALL")?
                .unwrap_or(false),
            standalone: None,
            uv_program: text_of(env, "CLEARML_BOOTSTRAP_UV_EXEC").map(PathBuf::from),
            cache: home
                .as_deref()
                .map_or_else(std::env::temp_dir, Path::to_owned)
                .join(".clearml"),
            venvs_cache: venvs_cache(config, home.as_deref())?,
            cuda: cuda_wanted(&agent)?,
            torch: torch(&manager, agent.is_on("cpu_only")?, &mut notes)?,
            home,
            place: Place::Host,
            git: Servers::default(),
            notes,
            environment: env.clone(),
        })
    }

    /// The value of an environment variable; empty counts as unset.
    pub fn variable(&self, name: &str) -> Option<&str> {
        text_of(&self.environment, name)
    }

    /// The configuration files of uv and pip that apply here.
    pub fn tool_files(&self) -> Vec<PathBuf> {
        let mut files = pip_files(&self.environment, self.home.as_deref());
        files.push("/etc/uv/uv.toml".into());
        let own = self.variable("XDG_CONFIG_HOME").map(PathBuf::from);
        let own = own.or_else(|| Some(self.home.as_ref()?.join(".config")));
        files.extend(own.map(|folder| folder.join("uv/uv.toml")));
        files.extend(self.variable("UV_CONFIG_FILE").map(PathBuf::from));
        files
    }

    /// The folders of `PATH`.
    pub fn search_path(&self) -> Vec<PathBuf> {
        self.variable("PATH")
            .map(|path| std::env::split_paths(path).collect())
            .unwrap_or_default()
    }
}

/// Says which keys that are set have no effect here, and why.
fn unsupported(manager: &Reader<'_>, kind: &str, notes: &mut Vec<String>) {
    let rows = [
        (
            "uv_version",
            true,
            "the uv that is found is used, else the newest one of the package index",
        ),
        (
            "priority_packages",
            true,
            "all packages are resolved and installed together",
        ),
        (
            "uv_run_extra_args",
            kind == "uv",
            "the script is started by the environment's own Python, not by `uv run`",
        ),
        (
            "rocm_extra_index_url_template",
            true,
            "ROCm is not detected: name its index with extra_index_url",
        ),
        (
            "torch_page",
            true,
            "pages of links are not read, the index rule is used",
        ),
        (
            "torch_url_template",
            true,
            "pages of links are not read, the index rule is used",
        ),
    ];
    for (key, matters, because) in rows {
        if matters
            && manager
                .value(key)
                .is_some_and(|value| value != "" && value != false)
        {
            notes.push(format!(
                "agent.package_manager.{key} is not supported, because {because}."
            ));
        }
    }
}

fn conda(manager: &Reader<'_>, env: &Variables) -> Result<CondaSettings, String> {
    let package = text_of(env, "CLEARML_CONDA_ENV_PACKAGE")
        .or_else(|| text_of(env, "TRAINS_CONDA_ENV_PACKAGE"))
        .map(PathBuf::from);
    // In a container its image is no environment of conda.
    let inside = text_of(env, "CLEARML_DOCKER_IMAGE").is_some();
    Ok(CondaSettings {
        channels: match manager.value("conda_channels") {
            Some(_) => manager.list("conda_channels")?,
            None => CondaSettings::default().channels,
        },
        full_env_update: manager.is_on("conda_full_env_update")?,
        use_base_env: match flag_of(env, "CLEARML_USE_CONDA_BASE_ENV")? {
            Some(flag) => flag,
            None => manager.is_on("use_conda_base_env")?,
        },
        as_base_docker: package.is_some()
            || (manager.is_on("conda_env_as_base_docker")? && !inside),
        package,
    })
}

const VENVS_CACHE: &str = "agent.venvs_cache.";

fn venvs_cache(config: Lookup<'_>, home: Option<&Path>) -> Result<Option<CacheSettings>, String> {
    let reader = Reader {
        config,
        prefix: VENVS_CACHE,
    };
    let Some(path) = reader.text("path")? else {
        return Ok(None);
    };
    let path = match (path.strip_prefix("~/"), home) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => PathBuf::from(path),
    };
    cache_at(std::path::absolute(&path).unwrap_or(path), config).map(Some)
}

/// Environments that are kept in that folder, whichever is configured, with the limits that are.
pub fn cache_at(path: PathBuf, config: Lookup<'_>) -> Result<CacheSettings, String> {
    let reader = Reader {
        config,
        prefix: VENVS_CACHE,
    };
    let mut settings = CacheSettings::at(path);
    if let Some(count) = reader.number("max_entries")? {
        settings.max_entries = whole(count);
    }
    settings.max_size = reader.number("max_size_gb")?.map(bytes);
    if let Some(free) = reader.number("free_space_threshold_gb")? {
        settings.free_space = bytes(free);
    }
    let seconds = |value: f64| Duration::try_from_secs_f64(value).unwrap_or(Duration::MAX);
    settings.lock_timeout = reader.number("lock_timeout")?.map(seconds);
    if let Some(hours) = reader.number("resolve_after_hours")? {
        // Below zero: never.
        settings.resolve_after = (hours >= 0.0).then(|| seconds(hours * 3600.0));
    }
    if let Some(mode) = reader.text("link_mode")? {
        settings.link_mode = LinkMode::of(&mode).ok_or_else(|| {
            format!(
                "{}link_mode: expected auto, reflink, hardlink or copy, found {mode:?}",
                reader.prefix
            )
        })?;
    }
    Ok(settings)
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "saturates"
)]
fn whole(number: f64) -> usize {
    number as usize
}

/// From gigabytes; below zero is none.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "saturates"
)]
fn bytes(gigabytes: f64) -> u64 {
    (gigabytes * f64::from(1 << 30)) as u64
}

fn cuda_wanted(agent: &Reader<'_>) -> Result<cuda::Wanted, String> {
    if agent.is_on("cpu_only")? {
        return Ok(cuda::Wanted::None);
    }
    match agent.text("cuda_version")? {
        None => Ok(cuda::Wanted::OfTheDriver),
        Some(text) => cuda::Wanted::of(&text)
            .ok_or_else(|| format!("agent.cuda_version: expected a version, found {text:?}")),
    }
}

fn torch(
    manager: &Reader<'_>,
    cpu_only: bool,
    notes: &mut Vec<String>,
) -> Result<TorchSettings, String> {
    let nightly = manager.is_on("torch_nightly")?;
    let (key, template) = match nightly {
        true => ("nightly_extra_index_url_template", NIGHTLY_TEMPLATE),
        false => ("extra_index_url_template", TEMPLATE),
    };
    let resolve = manager
        .text("pytorch_resolve")?
        .unwrap_or_default()
        .to_lowercase();
    match resolve.as_str() {
        "" | "pip" | "none" => {}
        other => notes.push(format!(
            "agent.package_manager.pytorch_resolve: {other} is not supported, because the pages \
             that it reads are not kept up: the rule of \"pip\" is used."
        )),
    }
    Ok(TorchSettings {
        choose_index: resolve != "none",
        template: manager.text(key)?.unwrap_or_else(|| template.to_owned()),
        cpu_only,
    })
}

#[cfg(test)]
mod tests;
