//! The work tree of a run, made from a mirror's objects without copying them, with everything in
//! it that a job (or the ClearML SDK in it) asks git for.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;

use git2::build::CheckoutBuilder;
use git2::{CheckoutNotificationType, ErrorClass, Oid, Repository, RepositoryInitOptions};

use super::attributes;
use super::error::SourceError;
use super::filters;
use super::lfs;
use super::mirror::{History, Mirror, Mirrors};
use super::revision::Wanted;
use super::url::Address;

/// How deep submodules may hold submodules; a repository that holds itself has no end.
const SUBMODULE_DEPTH: usize = 10;

/// A checked-out repository.
#[derive(Debug)]
pub(super) struct CheckedOut {
    pub(super) commit: Oid,
    pub(super) found_by: Option<String>,
    pub(super) fetched: bool,
}

/// Checks `wanted` of `address` out into `folder`, with its submodules.
pub(super) fn check_out(
    mirrors: &Mirrors<'_>,
    address: &Address,
    wanted: &Wanted,
    folder: &Path,
) -> Result<CheckedOut, SourceError> {
    let make = || {
        if let Err(error) = fs::remove_dir_all(folder)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(SourceError::io("removing", folder)(error));
        }
        let mut options = RepositoryInitOptions::new();
        // The user's template may hold hooks, which must not run for a job's repository.
        options.mkpath(true).external_template(false);
        let repository = Repository::init_opts(folder, &options)
            .map_err(SourceError::git("creating the work tree"))?;
        repository
            .remote("origin", address.text())
            .map_err(SourceError::git("setting the work tree's origin"))?;
        Ok(repository)
    };
    let history = match mirrors.shallow {
        true => History::NotNeeded,
        false => History::Whole,
    };
    let (mut repository, mut checked_out) = fill(mirrors, address, wanted, history, &make)?;
    if repository.is_shallow()
        && let Some(what) = asks_for_history(folder)
    {
        mirrors.console.say(format!(
            "{what} looks at the repository's history, which is fetched, too"
        ));
        (repository, checked_out) = fill(mirrors, address, wanted, History::Whole, &make)?;
    }
    filters::write_files(mirrors, &repository)?;
    lfs::download(mirrors, address, &repository)?;
    submodules(mirrors, address, &repository, "", SUBMODULE_DEPTH)?;
    Ok(checked_out)
}

/// Gets the mirror, has the empty repository made, links the objects and writes the files. With
/// an old mirror that turns out to be damaged, all of it once more with a new one.
fn fill(
    mirrors: &Mirrors<'_>,
    address: &Address,
    wanted: &Wanted,
    history: History,
    make: &dyn Fn() -> Result<Repository, SourceError>,
) -> Result<(Repository, CheckedOut), SourceError> {
    loop {
        let mut mirror = mirrors.obtain(address, wanted, history)?;
        let checked_out = CheckedOut {
            commit: mirror.commit,
            found_by: mirror.found_by.clone(),
            fetched: mirror.fetched,
        };
        let repository = make()?;
        let result = fill_from(mirrors, &mut mirror, repository, address);
        match result {
            Ok(repository) => return Ok((repository, checked_out)),
            Err(error) if error.is_damage() && !mirror.new => {
                mirrors.say_damaged(address, &error);
                mirror.discard()?;
            }
            Err(error) => return Err(error),
        }
    }
}

fn fill_from(
    mirrors: &Mirrors<'_>,
    mirror: &mut Mirror,
    repository: Repository,
    address: &Address,
) -> Result<Repository, SourceError> {
    let git_dir = repository.path().to_owned();
    let work_tree = repository.workdir().unwrap_or(&git_dir).to_owned();
    drop(repository);
    let objects = mirror.repository.path().join("objects");
    if !link_objects(&objects, &git_dir.join("objects"))? {
        mirrors.borrow(mirror);
    }
    write_references(&mirror.repository, &git_dir)?;
    if mirror.repository.is_shallow() {
        let (from, to) = (
            mirror.repository.path().join("shallow"),
            git_dir.join("shallow"),
        );
        fs::copy(from, &to).map_err(SourceError::io("writing", &to))?;
    }
    mirror.let_go();
    // Opened anew, so that libgit2 sees the objects that were put there.
    let repository =
        Repository::open(&work_tree).map_err(SourceError::git("opening the work tree"))?;
    write_files(mirrors, &repository, mirror.commit, address)?;
    Ok(repository)
}

/// Tools that make a package's version of the repository's tags and commits.
const VERSION_TOOLS: [&str; 8] = [
    "setuptools_scm",
    "setuptools-scm",
    "hatch-vcs",
    "versioneer",
    "poetry-dynamic-versioning",
    "uv-dynamic-versioning",
    "dunamai",
    "pbr",
];

/// What in the checkout needs more than the commit: a package (also one below the root) whose version
/// comes from git would get a wrong one.
fn asks_for_history(root: &Path) -> Option<&'static str> {
    let folders = fs::read_dir(root).into_iter().flatten().flatten();
    let folders = folders
        .map(|entry| entry.path())
        .filter(|path| path.is_dir());
    std::iter::once(root.to_owned())
        .chain(folders)
        .find_map(|folder| {
            let files = ["pyproject.toml", "setup.py", "setup.cfg"];
            let texts = files.map(|name| fs::read_to_string(folder.join(name)).unwrap_or_default());
            let mut tools = VERSION_TOOLS.into_iter();
            tools.find(|tool| texts.iter().any(|text| text.contains(tool)))
        })
}

/// Hard links of the mirror's packs: nothing is copied, and the mirror may go at any time. Where
/// links are not possible (another disk, another owner) git's alternates name the mirror instead. Gives
/// whether there are links.
fn link_objects(from: &Path, to: &Path) -> Result<bool, SourceError> {
    if link_tree(from, to).is_ok() {
        return Ok(true);
    }
    let info = to.join("info");
    let alternates = info.join("alternates");
    fs::create_dir_all(&info).map_err(SourceError::io("creating", &info))?;
    fs::write(&alternates, format!("{}\n", from.display()))
        .map_err(SourceError::io("writing", &alternates))?;
    Ok(false)
}

fn link_tree(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            link_tree(&entry.path(), &target)?;
            continue;
        }
        match fs::hard_link(entry.path(), &target) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// The mirror's branches as `origin/…` and its tags, in the one file that git keeps many
/// references in.
fn write_references(mirror: &Repository, git_dir: &Path) -> Result<(), SourceError> {
    let reading = || SourceError::git("reading the mirror's references");
    let mut packed = String::new();
    for reference in mirror.references().map_err(reading())? {
        let reference = reference.map_err(reading())?;
        let (Ok(name), Some(id)) = (reference.name(), reference.target()) else {
            continue;
        };
        if let Some(branch) = name.strip_prefix("refs/heads/") {
            let _ = writeln!(packed, "{id} refs/remotes/origin/{branch}");
        } else if name.starts_with("refs/tags/") {
            let _ = writeln!(packed, "{id} {name}");
        }
    }
    let path = git_dir.join("packed-refs");
    fs::write(&path, packed).map_err(SourceError::io("writing", &path))?;
    // The default branch, where the remote told it.
    if let Ok(head) = mirror.find_reference("HEAD")
        && let Ok(Some(target)) = head.symbolic_target()
        && let Some(branch) = target.strip_prefix("refs/heads/")
        && mirror.find_reference(target).is_ok()
    {
        let folder = git_dir.join("refs/remotes/origin");
        let path = folder.join("HEAD");
        fs::create_dir_all(&folder)
            .and_then(|()| fs::write(&path, format!("ref: refs/remotes/origin/{branch}\n")))
            .map_err(SourceError::io("writing", &path))?;
    }
    Ok(())
}

fn write_files(
    mirrors: &Mirrors<'_>,
    repository: &Repository,
    commit: Oid,
    address: &Address,
) -> Result<(), SourceError> {
    let mut options = CheckoutBuilder::new();
    let as_stored = attributes::files_stay_as_stored(repository, commit).unwrap_or(false);
    options
        .force()
        .disable_filters(as_stored)
        .notify_on(CheckoutNotificationType::UPDATED)
        .notify(|_, _, _, _, _| !mirrors.stop.is_cancelled());
    repository
        .set_head_detached(commit)
        .and_then(|()| repository.checkout_head(Some(&mut options)))
        .map_err(|error| match mirrors.stop.is_cancelled() {
            true => SourceError::Stopped,
            false => SourceError::Checkout {
                commit: commit.to_string(),
                url: address.shown(),
                cause: error.message().to_owned(),
                // A full disk or a missing permission is not the mirror's fault.
                damaged: !matches!(error.class(), ErrorClass::Os | ErrorClass::Filesystem),
            },
        })
}

/// Initialises and checks out the submodules of `repository`, and theirs. `above` is the path of
/// `repository` in the outermost one, for messages.
fn submodules(
    mirrors: &Mirrors<'_>,
    address: &Address,
    repository: &Repository,
    above: &str,
    depth: usize,
) -> Result<(), SourceError> {
    let listed = repository
        .submodules()
        .map_err(SourceError::git("reading .gitmodules"))?;
    for mut submodule in listed {
        // Listed in .gitmodules but not part of this commit, or switched off there.
        let Some(commit) = submodule.index_id() else {
            continue;
        };
        if submodule.update_strategy() == git2::SubmoduleUpdate::None {
            continue;
        }
        let path = format!("{above}{}", submodule.path().display());
        let failed = |cause: SourceError| match cause {
            SourceError::Stopped => SourceError::Stopped,
            cause => SourceError::Submodule {
                path: path.clone(),
                cause: Box::new(cause),
            },
        };
        if depth == 0 {
            return Err(failed(SourceError::Fetch {
                url: address.shown(),
                cause: format!("submodules are nested deeper than {SUBMODULE_DEPTH} levels"),
                damaged: false,
            }));
        }
        let given = submodule.opt_url_bytes().unwrap_or_default();
        if given.is_empty() {
            // A repository that was added with `git add`, most likely.
            mirrors.console.say(format!(
                "Warning: {path} is a repository of its own, and .gitmodules does not say where it is \
                 from: its folder is empty, as in a clone"
            ));
            continue;
        }
        let own = address.submodule(&String::from_utf8_lossy(given));
        mirrors
            .console
            .say(format!("Submodule {path}: {} at {commit}", own.shown()));
        let inner = check_out_submodule(mirrors, repository, &mut submodule, &own, commit)
            .map_err(failed)?;
        filters::write_files(mirrors, &inner).map_err(failed)?;
        lfs::download(mirrors, &own, &inner).map_err(failed)?;
        submodules(mirrors, &own, &inner, &format!("{path}/"), depth - 1)?;
    }
    Ok(())
}

fn check_out_submodule(
    mirrors: &Mirrors<'_>,
    outer: &Repository,
    submodule: &mut git2::Submodule<'_>,
    address: &Address,
    commit: Oid,
) -> Result<Repository, SourceError> {
    let setting_up = || SourceError::git("setting up the submodule");
    let name = submodule.name().map_err(setting_up())?.to_owned();
    // What `git submodule init` records, but never with credentials.
    outer
        .config()
        .and_then(|mut config| config.set_str(&format!("submodule.{name}.url"), address.text()))
        .map_err(setting_up())?;
    let work_tree = outer
        .workdir()
        .unwrap_or(outer.path())
        .join(submodule.path());
    let git_dir = outer.path().join("modules").join(&name);
    let remove_earlier = || {
        for folder in [&work_tree, &git_dir] {
            match fs::remove_dir_all(folder) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(SourceError::io("removing", folder)(error));
                }
                _ => {}
            }
        }
        Ok(())
    };
    let submodule = std::cell::RefCell::new(submodule);
    let make = || {
        remove_earlier()?;
        submodule.borrow_mut().repo_init(true).map_err(setting_up())
    };
    let wanted = Wanted::Commit(commit);
    let history = match mirrors.shallow {
        true => History::NotNeeded,
        false => History::Whole,
    };
    let (repository, _) = fill(mirrors, address, &wanted, history, &make)?;
    Ok(repository)
}
