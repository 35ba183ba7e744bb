//! A repository that is a uv or Poetry project, where the configuration names that manager: its own
//! tool fills the run's environment from the project's files, and the task's list is not looked at.

use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;

use super::filling::base_variables;
use super::settings::{Manager, Settings};
use super::tool::{self, Call, Finished, find_program};
use super::tools::Tools;
use super::uv::{self, Uv};
use super::{Environment, PythonError, Variables};
use crate::console::Console;
use crate::source::Lent;

/// What was found in the repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Project {
    pub manager: Manager,
    pub folder: PathBuf,
    /// `uv.lock`, `pyproject.toml`, `poetry.lock`
    pub file: &'static str,
}

/// The project that counts; none where the manager is not for projects or no file is there.
pub fn find(settings: &Settings, root: &Path, working_dir: &Path) -> Option<Project> {
    let (files, of_working_dir) = match settings.manager {
        Manager::Uv => (["uv.lock", "pyproject.toml"], settings.uv.of_working_dir),
        Manager::Poetry => (
            ["poetry.lock", "pyproject.toml"],
            settings.poetry.of_working_dir,
        ),
        Manager::Pip | Manager::Conda => return None,
    };
    let folder = if of_working_dir { working_dir } else { root };
    let file = files.into_iter().find(|name| folder.join(name).is_file())?;
    Some(Project {
        manager: settings.manager,
        folder: folder.to_owned(),
        file,
    })
}

/// `agent.package_manager.uv_*`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UvSettings {
    pub sync_args: Vec<String>,
    pub locked: bool,
    pub of_working_dir: bool,
}

/// `agent.package_manager.poetry_*`
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PoetrySettings {
    /// Set, even to nothing: the agent's own Poetry is used and not one on PATH.
    pub version: Option<String>,
    pub install_args: Vec<String>,
    pub of_working_dir: bool,
}

/// What the tools are run with.
pub(super) struct Syncing<'a> {
    pub env: &'a Environment,
    pub tools: &'a Tools,
    pub settings: &'a Settings,
    pub git: Lent,
    pub console: &'a Console,
    pub stop: &'a CancellationToken,
}

impl Syncing<'_> {
    /// Fills the environment, which must be made. The inner error says why the project can't be
    /// used.
    pub async fn sync(&self, project: &Project) -> Result<Result<(), String>, PythonError> {
        match project.manager {
            Manager::Pip | Manager::Conda => Ok(Ok(())),
            Manager::Uv => self.uv_sync(project).await,
            Manager::Poetry => self.poetry_install(project).await,
        }
    }

    async fn uv_sync(&self, project: &Project) -> Result<Result<(), String>, PythonError> {
        let uv = match self.uv().await? {
            Ok(uv) => uv,
            Err(reason) => return Ok(Err(reason)),
        };
        let has_lock = project.folder.join("uv.lock").is_file();
        let locked = has_lock && self.settings.uv.locked;
        let told = base_variables(self.settings);
        let mut finished = self.run_uv_sync(&uv, project, locked, &told).await?;
        if locked && needs_update(&finished) {
            // uv takes a lock for stale too where it names an index that uv is not told of.
            let known = self
                .settings
                .indexes
                .known(&told, &self.settings.environment);
            let text = std::fs::read_to_string(project.folder.join("uv.lock"));
            let others = other_indexes(&text.unwrap_or_default(), &known);
            if !others.is_empty() || told.contains_key(PRE_RELEASES) {
                let mut fitting = told.clone();
                fitting.remove(PRE_RELEASES);
                let before = fitting.remove(MORE_INDEXES);
                let before =
                    before.or_else(|| self.settings.variable(MORE_INDEXES).map(str::to_owned));
                let all: Vec<String> = before.into_iter().chain(others).collect();
                if !all.is_empty() {
                    fitting.insert(MORE_INDEXES.into(), all.join(" "));
                }
                finished = self.run_uv_sync(&uv, project, true, &fitting).await?;
            }
        }
        if !finished.succeeded()
            && locked
            && !self.settings.uv.sync_args.contains(&"--locked".into())
        {
            self.console.say(match needs_update(&finished) {
                true => {
                    "Note: uv.lock does not fit pyproject.toml any more (see above): trying \
                     without --locked. Run `uv lock` and commit it."
                }
                false => {
                    "Note: what uv.lock names can't be installed from where it says (see above): \
                     trying without --locked, from the package index that is configured here."
                }
            });
            finished = self.run_uv_sync(&uv, project, false, &told).await?;
        }
        Ok(outcome("uv sync", &finished))
    }

    async fn run_uv_sync(
        &self,
        uv: &Uv,
        project: &Project,
        locked: bool,
        told: &Variables,
    ) -> Result<Finished, PythonError> {
        // Inexact: pip, which scripts call, is no part of a project.
        let mut args: Vec<String> = ["sync", "--inexact", "--no-progress", "--color", "never"]
            .map(str::to_owned)
            .to_vec();
        if let Some(python) = &self.env.python {
            args.extend(["--python".into(), python.to_string_lossy().into_owned()]);
        }
        let given = &self.settings.uv.sync_args;
        // uv refuses it twice, and beside the other.
        let says_so = ["--locked", "--frozen"]
            .iter()
            .any(|way| given.contains(&(*way).into()));
        if locked && !says_so {
            args.push("--locked".into());
        }
        args.extend(given.iter().cloned());
        let mut told = told.clone();
        if let Some(folder) = &self.env.folder {
            let folder = folder.to_string_lossy().into_owned();
            told.insert("UV_PROJECT_ENVIRONMENT".into(), folder);
        }
        self.call(&uv.program, args, told, &project.folder).await
    }

    async fn poetry_install(&self, project: &Project) -> Result<Result<(), String>, PythonError> {
        let poetry = match self.poetry().await? {
            Ok(poetry) => poetry,
            Err(reason) => return Ok(Err(reason)),
        };
        let mut args = vec!["install".to_owned(), "--no-interaction".to_owned()];
        args.push("--no-ansi".into());
        args.extend(self.settings.poetry.install_args.iter().cloned());
        let mut told = Variables::from([
            // Nobody is there to unlock one.
            (
                "PYTHON_KEYRING_BACKEND".to_owned(),
                "keyring.backends.null.Keyring".to_owned(),
            ),
        ]);
        if let Some(folder) = &self.env.folder {
            let path = self.settings.variable("PATH").unwrap_or_default();
            // Poetry installs into an activated environment.
            told.insert("PATH".into(), format!("{}/bin:{path}", folder.display()));
            told.insert("VIRTUAL_ENV".into(), folder.to_string_lossy().into_owned());
        }
        let finished = self.call(&poetry, args, told, &project.folder).await?;
        Ok(outcome("poetry install", &finished))
    }

    /// The Poetry that is on PATH, else one of the agent's own, in an environment of its own: the
    /// machine's Python is left as it is.
    async fn poetry(&self) -> Result<Result<PathBuf, String>, PythonError> {
        let version = self.settings.poetry.version.as_deref();
        if version.is_none()
            && let Some(found) = find_program("poetry", &self.settings.search_path())
        {
            return Ok(Ok(found));
        }
        let uv = match self.uv().await? {
            Ok(uv) => uv,
            Err(reason) => {
                return Ok(Err(format!(
                    "there is no poetry, and no uv to get it: {reason}"
                )));
            }
        };
        let spec = match version.unwrap_or_default() {
            v if v.starts_with(|c: char| c.is_ascii_digit()) => format!("poetry=={v}"),
            v => format!("poetry{v}"),
        };
        let tools = self.settings.cache.join("poetry");
        let mut told = base_variables(self.settings);
        for (name, folder) in [("UV_TOOL_DIR", "tools"), ("UV_TOOL_BIN_DIR", "bin")] {
            told.insert(
                name.into(),
                tools.join(folder).to_string_lossy().into_owned(),
            );
        }
        let mut args: Vec<String> = ["tool", "install", "--quiet", "--color", "never"]
            .map(str::to_owned)
            .to_vec();
        if let Some(interpreter) = &self.env.interpreter {
            let python = interpreter.base_executable.to_string_lossy();
            args.extend(["--python".into(), python.into_owned()]);
        }
        args.push(spec.clone());
        // uv locks the folder: of several runs one installs it, and the others find it there.
        let finished = self.call(&uv.program, args, told, Path::new("/")).await?;
        if !finished.succeeded() {
            return Ok(Err(format!("{spec} could not be installed (see above)")));
        }
        Ok(Ok(tools.join("bin/poetry")))
    }

    async fn uv(&self) -> Result<Result<Uv, String>, PythonError> {
        if let Some(uv) = &self.tools.uv {
            return Ok(Ok(uv.clone()));
        }
        match uv::find_or_fetch(self.settings, self.console, self.stop).await {
            Err(_) if self.stop.is_cancelled() => Err(PythonError::Stopped),
            found => Ok(found),
        }
    }

    async fn call(
        &self,
        program: &Path,
        args: Vec<String>,
        told: Variables,
        dir: &Path,
    ) -> Result<Finished, PythonError> {
        let inherited = &self.settings.environment;
        let mut env = tool::environment(inherited, told);
        env.extend(self.git.environment(inherited));
        let call = Call {
            program: program.to_owned(),
            args,
            env,
            dir: dir.to_owned(),
        };
        tool::run(&call, self.console, self.stop).await
    }
}

const MORE_INDEXES: &str = "UV_EXTRA_INDEX_URL";
const PRE_RELEASES: &str = "UV_PRERELEASE";

/// Whether uv says that the lock is stale.
fn needs_update(finished: &Finished) -> bool {
    let said = |line: &String| line.contains("needs to be updated");
    !finished.succeeded() && finished.last_lines.iter().any(said)
}

/// The package indexes that a `uv.lock` names, but for those that are known.
fn other_indexes(lock: &str, known: &[String]) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for line in lock.lines() {
        // `source = { registry = "https://…" }`
        let url = line
            .strip_prefix("source = { registry = \"")
            .and_then(|rest| rest.split_once('"'))
            .map(|(url, _)| url);
        if let Some(url) = url
            && url.contains("://")
            && !known.iter().any(|known| known == url)
            && !found.iter().any(|found| found == url)
        {
            found.push(url.to_owned());
        }
    }
    found
}

fn outcome(what: &str, finished: &Finished) -> Result<(), String> {
    match finished.code {
        Some(0) => Ok(()),
        Some(code) => Err(format!("`{what}` ended with exit code {code}")),
        None => Err(format!("`{what}` was killed by a signal")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_indexes_of_a_lock_that_are_not_configured() {
        let lock = "version = 1\n[[package]]\nname = \"a\"\nsource = { registry = \"https://h/simple\" }\n\
                    [[package]]\nname = \"b\"\nsource = { registry = \"https://h/simple\" }\n\
                    [[package]]\nname = \"c\"\nsource = { registry = \"https://g/simple/\" }\n\
                    [[package]]\nname = \"d\"\nsource = { registry = \"../links\" }\n\
                    [[package]]\nname = \"e\"\nsource = { virtual = \".\" }\n";
        for (known, others) in [
            (&[][..], &["https://h/simple", "https://g/simple/"][..]),
            (&["https://h/simple"], &["https://g/simple/"]),
            (&["https://h/simple", "https://g/simple/"], &[]),
        ] {
            let known: Vec<String> = known.iter().map(|url| (*url).to_owned()).collect();
            assert_eq!(other_indexes(lock, &known), others, "{known:?}");
        }
    }

    #[test]
    fn which_file_makes_a_project() {
        let dir = tempfile::tempdir().unwrap();
        let (root, sub) = (dir.path(), dir.path().join("sub"));
        std::fs::create_dir(&sub).unwrap();
        std::fs::write(sub.join("pyproject.toml"), "").unwrap();
        let settings = |manager, of_working_dir| {
            let mut settings = Settings {
                manager,
                ..Settings::default()
            };
            settings.uv.of_working_dir = of_working_dir;
            settings
        };
        let file = |manager, of_working_dir| {
            find(&settings(manager, of_working_dir), root, &sub).map(|project| project.file)
        };
        assert_eq!(file(Manager::Uv, false), None);
        assert_eq!(file(Manager::Uv, true), Some("pyproject.toml"));
        std::fs::write(root.join("pyproject.toml"), "").unwrap();
        std::fs::write(root.join("uv.lock"), "").unwrap();
        assert_eq!(file(Manager::Uv, false), Some("uv.lock"));
        assert_eq!(file(Manager::Poetry, false), Some("pyproject.toml"));
        assert_eq!(file(Manager::Pip, false), None);
    }
}
