//! The folders of mirrors: what they are called, how they come into their places and go, and what
//! processes that were killed have left in them. To be used by who holds the mirror's lock.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use git2::Repository;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::error::SourceError;
use super::url::Address;

pub(super) fn open(folder: &Path) -> Result<Repository, SourceError> {
    Repository::open_bare(folder).map_err(SourceError::git("opening the new mirror"))
}

/// What a mirror is configured with. Both libgit2 and git believe a repository's own configuration
/// (addresses that stand for others, programs to run), and others may be able to write to the cache.
const CONFIG: &str = "[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = true\n";

pub(super) fn reset_config(folder: &Path) -> Result<(), SourceError> {
    let path = folder.join("config");
    match fs::read(&path) {
        Ok(text) if text == CONFIG.as_bytes() => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        _ => {
            let new = folder.join("config.new");
            fs::write(&new, CONFIG)
                .and_then(|()| fs::rename(&new, &path))
                .map_err(SourceError::io("resetting", &path))
        }
    }
}

/// Puts what was built in its place.
pub(super) fn move_to(building: TempDir, folder: &Path) -> Result<Repository, SourceError> {
    let aside = put_aside(folder)?;
    fs::rename(building.path(), folder).map_err(SourceError::io("creating", folder))?;
    // Nothing is left at the temporary name.
    let _ = building.keep();
    remove_if_possible(aside);
    open(folder)
}

/// Takes a mirror out of its place, at once and whole. Removing it comes after: a folder with files that
/// are open elsewhere cannot be emptied on NFS.
pub(super) fn put_aside(folder: &Path) -> Result<Option<PathBuf>, SourceError> {
    let parent = folder.parent().unwrap_or(folder);
    let aside = tempfile::Builder::new()
        .prefix(&beside(folder))
        .tempdir_in(parent)
        .map_err(SourceError::io("creating a folder in", parent))?;
    match fs::rename(folder, aside.path()) {
        Ok(()) => Ok(Some(aside.keep())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(SourceError::io("removing", folder)(error)),
    }
}

/// What stays is removed by a later run.
pub(super) fn remove_if_possible(aside: Option<PathBuf>) {
    if let Some(aside) = aside {
        let _ = fs::remove_dir_all(aside);
    }
}

/// How the names of unfinished mirrors begin that this host makes beside `folder`.
pub(super) fn beside(folder: &Path) -> String {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let uname = rustix::system::uname();
    let host = uname.nodename().to_string_lossy().into_owned();
    format!(".{name}.{host}.")
}

/// `<name>.<hash of the address without credentials>`: the same repository for every user of
/// this cache, and never a secret in a file name.
pub(super) fn mirror_name(address: &Address) -> String {
    let digest = Sha256::digest(address.text().trim_end_matches('/'));
    let hash: String = digest
        .iter()
        .take(16)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let name = address.name();
    format!("{}.{hash}", name.strip_suffix(".git").unwrap_or(&name))
}

/// Whether each pack ends as its index says: a pack that was cut off (a full disk, a crash of
/// the machine) would otherwise only look as if commits were missing.
pub(super) fn packs_are_whole(mirror: &Path) -> io::Result<bool> {
    const CHECKSUM: i64 = 20;
    let read_before_end = |path: &Path, distance: i64| -> io::Result<[u8; CHECKSUM as usize]> {
        let mut bytes = [0; CHECKSUM as usize];
        let mut file = File::open(path)?;
        file.seek(SeekFrom::End(-distance))?;
        file.read_exact(&mut bytes)?;
        Ok(bytes)
    };
    for entry in fs::read_dir(mirror.join("objects/pack"))? {
        let index = entry?.path();
        if index.extension().is_some_and(|kind| kind == "idx") {
            // An index ends with the pack's checksum and its own.
            let stated = read_before_end(&index, 2 * CHECKSUM)?;
            if read_before_end(&index.with_extension("pack"), CHECKSUM)? != stated {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// How old an unfinished mirror of another host must be to be nobody's.
const ABANDONED_AFTER: Duration = Duration::from_secs(24 * 3600);

/// Half-made mirrors left by processes that were killed. We hold the lock, so those of this host are nobody's;
/// a disk that is shared between hosts may keep each one's locks to itself.
pub(super) fn remove_left_overs(folder: &Path) -> Result<(), SourceError> {
    let parent = folder.parent().unwrap_or(folder);
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let (of_all, of_this_host) = (format!(".{name}."), beside(folder));
    let entries = fs::read_dir(parent).map_err(SourceError::io("reading", parent))?;
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let age = entry.metadata().and_then(|meta| meta.modified());
        let age = age.map(|time| time.elapsed().unwrap_or_default());
        let is_old = age.is_ok_and(|age| age > ABANDONED_AFTER);
        if name.starts_with(&of_this_host) || (name.starts_with(&of_all) && is_old) {
            remove_if_possible(Some(entry.path()));
        }
    }
    Ok(())
}

/// Lock files and half-received packs. Best effort: one that stays only shows up again as the
/// fetch's own error.
pub(super) fn remove_stale_files(mirror: &Path) {
    fn sweep(folder: &Path, depth: usize, stale: &dyn Fn(&str) -> bool) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if is_folder && depth > 0 {
                sweep(&path, depth - 1, stale);
            } else if !is_folder && stale(&entry.file_name().to_string_lossy()) {
                let _ = fs::remove_file(&path);
            }
        }
    }
    sweep(mirror, 0, &|name| name.ends_with(".lock"));
    sweep(&mirror.join("refs"), 32, &|name| name.ends_with(".lock"));
    sweep(&mirror.join("objects/pack"), 0, &|name| {
        name.starts_with("pack_git2_") || name.ends_with(".lock")
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mirrors_name_does_not_depend_on_credentials() {
        let name = |url| mirror_name(&Address::parse(url));
        assert_eq!(
            name("https://h/a/b.git"),
            name("https://u:secret@h/a/b.git/")
        );
        assert_ne!(name("https://h/a/b.git"), name("https://h/c/b.git"));
        assert!(name("https://h/a/b.git").starts_with("b."));
        assert_eq!(name("https://h/a/b.git").len(), "b.".len() + 32);
    }
}
