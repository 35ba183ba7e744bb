//! `agent.package_manager.type: conda`: the run's environment is a conda prefix of its own, made by
//! the conda (mamba, micromamba) of this machine; what conda does not have, pip's rules install.
//!
//! [`create`] makes the prefix while the code is fetched, [`fill::fill`] installs the task's list,
//! [`prefix::activated`] gives the script's environment. A prefix is made anew for each run and not
//! kept: conda writes its path into the files of its packages, and it hard-links them from a
//! package cache of its own. What takes long is the search for versions that go together, and its
//! result is kept ([`solved`]).

mod fill;
mod find;
pub mod prefix;
mod solved;
pub mod specs;
pub mod words;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use tokio_util::sync::CancellationToken;

pub(super) use fill::{Lists, fill};
pub use find::{Conda, Dialect, find, pythons};

use self::solved::{Place, Solved};
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
        let channels = self.settings.conda.channels.join(",");
        let told = [
            // Read where no argument or file names channels.
            ("CONDA_CHANNELS", channels.as_str()),
            ("CONDA_REPORT_ERRORS", "false"),
            ("MAMBA_NO_BANNER", "1"),
        ];
        let told = told.into_iter().filter(|(_, value)| !value.is_empty());
        let told = told.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let told = Variables::from_iter(told);
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
        let known = Place::of(self.conda, self.settings, &packages);
        if let Some(known) = &known
            && self.as_known("create", prefix, known).await?.is_some()
        {
            return Ok(());
        }
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
        made.map_err(PythonError::Conda)?;
        if let (Some(known), Some(solved)) = (known, Solved::of(prefix, Vec::new())) {
            known.write(&solved);
        }
        Ok(())
    }

    /// `create` or `install` of what was found in a former run. `None`: there is nothing of the kind, or
    /// it can't be had any more; else what was left for pip.
    async fn as_known(
        &self,
        command: &str,
        prefix: &Path,
        place: &Place,
    ) -> Result<Option<Vec<String>>, PythonError> {
        let Some((solved, age)) = place.read() else {
            return Ok(None);
        };
        let file = private_file(".txt", &solved.explicit())?;
        let file = file.path().to_string_lossy().into_owned();
        let folder = prefix.to_string_lossy().into_owned();
        let args = [
            command, "--yes", "--quiet", "--prefix", &folder, "--file", &file,
        ];
        if command != "create" {
            self.console.say(format!(
                "Packages: by {}: the {} that it found {} min ago",
                self.conda.name,
                solved.files.len(),
                age.as_secs() / 60
            ));
        }
        match self
            .run("install what it found before", words(&args))
            .await?
        {
            Ok(()) => Ok(Some(solved.left)),
            Err(_) => {
                place.forget();
                self.console.say(format!(
                    "Note: what {} found in a former run can't be had again (see above): it \
                     searches anew.",
                    self.conda.name
                ));
                if command == "create" {
                    // One that was begun is in the way.
                    let _ = super::cache::tree::remove(prefix);
                }
                Ok(None)
            }
        }
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
        let channels = &self.settings.conda.channels;
        let mut text = serde_json::json!({"dependencies": packages});
        if !channels.is_empty() {
            // With none, those that conda itself is configured with.
            text["channels"] = serde_json::json!(channels);
        }
        private_file(".yml", &text.to_string())
    }
}

/// A file that nobody else can read.
fn private_file(suffix: &str, text: &str) -> Result<tempfile::NamedTempFile, PythonError> {
    use std::io::Write as _;
    let failed = |cause: std::io::Error| PythonError::Io {
        what: "the list of packages can't be written to the temporary folder".into(),
        cause: cause.to_string(),
    };
    let mut file = tempfile::Builder::new()
        .prefix("environment-")
        .suffix(suffix)
        .tempfile()
        .map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)?;
    Ok(file)
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
        "Environment: made by {} {} with Python {python}, from {}",
        conda.name,
        conda.version,
        match own.channels.is_empty() {
            true => "the channels that it is configured with".to_owned(),
            false => format!("the channels {}", tool::mask(&own.channels.join(", "))),
        }
    ));
    calling.make(folder, &python).await?;
    calling.environment(folder, Kind::Own).await
}

/// `3.11`: what the task was run by, else what its conda lists say, else what the configuration says.
fn python_wanted(script: &Script, settings: &Settings) -> String {
    let wish = choice::wish(&script.binary, settings);
    let exact = wish.version.filter(|version| version.minor.is_some());
    let text = |key: &str| script.requirements.text(key);
    let facts = specs::Facts {
        channels: &[],
        cuda: None,
    };
    let listed = || {
        text("conda_env_json")
            .and_then(|json| specs::exported(&json, facts)?.python)
            .or_else(|| specs::python_of(&text("conda")?))
    };
    let of_task = match (exact, settings.ignore_requested_version) {
        (Some(version), _) if wish.by == "the task" => Some(version.to_string()),
        (_, true) => None,
        (_, false) => listed(),
    };
    of_task
        .or_else(|| wish.version.map(|version| version.to_string()))
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn which_python_conda_is_asked_for() {
        let configured = Settings {
            default_python: Some("3.8".into()),
            ..Settings::default()
        };
        let ignoring = Settings {
            ignore_requested_version: true,
            ..configured.clone()
        };
        let plain = Settings::default();
        let list = json!({"conda": "python==3.9.18\nsix"});
        let export = json!({"conda": "python==3.9", "conda_env_json": "{\"dependencies\": [\"python=3.10.1=h\"]}"});
        for (binary, lists, settings, python) in [
            ("python3.11", &list, &configured, "3.11"),
            ("python3", &list, &configured, "3.9"),
            ("", &export, &plain, "3.10"),
            ("", &json!({"pip": "six"}), &configured, "3.8"),
            ("python3", &json!({"pip": "six"}), &plain, "3"),
            ("", &json!({}), &plain, "3"),
            ("python3.11", &list, &ignoring, "3.8"),
        ] {
            let script = json!({"binary": binary, "requirements": lists});
            let script: Script = serde_json::from_value(script).unwrap();
            let found = python_wanted(&script, settings);
            assert_eq!(found, python, "{binary} {lists}");
        }
    }
}
