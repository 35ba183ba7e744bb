//! Installs the task's packages into its environment, with uv or pip, and says what to record.

use std::io::Write;
use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;

use super::failure::{self, Cause, InstallFailure, classify};
use super::flags::{fits, pip_requirement, uv_flags};
use super::freeze;
use super::notebook::is_notebook;
use super::record::{lines_to_record, recorded};
use super::requirements::{List, Reading, files_in_repository, parse};
use super::settings::{Installer, Settings};
use super::tool::{self, Call, Finished, mask};
use super::tools::{Kind, Tools};
use super::uv::{self, Uv};
use super::{Environment, PythonError, Variables};
use crate::console::Console;
use crate::task::{Requirements, Script};

/// Where the task's code is.
#[derive(Debug, Clone, Copy)]
pub struct Code<'a> {
    /// The root of the checkout; `None` for a stand-alone script.
    pub repository: Option<&'a Path>,
    pub working_dir: &'a Path,
    pub entry_point: &'a str,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Installed {
    /// The value for `tasks.set_requirements`; `None`: nothing is to be recorded.
    pub requirements_to_record: Option<Requirements>,
    /// The packages of the environment, one a line.
    pub summary: Vec<String>,
}

/// Installs what the task needs.
pub async fn install(
    env: &Environment,
    tools: &Tools,
    script: &Script,
    code: &Code<'_>,
    settings: &Settings,
    console: &Console,
    stop: &CancellationToken,
) -> Result<Installed, PythonError> {
    let (Some(python), Some(interpreter)) = (&env.python, &env.interpreter) else {
        return Ok(Installed::default());
    };
    if env.kind == Kind::AsItIs {
        return Ok(Installed::default());
    }
    if let (true, Some(root)) = (settings.uv_projects, code.repository) {
        let project = ["uv.lock", "pyproject.toml"].map(|name| root.join(name));
        if let Some(file) = project.into_iter().find(|file| file.is_file()) {
            let file = file.file_name().unwrap_or_default();
            let file = file.to_string_lossy().into_owned();
            return Err(PythonError::UvProject { file });
        }
    }
    let mut list = read_list(script, code, settings, console)?;
    if is_notebook(code.entry_point) {
        list.add("ipython");
        list.add("nbconvert");
    }
    if settings.force_task_init {
        list.add("clearml");
    }
    for note in &list.notes {
        console.say(format!("Note: {note}."));
    }

    let requested = list.names();
    let mut whole = list.clone();
    if list.has_packages() {
        let mut run = Run {
            python,
            env,
            settings,
            console,
            stop,
            folder: tempfile::tempdir().map_err(io_failed)?,
            files: 0,
        };
        let installer = run.installer(tools).await?;
        if matches!(installer, With::Uv(_)) && env.kind == Kind::Own && !env.has_pip() {
            // The interpreter comes without its pip wheel, and scripts call `python -m pip`.
            list.add("pip");
        }
        if let With::Pip = installer {
            run.prepare_pip(&requested).await?;
        }
        let tolerated = list.split_off(&settings.optional_packages);
        if list.has_packages() {
            run.install(&installer, &list).await?;
        }
        for (name, alone) in tolerated {
            match run.install(&installer, &alone).await {
                Err(PythonError::Install(failure)) => console.say(format!(
                    "Note: {name} is not installed ({}), and the run goes on without it: it is \
                     one of the packages whose failure is tolerated.",
                    short(&failure.cause)
                )),
                other => other?,
            }
        }
    } else {
        whole.lines.clear();
    }

    let packages = freeze::installed(&env.site_packages);
    let summary = lines_to_record(&packages, &whole, interpreter.version, &requested);
    let listed = script
        .requirements
        .text("pip")
        .is_some_and(|text| !text.is_empty());
    let record = listed || code.repository.is_some();
    Ok(Installed {
        requirements_to_record: record.then(|| recorded(&script.requirements, &summary)),
        summary,
    })
}

fn short(cause: &Cause) -> String {
    match cause {
        Cause::NoSuchPackage(name) => format!("no index has {name}"),
        Cause::NoSuchVersion(what) => format!("no version fits {what}"),
        Cause::Build(_) => "it could not be built".into(),
        _ => "see above".into(),
    }
}

fn io_failed(cause: std::io::Error) -> PythonError {
    PythonError::Io {
        what: "the list of packages can't be written to the temporary folder".into(),
        cause: cause.to_string(),
    }
}

/// The list that counts: the task's own, else the repository's files.
fn read_list(
    script: &Script,
    code: &Code<'_>,
    settings: &Settings,
    console: &Console,
) -> Result<List, PythonError> {
    let text = |key: &str| script.requirements.text(key).filter(|t| !t.is_empty());
    let (listed, original) = (text("pip"), text("org_pip"));
    let has_list = listed.is_some() || text("conda").is_some();
    let root = code.repository.unwrap_or(code.working_dir);
    let reading = Reading {
        origin: "the task's packages",
        folder: root,
        root,
        env: &settings.environment,
        original: original.as_deref(),
    };
    if has_list && !settings.force_repo_requirements_txt {
        let chosen = match (&original, settings.force_original_requirements) {
            (Some(original), true) => Some(original),
            _ => listed.as_ref(),
        };
        let Some(chosen) = chosen else {
            console.say(
                "Note: the task lists conda packages only, and packages are installed with pip's \
                 rules here: nothing is installed.",
            );
            return Ok(List::default());
        };
        let list = parse(chosen, &reading)?;
        if !list.has_packages() {
            console.say(
                "Note: the task's list of packages has only comments: nothing is installed, and \
                 the repository's requirements.txt is not looked at.",
            );
        }
        return Ok(list);
    }
    let files = match code.repository {
        Some(root) => files_in_repository(root, code.working_dir, code.entry_point),
        None => Vec::new(),
    };
    if files.is_empty() {
        console.say("No packages are listed: none are installed.");
        return Ok(List::default());
    }
    // One list of all files: where two name a package, the file nearest to the script counts.
    let mut all = String::new();
    for file in &files {
        let shown = file.strip_prefix(root).unwrap_or(file).display();
        console.say(format!("Packages from the repository's {shown}"));
        all.push_str(&format!("-r {}\n", file.display()));
    }
    parse(&all, &reading)
}

/// What a run installs with.
enum With {
    Uv(Uv),
    Pip,
}

struct Run<'a> {
    python: &'a Path,
    env: &'a Environment,
    settings: &'a Settings,
    console: &'a Console,
    stop: &'a CancellationToken,
    /// Private: the lists in it may hold passwords of addresses.
    folder: tempfile::TempDir,
    files: usize,
}

impl Run<'_> {
    async fn installer(&self, tools: &Tools) -> Result<With, PythonError> {
        let reason = if self.settings.installer == Installer::Pip {
            "agent.package_manager.uv_replace_pip is false".to_owned()
        } else if let Err(flag) = uv_flags(&self.settings.extra_flags) {
            format!("uv has no flag like pip's {flag} (extra_pip_install_flags)")
        } else {
            match (&tools.uv, &tools.uv_missing) {
                (Some(uv), _) => return Ok(With::Uv(uv.clone())),
                (None, Some(reason)) => reason.clone(),
                (None, None) => {
                    match uv::find_or_fetch(self.settings, self.console, self.stop).await {
                        Ok(uv) => return Ok(With::Uv(uv)),
                        Err(_) if self.stop.is_cancelled() => return Err(PythonError::Stopped),
                        Err(reason) => reason,
                    }
                }
            }
        };
        if !self.env.has_pip() {
            return Err(PythonError::NoInstaller {
                uv: reason,
                pip: format!("{} has no pip", self.python.display()),
            });
        }
        self.console
            .say(format!("Installing with pip, not uv: {reason}."));
        Ok(With::Pip)
    }

    /// The pip that the configuration wants, where the configuration wants pip.
    async fn prepare_pip(&self, requested: &[String]) -> Result<(), PythonError> {
        let specs = &self.settings.pip_version;
        let wanted = self.settings.installer == Installer::Pip
            && self.env.kind == Kind::Own
            && !specs.is_empty()
            && !requested.contains(&"pip".to_owned());
        if !wanted {
            return Ok(());
        }
        let mut args = vec!["--upgrade".to_owned()];
        args.extend(specs.iter().map(|spec| pip_requirement(spec)));
        let finished = self.pip(&args).await?;
        if !finished.succeeded() {
            self.console.say(format!(
                "Note: pip could not be brought to agent.package_manager.pip_version ({}): going \
                 on with the one that is there.",
                specs.join(", ")
            ));
        }
        Ok(())
    }

    async fn install(&mut self, with: &With, list: &List) -> Result<(), PythonError> {
        let file = self.write(&list.file())?;
        let mut tool = match with {
            With::Uv(_) => "uv",
            With::Pip => "pip",
        };
        self.console.say(format!("Installing packages with {tool}"));
        let mut finished = match with {
            With::Uv(uv) => self.uv(uv, &file, None).await?,
            With::Pip => self.pip_list(&file).await?,
        };
        let pins = list.pins();
        if let With::Uv(uv) = with
            && !finished.succeeded()
            && classify(&finished.last_lines) == Cause::Conflict
            && !pins.is_empty()
        {
            self.console.say(
                "Note: the versions in the list exclude each other (see above). Installing the \
                 exact ones as they are listed, as pip's old resolver does.",
            );
            let overrides = self.write(&pins)?;
            finished = self.uv(uv, &file, Some(&overrides)).await?;
        }
        if let With::Uv(_) = with
            && !finished.succeeded()
            && classify(&finished.last_lines) == Cause::Network
            && (list.names_an_extra_index() || !self.settings.indexes.extra_urls.is_empty())
            && self.env.has_pip()
        {
            self.console.say(
                "Note: uv takes nothing where one of the package indexes does not answer; pip \
                 passes over an extra index: installing with pip.",
            );
            (tool, finished) = ("pip", self.pip_list(&file).await?);
        }
        if finished.succeeded() {
            return Ok(());
        }
        let mut cause = classify(&finished.last_lines);
        if cause == Cause::Build(failure::UNNAMED.into())
            && let Some(only) = list.only_reference()
        {
            cause = Cause::Build(mask(only));
        }
        Err(PythonError::Install(InstallFailure {
            tool,
            code: finished.code,
            cause,
            last_lines: finished.last_lines,
        }))
    }

    async fn uv(
        &self,
        uv: &Uv,
        file: &Path,
        overrides: Option<&Path>,
    ) -> Result<Finished, PythonError> {
        let settings = self.settings;
        let mut args: Vec<String> = ["pip", "install", "--no-progress", "--color", "never"]
            .map(str::to_owned)
            .to_vec();
        args.extend([
            "--python".into(),
            self.python.to_string_lossy().into_owned(),
        ]);
        if self.env.kind == Kind::Shared {
            // The configuration asks for this very interpreter.
            args.push("--break-system-packages".into());
        }
        if settings.force_upgrade {
            args.push("--upgrade".into());
        }
        let flags = uv_flags(&settings.extra_flags).unwrap_or_default();
        args.extend(flags);
        args.extend(["-r".into(), file.to_string_lossy().into_owned()]);

        let mut told = settings.indexes.for_uv(&settings.environment);
        let mut unless_set = |name: &str, value: String| {
            if settings.variable(name).is_none() {
                told.insert(name.into(), value);
            }
        };
        unless_set(
            "UV_CACHE_DIR",
            settings
                .cache
                .join("uv-cache")
                .to_string_lossy()
                .into_owned(),
        );
        if settings.best_of_all_indexes {
            unless_set("UV_INDEX_STRATEGY", "unsafe-best-match".into());
        }
        told.insert("UV_PYTHON_DOWNLOADS".into(), "never".into());
        if let Some(overrides) = overrides {
            told.insert(
                "UV_OVERRIDE".into(),
                overrides.to_string_lossy().into_owned(),
            );
        }
        self.call(uv.program.clone(), args, told).await
    }

    async fn pip_list(&self, file: &Path) -> Result<Finished, PythonError> {
        let mut args = self.pip_flags();
        args.extend(["-r".into(), file.to_string_lossy().into_owned()]);
        self.pip(&args).await
    }

    async fn pip(&self, args: &[String]) -> Result<Finished, PythonError> {
        let mut all: Vec<String> = ["-m", "pip", "--disable-pip-version-check", "install"]
            .map(str::to_owned)
            .to_vec();
        all.extend(["--progress-bar", "off", "--no-input"].map(str::to_owned));
        all.extend_from_slice(args);
        let mut told = self.settings.indexes.for_pip();
        if self.env.kind == Kind::Shared {
            told.insert("PIP_BREAK_SYSTEM_PACKAGES".into(), "1".into());
        }
        self.call(self.python.to_owned(), all, told).await
    }

    fn pip_flags(&self) -> Vec<String> {
        let mut flags = Vec::new();
        let pip = freeze::installed(&self.env.site_packages)
            .into_iter()
            .find(|package| package.name == "pip");
        let legacy = pip.is_some_and(|pip| {
            let rules = &self.settings.pip_legacy_resolver;
            rules.iter().any(|rule| fits(&pip.version, rule))
        });
        if legacy {
            flags.push("--use-deprecated=legacy-resolver".into());
        }
        flags.extend(self.settings.extra_flags.iter().cloned());
        if self.settings.force_upgrade {
            flags.push("--upgrade".into());
        }
        flags
    }

    async fn call(
        &self,
        program: PathBuf,
        args: Vec<String>,
        told: Variables,
    ) -> Result<Finished, PythonError> {
        let call = Call {
            program,
            args,
            env: tool::environment(&self.settings.environment, told),
            // Not the repository: its pyproject.toml must not change what the list means.
            dir: self.folder.path().to_owned(),
        };
        tool::run(&call, self.console, self.stop).await
    }

    /// A list in a file that nobody else can read.
    fn write(&mut self, text: &str) -> Result<PathBuf, PythonError> {
        use std::os::unix::fs::OpenOptionsExt;
        self.files += 1;
        let path = self
            .folder
            .path()
            .join(format!("requirements-{}.txt", self.files));
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(io_failed)?;
        file.write_all(text.as_bytes()).map_err(io_failed)?;
        Ok(path)
    }
}
