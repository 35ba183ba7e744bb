//! Which paths uncommitted changes may write: none outside of the checkout, none of git's own, none
//! that no file system takes.

use std::fs;
use std::path::{Component, Path, PathBuf};

use super::apply::ApplyError;
use super::files::{FileState, Outcome};
use super::patch::Mode;

/// Refuses paths that leave the checkout or reach into git's own folder.
pub(super) fn check_path(path: &str) -> Result<(), ApplyError> {
    let refuse = |problem| {
        Err(ApplyError::Path {
            file: path.to_owned(),
            problem,
        })
    };
    if path.is_empty() || path.ends_with('/') || path.contains('\0') {
        return refuse("not the name of a file");
    }
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) if name.eq_ignore_ascii_case(".git") => {
                return refuse("git's own files are not to be changed");
            }
            Component::Normal(_) | Component::CurDir => {}
            _ => return refuse("outside of the repository"),
        }
    }
    Ok(())
}

/// Refuses paths behind a symbolic link, on disk or made by this very patch: they could lead out
/// of the checkout.
pub(super) fn check_parents(root: &Path, path: &str, outcome: &Outcome) -> Result<(), ApplyError> {
    let mut parent = PathBuf::new();
    let parents = Path::new(path).parent().unwrap_or(Path::new(""));
    for component in parents.components() {
        parent.push(component);
        let planned = parent.to_str().and_then(|text| outcome.get(text));
        let link = match planned {
            Some(Some(state)) => state.mode == Mode::Symlink,
            Some(None) => false,
            None => root.join(&parent).is_symlink(),
        };
        if link {
            return Err(behind_link(path));
        }
    }
    Ok(())
}

/// Whether the way to `path` leads through a symbolic link as things are now.
pub(super) fn is_behind_link(root: &Path, path: &str) -> bool {
    let mut parents = Path::new(path).ancestors().skip(1);
    parents.any(|parent| parent != Path::new("") && root.join(parent).is_symlink())
}

pub(super) fn behind_link(path: &str) -> ApplyError {
    ApplyError::Path {
        file: path.to_owned(),
        problem: "lies behind a symbolic link",
    }
}

/// Linux's limits, with room for the folder that the code is in.
const LONGEST_NAME: usize = 255;
const LONGEST_PATH: usize = 3_000;

/// Refuses changes that no file system takes: written one after the other, some would be made and the
/// rest not.
pub(super) fn can_be_written(root: &Path, outcome: &Outcome) -> Result<(), ApplyError> {
    let stays = |path: &Path| match outcome.iter().find(|(p, _)| Path::new(p) == path) {
        Some((_, state)) => state.is_some(),
        None => fs::symlink_metadata(root.join(path)).is_ok_and(|found| !found.is_dir()),
    };
    let written = outcome
        .iter()
        .filter_map(|(path, state)| Some((path, state.as_ref()?)));
    for (path, state) in written {
        let refused = |problem| {
            Err(ApplyError::Path {
                file: path.clone(),
                problem,
            })
        };
        if path.len() > LONGEST_PATH || path.split('/').any(|name| name.len() > LONGEST_NAME) {
            return refused("its name is too long");
        }
        let target = &state.content;
        if state.mode == Mode::Symlink
            && (target.is_empty() || target.len() > LONGEST_PATH || target.contains(&0))
        {
            return refused("it would be a symbolic link to no possible path");
        }
        let path_of_file = Path::new(path);
        let below = |(other, state): (&String, &Option<FileState>)| {
            state.is_none() && Path::new(other).starts_with(path_of_file)
        };
        let is_folder = fs::symlink_metadata(root.join(path)).is_ok_and(|found| found.is_dir());
        let parents = path_of_file.ancestors().skip(1);
        let in_a_file = parents
            .filter(|parent| !parent.as_os_str().is_empty())
            .any(stays);
        if in_a_file || is_folder && !outcome.iter().any(|(p, s)| below((p, s))) {
            return refused("it would be a file and a folder at once");
        }
    }
    Ok(())
}
