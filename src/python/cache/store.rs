//! The folder of kept environments: what is in it, who may build, what is removed.
//!
//! ```text
//! KEY/manifest.json   what it is; its time is that of the last use
//! KEY/files           the list of its files
//! KEY/env             the environment
//! KEY/lock            held shared by who copies, exclusively by who removes
//! requests/KEY.json   which environment a list of packages led to
//! KEY.lock            held by the run that builds for that list
//! .build-KEY-…        what it builds
//! ```
//!
//! Locks are advisory (`flock`), which shared folders have, and end with their holder. An environment
//! comes into its place by a rename: a half-built one is never seen.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::key::Parts;
use super::limits::{Used, beyond};
use super::settings::CacheSettings;
use super::tree::{Tree, remove, write_whole};
use crate::console::Console;

/// The Python agent keeps its own in the same folder; what starts so it neither counts nor removes.
const FOLDER: &str = "_temp.environments";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    pub key: String,
    /// Seconds since 1970.
    pub made: u64,
    /// `3.11.7`
    pub python: String,
    pub interpreter: PathBuf,
    /// `uv 0.9.9`, `pip`
    pub installer: String,
    pub packages: Vec<String>,
    pub files: u64,
    pub bytes: u64,
    /// Where it was when its scripts were written.
    pub prefix: PathBuf,
    /// The files that name that place.
    pub with_prefix: Vec<String>,
    /// Its modules are compiled to byte code.
    pub compiled: bool,
    /// Packages that could not be installed, and whose failure is tolerated.
    #[serde(default)]
    pub lacking: Vec<String>,
}

/// Which environment a list led to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    pub environment: String,
    /// Seconds since 1970.
    pub resolved: u64,
    /// The list names the version of every package: it can lead nowhere else.
    pub closed: bool,
    /// What it lacks may be had now: the next run tries again.
    #[serde(default)]
    pub again: bool,
    /// It was built without the right index for PyTorch, which was away: when that is asked again,
    /// in seconds since 1970.
    #[serde(default)]
    pub torch_again: Option<u64>,
    pub parts: Parts,
}

#[derive(Debug, Clone)]
pub struct Store {
    pub settings: CacheSettings,
    root: PathBuf,
}

/// One kept environment.
#[derive(Debug, Clone)]
pub struct Entry {
    pub folder: PathBuf,
    pub manifest: Manifest,
    pub last_used: SystemTime,
}

impl Entry {
    pub fn environment(&self) -> PathBuf {
        self.folder.join("env")
    }

    pub fn files(&self) -> io::Result<Tree> {
        let path = self.folder.join("files");
        if !fs::symlink_metadata(&path)?.is_file() {
            return Err(io::Error::other("its list of files is none"));
        }
        let text = fs::read_to_string(path)?;
        Tree::parse(&text).ok_or_else(|| io::Error::other("its list of files is damaged"))
    }

    /// Nobody removes it while this is held.
    pub fn hold(&self) -> io::Result<File> {
        let lock = File::open(self.folder.join("lock"))?;
        match lock.lock_shared() {
            // It is used all the same; at worst it is removed meanwhile, which the copying notices.
            Err(error) if !has_locks(&error) => {}
            locked => locked?,
        }
        // It may have gone before the lock was got.
        fs::metadata(self.folder.join("manifest.json"))?;
        Ok(lock)
    }

    pub fn touch(&self) {
        // Only the order of removal rests on it.
        let manifest = File::options()
            .append(true)
            .open(self.folder.join("manifest.json"));
        let _ = manifest.and_then(|file| file.set_modified(SystemTime::now()));
    }
}

/// The right to build for one list, and the folder to do it in.
#[derive(Debug)]
pub struct Ticket {
    pub folder: PathBuf,
    _lock: Option<File>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        // Before the lock goes: the next builder starts with nothing.
        let _ = remove(&self.folder);
    }
}

/// What came of waiting for the right to build.
pub enum Turn<T> {
    Build(Ticket),
    /// By another run, meanwhile.
    Built(T),
    /// `lock_timeout` is over.
    TooLong,
    Stopped,
}

pub fn now() -> u64 {
    SystemTime::UNIX_EPOCH
        .elapsed()
        .map_or(0, |since| since.as_secs())
}

/// Until the next look, after so long a wait: what takes long is looked at seldom, as the folder may be on
/// another machine.
fn poll(waited: Duration) -> Duration {
    (waited / 20).clamp(Duration::from_millis(5), Duration::from_millis(250))
}

/// A longer wait is worth a word.
const SILENCE: Duration = Duration::from_secs(1);

impl Store {
    /// Makes the folder if need be.
    pub fn open(settings: &CacheSettings) -> io::Result<Store> {
        let store = Store::look(settings);
        fs::create_dir_all(store.root.join("requests"))?;
        Ok(store)
    }

    /// Without making anything.
    pub fn look(settings: &CacheSettings) -> Store {
        Store {
            root: settings.path.join(FOLDER),
            settings: settings.clone(),
        }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whether there is a folder, and no link that leads elsewhere.
    pub fn exists(&self) -> bool {
        let requests = self.root.join("requests");
        [self.settings.path.as_path(), &self.root, &requests]
            .into_iter()
            .all(is_folder)
    }

    /// All that is kept, the last used first.
    pub fn entries(&self) -> Vec<Entry> {
        let Ok(folder) = fs::read_dir(&self.root) else {
            return Vec::new();
        };
        let names = folder
            .flatten()
            .filter_map(|e| e.file_name().into_string().ok());
        let mut entries: Vec<Entry> = names.filter_map(|name| self.entry(&name)).collect();
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.last_used));
        entries
    }

    pub fn entry(&self, key: &str) -> Option<Entry> {
        if key.starts_with('.') {
            return None;
        }
        let folder = self.root.join(key);
        let path = folder.join("manifest.json");
        // A container may have written there: what it says leads nowhere else.
        let is_plain = |name: &str| {
            let found = fs::symlink_metadata(folder.join(name));
            found.is_ok_and(|found| found.is_file())
        };
        if !is_folder(&folder) || !["manifest.json", "lock"].into_iter().all(is_plain) {
            return None;
        }
        let manifest: Manifest = serde_json::from_slice(&fs::read(&path).ok()?).ok()?;
        (manifest.key == key).then_some(())?;
        Some(Entry {
            manifest,
            last_used: fs::metadata(&path).ok()?.modified().ok()?,
            folder,
        })
    }

    fn request_path(&self, key: &str) -> PathBuf {
        self.root.join("requests").join(format!("{key}.json"))
    }

    pub fn request(&self, key: &str) -> Option<Request> {
        let text = fs::read(self.request_path(key)).ok()?;
        serde_json::from_slice(&text).ok()
    }

    pub fn set_request(&self, key: &str, request: &Request) -> io::Result<()> {
        let text = serde_json::to_string(request).map_err(io::Error::other)?;
        write_whole(&self.request_path(key), &text)
    }

    /// The parts of all lists whose environment is still there.
    pub fn known_parts(&self) -> Vec<Parts> {
        let Ok(folder) = fs::read_dir(self.root.join("requests")) else {
            return Vec::new();
        };
        folder
            .flatten()
            .filter_map(|e| fs::read(e.path()).ok())
            .filter_map(|text| serde_json::from_slice::<Request>(&text).ok())
            .filter(|request| self.root.join(&request.environment).exists())
            .map(|request| request.parts)
            .collect()
    }

    /// Waits for the right to build for `key`, or until another has built what is `wanted`: all that wait
    /// have it then, without a turn each.
    pub async fn turn<T>(
        &self,
        key: &str,
        wanted: impl Fn() -> Option<T>,
        console: &Console,
        stop: &CancellationToken,
    ) -> io::Result<Turn<T>> {
        let path = self.root.join(format!("{key}.lock"));
        let open = || {
            File::options()
                .create(true)
                .truncate(false)
                .read(true)
                .write(true)
                .open(&path)
        };
        let mut file = open()?;
        let started = Instant::now();
        let mut said = false;
        let lock = loop {
            match file.try_lock() {
                // Nobody else's any more, unless it was tidied away meanwhile.
                Ok(()) if is_at(&file, &path) => break Some(file),
                Ok(()) => {
                    file = open()?;
                    continue;
                }
                Err(TryLockError::WouldBlock) => {}
                // A folder without locks: the rename still lets no one see half an environment.
                Err(TryLockError::Error(error)) if !has_locks(&error) => break None,
                Err(TryLockError::Error(error)) => return Err(error),
            }
            if let Some(built) = wanted() {
                return Ok(Turn::Built(built));
            }
            if self
                .settings
                .lock_timeout
                .is_some_and(|most| started.elapsed() > most)
            {
                return Ok(Turn::TooLong);
            }
            if !said && started.elapsed() > SILENCE {
                let holder = fs::read_to_string(&path).unwrap_or_default();
                console.say(format!(
                    "Waiting for another run, which builds the same environment ({})",
                    holder.trim()
                ));
                said = true;
            }
            tokio::select! {
                () = tokio::time::sleep(poll(started.elapsed())) => {}
                () = stop.cancelled() => return Ok(Turn::Stopped),
            }
        };
        if let Some(mut file) = lock.as_ref() {
            // For who waits; that nothing rests on.
            let name = rustix::system::uname()
                .nodename()
                .to_string_lossy()
                .into_owned();
            let _ = file.set_len(0);
            let _ = writeln!(file, "process {} on {name}", std::process::id());
            self.sweep_builds(key);
        }
        // Between the look and the lock.
        if let Some(built) = wanted() {
            return Ok(Turn::Built(built));
        }
        let folder = tempfile::Builder::new()
            .prefix(&format!(".build-{key}-"))
            .tempdir_in(&self.root)?
            .keep();
        Ok(Turn::Build(Ticket {
            folder,
            _lock: lock,
        }))
    }

    /// What killed builders of this list left. Only with its lock.
    fn sweep_builds(&self, key: &str) {
        let prefix = format!(".build-{key}-");
        let Ok(entries) = fs::read_dir(&self.root) else {
            return;
        };
        for entry in entries.flatten() {
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                let _ = remove(&entry.path());
            }
        }
    }

    /// Puts what was built, with its manifest and list of files, in its place.
    pub fn publish(&self, ticket: &Ticket, manifest: &Manifest, tree: &Tree) -> io::Result<Entry> {
        let text = serde_json::to_string_pretty(manifest).map_err(io::Error::other)?;
        fs::write(ticket.folder.join("files"), tree.text())?;
        File::create(ticket.folder.join("lock"))?;
        fs::write(ticket.folder.join("manifest.json"), text)?;
        let place = self.root.join(&manifest.key);
        match fs::rename(&ticket.folder, &place) {
            // Another list led to the same packages.
            Err(_) if self.entry(&manifest.key).is_some() => {}
            Err(_) if place.exists() => {
                // What is there is no environment.
                remove(&place)?;
                fs::rename(&ticket.folder, &place)?;
            }
            done => done?,
        }
        self.entry(&manifest.key)
            .ok_or_else(|| io::Error::other("it was removed at once"))
    }

    /// Writes down that the modules are compiled; the list of files has their code from now on.
    pub fn set_compiled(&self, entry: &Entry) -> io::Result<()> {
        let known = self.entry(&entry.manifest.key);
        let Some(known) = known.filter(|known| known.manifest == entry.manifest) else {
            // It was removed, and perhaps built anew.
            return Ok(());
        };
        if let Some(file) = entry.files()?.changed_files(&entry.environment()).first() {
            // Somebody is removing it by hand, or has written into it: the old list shows that.
            return Err(io::Error::other(format!("{file} is not as it was kept")));
        }
        let tree = Tree::scan(&entry.environment())?;
        write_whole(&entry.folder.join("files"), &tree.text())?;
        let (files, bytes) = tree.extent();
        let manifest = Manifest {
            compiled: true,
            files,
            bytes,
            ..entry.manifest.clone()
        };
        let text = serde_json::to_string_pretty(&manifest).map_err(io::Error::other)?;
        let path = entry.folder.join("manifest.json");
        write_whole(&path, &text)?;
        File::options()
            .append(true)
            .open(path)?
            .set_modified(known.last_used)
    }

    /// Removes a damaged environment. A run that copies it just now finds that out.
    pub fn give_up(&self, key: &str) -> io::Result<()> {
        self.take_away(&self.root.join(key)).map(|_| ())
    }

    /// Removes an environment, unless a run copies it just now.
    pub fn remove(&self, key: &str) -> io::Result<bool> {
        let place = self.root.join(key);
        let lock = match File::open(place.join("lock")) {
            Ok(lock) => Some(lock),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        if let Some(lock) = &lock
            && matches!(lock.try_lock(), Err(TryLockError::WouldBlock))
        {
            return Ok(false);
        }
        self.take_away(&place)
    }

    fn take_away(&self, place: &Path) -> io::Result<bool> {
        let gone = tempfile::Builder::new()
            .prefix(".gone-")
            .tempdir_in(&self.root)?;
        match fs::rename(place, gone.path().join("entry")) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes what is beyond the limits, and more where the disk is full. The error says why there
    /// is no room for `coming` more.
    pub fn make_room(&self, coming: usize) -> Result<Vec<String>, String> {
        let mut used: Vec<Used> = self
            .entries()
            .into_iter()
            .map(|entry| Used {
                key: entry.manifest.key,
                last: entry.last_used,
                size: entry.manifest.bytes,
            })
            .collect();
        used.sort_by_key(|entry| entry.last);
        let mut gone = Vec::new();
        for key in beyond(&used, &self.settings, coming) {
            if self.remove(&key).unwrap_or(false) {
                gone.push(key);
            }
        }
        for entry in &used {
            if self.has_free_space() {
                break;
            }
            if !gone.contains(&entry.key) && self.remove(&entry.key).unwrap_or(false) {
                gone.push(entry.key.clone());
            }
        }
        match self.has_free_space() {
            true => Ok(gone),
            false => Err(format!(
                "{} has {:.1} GB free, less than agent.venvs_cache.free_space_threshold_gb ({:.1})",
                self.root.display(),
                gigabytes(free_space(&self.root)),
                gigabytes(self.settings.free_space)
            )),
        }
    }

    fn has_free_space(&self) -> bool {
        self.settings.free_space == 0 || free_space(&self.root) >= self.settings.free_space
    }

    /// What killed runs left, and requests that lead nowhere. Gives how many things went.
    pub fn sweep(&self) -> io::Result<usize> {
        let mut count = 0;
        for entry in fs::read_dir(&self.root)?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(".gone-") || name.starts_with(".new-") {
                count += usize::from(is_old(&entry.path()) && discard(&entry.path()));
            } else if let Some(key) = name
                .strip_prefix(".build-")
                .and_then(|n| n.split('-').next())
            {
                let lock = open_lock(&self.root.join(format!("{key}.lock")));
                let free = lock.is_ok_and(|lock| lock.try_lock().is_ok());
                count += usize::from(free && discard(&entry.path()));
            } else if let Some(key) = name.strip_suffix(".lock") {
                // A lock file that somebody may be waiting at stays.
                let free = || {
                    let lock = open_lock(&entry.path());
                    lock.is_ok_and(|lock| {
                        lock.try_lock().is_ok() && fs::remove_file(entry.path()).is_ok()
                    })
                };
                let used = self.request(key).is_some() || !is_old(&entry.path());
                count += usize::from(!used && free());
            }
        }
        for entry in fs::read_dir(self.root.join("requests"))?.flatten() {
            let text = match entry.file_type() {
                Ok(kind) if kind.is_file() => fs::read(entry.path()).unwrap_or_default(),
                _ => Vec::new(),
            };
            let leads = serde_json::from_slice::<Request>(&text)
                .is_ok_and(|request| self.root.join(request.environment).exists());
            count += usize::from(!leads && is_old(&entry.path()) && discard(&entry.path()));
        }
        Ok(count)
    }
}

/// Whether the disk has locks at all, of one that could not be had there: NFS without `lockd` and
/// some FUSE have none.
fn has_locks(error: &io::Error) -> bool {
    error.kind() != io::ErrorKind::Unsupported
        && error.raw_os_error() != Some(rustix::io::Errno::NOLCK.raw_os_error())
}

/// A pipe in its place would never be opened.
fn open_lock(path: &Path) -> io::Result<File> {
    match fs::symlink_metadata(path)?.is_file() {
        true => File::options().write(true).open(path),
        false => Err(io::Error::other("no plain file")),
    }
}

fn is_folder(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_dir())
}

fn discard(path: &Path) -> bool {
    match is_folder(path) {
        true => remove(path).is_ok(),
        false => fs::remove_file(path).is_ok(),
    }
}

/// Something younger may be another process's work of this moment.
const YOUNG: Duration = Duration::from_secs(600);

fn is_old(path: &Path) -> bool {
    let changed = fs::symlink_metadata(path).and_then(|meta| meta.modified());
    changed.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > YOUNG))
}

#[allow(clippy::cast_precision_loss, reason = "for people")]
pub fn gigabytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

/// Bytes that this user may still write there; all of them where that can't be told.
fn free_space(path: &Path) -> u64 {
    rustix::fs::statvfs(path).map_or(u64::MAX, |disk| disk.f_bavail.saturating_mul(disk.f_frsize))
}
/// Whether `file` is what is found at `path`.
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let here = file.metadata().map(|found| (found.dev(), found.ino()));
    let there = fs::metadata(path).map(|found| (found.dev(), found.ino()));
    matches!((here, there), (Ok(here), Ok(there)) if here == there)
}
