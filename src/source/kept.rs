//! What is in a cache of repositories, for who looks after it: its mirrors, whether they are whole, and the
//! removal of those that nobody has used for long. Another's mirrors are not trusted: a container may have
//! written there.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::mirror_folder::{OUT_OF_USE, is_borrowed, packs_are_whole};

/// One mirror.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptMirror {
    /// `<repository>.<hash of its address>`
    pub name: String,
    folder: PathBuf,
    lock: PathBuf,
    pub bytes: u64,
    pub last_used: SystemTime,
    /// A newer one has taken its place, and work trees may still have its objects.
    pub is_out_of_use: bool,
}

/// The mirrors in `cache`, the last used first.
pub fn mirrors(cache: &Path) -> Vec<KeptMirror> {
    if !is_folder(cache) {
        return Vec::new();
    }
    let entries = fs::read_dir(cache).into_iter().flatten().flatten();
    let mut found: Vec<KeptMirror> = entries
        .filter_map(|entry| {
            let file_name = entry.file_name().into_string().ok()?;
            let name = file_name.strip_suffix(".git")?;
            let folder = entry.path();
            if name.starts_with('.') || !is_folder(&folder) {
                return None;
            }
            // A mirror that was made anew has a number; all of an address share one lock.
            let address = match name.rsplit_once('.') {
                Some((address, number))
                    if address.contains('.') && number.parse::<u64>().is_ok() =>
                {
                    address
                }
                _ => name,
            };
            let lock = cache.join(format!("{address}.lock"));
            let is_out_of_use = folder.join(OUT_OF_USE).exists();
            let used = match is_out_of_use {
                true => entry.metadata(),
                false => fs::symlink_metadata(&lock).or_else(|_| entry.metadata()),
            };
            Some(KeptMirror {
                name: name.to_owned(),
                bytes: size(&folder),
                last_used: used.and_then(|found| found.modified()).ok()?,
                is_out_of_use,
                lock,
                folder,
            })
        })
        .collect();
    found.sort_by_key(|mirror| std::cmp::Reverse(mirror.last_used));
    found
}

impl KeptMirror {
    /// What is wrong with it; nothing, if nothing is.
    pub fn damage(&self) -> Option<String> {
        if self.is_out_of_use {
            return None;
        }
        match packs_are_whole(&self.folder) {
            Ok(true) => None,
            Ok(false) => Some("a pack of objects is not as its index says".to_owned()),
            Err(error) => Some(error.to_string()),
        }
    }

    /// Removes it, unless a run uses it just now: the next one fetches it anew.
    pub fn remove(&self) -> io::Result<bool> {
        let lock = match fs::symlink_metadata(&self.lock) {
            Ok(found) if found.is_file() => Some(File::options().write(true).open(&self.lock)?),
            _ => None,
        };
        if let Some(lock) = &lock
            && matches!(lock.try_lock(), Err(TryLockError::WouldBlock))
        {
            return Ok(false);
        }
        if is_borrowed(&self.folder) {
            return Ok(false);
        }
        match fs::remove_dir_all(&self.folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(true),
        }
    }
}

fn is_folder(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_dir())
}

/// Bytes of the files below; links are not followed.
fn size(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let sizes = entries.filter_map(|entry| {
        let found = entry.metadata().ok()?;
        Some(match found.is_dir() {
            true => size(&entry.path()),
            false => found.len(),
        })
    });
    sizes.sum()
}

#[cfg(test)]
mod tests {
    use super::super::mirror_folder::borrow;
    use super::*;
    use std::time::Duration;

    #[test]
    fn mirrors_are_listed_checked_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let hash = "0123456789abcdef0123456789abcdef";
        let (code, anew) = (format!("code.{hash}"), format!("code.{hash}.1"));
        for name in [&code, &anew, &".code.unfinished".to_owned()] {
            fs::create_dir_all(at(&format!("{name}.git/objects/pack"))).unwrap();
        }
        std::os::unix::fs::symlink("/", at("link.git")).unwrap();
        let lock = File::create(at(&format!("{code}.lock"))).unwrap();
        let used = SystemTime::now() - Duration::from_secs(3600);
        lock.set_modified(used).unwrap();
        let packs = at(&format!("{code}.git/objects/pack"));
        let checksum = [7; 20];
        fs::write(packs.join("p.pack"), checksum).unwrap();
        fs::write(packs.join("p.idx"), [checksum, checksum].concat()).unwrap();

        let mut found = mirrors(dir.path());
        found.sort_by(|one, other| one.name.cmp(&other.name));
        let [one, other] = &found[..] else {
            panic!("{found:?}")
        };
        assert_eq!((&one.name, &other.name), (&code, &anew));
        assert_eq!((one.bytes, one.last_used), (60, used));
        assert_eq!(other.last_used, used);
        assert_eq!(one.damage(), None);
        fs::write(packs.join("p.pack"), [0; 20]).unwrap();
        assert!(one.damage().is_some());

        fs::write(at(&format!("{anew}.git/{OUT_OF_USE}")), "").unwrap();
        let old = mirrors(dir.path()).into_iter().find(|m| m.is_out_of_use);
        let old = old.unwrap();
        assert_eq!(old.name, anew);
        // Of its address another is in use.
        assert!(old.last_used > used);

        lock.lock().unwrap();
        assert!(!one.remove().unwrap());
        lock.unlock().unwrap();
        let borrowed = [(); 2].map(|()| borrow(&at(&format!("{code}.git"))).unwrap());
        for held in borrowed {
            assert!(!one.remove().unwrap());
            drop(held);
        }
        assert!(one.remove().unwrap());
        assert!(mirrors(dir.path()).len() == 1 && mirrors(&at("link.git")).is_empty());
    }
}
