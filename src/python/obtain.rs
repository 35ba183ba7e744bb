//! The environment with the packages in it: from the cache, or built here and kept there. What is
//! another thing in each run (folders of the checkout, branches) is installed into the run's own
//! copy afterwards.

use std::path::Path;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::cache::key::{Context, Parts, split};
use super::cache::settings::CacheSettings;
use super::cache::store::{Request, Store, Ticket, now};
use super::cache::tree::{CopyError, Way};
use super::cache::{self, Built, Found, Kept};
use super::environment::{make, planned};
use super::filling::{Filled, Filling};
use super::git_access;
use super::project::{Project, Syncing};
use super::record::lines_to_record;
use super::requirements::{Line, List, Reading, normalise, parse};
use super::settings::{Installer, Settings};
use super::tools::Tools;
use super::torch::{self, Choice};
use super::{Environment, PythonError, freeze};
use crate::console::{Console, counted};

/// What an environment is to be obtained with.
pub(super) struct Job<'a> {
    pub env: &'a Environment,
    pub tools: &'a Tools,
    pub settings: &'a Settings,
    /// The checkout.
    pub root: &'a Path,
    /// The address of the task's repository; may be empty.
    pub repository: &'a str,
    pub console: &'a Console,
    pub stop: &'a CancellationToken,
}

/// A kept environment that is found damaged is built anew, once.
const ATTEMPTS: usize = 3;

impl Job<'_> {
    /// Makes the environment where it is not made yet, and installs the list.
    pub async fn make_and_fill(&self, list: &List) -> Result<(), PythonError> {
        if self.settings.standalone.is_some() {
            return self.take_what_is_there(list).await;
        }
        let mut base = list.clone();
        let split_off = split(&mut base);
        let cache = self.settings.venvs_cache.as_ref();
        let (Some(cache), true, false) = (cache, base.has_packages(), self.env.made) else {
            return self.build_here(list).await;
        };
        let store = match Store::open(cache) {
            Ok(store) => store,
            Err(error) => {
                let path = cache.path.display();
                self.console.say(format!(
                    "Environment: not kept, because {path} (agent.venvs_cache.path) can't be \
                     written: {error}"
                ));
                return self.build_here(list).await;
            }
        };
        if !self.by_cache(&store, cache, &base).await? {
            return self.build_here(list).await;
        }
        if split_off {
            // With the whole list, so that what is there already is taken into account.
            self.fill(self.env, list).await?;
        }
        Ok(())
    }

    /// `--standalone-mode`: a kept environment, else the interpreter's own packages.
    async fn take_what_is_there(&self, list: &List) -> Result<(), PythonError> {
        if let Some(cache) = &self.settings.venvs_cache
            && let (Some(folder), Some(parts)) = (&self.env.folder, self.parts(list))
            && list.has_packages()
            && !self.env.made
            && let Some(kept) = cache::kept(&Store::look(cache), &parts)
        {
            let started = Instant::now();
            match kept.copy(folder, cache).await {
                Ok(way) => {
                    let how = format!("from the cache ({})", age(kept.age()));
                    self.say_ready(&how, &kept, way, started.elapsed());
                    return Ok(());
                }
                Err(error) => {
                    self.console
                        .say(format!("Note: the kept environment can't be used: {error}"));
                    let _ = cache::tree::remove(folder);
                }
            }
        }
        let settings = Settings {
            system_site_packages: true,
            ..self.settings.clone()
        };
        if let (true, Some(interpreter)) = (list.has_packages(), &self.env.interpreter) {
            self.console.say(format!(
                "Note: --standalone-mode installs nothing, and no environment for this list of \
                 packages is kept here: those of {} are used as they are.",
                interpreter.executable.display()
            ));
        }
        make(&mut self.env.clone(), &settings, self.console, self.stop).await
    }

    /// Whether the project's own tool has filled the environment. Where it could not, the task's list
    /// is next, as with the Python agent; but not in the place of a `uv.lock`.
    pub async fn sync(&self, project: &Project) -> Result<bool, PythonError> {
        let mut env = self.env.clone();
        make(&mut env, self.settings, self.console, self.stop).await?;
        self.console.say(format!(
            "Packages: the repository's {}, because agent.package_manager.type is {}",
            project.file,
            project.manager.name()
        ));
        let started = Instant::now();
        let syncing = Syncing {
            env: &env,
            tools: self.tools,
            settings: self.settings,
            git: git_access::for_project(self, &project.folder).await,
            console: self.console,
            stop: self.stop,
        };
        match syncing.sync(project).await? {
            Ok(()) => {
                self.console.say(format!(
                    "Environment: filled by {}, in {:.2} s (projects are not kept in the cache)",
                    project.manager.name(),
                    started.elapsed().as_secs_f64()
                ));
                Ok(true)
            }
            Err(cause) if project.file == "uv.lock" => Err(PythonError::Project {
                file: project.file.into(),
                cause,
            }),
            Err(cause) => {
                self.console.say(format!(
                    "Note: the project can't be used ({cause}): installing the list of packages \
                     instead."
                ));
                if let Some(folder) = &self.env.folder {
                    // What was begun is no empty environment.
                    let _ = cache::tree::remove(folder);
                }
                if self.env.made {
                    env.made = false;
                    make(&mut env, self.settings, self.console, self.stop).await?;
                }
                Ok(false)
            }
        }
    }

    /// What the agent itself adds (for notebooks, for `CLEARML_AGENT_FORCE_TASK_INIT`).
    pub async fn add_to_project(&self, list: &List) -> Result<(), PythonError> {
        let mut env = self.env.clone();
        env.made = true;
        if list.has_packages() {
            self.fill(&env, list).await?;
        }
        Ok(())
    }

    /// In the run's own folder, and nothing is kept.
    async fn build_here(&self, list: &List) -> Result<(), PythonError> {
        let mut env = self.env.clone();
        make(&mut env, self.settings, self.console, self.stop).await?;
        if list.has_packages() {
            self.fill(&env, list).await?;
        }
        Ok(())
    }

    fn filling<'f>(&'f self, env: &'f Environment) -> Result<Option<Filling<'f>>, PythonError> {
        Filling::new(env, self, self.settings)
    }

    async fn fill(&self, env: &Environment, list: &List) -> Result<Option<Filled>, PythonError> {
        let filling = self.filling(env)?;
        match filling {
            Some(mut filling) => Ok(Some(filling.fill(list).await?)),
            None => Ok(None),
        }
    }

    /// Whether the run has its copy now.
    async fn by_cache(
        &self,
        store: &Store,
        cache: &CacheSettings,
        base: &List,
    ) -> Result<bool, PythonError> {
        let (Some(folder), Some(parts)) = (&self.env.folder, self.parts(base)) else {
            return Ok(false);
        };
        let started = Instant::now();
        let mut take_aged = true;
        for _ in 0..ATTEMPTS {
            let found = cache::find(store, &parts, take_aged, self.console, self.stop).await?;
            let (kept, how) = match found {
                Found::Without(why) => {
                    self.console
                        .say(format!("Environment: not kept, because {why}"));
                    return Ok(false);
                }
                Found::Kept(kept) => {
                    // Who waited for a build takes what came of it.
                    if kept.aged
                        && !kept.meanwhile
                        && !self.is_current(store, &kept, &parts, base).await?
                    {
                        take_aged = false;
                        continue;
                    }
                    let how = match kept.meanwhile {
                        true => "built by another run meanwhile".to_owned(),
                        false => format!("from the cache ({})", age(kept.age())),
                    };
                    (kept, how)
                }
                Found::Build { ticket, why } => {
                    match self.build(store, ticket, &parts, base).await {
                        Ok(Ok(kept)) => (Box::new(kept), format!("built and kept, because {why}")),
                        Ok(Err(why)) => {
                            self.console
                                .say(format!("Environment: not kept, because {why}"));
                            return Ok(false);
                        }
                        Err(error) => match (&error, cache::kept(store, &parts)) {
                            (PythonError::Install(failure), Some(kept)) if failure.may_pass => {
                                let why = "it can't be built anew just now, see above";
                                let how =
                                    format!("from the cache ({}), because {why}", age(kept.age()));
                                (Box::new(kept), how)
                            }
                            _ => return Err(error),
                        },
                    }
                }
            };
            match kept.copy(folder, cache).await {
                Ok(way) => {
                    self.say_ready(&how, &kept, way, started.elapsed());
                    cache::compile_in_background(store, &kept.entry);
                    return Ok(true);
                }
                Err(CopyError::Changed(file)) => {
                    self.console.say(format!(
                        "Environment: the kept one is given up, because something has changed its \
                         {file}"
                    ));
                    self.forget(store, &kept, &file).await;
                }
                Err(CopyError::Io(error)) => {
                    self.console.say(format!(
                        "Environment: the kept one can't be copied to {}: {error}",
                        folder.display()
                    ));
                    break;
                }
            }
        }
        // A copy that was begun is in the way.
        let _ = cache::tree::remove(folder);
        Ok(false)
    }

    fn say_ready(&self, how: &str, kept: &Kept, way: Way, took: Duration) {
        let manifest = &kept.entry.manifest;
        self.console.say(format!(
            "Environment: {how}: {}, {} {}, ready in {:.2} s",
            counted(manifest.packages.len() as u64, "package"),
            counted(manifest.files, "file"),
            way.words(),
            took.as_secs_f64()
        ));
        if kept.request.torch_again.is_some() {
            self.console.say(
                "Note: when it was built, PyTorch's index for this machine was away: its PyTorch is \
                 that of the usual indexes, until that one answers.",
            );
        }
        if !manifest.lacking.is_empty() {
            self.console.say(format!(
                "Note: not in it is {}, which could not be installed when it was built.",
                manifest.lacking.join(", ")
            ));
        }
    }

    /// Of a list that leaves versions open, or of what lacks something: whether the list still leads to
    /// what is kept.
    async fn is_current(
        &self,
        store: &Store,
        kept: &Kept,
        parts: &Parts,
        base: &List,
    ) -> Result<bool, PythonError> {
        if let Some(current) = self.has_the_right_torch(store, kept, parts, base).await? {
            return Ok(current);
        }
        if self.settings.installer == Installer::Pip {
            return Ok(false);
        }
        let env = planned(self.tools, &kept.entry.environment());
        let filling = self.filling(&env)?;
        let Some(mut filling) = filling else {
            return Ok(false);
        };
        let lacking = &kept.entry.manifest.lacking;
        let mut resolved = filling.resolve(base).await;
        let without = |name: Option<&String>| {
            let mut rest = base.clone();
            let others = lacking.iter().filter(|other| Some(*other) != name);
            rest.split_off(&others.cloned().collect::<Vec<_>>());
            rest
        };
        match &resolved {
            // One of them is away still; another may be there.
            Err(failed) if failed.may_pass && lacking.len() > 1 => {
                for name in lacking {
                    if filling.resolve(&without(Some(name))).await.is_ok() {
                        return Ok(false);
                    }
                }
            }
            // Not to be had still; but the rest may lead elsewhere by now.
            Err(failed) if !failed.may_pass && !lacking.is_empty() => {
                resolved = filling.resolve(&without(None)).await;
            }
            _ => {}
        }
        let resolved = match resolved {
            Ok(Some(resolved)) => resolved,
            Ok(None) => return Ok(false),
            Err(_) if self.stop.is_cancelled() => return Err(PythonError::Stopped),
            Err(failed) => {
                self.console.say(format!(
                    "Note: whether newer versions are there can't be found out ({}): those of \
                     {} are taken.",
                    failed.why,
                    age(kept.age())
                ));
                return Ok(true);
            }
        };
        let python = env.interpreter.as_ref().map_or((3, 0, 0), |i| i.version);
        let names = |lines: &[String]| {
            let mut lines: Vec<String> = lines
                .iter()
                .map(|line| {
                    let end = line.find(['=', ' ', '[']).unwrap_or(line.len());
                    let version = line.split_once("==").map_or("", |(_, version)| version);
                    format!("{}=={version}", normalise(&line[..end]))
                })
                .filter(|line| {
                    let name = line.split("==").next().unwrap_or(line);
                    !freeze::left_out(name, python, &[])
                })
                .collect();
            lines.sort();
            lines
        };
        if names(&resolved) != names(&kept.entry.manifest.packages) {
            return Ok(false);
        }
        let request = Request {
            resolved: now(),
            again: false,
            ..kept.request.clone()
        };
        if let Err(error) = store.set_request(&parts.key(), &request) {
            tracing::debug!(%error, "the list is resolved again next time");
        }
        Ok(true)
    }

    /// Whether what is kept has its PyTorch from the right index, as far as that decides whether it is
    /// taken.
    async fn has_the_right_torch(
        &self,
        store: &Store,
        kept: &Kept,
        parts: &Parts,
        base: &List,
    ) -> Result<Option<bool>, PythonError> {
        let choice = tokio::select! {
            choice = torch::choose(base, self.tools.cuda, self.settings) => choice,
            () = self.stop.cancelled() => return Err(PythonError::Stopped),
        };
        let built_without = kept.request.torch_again.is_some();
        let torch_again = match choice {
            Choice::Index { .. } if built_without => return Ok(Some(false)),
            Choice::Away { note, .. } if !built_without => {
                // Anything that is built now would have another PyTorch.
                let age = age(kept.age());
                self.console
                    .say(format!("Note: {note}: what is kept ({age}) is taken."));
                return Ok(Some(true));
            }
            _ if !built_without => return Ok(None),
            Choice::Away { ask_again, .. } => Some(now() + ask_again.as_secs()),
            // The usual indexes are the right ones.
            _ => None,
        };
        let request = Request {
            torch_again,
            ..kept.request.clone()
        };
        if let Err(error) = store.set_request(&parts.key(), &request) {
            tracing::debug!(%error, "PyTorch's index is asked again by the next run");
        }
        Ok((!kept.old && !kept.request.again).then_some(true))
    }

    /// The inner error says why what was built is not kept.
    async fn build(
        &self,
        store: &Store,
        ticket: Ticket,
        parts: &Parts,
        base: &List,
    ) -> Result<Result<Kept, String>, PythonError> {
        let prefix = ticket.folder.join("env");
        let mut env = planned(self.tools, &prefix);
        make(&mut env, self.settings, self.console, self.stop).await?;
        let Some(filled) = self.fill(&env, base).await? else {
            return Ok(Err("there is no Python".into()));
        };
        let Some(interpreter) = &env.interpreter else {
            return Ok(Err("there is no Python".into()));
        };
        let installed = freeze::installed(&env.site_packages);
        let packages = lines_to_record(
            &installed,
            base,
            interpreter.version,
            &base.names(),
            self.root,
        );
        let frozen = self.frozen(base, &packages);
        let mut apart = filled.lacking.clone();
        apart.extend(filled.torch_away.map(|_| "PyTorch's index".to_owned()));
        let built = Built {
            prefix,
            python: interpreter.full_version(),
            interpreter: interpreter.base_executable.clone(),
            installer: filled.installer,
            closed: is_closed(base, &frozen),
            frozen: self
                .parts(&frozen)
                .unwrap_or_else(|| parts.clone())
                .lacking(&apart),
            parts: parts.clone(),
            packages,
            lacking: filled.lacking,
            again: filled.again,
            torch_again: filled.torch_away.map(|wait| now() + wait.as_secs()),
        };
        Ok(cache::keep(store, ticket, built).await)
    }

    /// The list that names each version, with the settings of the one that was asked for.
    fn frozen(&self, base: &List, packages: &[String]) -> List {
        let reading = Reading {
            origin: "the installed packages",
            folder: self.root,
            root: self.root,
            env: &self.settings.environment,
            original: None,
        };
        let Ok(mut frozen) = parse(&packages.join("\n"), &reading) else {
            return base.clone();
        };
        let settings = base.lines.iter().filter(|l| matches!(l, Line::Setting(_)));
        frozen.lines.splice(0..0, settings.cloned());
        frozen
    }

    fn parts(&self, list: &List) -> Option<Parts> {
        let cuda = self.tools.cuda.map(|v| v.to_string()).unwrap_or_default();
        let context = Context {
            interpreter: self.env.interpreter.as_ref()?,
            cuda: &cuda,
            settings: self.settings,
            installer: match (self.settings.installer, &self.tools.uv_missing) {
                (Installer::Uv, None) => Installer::Uv,
                _ => Installer::Pip,
            },
        };
        Some(Parts::new(&context, list, self.root))
    }

    /// Gives up a damaged environment; and what it shares with uv's cache, in which the same file
    /// has the same damage.
    async fn forget(&self, store: &Store, kept: &Kept, file: &str) {
        let damaged = planned(self.tools, &kept.entry.environment());
        let owner = freeze::owner(&damaged.site_packages, file);
        if let Err(error) = store.give_up(&kept.entry.manifest.key) {
            self.console
                .say(format!("Note: it can't be removed: {error}"));
        }
        if let Some(name) = owner
            && let Some(uv) = &self.tools.uv
            && let Ok(Some(filling)) = self.filling(self.env)
        {
            filling.forget_download(uv, &name).await;
        }
    }
}

/// Every package that is installed has its version in the list.
fn is_closed(base: &List, frozen: &List) -> bool {
    let pinned: Vec<String> = base
        .lines
        .iter()
        .filter_map(|line| match line {
            Line::Package {
                name, pin: Some(_), ..
            } => Some(name.clone()),
            Line::Reference { name, .. } => name.as_deref().map(normalise),
            _ => None,
        })
        .collect();
    frozen.names().iter().all(|name| pinned.contains(name))
}

/// `3 h old`
fn age(age: Duration) -> String {
    match age.as_secs() {
        seconds @ 0..120 => format!("{seconds} s old"),
        seconds @ 120..7200 => format!("{} min old", seconds / 60),
        seconds @ 7200..172_800 => format!("{} h old", seconds / 3600),
        seconds => format!("{} days old", seconds / 86400),
    }
}
