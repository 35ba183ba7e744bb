//! The task's code on disk: a repository at the right commit with the uncommitted changes in it,
//! or the script that is recorded in the task. Called by the run, once, from a blocking thread;
//! says what it does on the console and never touches the user's git configuration.

mod apply;
mod binary;
mod checkout;
mod credentials;
mod diff;
mod diff_names;
mod entry_point;
mod error;
#[cfg(fuzzing)]
pub mod fuzzing;
mod lfs;
mod mirror;
mod nearest;
mod network;
mod revision;
mod staged;
mod standalone;
mod url;

use std::fs;
use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;

use self::checkout::check_out;
use self::error::did_you_mean;
use self::mirror::Mirrors;
use self::nearest::nearest;
use self::network::Network;
use self::revision::Wanted;
use self::standalone::{Changes, ScriptFile};
use self::url::Address;
use crate::console::Console;
use crate::task::Script;

pub use self::credentials::GitCredentials;
pub use self::error::SourceError;

/// What to get, and with what.
#[derive(Debug, Clone)]
pub struct Request {
    pub script: Script,
    /// The run's own folder; exists and is private.
    pub work_dir: PathBuf,
    /// Where mirrors of repositories are kept between runs; `None`: nowhere.
    pub cache: Option<PathBuf>,
    pub credentials: GitCredentials,
    /// Certificate authorities to trust beside the machine's own.
    pub ca_bundle: Option<PathBuf>,
    pub accept_any_certificate: bool,
    /// `--standalone-mode`: nothing is fetched, and a checkout that was put in this folder
    /// (`agent.venvs_dir`) beforehand is used.
    pub staged: Option<PathBuf>,
}

/// The task's code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sources {
    /// The repository's root, or the folder of the recorded script.
    pub root: PathBuf,
    /// Where the job starts; absolute and there.
    pub working_dir: PathBuf,
    pub commit: Option<String>,
    /// Relative to the working directory, variables expanded; may have arguments behind it.
    pub entry_point: String,
    pub kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Checkout,
    Standalone,
}

/// Gets the code. On failure nothing of use is left in the work folder.
pub fn fetch(
    request: &Request,
    console: &Console,
    stop: &CancellationToken,
) -> Result<Sources, SourceError> {
    let script = &request.script;
    let changes = Changes::of(&script.diff);
    let (entry_point, working_dir) =
        entry_point::normalise(&script.entry_point, &script.working_dir, &|name| {
            std::env::var(name).ok()
        });
    if script.repository.trim().is_empty() {
        return match changes {
            Changes::Script => recorded_script(request, &entry_point, &working_dir, console),
            Changes::TooLarge => Err(SourceError::DiffTooLarge),
            Changes::None | Changes::Patch => Err(SourceError::NothingToRun),
        };
    }
    let address = Address::parse(&script.repository);
    if changes == Changes::TooLarge {
        return Err(SourceError::DiffTooLarge);
    }
    if entry_point.is_empty() && changes != Changes::Script {
        return Err(SourceError::NoEntryPoint {
            url: address.shown(),
        });
    }
    let work_dir = absolute(&request.work_dir)?;
    let root = work_dir.join("task_repository").join(address.name());
    let mirrors = Mirrors {
        cache: request.cache.as_deref().map(absolute).transpose()?,
        scratch: work_dir.join("mirrors"),
        network: Network::new(
            &request.credentials,
            request.ca_bundle.as_deref(),
            request.accept_any_certificate,
            console,
            stop,
        )?
        .offline(request.staged.is_some()),
        console,
        stop,
    };
    let staged = request.staged.as_deref();
    let commit = match staged.and_then(|venvs_dir| staged::find(venvs_dir, &address.name())) {
        Some(checkout) => Some(staged::copy(&checkout, &root, console)?),
        None => None,
    };
    let commit = match commit {
        Some(commit) => commit,
        None => {
            let checked_out = check_out(&mirrors, &address, &Wanted::by(script), &root)?;
            let found_by = checked_out
                .found_by
                .map_or_else(String::new, |name| format!(" ({name})"));
            console.say(format!(
                "Repository {} at {}{found_by}, {}",
                address.shown(),
                checked_out.commit,
                if checked_out.fetched {
                    "fetched"
                } else {
                    "from the cached mirror"
                },
            ));
            Some(checked_out.commit.to_string())
        }
    };
    lfs::warn_of_pointers(&root, console);
    if changes == Changes::Patch {
        apply_changes(&root, &script.diff, console)?;
    }
    let mut sources = Sources {
        working_dir: find_working_dir(&root, &working_dir)?,
        root,
        commit,
        entry_point,
        kind: Kind::Checkout,
    };
    if changes == Changes::Script {
        let has_folder = |folder: &str| is_folder_of(&sources.root, &sources.working_dir, folder);
        let file = ScriptFile::of(script, &sources.entry_point, &working_dir, &has_folder);
        file.write(&sources.working_dir, &script.diff)?;
        console.say(format!(
            "Script {} written as it is recorded in the task",
            file.name
        ));
        sources.entry_point = file.entry_point;
    }
    if let Some(missing) = entry_point::missing_script(&sources.entry_point, &sources.working_dir) {
        return Err(SourceError::EntryPointMissing {
            near: did_you_mean(&like(&sources.root, &missing, false)),
            entry_point: missing,
            working_dir: if working_dir.is_empty() {
                ".".to_owned()
            } else {
                working_dir
            },
            root: address.shown(),
        });
    }
    Ok(sources)
}

fn recorded_script(
    request: &Request,
    entry_point: &str,
    working_dir: &str,
    console: &Console,
) -> Result<Sources, SourceError> {
    let root = absolute(&request.work_dir)?.join("code");
    fs::create_dir_all(&root).map_err(SourceError::io("creating", &root))?;
    let file = ScriptFile::of(&request.script, entry_point, working_dir, &|_| false);
    file.write(&root, &request.script.diff)?;
    if !working_dir.is_empty() {
        console.say(format!(
            "The working directory \"{working_dir}\" is ignored: the task has no repository"
        ));
    }
    console.say(format!(
        "Script {} written as it is recorded in the task",
        file.name
    ));
    Ok(Sources {
        working_dir: root.clone(),
        root,
        commit: None,
        entry_point: file.entry_point,
        kind: Kind::Standalone,
    })
}

/// Whether `folder` in `working_dir` is one of the checkout; links may lead out of it.
fn is_folder_of(root: &Path, working_dir: &Path, folder: &str) -> bool {
    let real = |path: &Path| fs::canonicalize(path).ok().filter(|path| path.is_dir());
    match (real(&working_dir.join(folder)), real(root)) {
        (Some(folder), Some(root)) => folder.starts_with(root),
        _ => false,
    }
}

fn apply_changes(root: &Path, text: &str, console: &Console) -> Result<(), SourceError> {
    let patches = diff::parse(text)?;
    let applied = apply::apply(root, &patches)?;
    let files = match applied.files {
        1 => "1 file".to_owned(),
        count => format!("{count} files"),
    };
    console.say(match applied.already {
        true => format!("Uncommitted changes ({files}) are in the checkout already"),
        false => format!("Uncommitted changes applied ({files})"),
    });
    for path in applied.submodules_not_moved {
        console.say(format!(
            "Warning: submodule {path} was changed (another commit, or edited files) and the task's \
             diff does not hold how; it stays at the commit that is committed"
        ));
    }
    Ok(())
}

fn absolute(path: &Path) -> Result<PathBuf, SourceError> {
    std::path::absolute(path).map_err(SourceError::io("finding", path))
}

/// The job's working directory; `given` is relative to `root`, or absolute.
fn find_working_dir(root: &Path, given: &str) -> Result<PathBuf, SourceError> {
    // `-m` tasks may say `dir:file`; the folder is what counts here.
    let folder = match root.join(given).is_dir() {
        true => given,
        false => given.split_once(':').map_or(given, |(folder, _)| folder),
    };
    let path = if folder.is_empty() {
        root.to_owned()
    } else {
        root.join(folder)
    };
    if path.is_dir() {
        return Ok(path);
    }
    Err(SourceError::WorkingDirMissing {
        working_dir: given.to_owned(),
        root: "the repository".to_owned(),
        near: did_you_mean(&like(root, folder, true)),
    })
}

/// Files or folders in the checkout that may have been meant by `wanted`: first those with its
/// very name, elsewhere.
fn like(root: &Path, wanted: &str, folders: bool) -> Vec<String> {
    // Enough for a hint; a huge repository is not read to its end for one.
    const LIMIT: usize = 20_000;
    let mut paths = Vec::new();
    let mut open = vec![root.to_owned()];
    while let Some(folder) = open.pop().filter(|_| paths.len() < LIMIT) {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let path = entry.path();
            if is_folder && entry.file_name() != ".git" {
                open.push(path.clone());
            }
            if is_folder == folders
                && let Some(relative) = path.strip_prefix(root).ok().and_then(Path::to_str)
            {
                paths.push(relative.to_owned());
            }
        }
    }
    let name = wanted.rsplit('/').next().unwrap_or_default();
    let mut same: Vec<String> = paths
        .iter()
        .filter(|path| path.rsplit('/').next() == Some(name))
        .cloned()
        .collect();
    same.sort_by_key(|path| (path.len(), path.clone()));
    same.truncate(3);
    match same.is_empty() {
        true => nearest(wanted, paths.iter().map(String::as_str)),
        false => same,
    }
}
