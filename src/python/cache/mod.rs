//! Environments are kept, by what they are made of, and each run gets a copy that is its own.
//!
//! [`find`] answers for one list: a kept environment, the right to build one, or why there is
//! none to be had. Called by [`install`](super::install::install) alone; the command
//! `clearml-agent cache` looks at the same [`Store`].

pub mod key;
pub mod limits;
pub mod settings;
pub mod store;
pub mod tree;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use self::key::{Parts, why_missing};
use self::store::{Entry, Manifest, Request, Store, Ticket, Turn, now};
use self::tree::{CopyError, Tree, Way, move_prefix, remove};
use super::PythonError;
use crate::console::Console;
use crate::process::die_with_the_agent;
use crate::process::job_group::Entrance;

/// What there is for a list.
pub enum Found {
    Kept(Box<Kept>),
    /// It is to be built here, because …
    Build {
        ticket: Ticket,
        why: String,
    },
    /// Nothing is kept, and nothing can be, because …
    Without(String),
}

/// A kept environment for this list.
#[derive(Debug)]
pub struct Kept {
    pub entry: Entry,
    pub request: Request,
    /// Its versions were chosen longer ago than `resolve_after_hours`, or it lacks what may be had now.
    pub aged: bool,
    /// The former.
    pub old: bool,
    /// Another run built it while this one waited.
    pub meanwhile: bool,
}

/// Looks for what `parts` lead to. `aged`: whether versions chosen long ago will do.
pub async fn find(
    store: &Store,
    parts: &Parts,
    aged: bool,
    console: &Console,
    stop: &CancellationToken,
) -> Result<Found, PythonError> {
    let key = parts.key();
    let usable = || kept(store, parts).filter(|kept| aged || !kept.aged);
    if let Some(kept) = usable() {
        return Ok(Found::Kept(Box::new(kept)));
    }
    let ticket = match store.turn(&key, usable, console, stop).await {
        Ok(Turn::Build(ticket)) => ticket,
        Ok(Turn::Built(kept)) => {
            return Ok(Found::Kept(Box::new(Kept {
                meanwhile: true,
                ..kept
            })));
        }
        Ok(Turn::Stopped) => return Err(PythonError::Stopped),
        Ok(Turn::TooLong) => {
            return Ok(Found::Without(
                "another run builds the same for longer than agent.venvs_cache.lock_timeout".into(),
            ));
        }
        Err(error) => {
            return Ok(Found::Without(format!(
                "{}: {error}",
                store.root().display()
            )));
        }
    };
    let missing = || why_missing(parts, store.known_parts().iter());
    let why = match store.request(&key) {
        Some(request) => match store.entry(&request.environment) {
            Some(_) if request.torch_again.is_some() => {
                "PyTorch's index for this machine answers now".to_owned()
            }
            Some(kept) if kept.manifest.lacking.is_empty() => "newer versions are there".to_owned(),
            Some(kept) => format!("{} is tried again", kept.manifest.lacking.join(", ")),
            None => missing(),
        },
        None => missing(),
    };
    match store.make_room(1) {
        Ok(_) => Ok(Found::Build { ticket, why }),
        Err(full) => Ok(Found::Without(full)),
    }
}

/// What is kept for `parts`, whatever its age.
pub fn kept(store: &Store, parts: &Parts) -> Option<Kept> {
    let key = parts.key();
    let request = store.request(&key)?;
    let entry = store.entry(&request.environment)?;
    let age = Duration::from_secs(now().saturating_sub(request.resolved));
    let old = store.settings.resolve_after.is_some_and(|most| age >= most);
    let old = !request.closed && old;
    let torch = request.torch_again.is_some_and(|at| now() >= at);
    let aged = request.again || torch || old;
    Some(Kept {
        entry,
        request,
        aged,
        old,
        meanwhile: false,
    })
}

impl Kept {
    /// Makes the run's copy in `folder`, in the place of whatever is there.
    pub async fn copy(
        &self,
        folder: &Path,
        settings: &settings::CacheSettings,
    ) -> Result<Way, CopyError> {
        let (entry, folder, mode) = (self.entry.clone(), folder.to_owned(), settings.link_mode);
        let copied = tokio::task::spawn_blocking(move || {
            let _held = entry.hold()?;
            remove(&folder)?;
            let from = entry.environment();
            let way = entry.files()?.copy(&from, &folder, mode)?;
            for path in &entry.manifest.with_prefix {
                move_prefix(&folder.join(path), &entry.manifest.prefix, &folder)?;
            }
            entry.touch();
            Ok(way)
        });
        match copied.await {
            // The run's folder is there: what is missing is missing from what was kept.
            Ok(Err(CopyError::Io(error))) if error.kind() == std::io::ErrorKind::NotFound => {
                Err(CopyError::Changed("list of files".into()))
            }
            Ok(copied) => copied,
            Err(panic) => Err(std::io::Error::other(panic.to_string()).into()),
        }
    }

    pub fn age(&self) -> Duration {
        Duration::from_secs(now().saturating_sub(self.entry.manifest.made))
    }
}

/// What is known of an environment that was just built.
pub struct Built {
    /// The environment's folder, in the ticket's.
    pub prefix: PathBuf,
    pub python: String,
    pub interpreter: PathBuf,
    pub installer: String,
    /// The installed packages, one a line.
    pub packages: Vec<String>,
    /// For the list as it was asked for; and for the list that names each version.
    pub parts: Parts,
    pub frozen: Parts,
    pub closed: bool,
    pub lacking: Vec<String>,
    pub again: bool,
    pub torch_again: Option<u64>,
}

/// Keeps what was built.
pub async fn keep(store: &Store, ticket: Ticket, built: Built) -> Result<Kept, String> {
    let store = store.clone();
    let kept = tokio::task::spawn_blocking(move || -> std::io::Result<Kept> {
        let tree = Tree::scan(&built.prefix)?;
        let (files, bytes) = tree.extent();
        let manifest = Manifest {
            key: built.frozen.key(),
            made: now(),
            python: built.python,
            interpreter: built.interpreter,
            installer: built.installer,
            packages: built.packages,
            files,
            bytes,
            with_prefix: tree.files_with(&built.prefix, &built.prefix)?,
            prefix: built.prefix,
            compiled: false,
            lacking: built.lacking,
        };
        let entry = store.publish(&ticket, &manifest, &tree)?;
        let request = |closed, parts: &Parts| Request {
            environment: entry.manifest.key.clone(),
            resolved: now(),
            closed,
            again: built.again,
            torch_again: built.torch_again,
            parts: parts.clone(),
        };
        let whole = entry.manifest.lacking.is_empty() && built.torch_again.is_none();
        if whole {
            // The list that is recorded with the task is what its next run asks for.
            store.set_request(&built.frozen.key(), &request(true, &built.frozen))?;
        }
        // What is lacking may come, whatever versions the list names.
        let closed = whole && (built.closed || built.parts == built.frozen);
        let asked = request(closed, &built.parts);
        store.set_request(&built.parts.key(), &asked)?;
        // Not before the request leads somewhere: who waits for the lock looks for it.
        drop(ticket);
        Ok(Kept {
            entry,
            request: asked,
            aged: false,
            old: false,
            meanwhile: false,
        })
    });
    match kept.await {
        Ok(kept) => kept.map_err(|error| error.to_string()),
        Err(panic) => Err(panic.to_string()),
    }
}

/// Compiles the modules of a kept environment, once, beside whatever else goes on and with the
/// lowest priority. It ends with the agent; the next run that uses the environment goes on.
pub fn compile_in_background(store: &Store, entry: &Entry) {
    if entry.manifest.compiled {
        return;
    }
    let (store, entry) = (store.clone(), entry.clone());
    tokio::spawn(async move {
        if let Err(error) = compile(&store, &entry).await {
            tracing::debug!(%error, key = entry.manifest.key, "byte code");
        }
    });
}

/// Its last word is 0 where every module that can be compiled is.
const COMPILE: &str = "import compileall, os, sys\n\
    os.nice(19)\n\
    compileall.compile_dir(sys.argv[1], quiet=2, maxlevels=60) if sys.version_info < (3, 9) else \
    compileall.compile_dir(sys.argv[1], quiet=2)\n";

async fn compile(store: &Store, entry: &Entry) -> std::io::Result<()> {
    let only = std::fs::File::create(entry.folder.join("compile.lock"))?;
    if only.try_lock().is_err() {
        return Ok(());
    }
    // Another run may have done it since the manifest was read.
    let known = store.entry(&entry.manifest.key);
    if known.is_none_or(|known| known.manifest.compiled) {
        return Ok(());
    }
    let environment = entry.environment();
    let mut command = tokio::process::Command::new(environment.join("bin/python"));
    command
        .args(["-I", "-c", COMPILE, "lib"])
        // From within: nothing is made anew below the path of an environment that was removed.
        .current_dir(&environment)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    // This thread is one of the runtime's, which last as long as the agent.
    die_with_the_agent(command.as_std_mut(), Entrance::default());
    let status = command.spawn()?.wait().await?;
    if !status.success() {
        return Err(std::io::Error::other(status.to_string()));
    }
    store.set_compiled(entry)
}
