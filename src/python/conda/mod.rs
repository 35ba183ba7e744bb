//! `agent.package_manager.type: conda`: the run's environment is a conda prefix of its own, made by
//! the conda (mamba, micromamba) of this machine; what conda does not have, pip's rules install.
//!
//! [`create`] makes the prefix while the code is fetched, [`fill::fill`] installs the task's list,
//! [`prefix::activated`] gives the script's environment. A prefix is made anew for each run and not
//! kept: conda writes its path into the files of its packages, and it hard-links them from a
//! package cache of its own.

mod fill;
mod find;
pub mod prefix;
pub mod specs;
pub mod words;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use tokio_util::sync::CancellationToken;

pub(super) use fill::{Lists, fill};
pub use find::{Conda, Dialect, find, pythons};

use self::words::{CondaFailure, meaning, trimmed};
use super::choice;
use super::environment::Environment;
use super::interpreter::{Interpreter, probe};
use super::settings::Settings;
use super::tool::{self, Call, Finished};
use super::tools::{Kind, Tools};
use super::{PythonError, Variables};
use crate::console::Console;
use crate::task::Script;

/// `agent.package_manager.conda_*` and their like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CondaSettings {
    /// May hold tokens: only in files that nobody else can read, and in conda's environment.
    pub channels: Vec<String>,
    /// What was installed is recorded in the task.
    pub full_env_update: bool,
    /// Packages go into the base environment of the installation.
    pub use_base_env: bool,
    /// An environment that was made beforehand is used: `package`, else what the task calls its image.
    pub as_base_docker: bool,
    /// A folder, or an archive of conda-pack.
    pub package: Option<PathBuf>,
}

impl Default for CondaSettings {
    fn default() -> Self {
        Self {
            channels: CHANNELS.map(str::to_owned).to_vec(),
            full_env_update: false,
            use_base_env: false,
            as_base_docker: false,
            package: None,
        }
    }
}

/// The Python agent's own.
const CHANNELS: [&str; 4] = ["pytorch", "conda-forge", "nvidia", "defaults"];

/// The script's environment: as `conda run` gives it, where conda has made the one that it runs in.
pub async fn job_variables(
    env: &Environment,
    tools: &Tools,
    settings: &Settings,
    inherited: &Variables,
    console: &Console,
    stop: &CancellationToken,
) -> Result<Variables, PythonError> {
    let Some(prefix) = prefix::of(env, settings) else {
        return Ok(inherited.clone());
    };
    let conda = tools.conda.as_ref().map(|conda| conda.program.as_path());
    prefix::activated(&prefix, inherited, conda, console, stop).await
}

/// What conda's programs are run with.
pub(super) struct Calling<'a> {
    pub conda: &'a Conda,
    pub settings: &'a Settings,
    pub console: &'a Console,
    pub stop: &'a CancellationToken,
}

impl Calling<'_> {
    /// Runs it and says its lines. The inner error is a failure of its own.
    async fn run(
        &self,
        doing: &'static str,
        args: Vec<String>,
    ) -> Result<Result<(), CondaFailure>, PythonError> {
        let said: Arc<Mutex<Vec<String>>> = Arc::default();
        let console = Console::new({
            let (said, console) = (said.clone(), self.console.clone());
            move |line| {
                console.say(line);
                if let Ok(mut said) = said.lock() {
                    said.push(line.to_owned());
                }
            }
        });
        let finished = self.call(args, &console).await?;
        if finished.succeeded() {
            return Ok(Ok(()));
        }
        let said = said.lock().map(|said| said.clone()).unwrap_or_default();
        Ok(Err(CondaFailure {
            name: self.conda.name,
            doing,
            code: finished.code,
            meaning: meaning(&said),
            lines: trimmed(&said),
        }))
    }

    async fn call(&self, args: Vec<String>, console: &Console) -> Result<Finished, PythonError> {
        let told = Variables::from(
            [
                // Both are read where no argument or file names channels.
                ("CONDA_CHANNELS", self.settings.conda.channels.join(",")),
                ("CONDA_REPORT_ERRORS", "false".into()),
                ("MAMBA_NO_BANNER", "1".into()),
            ]
            .map(|(name, value)| (name.to_owned(), value)),
        );
        let call = Call {
            program: self.conda.program.clone(),
            args,
            env: tool::environment(&self.settings.environment, told),
            dir: "/".into(),
        };
        tool::run(&call, console, self.stop).await
    }

    /// An empty environment with this Python, and pip.
    async fn make(&self, prefix: &Path, python: &str) -> Result<(), PythonError> {
        let packages = [format!("python={python}"), "pip".into()];
        let doing = "make the environment";
        let place = prefix.to_string_lossy().into_owned();
        let made = match self.conda.dialect {
            Dialect::Conda => {
                let mut args = words(&["create", "--yes", "--quiet", "--prefix", &place]);
                args.extend(packages);
                self.run(doing, args).await?
            }
            Dialect::Micromamba => {
                let file = self.file(&packages)?;
                let file = file.path().to_string_lossy().into_owned();
                let args = [
                    "create", "--yes", "--quiet", "--prefix", &place, "--file", &file,
                ];
                self.run(doing, words(&args)).await?
            }
        };
        made.map_err(PythonError::Conda)
    }

    /// Installs into an environment that is there.
    async fn update(
        &self,
        prefix: &Path,
        packages: &[String],
    ) -> Result<Result<(), CondaFailure>, PythonError> {
        let file = self.file(packages)?;
        let file = file.path().to_string_lossy().into_owned();
        let place = prefix.to_string_lossy().into_owned();
        let args = match self.conda.dialect {
            Dialect::Conda => words(&["env", "update", "--quiet"]),
            Dialect::Micromamba => words(&["install", "--yes", "--quiet"]),
        };
        let more = words(&["--prefix", &place, "--file", &file]);
        self.run("install the task's packages", [args, more].concat())
            .await
    }

    /// An `environment.yml`, with the channels; JSON is YAML too.
    fn file(&self, packages: &[String]) -> Result<tempfile::NamedTempFile, PythonError> {
        use std::io::Write as _;
        let text = serde_json::json!({
            "channels": self.settings.conda.channels,
            "dependencies": packages,
        });
        let failed = |cause: std::io::Error| PythonError::Io {
            what: "the list of packages can't be written to the temporary folder".into(),
            cause: cause.to_string(),
        };
        let mut file = tempfile::Builder::new()
            .prefix("environment-")
            .suffix(".yml")
            .tempfile()
            .map_err(failed)?;
        file.write_all(text.to_string().as_bytes())
            .map_err(failed)?;
        Ok(file)
    }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// The task's environment in `folder`; or the one that the configuration says is to be used.
pub(super) async fn create(
    conda: &Conda,
    script: &Script,
    folder: &Path,
    settings: &Settings,
    console: &Console,
    stop: &CancellationToken,
) -> Result<Environment, PythonError> {
    let calling = Calling {
        conda,
        settings,
        console,
        stop,
    };
    let own = &settings.conda;
    if let Some(package) = own.package.as_deref().filter(|_| own.as_base_docker) {
        return calling.made_beforehand(package, folder).await;
    }
    if own.as_base_docker {
        return Err(PythonError::CondaPackage {
            place: "no environment".into(),
            cause: "agent.package_manager.conda_env_as_base_docker is set, and neither \
                    CLEARML_CONDA_ENV_PACKAGE nor the task's container image names one"
                .into(),
        });
    }
    if own.use_base_env {
        let base = conda.base(settings);
        let python = base.as_deref().map(prefix::python);
        match python.filter(|python| tool::is_program(python)) {
            Some(_) => {
                let base = base.unwrap_or_default();
                console.say(format!(
                    "Environment: the base environment of {} ({}), because \
                     agent.package_manager.use_conda_base_env is set",
                    conda.name,
                    base.display()
                ));
                return calling.environment(&base, Kind::Shared).await;
            }
            None => console.say(format!(
                "Note: agent.package_manager.use_conda_base_env has no effect, because {} has no \
                 base environment with a Python: a new environment is made.",
                conda.program.display()
            )),
        }
    }
    let python = python_wanted(script, settings);
    console.say(format!(
        "Environment: made by {} {} with Python {python}, from the channels {}",
        conda.name,
        conda.version,
        tool::mask(&own.channels.join(", "))
    ));
    calling.make(folder, &python).await?;
    calling.environment(folder, Kind::Own).await
}

/// `3.11`: the wish that counts for every task, else what the task's conda lists say.
fn python_wanted(script: &Script, settings: &Settings) -> String {
    let wish = choice::wish(&script.binary, settings);
    if let Some(version) = wish.version {
        return version.to_string();
    }
    let text = |key: &str| script.requirements.text(key);
    let facts = specs::Facts {
        channels: &[],
        cuda: None,
    };
    text("conda_env_json")
        .and_then(|json| specs::exported(&json, facts)?.python)
        .or_else(|| specs::python_of(&text("conda")?))
        .unwrap_or_else(|| "3".into())
}

impl Calling<'_> {
    async fn ask(&self, python: &Path) -> Result<Interpreter, String> {
        // Answers are kept for programs that are there in the next run.
        let once = tempfile::tempdir().map_err(|e| e.to_string())?;
        probe(python, &self.settings.environment, once.path()).await
    }

    async fn environment(&self, prefix: &Path, kind: Kind) -> Result<Environment, PythonError> {
        let python = prefix::python(prefix);
        let interpreter = self
            .ask(&python)
            .await
            .map_err(|cause| PythonError::CondaPackage {
                place: prefix.display().to_string(),
                cause: format!("{} can't be used: {cause}", python.display()),
            })?;
        Ok(Environment {
            kind,
            python: Some(python),
            site_packages: interpreter.site_packages.clone(),
            interpreter: Some(interpreter),
            folder: Some(prefix.to_owned()),
            made: true,
        })
    }

    /// A folder is used as it is, an archive becomes this run's own.
    async fn made_beforehand(
        &self,
        package: &Path,
        folder: &Path,
    ) -> Result<Environment, PythonError> {
        if package.is_dir() {
            self.console.say(format!(
                "Environment: {}, which was made beforehand (nothing is installed)",
                package.display()
            ));
            return self.environment(package, Kind::AsItIs).await;
        }
        if !package.is_file() {
            return Err(PythonError::CondaPackage {
                place: package.display().to_string(),
                cause: "it is no folder and no file on this machine".into(),
            });
        }
        self.console
            .say(format!("Environment: unpacked from {}", package.display()));
        prefix::unpack(package, folder, self.settings, self.console, self.stop).await?;
        self.environment(folder, Kind::Own).await
    }
}
