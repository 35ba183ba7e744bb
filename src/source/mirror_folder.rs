//! The folders of mirrors: what they are called, how they come into their places and go, and what
//! processes that were killed have left in them. To be used by who holds the mirror's lock.

use std::fs::{self, File, TryLockError};
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

/// How old what nobody seems to need must be to be removed.
const ABANDONED_AFTER: Duration = Duration::from_secs(7 * 24 * 3600);
/// In a mirror that is not to be used any more. Its folder is as old as this file.
pub(super) const OUT_OF_USE: &str = "out-of-use";

/// In a mirror: held, shared, by each run whose work trees take their objects from it.
const BORROWED: &str = "borrowed";

/// Says that work trees take their objects from the mirror, for as long as what is returned lives. To be
/// used, as [`is_borrowed`], by who holds the mirror's lock, so that none of them ever waits.
pub(super) fn borrow(mirror: &Path) -> io::Result<File> {
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(mirror.join(BORROWED))?;
    match file.try_lock_shared() {
        Err(TryLockError::Error(error)) => Err(error),
        _ => Ok(file),
    }
}

/// Whether a run on this machine, or in a container here, borrows from the mirror.
pub(super) fn is_borrowed(mirror: &Path) -> bool {
    let path = mirror.join(BORROWED);
    // A container may have put anything there.
    let is_file = fs::symlink_metadata(&path).is_ok_and(|found| found.is_file());
    is_file
        && File::open(&path)
            .is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
}

/// Where one address's mirror is, locked where others use it, too. A mirror that is made anew stands beside
/// the one before (`name.git`, `name.1.git`, …), of which work trees may have their objects: each has a
/// path that means it for ever, and the newest counts.
pub(super) struct Place {
    pub(super) parent: PathBuf,
    pub(super) name: String,
    pub(super) lock: Option<File>,
}

impl Place {
    pub(super) fn is_shared(&self) -> bool {
        self.lock.is_some()
    }

    /// All mirrors of the address that stand here, the oldest first.
    fn mirrors(&self) -> Result<Vec<(u64, PathBuf)>, SourceError> {
        let reading = || SourceError::io("reading", &self.parent);
        let mut mirrors = Vec::new();
        for entry in fs::read_dir(&self.parent).map_err(reading())? {
            let entry = entry.map_err(reading())?;
            let number = entry
                .file_name()
                .to_str()
                .and_then(|name| self.number(name));
            mirrors.extend(number.map(|number| (number, entry.path())));
        }
        mirrors.sort();
        Ok(mirrors)
    }

    fn number(&self, file_name: &str) -> Option<u64> {
        match file_name.strip_prefix(&self.name)?.strip_suffix("git")? {
            "." => Some(0),
            middle => {
                let digits = middle.strip_prefix('.')?.strip_suffix('.')?;
                digits.parse().ok().filter(|number| *number > 0)
            }
        }
    }

    /// The mirror that is to be used.
    pub(super) fn current(&self) -> Result<Option<PathBuf>, SourceError> {
        let newest = self.mirrors()?.pop().map(|(_, path)| path);
        Ok(newest.filter(|path| !path.join(OUT_OF_USE).exists()))
    }

    /// Makes what was built the mirror to be used. Those before it stay for a while: runs of other hosts, too,
    /// may take their objects from them.
    pub(super) fn put(&self, building: TempDir) -> Result<Repository, SourceError> {
        let earlier = self.mirrors()?;
        let mut number = earlier.last().map_or(0, |(number, _)| number + 1);
        let folder = loop {
            let folder = match number {
                0 => self.parent.join(format!("{}.git", self.name)),
                number => self.parent.join(format!("{}.{number}.git", self.name)),
            };
            match fs::rename(building.path(), &folder) {
                Ok(()) => break folder,
                // Another host has been quicker, whose lock is not seen here.
                Err(_) if folder.exists() => number += 1,
                Err(error) => return Err(SourceError::io("creating", folder)(error)),
            }
        };
        // Nothing is left at the temporary name.
        let _ = building.keep();
        for (_, path) in earlier {
            if !path.join(OUT_OF_USE).exists() {
                // Where nothing can be written, nothing can be removed either.
                let _ = discard(&path);
            }
        }
        open(&folder)
    }

    /// How the names of unfinished mirrors begin that this host makes here.
    pub(super) fn unfinished(&self) -> String {
        let uname = rustix::system::uname();
        format!(".{}.git.{}.", self.name, uname.nodename().to_string_lossy())
    }

    /// Removes mirrors that are long out of use, and half-made ones of processes that were killed. We hold the lock, so those of this host are
    /// nobody's; a disk that hosts share may keep each one's locks to itself.
    pub(super) fn remove_left_overs(&self) -> Result<(), SourceError> {
        let (of_all, of_this_host) = (format!(".{}.git.", self.name), self.unfinished());
        let entries =
            fs::read_dir(&self.parent).map_err(SourceError::io("reading", &self.parent))?;
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = entry.path();
            if name.starts_with(&of_this_host) || (name.starts_with(&of_all) && is_old(&path)) {
                remove_if_possible(&path);
            }
        }
        let mut before_newest = self.mirrors()?;
        before_newest.pop();
        for (_, path) in before_newest {
            if path.join(OUT_OF_USE).exists() && is_old(&path) && !is_borrowed(&path) {
                remove_if_possible(&path);
            }
        }
        Ok(())
    }
}

fn is_old(path: &Path) -> bool {
    let changed = fs::metadata(path).and_then(|meta| meta.modified());
    changed.is_ok_and(|time| time.elapsed().unwrap_or_default() > ABANDONED_AFTER)
}

/// Best effort, for it is out of use: a folder with files that are open elsewhere cannot be emptied on NFS.
fn remove_if_possible(folder: &Path) {
    let _ = fs::remove_dir_all(folder);
}

/// Sees to it that the next use makes the mirror anew.
pub(super) fn discard(folder: &Path) -> Result<(), SourceError> {
    let mark = folder.join(OUT_OF_USE);
    fs::write(&mark, "").map_err(SourceError::io("writing", mark))
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
    fn the_newest_mirror_counts_unless_it_is_damaged() {
        let cache = tempfile::tempdir().unwrap();
        let place = Place {
            parent: cache.path().to_owned(),
            name: "r.0a".into(),
            lock: None,
        };
        let current = || place.current().unwrap();
        assert_eq!(current(), None);
        for other in [
            "r.0ab.git",
            "r.0a.x.git",
            "r.0a.0.git",
            ".r.0a.git.h.5",
            "r.0a.lock",
        ] {
            fs::create_dir(cache.path().join(other)).unwrap();
        }
        assert_eq!(current(), None);
        for newest in ["r.0a.git", "r.0a.2.git", "r.0a.10.git"] {
            fs::create_dir(cache.path().join(newest)).unwrap();
            assert_eq!(current(), Some(cache.path().join(newest)));
        }
        discard(&cache.path().join("r.0a.10.git")).unwrap();
        assert_eq!(current(), None);
        let building = tempfile::tempdir_in(cache.path()).unwrap();
        Repository::init_bare(building.path()).unwrap();
        place.put(building).unwrap();
        assert_eq!(current(), Some(cache.path().join("r.0a.11.git")));

        // Those before it are out of use, and go when they are so for long and nobody needs them.
        let at = |name: &str| cache.path().join(name);
        let borrowed = borrow(&at("r.0a.git")).unwrap();
        for old in ["r.0a.git", "r.0a.2.git"] {
            assert!(at(old).join(OUT_OF_USE).exists());
            let long_ago = std::time::SystemTime::now() - 2 * ABANDONED_AFTER;
            File::open(at(old)).unwrap().set_modified(long_ago).unwrap();
        }
        let stays = |expected: [bool; 3]| {
            place.remove_left_overs().unwrap();
            let found = ["r.0a.git", "r.0a.2.git", "r.0a.10.git"].map(|name| at(name).exists());
            assert_eq!(found, expected);
        };
        stays([true, false, true]);
        drop(borrowed);
        stays([false, false, true]);
    }

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
