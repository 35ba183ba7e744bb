//! The cache of repositories: one bare mirror for each address, made whole or not at all, used
//! by one process at a time.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use git2::{Repository, RepositoryInitOptions};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::error::{SourceError, did_you_mean};
use super::network::Network;
use super::revision::Wanted;
use super::url::Address;
use crate::console::Console;

/// Branches and tags as the remote has them. Other references (a forge has one for each pull
/// request) are only fetched when a commit is not found without them.
const BRANCHES_AND_TAGS: &[&str] = &["+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"];
const ALL_REFERENCES: &[&str] = &["+refs/*:refs/*"];
/// How long to wait for another run's fetch before fetching without the cache.
const LOCK_LIMIT: Duration = Duration::from_secs(300);
const LOCK_POLL: Duration = Duration::from_millis(50);

/// Where mirrors are kept for this run.
pub(super) struct Mirrors<'a> {
    pub(super) cache: Option<PathBuf>,
    /// A private folder, for mirrors that are not to be kept.
    pub(super) scratch: PathBuf,
    pub(super) network: Network<'a>,
    pub(super) console: &'a Console,
    pub(super) stop: &'a CancellationToken,
}

/// A repository's mirror with the wanted commit in it, held until dropped.
pub(super) struct Mirror {
    pub(super) repository: Repository,
    pub(super) commit: git2::Oid,
    /// What the commit was found by (`branch x`); nothing for a commit id.
    pub(super) found_by: Option<String>,
    pub(super) fetched: bool,
    /// A mirror made just now; a failure with it is not old damage.
    pub(super) new: bool,
    place: Place,
}

/// A mirror's folder, locked.
struct Place {
    folder: PathBuf,
    _lock: Option<File>,
}

impl Mirrors<'_> {
    /// The mirror of `address` with `wanted` in it, fetched only when needed: a commit id that
    /// is there already is taken without a word to the remote.
    pub(super) fn obtain(&self, address: &Address, wanted: &Wanted) -> Result<Mirror, SourceError> {
        let place = self.lock(address)?;
        if !place.folder.exists() {
            return self
                .make(&place.folder, address, wanted)
                .map(|found| found.held(place));
        }
        match self.use_existing(&place.folder, address, wanted) {
            Err(error) if error.is_damage() => {
                self.say_damaged(address, &error);
                self.make(&place.folder, address, wanted)
                    .map(|found| found.held(place))
            }
            found => found.map(|found| found.held(place)),
        }
    }

    fn use_existing(
        &self,
        folder: &Path,
        address: &Address,
        wanted: &Wanted,
    ) -> Result<Found, SourceError> {
        let repository = Repository::open_bare(folder)
            .and_then(|repository| match packs_are_whole(folder) {
                Ok(true) => Ok(repository),
                Ok(false) => Err(git2::Error::from_str("a pack is cut off")),
                Err(error) => Err(git2::Error::from_str(&error.to_string())),
            })
            .map_err(SourceError::git("opening the cached mirror"))?;
        if (matches!(wanted, Wanted::Commit(_)) || self.network.is_offline())
            && let Some((commit, found_by)) = wanted
                .find(&repository)
                .map_err(SourceError::git("reading the cached mirror"))?
        {
            return Ok(Found {
                repository,
                commit,
                found_by,
                fetched: false,
                new: false,
            });
        }
        self.say_fetching(address);
        self.update(&repository, address)?;
        self.find(repository, address, wanted, false)
    }

    /// Makes the mirror beside its place and moves it there when it is whole; one that is there
    /// goes only then.
    fn make(
        &self,
        folder: &Path,
        address: &Address,
        wanted: &Wanted,
    ) -> Result<Found, SourceError> {
        self.say_fetching(address);
        let parent = folder.parent().unwrap_or(&self.scratch);
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        let prefix = format!(".{name}.");
        remove_left_overs(parent, &prefix)?;
        let building = tempfile::Builder::new()
            .prefix(&prefix)
            .tempdir_in(parent)
            .map_err(SourceError::io("creating a folder in", parent))?;
        let mut options = RepositoryInitOptions::new();
        options.bare(true).external_template(false);
        let repository = Repository::init_opts(building.path(), &options)
            .map_err(SourceError::git("creating the mirror"))?;
        self.update(&repository, address)?;
        drop(repository);
        remove(folder)?;
        fs::rename(building.path(), folder).map_err(SourceError::io("creating", folder))?;
        // Nothing is left at the temporary name.
        let _ = building.keep();
        let repository =
            Repository::open_bare(folder).map_err(SourceError::git("opening the new mirror"))?;
        self.find(repository, address, wanted, true)
    }

    pub(super) fn say_damaged(&self, address: &Address, error: &SourceError) {
        self.console.say(format!(
            "The cached mirror of {} is damaged ({error}); making it anew",
            address.shown()
        ));
    }

    fn say_fetching(&self, address: &Address) {
        self.console.say(format!("Fetching {}", address.shown()));
    }

    /// Brings branches and tags up to what the remote has: moved ones move, deleted ones go.
    fn update(&self, repository: &Repository, address: &Address) -> Result<(), SourceError> {
        // We hold the mirror's lock, so these can only be of a process that was killed.
        remove_stale_files(repository.path());
        let head = self
            .network
            .fetch(repository, address, BRANCHES_AND_TAGS, true)?;
        if let Some(head) = head {
            repository
                .set_head(&head)
                .map_err(SourceError::git("setting the mirror's HEAD"))?;
        }
        Ok(())
    }

    fn find(
        &self,
        repository: Repository,
        address: &Address,
        wanted: &Wanted,
        new: bool,
    ) -> Result<Found, SourceError> {
        let reading = || SourceError::git("reading the mirror");
        let mut searched = vec!["all branches and tags"];
        let mut found = wanted.find(&repository).map_err(reading())?;
        if let (None, Wanted::Commit(id)) = (&found, wanted) {
            searched.push("the commit id itself");
            let refspec = format!("+{id}:refs/commits/{id}");
            match self.network.fetch(&repository, address, &[&refspec], false) {
                Ok(_) => found = wanted.find(&repository).map_err(reading())?,
                Err(SourceError::Stopped) => return Err(SourceError::Stopped),
                // Not every server gives a commit by its id.
                Err(_) => {}
            }
            if found.is_none() {
                searched.push("all other references");
                match self
                    .network
                    .fetch(&repository, address, ALL_REFERENCES, false)
                {
                    Ok(_) => found = wanted.find(&repository).map_err(reading())?,
                    Err(SourceError::Stopped) => return Err(SourceError::Stopped),
                    Err(_) => {}
                }
            }
        }
        match found {
            Some((commit, found_by)) => Ok(Found {
                repository,
                commit,
                found_by,
                fetched: true,
                new,
            }),
            None => Err(SourceError::RevisionNotFound {
                wanted: wanted.shown(),
                url: address.shown(),
                searched: searched.join(", "),
                near: did_you_mean(&wanted.similar(&repository)),
            }),
        }
    }

    /// The mirror's folder (which may not exist yet), locked against other runs.
    fn lock(&self, address: &Address) -> Result<Place, SourceError> {
        let name = mirror_name(address);
        if let Some(cache) = &self.cache {
            fs::create_dir_all(cache)
                .map_err(SourceError::io("creating the repository cache", cache))?;
            let path = cache.join(format!("{name}.lock"));
            let file = File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
                .map_err(SourceError::io("opening the lock", &path))?;
            if self
                .wait_for(&file, address)
                .map_err(SourceError::io("locking", &path))?
            {
                return Ok(Place {
                    folder: cache.join(format!("{name}.git")),
                    _lock: Some(file),
                });
            }
            if self.stop.is_cancelled() {
                return Err(SourceError::Stopped);
            }
            self.console
                .say("The cache is still in use; fetching without it");
        }
        let scratch = &self.scratch;
        fs::create_dir_all(scratch).map_err(SourceError::io("creating", scratch))?;
        Ok(Place {
            folder: scratch.join(format!("{name}.git")),
            _lock: None,
        })
    }

    /// Whether the lock was got before the limit and before the run was stopped.
    fn wait_for(&self, file: &File, address: &Address) -> io::Result<bool> {
        let started = Instant::now();
        let mut said = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(true),
                Err(TryLockError::Error(error)) => return Err(error),
                Err(TryLockError::WouldBlock) => {}
            }
            if !said {
                said = true;
                self.console.say(format!(
                    "Another run is fetching {}; waiting for it",
                    address.shown()
                ));
            }
            if self.stop.is_cancelled() || started.elapsed() > LOCK_LIMIT {
                return Ok(false);
            }
            std::thread::sleep(LOCK_POLL);
        }
    }
}

struct Found {
    repository: Repository,
    commit: git2::Oid,
    found_by: Option<String>,
    fetched: bool,
    new: bool,
}

impl Found {
    fn held(self, place: Place) -> Mirror {
        Mirror {
            repository: self.repository,
            commit: self.commit,
            found_by: self.found_by,
            fetched: self.fetched,
            new: self.new,
            place,
        }
    }
}

impl Mirror {
    /// Removes the mirror, so that the next use makes it anew.
    pub(super) fn discard(self) -> Result<(), SourceError> {
        let Mirror {
            repository, place, ..
        } = self;
        drop(repository);
        remove(&place.folder)
    }
}

/// `<name>.<hash of the address without credentials>`: the same repository for every user of
/// this cache, and never a secret in a file name.
fn mirror_name(address: &Address) -> String {
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
fn packs_are_whole(mirror: &Path) -> io::Result<bool> {
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

fn remove(folder: &Path) -> Result<(), SourceError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(SourceError::io("removing", folder)),
    }
}

/// Half-made mirrors of this address, left by processes that were killed.
fn remove_left_overs(parent: &Path, prefix: &str) -> Result<(), SourceError> {
    let entries = fs::read_dir(parent).map_err(SourceError::io("reading", parent))?;
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// Lock files and half-received packs. Best effort: one that stays only shows up again as the
/// fetch's own error.
fn remove_stale_files(mirror: &Path) {
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
