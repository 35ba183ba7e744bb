//! Git LFS: libgit2 leaves pointers where the files' content belongs. The machine's own `git-lfs` gets
//! what they stand for; without it there is an error, for a job that opens a pointer fails in a
//! puzzling way.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::Command;

use git2::Repository;

use super::error::SourceError;
use super::git_program::{self, Trusted};
use super::mirror::Mirrors;
use super::program;
use super::ssh::on_path;
use super::url::{Address, Transport};

/// The filter's name in `.gitattributes`.
pub(super) const NAME: &str = "lfs";
const POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";
/// Larger than any pointer is.
const POINTER_LIMIT: u32 = 1024;
/// With this variable git leaves the pointers as they are; so do we.
const SKIP: &str = "GIT_LFS_SKIP_SMUDGE";

/// What `git lfs install` configures.
const FILTER: [(&str, &str); 4] = [
    ("filter.lfs.clean", "git-lfs clean -- %f"),
    ("filter.lfs.smudge", "git-lfs smudge -- %f"),
    ("filter.lfs.process", "git-lfs filter-process"),
    ("filter.lfs.required", "true"),
];

/// Puts the content of files in LFS into the work tree of `repository`. Costs next to nothing where LFS
/// is not in use.
pub(super) fn download(
    mirrors: &Mirrors<'_>,
    address: &Address,
    repository: &Repository,
) -> Result<(), SourceError> {
    let Some(root) = repository.workdir() else {
        return Ok(());
    };
    let pointers = pointers(repository, root);
    let Some(first) = pointers.first() else {
        return Ok(());
    };
    let (network, console) = (&mirrors.network, mirrors.console);
    let files = format!(
        "{} file(s) of {} ({first}, …)",
        pointers.len(),
        address.shown()
    );
    let skip = network.env.get(SKIP).map(String::as_str);
    if matches!(skip, Some("1" | "true" | "yes" | "on")) {
        console.say(format!(
            "{files} are in Git LFS and left as pointers: {SKIP} is set"
        ));
        return Ok(());
    }
    let failed = |cause: String| SourceError::Lfs {
        files: files.clone(),
        cause,
    };
    let (Some(git), Some(_)) = (on_path(network.env, "git"), on_path(network.env, "git-lfs"))
    else {
        return Err(SourceError::LfsMissing { files });
    };
    console.say(format!("Downloading {files} from Git LFS"));
    let setting_up = || SourceError::git("setting up Git LFS");
    let mut config = repository.config().map_err(setting_up())?;
    for (key, value) in FILTER {
        config.set_str(key, value).map_err(setting_up())?;
    }
    let storage = mirrors.cache.as_ref().map(|cache| cache.join("lfs"));
    let mut said = Vec::new();
    let ways = network.ways(repository, address).into_iter();
    let with_bundle = network.ca_bundle.is_some().then_some(Trusted::AsConfigured);
    let tries = ways.flat_map(|way| {
        let trusted = std::iter::once(Trusted::ByMachine).chain(with_bundle);
        trusted.map(move |trusted| (way.clone(), trusted))
    });
    for (way, trusted) in tries {
        let mut command = Command::new(&git);
        command.args(["lfs", "pull"]).current_dir(root);
        let mut settings = Vec::new();
        // What one run has downloaded the next one needs not. Of a repository on this machine git-lfs
        // would look for the objects there, too.
        if let (Some(storage), false) = (&storage, way.address.transport == Transport::Local) {
            settings.push(("lfs.storage".to_owned(), storage.display().to_string()));
        }
        git_program::set_up(
            &mut command,
            network,
            address,
            &way.address,
            trusted,
            settings,
        );
        let finished = program::run(command, b"", mirrors.stop, &|_| {})
            .map_err(|error| failed(error.to_string()))?;
        if mirrors.stop.is_cancelled() {
            return Err(SourceError::Stopped);
        }
        if finished.success && self::pointers(repository, root).is_empty() {
            return Ok(());
        }
        said = finished.errors;
    }
    said.retain(|line| !line.trim().is_empty());
    let last = said.split_off(said.len().saturating_sub(5));
    Err(failed(last.join("; ")))
}

/// Files of the checkout that are pointers.
fn pointers(repository: &Repository, root: &Path) -> Vec<String> {
    let Ok(index) = repository.index() else {
        return Vec::new();
    };
    let paths = |is_one: &dyn Fn(&git2::IndexEntry) -> bool| -> Vec<String> {
        let entries = index.iter().filter(|entry| is_one(entry));
        entries
            .filter_map(|entry| String::from_utf8(entry.path).ok())
            .collect()
    };
    let attributes = paths(&|entry| entry.path.ends_with(b".gitattributes"));
    let in_use = attributes.iter().any(|path| {
        let text = fs::read_to_string(root.join(path));
        text.is_ok_and(|text| text.contains("filter=lfs"))
    });
    if !in_use {
        return Vec::new();
    }
    let mut small = paths(&|entry| entry.file_size < POINTER_LIMIT);
    small.retain(|path| is_pointer(&root.join(path)));
    small
}

fn is_pointer(path: &Path) -> bool {
    let mut start = [0; POINTER.len()];
    let is_file = fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file());
    is_file
        && File::open(path)
            .and_then(|mut file| file.read_exact(&mut start))
            .is_ok()
        && start == *POINTER
}
