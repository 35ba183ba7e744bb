//! Fills an environment with packages, by uv or pip: which of them, with which flags, in which
//! order, and what is tried when it fails.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::connection::{SYSTEM_CERTIFICATES, machine_trusts};
use super::failure::{
    Asked, Cause, Doubt, InstallFailure, UNNAMED, advice, classify, detail, may_pass, short,
};
use super::flags::{fits, pip_requirement, uv_flags};
use super::freeze;
use super::git_access::{self, check_program};
use super::inherited;
use super::not_found::why_not_found;
use super::obtain::Job;
use super::requirements::{Line, List};
use super::settings::{Installer, Settings};
use super::tool::{self, Call, Finished, mask};
use super::tools::{Kind, Tools};
use super::torch;
use super::uv::{self, Uv};
use super::{Environment, PythonError, Variables};
use crate::console::Console;
use crate::source::Lent;

fn io_failed(cause: std::io::Error) -> PythonError {
    PythonError::Io {
        what: "the list of packages can't be written to the temporary folder".into(),
        cause: cause.to_string(),
    }
}

/// What a run installs with.
pub(super) enum With {
    Uv(Uv),
    Pip,
}

/// One environment and the tools that fill it.
pub(super) struct Filling<'a> {
    python: &'a Path,
    env: &'a Environment,
    tools: &'a Tools,
    settings: &'a Settings,
    console: &'a Console,
    stop: &'a CancellationToken,
    /// Private: the lists in it may hold passwords of addresses.
    folder: tempfile::TempDir,
    repository: &'a str,
    git: Lent,
    files: usize,
    /// Pins of the list that what is there satisfies.
    held: Vec<(String, String)>,
}

/// What came of filling an environment.
pub(super) struct Filled {
    /// `uv 0.9.9` or `pip`
    pub installer: String,
    /// Packages that could not be installed, and whose failure is tolerated.
    pub lacking: Vec<String>,
    /// At another time it may be had whole.
    pub again: bool,
    /// The right index for PyTorch was away, and is worth asking after so long.
    pub torch_away: Option<Duration>,
}

/// Why it is not known what a list leads to.
pub(super) struct Unresolved {
    pub why: String,
    /// The same may succeed at another time.
    pub may_pass: bool,
}

impl<'a> Filling<'a> {
    /// `None` where the environment has no Python.
    pub(super) fn new(
        env: &'a Environment,
        job: &Job<'a>,
        settings: &'a Settings,
    ) -> Result<Option<Filling<'a>>, PythonError> {
        let Some(python) = &env.python else {
            return Ok(None);
        };
        Ok(Some(Filling {
            python,
            env,
            tools: job.tools,
            settings,
            console: job.console,
            stop: job.stop,
            folder: tempfile::tempdir().map_err(io_failed)?,
            repository: job.repository,
            git: Lent::default(),
            files: 0,
            held: Vec::new(),
        }))
    }

    /// Installs the list.
    pub(super) async fn fill(&mut self, list: &List) -> Result<Filled, PythonError> {
        let requested = list.names();
        let mut list = list.clone();
        let own = self.env.site_packages.clone();
        self.leave_out_what_is_there(&mut list, own)?;
        check_program(&list, self.env.kind, self.settings)?;
        self.lend_to(&mut list).await;
        let installer = self.installer(&list).await?;
        if matches!(installer, With::Uv(_)) && self.env.kind == Kind::Own && !self.env.has_pip() {
            // The interpreter comes without its pip wheel, and scripts call `python -m pip`.
            list.add("pip");
        }
        if let With::Pip = installer {
            self.prepare_pip(&requested).await?;
        }
        let mut filled = Filled {
            installer: String::new(),
            lacking: Vec::new(),
            again: false,
            torch_away: self.add_torch_index(&mut list).await,
        };
        if !list.has_packages() {
            return Ok(filled);
        }
        let tolerated = list.split_off(&self.settings.optional_packages);
        if list.has_packages() {
            self.install(&installer, &list).await?;
        }
        for (name, alone) in tolerated {
            match self.install(&installer, &alone).await {
                Err(PythonError::Install(failure)) => {
                    self.console.say(format!(
                        "Note: {name} is not installed ({}), and the run goes on without it: it \
                         is one of the packages whose failure is tolerated.",
                        short(&failure.cause)
                    ));
                    filled.again |= failure.may_pass;
                    filled.lacking.push(name);
                }
                other => other?,
            }
        }
        filled.installer = match installer {
            With::Uv(uv) => format!("uv {}", uv.version),
            With::Pip => "pip".into(),
        };
        Ok(filled)
    }

    /// The ways and logins for the list's repositories, which leave their addresses.
    async fn lend_to(&mut self, list: &mut List) {
        let needs = git_access::needs_of(list, self.repository);
        self.git = git_access::lent(needs, self.settings, self.console, self.stop).await;
    }

    /// Of an interpreter with packages of its own: what is there in the listed version need not be on
    /// any index.
    fn leave_out_what_is_there(
        &mut self,
        list: &mut List,
        mut folders: Vec<PathBuf>,
    ) -> Result<(), PythonError> {
        let shared = self.env.kind == Kind::Shared;
        if !shared && !self.settings.system_site_packages {
            return Ok(());
        }
        if let Some(interpreter) = &self.env.interpreter {
            folders.extend(interpreter.site_packages.iter().cloned());
        }
        self.held = inherited::take_out(list, &freeze::installed(&folders));
        if self.held.is_empty() {
            return Ok(());
        }
        let names: Vec<&str> = self.held.iter().map(|(name, _)| &**name).collect();
        self.console
            .say(format!("Already there: {}", names.join(", ")));
        let file = self.write(&inherited::constraints(&self.held))?;
        let setting = format!("-c {}", file.display());
        list.lines.insert(0, Line::Setting(setting));
        Ok(())
    }

    /// Gives when an index that is away is worth asking again.
    async fn add_torch_index(&self, list: &mut List) -> Option<Duration> {
        let choice = tokio::select! {
            choice = torch::choose(list, self.tools.cuda, self.settings) => choice,
            // Whatever is run next ends at once.
            () = self.stop.cancelled() => torch::Choice::NotNeeded,
        };
        match choice {
            torch::Choice::NotNeeded => {}
            torch::Choice::None { note } => self.console.say(format!("Note: {note}.")),
            torch::Choice::Away { note, ask_again } => {
                self.console.say(format!(
                    "Note: {note}: it is taken from the usual package indexes \
                     (agent.package_manager.pytorch_resolve: none switches this off)."
                ));
                return Some(ask_again);
            }
            torch::Choice::Index { url, note } => {
                self.console.say(format!("{note}."));
                let setting = format!("--extra-index-url {url}");
                list.lines.insert(0, Line::Setting(setting));
            }
        }
        None
    }

    /// What the list leads to today, one package a line; nothing is installed. `None` where that
    /// can't be told without installing.
    pub(super) async fn resolve(&mut self, list: &List) -> Result<Option<Vec<String>>, Unresolved> {
        let because = |why: String| Unresolved {
            why,
            may_pass: true,
        };
        let failed = |error: PythonError| because(error.to_string());
        let With::Uv(uv) = self.installer(list).await.map_err(failed)? else {
            return Ok(None);
        };
        let mut list = list.clone();
        // Not what the kept environment itself has: that is what the list leads to.
        self.leave_out_what_is_there(&mut list, Vec::new())
            .map_err(failed)?;
        self.lend_to(&mut list).await;
        self.add_torch_index(&mut list).await;
        let file = self.write(&list.file()).map_err(failed)?;
        let out = self.folder.path().join("resolved.txt");
        let mut args: Vec<String> = ["pip", "compile", "--quiet", "--no-progress", "--color"]
            .map(str::to_owned)
            .to_vec();
        args.extend(["never", "--no-header", "--no-annotate", "--python"].map(str::to_owned));
        args.push(self.python.to_string_lossy().into_owned());
        let of_pip = self.settings.indexes.arguments_for_uv();
        // Of a list that names no hashes, none could be required for what it leads to.
        args.extend(of_pip.into_iter().filter(|arg| arg != "--require-hashes"));
        args.extend(["-o".into(), out.to_string_lossy().into_owned()]);
        args.push(file.to_string_lossy().into_owned());
        let told = self.uv_variables(&list);
        let finished = self.call(uv.program, args, told).await.map_err(failed)?;
        if !finished.succeeded() {
            let lines = &finished.last_lines;
            let may_pass = may_pass(&classify(lines), lines);
            if !may_pass && !self.held.is_empty() {
                // Installing has further ways.
                return Ok(None);
            }
            return Err(Unresolved {
                why: "see above".into(),
                may_pass,
            });
        }
        let text = std::fs::read_to_string(&out).map_err(|e| because(e.to_string()))?;
        let lines = text.lines().map(str::trim);
        let named = lines.filter(|line| !line.is_empty() && !line.starts_with(['-', '#']));
        Ok(Some(named.map(str::to_owned).collect()))
    }

    /// Lets uv take the package anew when it is next installed.
    pub(super) async fn forget_download(&self, uv: &Uv, name: &str) {
        let args = ["cache", "clean", "--quiet", name]
            .map(str::to_owned)
            .to_vec();
        let told = base_variables(self.settings);
        // Where it fails, the package stays as it is, and that will be noticed again.
        let _ = self.call(uv.program.clone(), args, told).await;
    }

    async fn installer(&self, list: &List) -> Result<With, PythonError> {
        let tools = self.tools;
        let reason = if self.settings.installer == Installer::Pip {
            "agent.package_manager.uv_replace_pip is false".to_owned()
        } else if let Err(flag) = uv_flags(&self.settings.extra_flags) {
            format!("uv has no flag like pip's {flag} (extra_pip_install_flags)")
        } else if self.settings.indexes.prefer_binary {
            "uv has nothing like pip's prefer-binary, which is set for pip".to_owned()
        } else if let Some(setting) = list.only_for_pip() {
            format!("uv has nothing like pip's {setting}, which is in the list")
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
            let cause = classify(std::slice::from_ref(&reason));
            let next = advice(&cause, self.settings.place).unwrap_or(
                "Put uv on PATH (or name it with CLEARML_BOOTSTRAP_UV_EXEC), or install the \
                 interpreter's pip (python3-venv on Debian and Ubuntu).",
            );
            return Err(PythonError::NoInstaller {
                uv: reason,
                pip: format!("{} has no pip", self.python.display()),
                next: next.into(),
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
        let mut tool = match with {
            With::Uv(_) => "uv",
            With::Pip => "pip",
        };
        self.console.say(format!("Installing packages with {tool}"));
        let file = self.write(&list.file())?;
        let mut finished = match with {
            With::Uv(uv) => self.uv_as_pip(uv, list, &file).await?,
            With::Pip => self.pip_list(&file).await?,
        };
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
        if cause == Cause::Build(UNNAMED.into())
            && let Some(only) = list.only_reference()
        {
            cause = Cause::Build(mask(only));
        }
        if let Cause::NoSuchPackage(name) = &cause
            && let Some(why) = why_not_found(name, tool, self.settings).await
        {
            cause = why;
        }
        Err(PythonError::Install(InstallFailure {
            tool,
            code: finished.code,
            detail: detail(&cause, &finished.last_lines),
            may_pass: may_pass(&cause, &finished.last_lines),
            cause,
            place: self.settings.place,
        }))
    }

    /// uv, and what pip would have done where uv fails.
    async fn uv_as_pip(
        &mut self,
        uv: &Uv,
        list: &List,
        file: &Path,
    ) -> Result<Finished, PythonError> {
        let mut told = self.uv_variables(list);
        let mut finished = self.uv(uv, file, told.clone()).await?;
        let unknown = Cause::Certificate {
            asked: Asked::Index,
            doubt: Doubt::Authority,
        };
        if classify(&finished.last_lines) == unknown
            && !finished.succeeded()
            && machine_trusts(&finished.last_lines, self.settings).await
        {
            self.console.say(
                "Note: trying again with the certificates that this machine trusts, as pip does.",
            );
            for name in SYSTEM_CERTIFICATES {
                told.insert(name.into(), "true".into());
            }
            finished = self.uv(uv, file, told.clone()).await?;
        }
        let mut overrides = String::new();
        let nothing_fits = matches!(
            classify(&finished.last_lines),
            Cause::NoSuchPackage(_) | Cause::NoSuchVersion(_) | Cause::Conflict
        );
        if !finished.succeeded() && nothing_fits && !self.held.is_empty() {
            self.console.say(
                "Note: trying again with what is there already as it is, whatever the other \
                 packages ask for.",
            );
            overrides = inherited::passed_over(&self.held);
            let named = self.write(&overrides)?;
            told.insert("UV_OVERRIDE".into(), named.to_string_lossy().into_owned());
            finished = self.uv(uv, file, told.clone()).await?;
        }
        let conflict = |finished: &Finished| {
            !finished.succeeded() && classify(&finished.last_lines) == Cause::Conflict
        };
        if conflict(&finished) {
            let pins = list.pins();
            if !pins.is_empty() {
                self.console.say(
                    "Note: the versions in the list exclude each other (see above). Installing \
                     the exact ones as they are listed, as pip's old resolver does.",
                );
                let pins = self.write(&format!("{overrides}{pins}"))?;
                told.insert("UV_OVERRIDE".into(), pins.to_string_lossy().into_owned());
                finished = self.uv(uv, file, told.clone()).await?;
            }
        }
        if conflict(&finished) {
            self.console.say(
                "Note: what the packages need excludes each other (see above). Installing them \
                 one by one: of two versions the one that the list leads to first, as with pip's \
                 old resolver.",
            );
            finished = self.one_by_one(uv, list, file, &told).await?;
        }
        Ok(finished)
    }

    /// What is installed later stands in the place of what is not wanted with it: so the first comes
    /// last.
    async fn one_by_one(
        &mut self,
        uv: &Uv,
        list: &List,
        file: &Path,
        told: &Variables,
    ) -> Result<Finished, PythonError> {
        for alone in list.one_by_one().into_iter().rev() {
            let file = self.write(&alone.file())?;
            let finished = self.uv(uv, &file, told.clone()).await?;
            if !finished.succeeded() {
                return Ok(finished);
            }
        }
        // The list's own versions count, whatever a later package did to an earlier one.
        let mut args = self.uv_install_arguments();
        let no_deps = "--no-deps".to_owned();
        if !args.contains(&no_deps) {
            args.push(no_deps);
        }
        args.extend(["-r".into(), file.to_string_lossy().into_owned()]);
        self.call(uv.program.clone(), args, told.clone()).await
    }

    async fn uv(&self, uv: &Uv, file: &Path, told: Variables) -> Result<Finished, PythonError> {
        let mut args = self.uv_install_arguments();
        args.extend(["-r".into(), file.to_string_lossy().into_owned()]);
        self.call(uv.program.clone(), args, told).await
    }

    fn uv_install_arguments(&self) -> Vec<String> {
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
        args.extend(uv_flags(&settings.extra_flags).unwrap_or_default());
        for arg in settings.indexes.arguments_for_uv() {
            if !args.contains(&arg) {
                args.push(arg);
            }
        }
        args
    }

    fn uv_variables(&self, list: &List) -> Variables {
        let mut told = base_variables(self.settings);
        let mut env = self.settings.environment.clone();
        env.extend(told.clone());
        told.extend(list.variables_for_uv(&env));
        told
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
        let mut told = self.settings.indexes.for_pip(&self.settings.environment);
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
        let inherited = &self.settings.environment;
        let mut env = tool::environment(inherited, told);
        env.extend(self.git.environment(inherited));
        let call = Call {
            program,
            args,
            env,
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

/// What uv is told, whatever it does.
pub(super) fn base_variables(settings: &Settings) -> Variables {
    let mut told = settings.indexes.for_uv(&settings.environment);
    let mut unless_set = |name: &str, value: String| {
        if settings.variable(name).is_none() {
            told.insert(name.into(), value);
        }
    };
    let cache = settings.cache.join("uv-cache");
    unless_set("UV_CACHE_DIR", cache.to_string_lossy().into_owned());
    if settings.best_of_all_indexes {
        unless_set("UV_INDEX_STRATEGY", "unsafe-best-match".into());
    }
    told.insert("UV_PYTHON_DOWNLOADS".into(), "never".into());
    told
}
