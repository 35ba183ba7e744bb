//! The run's folder on this machine, of which parts are the container's: what is handed over, its home, its
//! `/tmp`, and the places where other folders are mounted in these.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use super::arguments::Bind;
use crate::container::archive::{Content, Item};

/// Writes `items` below `folder`. They are the caller's, who is the container's user.
pub fn place(folder: &Path, items: Vec<Item>) -> io::Result<()> {
    for item in items {
        let path = folder.join(&item.path);
        if let Some(parent) = path.parent() {
            private(parent)?;
        }
        let create = || {
            OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(item.mode)
                .open(&path)
        };
        match item.content {
            Content::Folder => private(&path)?,
            Content::Text(text) => create()?.write_all(text.as_bytes())?,
            Content::File(from) => {
                io::copy(&mut File::open(from)?, &mut create()?)?;
            }
        }
    }
    Ok(())
}

/// The folder, and those above it that are not there, for the caller alone.
pub fn private(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// A new folder with a mode that the umask has no say in.
pub fn with_mode(folder: &Path, mode: u32) -> io::Result<()> {
    fs::create_dir(folder)?;
    fs::set_permissions(folder, fs::Permissions::from_mode(mode))
}

/// Where a bind's target lies in a folder of this run that is `inside` in the container, the place is made:
/// Apptainer makes none in a folder of this machine.
pub fn mount_point(folder: &Path, inside: &str, bind: &Bind) -> io::Result<()> {
    let below = Path::new(&bind.target).strip_prefix(inside);
    let Some(below) = below.ok().filter(|below| !below.as_os_str().is_empty()) else {
        return Ok(());
    };
    let place = folder.join(below);
    if Path::new(&bind.source).is_dir() {
        return private(&place);
    }
    if let Some(parent) = place.parent() {
        private(parent)?;
    }
    File::create(place).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_handed_over_is_the_callers_alone() {
        let dir = tempfile::tempdir().unwrap();
        let item = |path: &str, mode, content| Item {
            path: path.into(),
            mode,
            uid: 0,
            gid: 0,
            content,
        };
        place(
            dir.path(),
            vec![
                item("private", 0o700, Content::Folder),
                item("private/secret", 0o600, Content::Text("x".into())),
                item("a/b/tool", 0o755, Content::File("/proc/self/exe".into())),
            ],
        )
        .unwrap();
        let mode = |path: &str| {
            fs::metadata(dir.path().join(path))
                .unwrap()
                .permissions()
                .mode()
                & 0o777
        };
        assert_eq!(mode("private"), 0o700);
        assert_eq!(mode("private/secret"), 0o600);
        assert_eq!(mode("a/b/tool") & 0o700, 0o700);
    }

    #[test]
    fn places_for_mounts_are_made_where_apptainer_makes_none() {
        let dir = tempfile::tempdir().unwrap();
        let bind = |source: &str, target: &str| Bind {
            source: source.into(),
            target: target.into(),
            read_only: false,
            make: false,
        };
        for (source, target) in [
            ("/usr", "/home/ada/.cache/pip"),
            ("/proc/self/exe", "/home/ada/bin/x"),
            ("/usr", "/data"),
        ] {
            mount_point(dir.path(), "/home/ada", &bind(source, target)).unwrap();
        }
        assert!(dir.path().join(".cache/pip").is_dir());
        assert!(dir.path().join("bin/x").is_file());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
