//! The task's code on disk: a repository at the right commit with the uncommitted changes in it,
//! or the script that is recorded in the task. Called by the run, once, from a blocking thread;
//! says what it does on the console and never touches the user's git configuration.

mod apply;
mod attributes;
mod binary;
mod checkout;
mod credentials;
mod diff;
mod diff_names;
mod entry_point;
mod error;
mod files;
mod filters;
#[cfg(fuzzing)]
pub mod fuzzing;
mod git_program;
mod hunks;
pub mod kept;
mod lend;
mod lfs;
mod mirror;
mod mirror_folder;
mod nearest;
mod netrc;
mod network;
mod patch;
mod paths;
mod program;
mod revision;
mod ssh;
mod ssh_config;
mod staged;
mod standalone;
mod task_init;
mod url;
mod ways;

use std::cell::RefCell;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;

use self::checkout::check_out;
use self::error::did_you_mean;
use self::filters::Conversion;
use self::mirror::Mirrors;
use self::nearest::nearest;
use self::network::Network;
use self::revision::Wanted;
use self::standalone::{Changes, InRepository, ScriptFile};
use self::url::Address;
use crate::config::Variables;
use crate::console::{Console, counted};
use crate::task::Script;

pub use self::credentials::{ExtraCredential, GitCredentials, PasswordKind};
pub use self::error::SourceError;
pub use self::lend::{Lent, Needs, lend};
pub use self::ways::Protocol;

/// What the configuration says of git servers.
#[derive(Debug, Clone, Default)]
pub struct Servers {
    pub credentials: GitCredentials,
    pub protocol: Protocol,
    /// Certificate authorities to trust beside the machine's own.
    pub ca_bundle: Option<PathBuf>,
    pub accept_any_certificate: bool,
}

/// What to get, and with what.
#[derive(Debug, Clone)]
pub struct Request {
    pub script: Script,
    /// `CLEARML_AGENT_FORCE_CODE_DIR`: the code is here already, and is run as it is.
    pub code_dir: Option<PathBuf>,
    /// `CLEARML_AGENT_FORCE_TASK_INIT`: the entry script is made to call `Task.init`.
    pub force_task_init: bool,
    /// The run's own folder; exists and is private.
    pub work_dir: PathBuf,
    /// Where mirrors of repositories are kept between runs; `None`: nowhere.
    pub cache: Option<PathBuf>,
    /// `agent.vcs_cache.clone_on_pull_fail`: a mirror that cannot be brought up to date is made anew.
    pub clone_on_pull_fail: bool,
    /// A commit that is asked for by its id may be fetched without its history.
    pub shallow: bool,
    pub servers: Servers,
    /// The agent's own environment: for the variables in an entry point, and for the programs that
    /// git would run (ssh, credential helpers, Git LFS).
    pub env: Variables,
    /// `--standalone-mode`: nothing is fetched, and a checkout that was put in this folder
    /// (`agent.venvs_dir`) beforehand is used.
    pub staged: Option<PathBuf>,
}

/// The task's code.
#[derive(Debug)]
pub struct Sources {
    /// The repository's root, or the folder of the recorded script.
    pub root: PathBuf,
    /// Where the job starts; absolute and there.
    pub working_dir: PathBuf,
    pub commit: Option<String>,
    /// Relative to the working directory, variables expanded; may have arguments behind it.
    pub entry_point: String,
    pub kind: Kind,
    pub borrowed: Borrowed,
}

/// Mirrors whose objects the checkout has no copies or links of: nobody removes them while this lives.
#[derive(Debug, Default)]
pub struct Borrowed {
    _held: Vec<File>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Checkout,
    Standalone,
}

/// Whether `diff` is only the SDK's note that the changes are too large for the task.
pub fn is_note_of_large_diff(diff: &str) -> bool {
    Changes::of(diff) == Changes::TooLarge
}

/// Gets the code. On failure nothing of use is left in the work folder.
pub fn fetch(
    request: &Request,
    console: &Console,
    stop: &CancellationToken,
) -> Result<Sources, SourceError> {
    if let Some(folder) = &request.code_dir {
        return code_that_is_there(request, folder, console);
    }
    let sources = get(request, console, stop)?;
    prepare_entry_script(&sources, request.force_task_init, console)?;
    Ok(sources)
}

/// Nothing is cloned, applied or written: the folder is the user's own.
fn code_that_is_there(
    request: &Request,
    folder: &Path,
    console: &Console,
) -> Result<Sources, SourceError> {
    let (entry_point, given) = request.entry_point();
    let root = absolute(folder)?;
    console.say(format!(
        "The code is taken from {} as it is (CLEARML_AGENT_FORCE_CODE_DIR)",
        root.display()
    ));
    if request.force_task_init {
        console.say("No call of Task.init is added there (CLEARML_AGENT_FORCE_TASK_INIT)");
    }
    if entry_point.is_empty() {
        return Err(SourceError::NoEntryPoint {
            url: root.display().to_string(),
        });
    }
    let working_dir = find_working_dir(&root, &given)?;
    let shown = format!("{} (CLEARML_AGENT_FORCE_CODE_DIR)", root.display());
    check_entry_point(&entry_point, &working_dir, &given, &root, &shown)?;
    Ok(Sources {
        working_dir,
        root,
        commit: None,
        entry_point,
        kind: Kind::Standalone,
        borrowed: Borrowed::default(),
    })
}

/// Sees to it that Python takes the calls of `Task.init` that were put into the entry script.
fn prepare_entry_script(
    sources: &Sources,
    force_task_init: bool,
    console: &Console,
) -> Result<(), SourceError> {
    let named = sources.working_dir.join(&sources.entry_point);
    let path = match named.is_file() {
        true => named,
        false => match entry_point::first_word(&sources.entry_point) {
            Some((word, _)) => sources.working_dir.join(word),
            None => return Ok(()),
        },
    };
    let is_file = fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_file());
    if !is_file || path.extension().is_none_or(|kind| kind != "py") {
        return Ok(());
    }
    // What is no text Python will not run, and says so.
    let Ok(mut text) = fs::read_to_string(&path) else {
        return Ok(());
    };
    let mut said = Vec::new();
    if let Some(moved) = task_init::below_future(&text) {
        text = moved;
        said.push("Task.init was moved below the imports of __future__ in");
    }
    if force_task_init && let Some(added) = task_init::added(&text) {
        text = added;
        said.push("A call of Task.init was added to");
    }
    if !said.is_empty() {
        fs::write(&path, text).map_err(SourceError::io("writing", &path))?;
    }
    for what in said {
        console.say(format!("{what} {}", sources.entry_point));
    }
    Ok(())
}

fn get(
    request: &Request,
    console: &Console,
    stop: &CancellationToken,
) -> Result<Sources, SourceError> {
    let script = &request.script;
    let mut changes = Changes::of(&script.diff);
    let (entry_point, working_dir) = request.entry_point();
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
    if changes == Changes::Script {
        match InRepository::of(script) {
            InRepository::Script => {}
            InRepository::Remarks => {
                console.say("The task's uncommitted changes are remarks alone: nothing is changed");
                changes = Changes::None;
            }
            InRepository::Neither { first_line } => {
                return Err(SourceError::NotChanges {
                    url: address.shown(),
                    first_line,
                });
            }
        }
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
        clone_on_pull_fail: request.clone_on_pull_fail,
        shallow: request.shallow,
        borrowed: RefCell::default(),
        network: Network::new(
            &request.servers,
            &request.env,
            request.staged.is_some(),
            console,
            stop,
        )?,
        console,
        stop,
    };
    let staged = request.staged.as_deref();
    let staged = staged.and_then(|venvs_dir| staged::find(venvs_dir, &address.name()));
    let commit = match &staged {
        Some(checkout) => staged::copy(checkout, &root, console)?,
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
    if changes == Changes::Patch {
        let repository = git2::Repository::open(&root).ok();
        // Files of a copied folder are not as any commit has them.
        let committed = repository.as_ref().filter(|_| staged.is_none());
        let checkout = Checkout {
            root: &root,
            commit: commit.as_deref().unwrap_or("of the folder"),
            conversion: committed.and_then(|found| Conversion::of(&mirrors.network, found)),
            repository: repository.as_ref(),
        };
        apply_changes(&checkout, &script.diff, console)?;
    }
    let mut sources = Sources {
        working_dir: find_working_dir(&root, &working_dir)?,
        root,
        commit,
        entry_point,
        kind: Kind::Checkout,
        borrowed: Borrowed {
            _held: mirrors.borrowed.take(),
        },
    };
    if changes == Changes::Script {
        let has_folder = |folder: &str| is_folder_of(&sources.root, &sources.working_dir, folder);
        let file = ScriptFile::of(script, &sources.entry_point, &working_dir, &has_folder);
        let replaced = file.write(&sources.working_dir, &script.diff)?;
        console.say(format!(
            "Script {} written as it is recorded in the task{}",
            file.name,
            match replaced {
                true => ", in place of the repository's",
                false => "",
            }
        ));
        sources.entry_point = file.entry_point;
    }
    check_entry_point(
        &sources.entry_point,
        &sources.working_dir,
        &working_dir,
        &sources.root,
        &address.shown(),
    )?;
    Ok(sources)
}

impl Request {
    /// Entry point and working directory as they are meant.
    fn entry_point(&self) -> (String, String) {
        let Script {
            entry_point,
            working_dir,
            ..
        } = &self.script;
        entry_point::normalise(entry_point, working_dir, &|name| {
            self.env.get(name).cloned()
        })
    }
}

/// Finds out at once that the script is not there. `given`: the working directory as the task has it.
fn check_entry_point(
    entry_point: &str,
    working_dir: &Path,
    given: &str,
    root: &Path,
    shown: &str,
) -> Result<(), SourceError> {
    match entry_point::missing_script(entry_point, working_dir) {
        None => Ok(()),
        Some(missing) => Err(SourceError::EntryPointMissing {
            near: did_you_mean(&like(root, &missing, false)),
            entry_point: missing,
            working_dir: if given.is_empty() { "." } else { given }.to_owned(),
            root: shown.to_owned(),
        }),
    }
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
        borrowed: Borrowed::default(),
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

/// A work tree that is to be changed.
struct Checkout<'c> {
    root: &'c Path,
    commit: &'c str,
    repository: Option<&'c git2::Repository>,
    conversion: Option<Conversion<'c>>,
}

fn apply_changes(
    checkout: &Checkout<'_>,
    text: &str,
    console: &Console,
) -> Result<(), SourceError> {
    let patches = diff::parse(text)?;
    let blobs = |id: &str| -> Option<Vec<u8>> {
        let object = checkout.repository?.revparse_single(id).ok()?;
        Some(object.as_blob()?.content().to_vec())
    };
    let conversion = checkout.conversion.as_ref();
    let applied = apply::apply(checkout.root, &patches, &blobs, conversion);
    let applied = applied.map_err(|cause| SourceError::Diff {
        commit: checkout.commit.to_owned(),
        cause,
    })?;
    let files = counted(applied.files as u64, "file");
    console.say(match applied.already {
        true => format!("Uncommitted changes ({files}) are in the checkout already"),
        false => format!("Uncommitted changes applied ({files})"),
    });
    for path in applied.merged {
        console.say(format!(
            "Note: {path} is not at the state that its changes were made on; they were merged with what it has become"
        ));
    }
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
