//! A checkout that was put on the machine beforehand, as the Python agent's `build` does, for
//! `--standalone-mode`: found below `agent.venvs_dir` and copied, so that it can be used again.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::error::SourceError;
use crate::console::Console;

const FOLDER: &str = "task_repository";

/// `VENVS_DIR/task_repository/NAME`, or `VENVS_DIR/3.11/task_repository/NAME` of the newest Python.
pub(super) fn find(venvs_dir: &Path, name: &str) -> Option<PathBuf> {
    let checkout =
        |folder: &Path| Some(folder.join(FOLDER).join(name)).filter(|path| path.is_dir());
    if let Some(found) = checkout(venvs_dir) {
        return Some(found);
    }
    let mut versions: Vec<(Vec<u32>, PathBuf)> = fs::read_dir(venvs_dir)
        .ok()?
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let numbers: Option<Vec<u32>> = name.split('.').map(|n| n.parse().ok()).collect();
            Some((numbers?, entry.path()))
        })
        .collect();
    versions.sort();
    versions
        .iter()
        .rev()
        .find_map(|(_, folder)| checkout(folder))
}

/// Copies it to `root`. Gives its commit, if it is a repository.
pub(super) fn copy(
    checkout: &Path,
    root: &Path,
    console: &Console,
) -> Result<Option<String>, SourceError> {
    copy_folder(checkout, root).map_err(SourceError::io("copying", checkout))?;
    let head = git2::Repository::open(root)
        .and_then(|repository| Ok(repository.head()?.peel_to_commit()?.id().to_string()))
        .ok();
    console.say(format!(
        "Repository as it stands in {}{}",
        checkout.display(),
        head.as_ref()
            .map(|id| format!(", at {id}"))
            .unwrap_or_default()
    ));
    Ok(head)
}

fn copy_folder(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (kind, target) = (entry.file_type()?, to.join(entry.file_name()));
        if kind.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(entry.path())?, target)?;
        } else if kind.is_file() {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_staged_checkout_is_found() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(find(dir.path(), "r.git"), None);
        for folder in ["3.9", "3.11", "run-x"] {
            fs::create_dir_all(dir.path().join(folder).join("task_repository/r.git")).unwrap();
            let newest = find(dir.path(), "r.git").unwrap();
            assert!(newest.starts_with(dir.path().join("3.11")) || folder == "3.9");
        }
        let plain = dir.path().join("task_repository/r.git");
        fs::create_dir_all(&plain).unwrap();
        assert_eq!(find(dir.path(), "r.git"), Some(plain));
        assert_eq!(find(dir.path(), "other"), None);
    }
}
