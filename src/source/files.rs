//! The files of a checkout: read as values, and changed all together or not at all.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::apply::ApplyError;
use super::patch::Mode;
use super::paths::is_behind_link;

#[derive(Debug, Clone, PartialEq)]
pub(super) struct FileState {
    pub(super) content: Vec<u8>,
    pub(super) mode: Mode,
}

impl FileState {
    /// Not a link, whose content is never converted.
    pub(super) fn is_file(&self) -> bool {
        matches!(self.mode, Mode::File | Mode::Executable)
    }
}

/// New state of each path; `None` where it goes.
pub(super) type Outcome = BTreeMap<String, Option<FileState>>;

pub(super) fn read(root: &Path, path: &str) -> Result<Option<FileState>, ApplyError> {
    let full = root.join(path);
    let failed = |source| ApplyError::Io {
        file: path.to_owned(),
        source,
    };
    let meta = match fs::symlink_metadata(&full) {
        Ok(meta) => meta,
        Err(error) if is_absent(&error) => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    if meta.is_symlink() {
        let target = fs::read_link(&full).map_err(failed)?;
        let content = target.into_os_string().into_vec();
        return Ok(Some(FileState {
            content,
            mode: Mode::Symlink,
        }));
    }
    if !meta.is_file() {
        return Ok(None);
    }
    let content = fs::read(&full).map_err(failed)?;
    let executable = meta.permissions().mode() & 0o100 != 0;
    let mode = if executable {
        Mode::Executable
    } else {
        Mode::File
    };
    Ok(Some(FileState { content, mode }))
}

pub(super) fn exists(root: &Path, path: &str) -> Result<bool, ApplyError> {
    // A folder in the way is one that only holds what the patch removes, or `can_be_written` says so;
    // what lies behind a link is none of the checkout's.
    Ok(!is_behind_link(root, path) && read(root, path)?.is_some())
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

/// Makes the checkout what `outcome` says. All content is written beside the files first, so that a
/// full disk changes nothing; then files only change names, and if that fails the changes that were
/// made are taken back.
pub(super) fn write(root: &Path, outcome: &Outcome) -> Result<(), ApplyError> {
    let failed = |path: &str| {
        let file = path.to_owned();
        move |source| ApplyError::Io { file, source }
    };
    // In git's folder nobody sees it, whatever comes; it is on the same disk.
    let git = root.join(".git");
    let place = if git.is_dir() { git.as_path() } else { root };
    let stage = tempfile::Builder::new()
        .prefix(".changes.")
        .tempdir_in(place)
        .map_err(failed("the checkout"))?;
    for (number, (path, state)) in outcome.iter().enumerate() {
        if let Some(state) = state {
            let earlier = fs::symlink_metadata(root.join(path)).ok();
            stage_file(
                &stage.path().join(format!("new.{number}")),
                state,
                earlier.as_ref(),
            )
            .map_err(failed(path))?;
        }
    }
    let mut moves = Moves { root, done: vec![] };
    // What goes makes room for folders, and folders that become empty for files.
    for (number, path) in outcome.keys().enumerate() {
        let full = root.join(path);
        let earlier = stage.path().join(format!("old.{number}"));
        let there = fs::symlink_metadata(&full).is_ok_and(|meta| !meta.is_dir());
        if there && let Err(error) = moves.rename(&full, &earlier) {
            moves.take_back();
            return Err(failed(path)(error));
        }
        if outcome.get(path).is_some_and(Option::is_none) {
            remove_empty_parents(root, &full);
        }
    }
    for (number, (path, state)) in outcome.iter().enumerate() {
        let new = stage.path().join(format!("new.{number}"));
        if state.is_some()
            && let Err(error) = moves.rename(&new, &root.join(path))
        {
            moves.take_back();
            return Err(failed(path)(error));
        }
    }
    Ok(())
}

/// Renames that were made, to be unmade.
struct Moves<'r> {
    root: &'r Path,
    done: Vec<(PathBuf, PathBuf)>,
}

impl Moves<'_> {
    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::rename(from, to)?;
        self.done.push((from.to_owned(), to.to_owned()));
        Ok(())
    }

    /// Best effort: what fails here has no other remedy.
    fn take_back(&mut self) {
        for (from, to) in std::mem::take(&mut self.done).into_iter().rev() {
            if let Some(parent) = from.parent() {
                let _ = fs::create_dir_all(parent);
            }
            let _ = fs::rename(&to, from);
            remove_empty_parents(self.root, &to);
        }
    }
}

fn remove_empty_parents(root: &Path, full: &Path) {
    let mut folder = full.parent();
    while let Some(empty) = folder.filter(|folder| *folder != root && folder.starts_with(root)) {
        if fs::remove_dir(empty).is_err() {
            break;
        }
        folder = empty.parent();
    }
}

/// Writes a file's coming state; `earlier` is the file that it replaces.
fn stage_file(full: &Path, state: &FileState, earlier: Option<&fs::Metadata>) -> io::Result<()> {
    if state.mode == Mode::Symlink {
        return symlink(OsStr::from_bytes(&state.content), full);
    }
    fs::write(full, &state.content)?;
    let fresh = fs::metadata(full)?.permissions().mode();
    let permissions = match earlier.filter(|meta| meta.is_file()) {
        Some(meta) => meta.permissions().mode(),
        None => fresh,
    };
    let wanted = match state.mode {
        // Whoever may read may run, as git sets it.
        Mode::Executable => permissions | ((permissions & 0o444) >> 2),
        _ => permissions & !0o111,
    };
    match wanted == fresh {
        true => Ok(()),
        false => fs::set_permissions(full, fs::Permissions::from_mode(wanted)),
    }
}
