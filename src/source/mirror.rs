//! The cache of repositories: one bare mirror for each address, made whole or not at all, used
//! by one process at a time.

use std::cell::RefCell;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use git2::{Repository, RepositoryInitOptions};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::error::{SourceError, did_you_mean};
use super::mirror_folder::{
    Place, borrow, discard, mirror_name, open, packs_are_whole, remove_stale_files, reset_config,
};
use super::network::{Get, Network};
use super::revision::Wanted;
use super::url::{Address, Transport};
use crate::console::Console;

/// Branches and tags as the remote has them. Other references (a forge has one for each pull
/// request) are only fetched when a commit is not found without them.
const BRANCHES_AND_TAGS: &[&str] = &["+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"];
const ALL_REFERENCES: &[&str] = &["+refs/*:refs/*"];
/// How long to wait for another run's fetch before fetching without the cache.
const LOCK_LIMIT: Duration = Duration::from_secs(300);
const LOCK_POLL: Duration = Duration::from_millis(20);

/// Where mirrors are kept for this run.
pub(super) struct Mirrors<'a> {
    pub(super) cache: Option<PathBuf>,
    /// A private folder, for mirrors that are not to be kept.
    pub(super) scratch: PathBuf,
    /// `agent.vcs_cache.clone_on_pull_fail`: a mirror that cannot be brought up to date is made anew.
    pub(super) clone_on_pull_fail: bool,
    /// Whether commits may be had without their history.
    pub(super) shallow: bool,
    /// Of each mirror from which this run's work trees take their objects.
    pub(super) borrowed: RefCell<Vec<File>>,
    pub(super) network: Network<'a>,
    pub(super) console: &'a Console,
    pub(super) stop: &'a CancellationToken,
}

/// What is needed of a commit's history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum History {
    /// All of it, with the other branches and the tags.
    Whole,
    /// Nothing: the commit alone will do, where the server gives it.
    NotNeeded,
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
    /// With its lock, until others may have their turn.
    place: Option<Place>,
}

impl Mirrors<'_> {
    /// The mirror of `address` with `wanted` in it, fetched only when needed: a commit id that
    /// is there already is taken without a word to the remote.
    pub(super) fn obtain(
        &self,
        address: &Address,
        wanted: &Wanted,
        history: History,
    ) -> Result<Mirror, SourceError> {
        let place = self.lock(address)?;
        match self.obtain_in(&place, address, wanted, history) {
            Err(error) if place.is_shared() && error.is_of_folder(&place.parent) => {
                self.say_unusable(&error);
                drop(place);
                let place = self.private(address)?;
                let found = self.obtain_in(&place, address, wanted, history)?;
                Ok(found.held(place))
            }
            found => Ok(found?.held(place)),
        }
    }

    fn obtain_in(
        &self,
        place: &Place,
        address: &Address,
        wanted: &Wanted,
        history: History,
    ) -> Result<Found, SourceError> {
        let made = |history| self.make(place, address, wanted, history);
        let Some(folder) = place.current()? else {
            return made(history);
        };
        match self.use_existing(place, &folder, address, wanted, history) {
            Err(error) if error.is_damage() => {
                self.say_damaged(address, &error);
                made(history)
            }
            Err(error) if self.clone_on_pull_fail && error.is_of_fetch() => {
                self.console.say(format!("{error}\nMaking the mirror anew"));
                made(history)
            }
            Ok(None) => made(History::Whole),
            Ok(Some(found)) => Ok(found),
            Err(error) => Err(error),
        }
    }

    /// Nothing where the mirror holds single commits, and those are not enough.
    fn use_existing(
        &self,
        place: &Place,
        folder: &Path,
        address: &Address,
        wanted: &Wanted,
        history: History,
    ) -> Result<Option<Found>, SourceError> {
        reset_config(folder)?;
        let repository = Repository::open_bare(folder)
            .and_then(|repository| match packs_are_whole(folder) {
                Ok(true) => Ok(repository),
                Ok(false) => Err(git2::Error::from_str("a pack is cut off")),
                Err(error) => Err(git2::Error::from_str(&error.to_string())),
            })
            .map_err(SourceError::git("opening the cached mirror"))?;
        let shallow = repository.is_shallow();
        if shallow && history == History::Whole {
            return Ok(None);
        }
        if (matches!(wanted, Wanted::Commit(_)) || self.network.is_offline())
            && let Some((commit, found_by)) = wanted
                .find(&repository)
                .map_err(SourceError::git("reading the cached mirror"))?
        {
            return Ok(Some(Found {
                repository,
                commit,
                found_by,
                fetched: false,
                new: false,
            }));
        }
        self.say_fetching(address);
        place.remove_left_overs()?;
        if shallow {
            let found = match wanted {
                Wanted::Commit(id) => self.fetch_alone(&repository, address, *id)?,
                _ => None,
            };
            return Ok(found.map(|commit| Found::fetched(repository, commit, false)));
        }
        self.update(&repository, address)?;
        self.find(repository, address, wanted, false).map(Some)
    }

    /// Makes the mirror under another name, and the one to be used when it is whole.
    fn make(
        &self,
        place: &Place,
        address: &Address,
        wanted: &Wanted,
        history: History,
    ) -> Result<Found, SourceError> {
        self.say_fetching(address);
        place.remove_left_overs()?;
        if let (Wanted::Commit(id), History::NotNeeded) = (wanted, history)
            && address.transport != Transport::Local
        {
            let building = self.begin(place)?;
            let repository = open(building.path())?;
            if self.fetch_alone(&repository, address, *id)?.is_some() {
                drop(repository);
                let repository = place.put(building)?;
                return Ok(Found::fetched(repository, *id, true));
            }
        }
        let building = self.begin(place)?;
        self.update(&open(building.path())?, address)?;
        let repository = place.put(building)?;
        self.find(repository, address, wanted, true)
    }

    fn begin(&self, place: &Place) -> Result<TempDir, SourceError> {
        let parent = &place.parent;
        let building = tempfile::Builder::new()
            .prefix(&place.unfinished())
            .tempdir_in(parent)
            .map_err(SourceError::io("creating a folder in", parent))?;
        let mut options = RepositoryInitOptions::new();
        options.bare(true).external_template(false);
        Repository::init_opts(building.path(), &options)
            .map_err(SourceError::git("creating the mirror"))?;
        Ok(building)
    }

    /// The commit without its history, where the server gives it. Nothing where it does not, or where
    /// there is no such commit: the whole history tells.
    fn fetch_alone(
        &self,
        repository: &Repository,
        address: &Address,
        id: git2::Oid,
    ) -> Result<Option<git2::Oid>, SourceError> {
        remove_stale_files(repository.path());
        match self.network.fetch(repository, address, Get::Alone(id)) {
            Ok(_) => {
                let found = Wanted::Commit(id).find(repository);
                let found = found.map_err(SourceError::git("reading the mirror"))?;
                Ok(found.map(|(commit, _)| commit))
            }
            Err(SourceError::Fetch { cause, .. }) => {
                tracing::debug!(cause, "the commit is not to be had alone");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Keeps the mirror for as long as the run lasts: a work tree takes its objects from there.
    pub(super) fn borrow(&self, mirror: &Mirror) {
        if !mirror.place.as_ref().is_some_and(Place::is_shared) {
            return;
        }
        match borrow(mirror.repository.path()) {
            Ok(held) => self.borrowed.borrow_mut().push(held),
            // A disk that takes no locks, most likely: no reason not to run.
            Err(error) => tracing::debug!(%error, "the mirror is not held"),
        }
    }

    pub(super) fn say_damaged(&self, address: &Address, error: &SourceError) {
        self.console.say(format!(
            "The cached mirror of {} is damaged ({error}); making it anew",
            address.shown()
        ));
    }

    fn say_fetching(&self, address: &Address) {
        match (self.network.is_offline(), address.transport) {
            (false, _) => self.console.say(format!("Fetching {}", address.shown())),
            (true, Transport::Local) => self.console.say(format!("Reading {}", address.shown())),
            // It is not there, which the error says.
            (true, _) => {}
        }
    }

    /// Brings branches and tags up to what the remote has: moved ones move, deleted ones go.
    fn update(&self, repository: &Repository, address: &Address) -> Result<(), SourceError> {
        // We hold the mirror's lock, so these can only be of a process that was killed.
        remove_stale_files(repository.path());
        let head = self.network.fetch(
            repository,
            address,
            Get::References {
                refspecs: BRANCHES_AND_TAGS,
                prune: true,
            },
        )?;
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
            let get = Get::References {
                refspecs: &[&refspec],
                prune: false,
            };
            match self.network.fetch(&repository, address, get) {
                Ok(_) => found = wanted.find(&repository).map_err(reading())?,
                Err(SourceError::Stopped) => return Err(SourceError::Stopped),
                // Not every server gives a commit by its id.
                Err(_) => {}
            }
            if found.is_none() {
                searched.push("all other references");
                let get = Get::References {
                    refspecs: ALL_REFERENCES,
                    prune: false,
                };
                match self.network.fetch(&repository, address, get) {
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
            match self.lock_in(cache, &name, address) {
                Ok(Some(place)) => return Ok(place),
                Ok(None) if self.stop.is_cancelled() => return Err(SourceError::Stopped),
                Ok(None) => self
                    .console
                    .say("The cache is still in use; fetching without it"),
                // Another user's folder, a disk that takes no locks or is read-only: no reason not to run.
                Err(error) => self.say_unusable(&error),
            }
        }
        self.private(address)
    }

    fn say_unusable(&self, error: &SourceError) {
        self.console.say(format!(
            "The repository cache cannot be used ({error}); fetching without it"
        ));
    }

    /// A place that is this run's alone.
    fn private(&self, address: &Address) -> Result<Place, SourceError> {
        let scratch = &self.scratch;
        fs::create_dir_all(scratch).map_err(SourceError::io("creating", scratch))?;
        Ok(Place {
            parent: scratch.clone(),
            name: mirror_name(address),
            lock: None,
        })
    }

    /// Nothing where the lock was not to be had.
    fn lock_in(
        &self,
        cache: &Path,
        name: &str,
        address: &Address,
    ) -> Result<Option<Place>, SourceError> {
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
        // For who removes what nobody uses.
        let _ = file.set_modified(std::time::SystemTime::now());
        let locked = self
            .wait_for(&file, address)
            .map_err(SourceError::io("locking", &path))?;
        Ok(locked.then(|| Place {
            parent: cache.to_owned(),
            name: name.to_owned(),
            lock: Some(file),
        }))
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
    /// A commit that was fetched by its id.
    fn fetched(repository: Repository, commit: git2::Oid, new: bool) -> Self {
        Self {
            repository,
            commit,
            found_by: None,
            fetched: true,
            new,
        }
    }

    fn held(self, place: Place) -> Mirror {
        Mirror {
            repository: self.repository,
            commit: self.commit,
            found_by: self.found_by,
            fetched: self.fetched,
            new: self.new,
            place: Some(place),
        }
    }
}

impl Mirror {
    /// The work tree has what it needs of the mirror, or has borrowed it: writing files keeps nobody waiting.
    pub(super) fn let_go(&mut self) {
        self.place = None;
    }

    /// The next use makes the mirror anew.
    pub(super) fn discard(self) -> Result<(), SourceError> {
        discard(self.repository.path())
    }
}
