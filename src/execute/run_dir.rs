//! The private folder of one run: environment, code, the job's configuration. Removed at the end;
//! what a killed run left behind is removed by the next one.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::IFlags;

const PREFIX: &str = "run-";
/// A folder this young may not be locked by its maker yet.
const YOUNG: Duration = Duration::from_secs(60);
/// On a folder that machines share, locks of one may not be seen on another. What another machine (or
/// this one before it was started again) made is taken for left only when it is this old.
const OLD: Duration = Duration::from_secs(30 * 24 * 3600);

/// Holds the folder for as long as the run lasts. Dropping it removes the folder.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    /// The folder itself, locked while the run lives, so that others can tell.
    _lock: File,
}

impl RunDir {
    /// Makes a folder under `parent` that only this user can enter.
    pub fn create(parent: &Path, task: &str) -> io::Result<RunDir> {
        fs::create_dir_all(parent)?;
        if let Err(error) = keep_apart(parent) {
            tracing::debug!(%error, "no attribute T");
        }
        // Short: the paths of scripts' interpreters in it have a limit (127 bytes in older kernels).
        let name = format!("{PREFIX}{}-{}-", task.get(..8).unwrap_or(task), machine());
        let path = tempfile::Builder::new()
            .prefix(&name)
            .rand_bytes(6)
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(parent)?
            .keep();
        let lock = File::open(&path)?;
        lock.lock()?;
        Ok(RunDir { path, _lock: lock })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes an empty folder `name` in it.
    pub fn folder(&self, name: &str) -> io::Result<PathBuf> {
        let path = self.path.join(name);
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(path)
    }

    /// Writes `text` to the file `name`, which only this user can read.
    pub fn private_file(&self, name: &str, text: &str) -> io::Result<PathBuf> {
        let path = self.path.join(name);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        file.write_all(text.as_bytes())?;
        Ok(path)
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::debug!(%error, path = %self.path.display(), "the run's folder stays");
        }
    }
}

/// Asks ext4 to lay each folder in `parent` into another part of the disk (`chattr +T`). For minutes it does
/// not take up what became free, and passes over it piece by piece to make the next file: beside the folder of
/// a run that has just ended, the next run's environment takes several times as long.
fn keep_apart(parent: &Path) -> io::Result<()> {
    let folder = File::open(parent)?;
    let flags = rustix::fs::ioctl_getflags(&folder)?;
    if !flags.contains(IFlags::TOPDIR) {
        rustix::fs::ioctl_setflags(&folder, flags | IFlags::TOPDIR)?;
    }
    Ok(())
}

/// Removes the folders of runs that no longer live; gives how many. It can take long: not for the way to
/// the script's first line.
pub fn remove_leftovers(parent: &Path) -> u64 {
    // Not through a link: a container could have made one that leads elsewhere.
    if !fs::symlink_metadata(parent).is_ok_and(|found| found.is_dir()) {
        return 0;
    }
    let Ok(entries) = fs::read_dir(parent) else {
        return 0;
    };
    let mut removed = 0;
    let here = format!("-{}-", machine());
    for entry in entries.flatten() {
        let path = entry.path();
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let age = if name.contains(&here) { YOUNG } else { OLD };
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if !name.starts_with(PREFIX) || !is_folder || !is_older(&path, age) {
            continue;
        }
        let Ok(lock) = File::open(&path) else {
            continue;
        };
        if lock.try_lock().is_ok() {
            tracing::debug!(path = %path.display(), "removing what a killed run left");
            removed += u64::from(fs::remove_dir_all(&path).is_ok());
        }
    }
    removed
}

fn is_older(path: &Path, than: Duration) -> bool {
    let changed = fs::metadata(path).and_then(|metadata| metadata.modified());
    changed.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > than))
}

/// Short for this machine since it was started; the same in its containers.
fn machine() -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    boot.chars().take(6).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nobody_holds_is_removed() {
        let parent = tempfile::tempdir().unwrap();
        let alive = RunDir::create(parent.path(), "t1").unwrap();
        let config = alive.private_file("clearml.conf", "{}").unwrap();
        let here = |task: &str| format!("run-{task}-{}-abc", machine());
        let names = [
            here("t0"),
            here("t2"),
            "3.11".into(),
            "run-t3-other-abc".into(),
            "run-t4-other-abc".into(),
        ];
        let [dead, young, foreign, elsewhere, ancient] = names.map(|name| {
            let path = parent.path().join(name);
            fs::create_dir_all(path.join("venv")).unwrap();
            path
        });
        let ago = |age| std::time::SystemTime::now() - age;
        for (folder, age) in [
            (alive.path(), 2 * YOUNG),
            (&dead, 2 * YOUNG),
            (&foreign, 2 * OLD),
            (&elsewhere, OLD / 2),
            (&ancient, 2 * OLD),
        ] {
            File::open(folder).unwrap().set_modified(ago(age)).unwrap();
        }

        assert_eq!(remove_leftovers(parent.path()), 2);
        assert!(config.exists() && foreign.exists() && young.exists() && !dead.exists());
        // Its agent may live, on another machine.
        assert!(elsewhere.exists() && !ancient.exists());

        // What a container put in the folder's place.
        let link = parent.path().join("link");
        let target = tempfile::tempdir().unwrap();
        let there = target.path().join(here("t5"));
        fs::create_dir(&there).unwrap();
        File::open(&there)
            .unwrap()
            .set_modified(ago(2 * OLD))
            .unwrap();
        std::os::unix::fs::symlink(target.path(), &link).unwrap();
        assert_eq!(remove_leftovers(&link), 0);
        assert!(there.exists());

        let path = alive.path().to_owned();
        drop(alive);
        assert!(!path.exists());
    }

    #[test]
    fn runs_lie_apart_on_the_disk_where_it_can_be_asked_for() {
        let parent = tempfile::tempdir().unwrap();
        let probe = tempfile::tempdir().unwrap();
        let can_be = keep_apart(probe.path()).is_ok();
        drop(RunDir::create(parent.path(), "t1").unwrap());
        let flags = rustix::fs::ioctl_getflags(File::open(parent.path()).unwrap());
        assert_eq!(flags.is_ok_and(|f| f.contains(IFlags::TOPDIR)), can_be);
    }
}
